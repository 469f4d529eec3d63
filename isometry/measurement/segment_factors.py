"""The segments of a recorded model as the factors of a chain. Internal."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from isometry.errors import NonFiniteError
from isometry.jacobian import JacobianOperator, JacobianSegments, SegmentOperator

# A recording is made once for predicting the memory and for the measurement.
_RECORDED: WeakKeyDictionary[JacobianOperator, JacobianSegments] = WeakKeyDictionary()


def segments_of(operator: JacobianOperator) -> JacobianSegments:
    """The segments of the Jacobian of an operator.

    Raises
    ------
    ModelError
        Where the model cannot be recorded.
    """
    if operator not in _RECORDED:
        _RECORDED[operator] = JacobianSegments.of(operator)
    return _RECORDED[operator]


class SegmentFactor:
    """A segment as a map on rows of float64 numbers."""

    def __init__(self, operator: SegmentOperator) -> None:
        self._operator = operator
        self.shape = operator.shape
        self.rounding = operator.rounding

    def forward(self, block: Tensor) -> Tensor:
        return self._applied(self._operator.matmat, block, self._operator.input_shape)

    def adjoint(self, block: Tensor) -> Tensor:
        return self._applied(self._operator.rmatmat, block, self._operator.output_shape)

    def _applied(self, product: Callable[[Tensor], Tensor], block: Tensor, shape: torch.Size) -> Tensor:
        if block.shape[0] == 0:
            return block.new_zeros(0, self.shape[0] if product == self._operator.matmat else self.shape[1])
        sample = shape if self._operator.batch is None else torch.Size((1, *shape))
        vectors = block.to(self._operator.dtype).reshape(-1, *sample)
        found = product(vectors).reshape(block.shape[0], -1)
        largest, limits = float(found.abs().max()), torch.finfo(found.dtype)
        if 0 < largest < limits.tiny / limits.eps:
            raise NonFiniteError(
                f"a layer shrinks all vectors to {largest:.1e}, where {found.dtype} has lost digits: measure with "
                "dtype=torch.float64, or scale the layer"
            )
        return found.to(torch.float64)


def segment_factors(operator: JacobianOperator) -> list[SegmentFactor]:
    """The factors of J, the first one first."""
    segments = segments_of(operator)
    return [SegmentFactor(segments.operator(number, number + 1)) for number in range(len(segments))]
