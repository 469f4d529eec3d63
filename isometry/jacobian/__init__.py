"""A function and a point -> its Jacobian as a map on blocks of vectors."""

from .layers import LayerInfo, named_layers
from .matrix import MatrixOperator
from .operator import JacobianOperator

__all__ = ["JacobianOperator", "LayerInfo", "MatrixOperator", "named_layers"]
