"""A function and a point -> its Jacobian as a map on blocks of vectors. What ``__all__`` does not list is internal."""

from .checks import refuse_training_mode
from .dataflow import Dataflow, DataflowOperation
from .function import point_function, private_copy, uncompiled
from .inputs import InputPart, Inputs, Wrt, model_inputs
from .layers import LayerInfo, named_layers
from .live import LiveJacobian
from .matrix import MatrixOperator
from .numerics import forward_mode_turn, keeps_torch_state, strict_numerics, warnings_silenced
from .operator import DEFAULT_MEMORY_LIMIT, JacobianOperator
from .outputs import Output
from .replay import ModuleCall
from .segments import JacobianSegment, JacobianSegments, SegmentOperator
from .tangents import Arrival, RecordedTangents, push_tangents

__all__ = [
    "DEFAULT_MEMORY_LIMIT", "Arrival", "Dataflow", "DataflowOperation", "InputPart", "Inputs", "JacobianOperator",
    "JacobianSegment", "JacobianSegments", "LayerInfo", "LiveJacobian", "MatrixOperator", "ModuleCall", "Output",
    "RecordedTangents", "SegmentOperator", "Wrt", "forward_mode_turn", "keeps_torch_state", "model_inputs",
    "named_layers", "point_function", "private_copy", "push_tangents", "refuse_training_mode", "strict_numerics",
    "uncompiled", "warnings_silenced",
]  # fmt: skip
