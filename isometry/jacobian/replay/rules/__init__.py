"""What each aten operation is as linear maps: one module for each family of operations. Internal."""

from . import convolutions, elementwise, matrix_products, movement, normalisation, reductions, resampling
from .registry import RULES, Link, links

__all__ = [
    "RULES", "Link", "convolutions", "elementwise", "links", "matrix_products", "movement", "normalisation",
    "reductions", "resampling",
]  # fmt: skip
