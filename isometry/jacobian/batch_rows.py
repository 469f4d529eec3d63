"""Products for some inputs of a batch, made from those of the whole batch. Internal.

A model may couple the values of a batch without coupling its derivatives: x.tanh() * x.detach().abs().amax(). Each
input then has a Jacobian of its own, which depends on the values of the others, and a group of inputs evaluated alone
has another one.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .chunks import ChunkedProducts
from .evaluation import Evaluation
from .reference import sensitivity_of_matmat
from .rounding import explained, generic_vectors, relative_difference


class BatchRows:
    """Both products for a range of the inputs of a batch: those of the whole batch, zero at the other inputs.

    Parameters
    ----------
    whole : ChunkedProducts or BatchRows
        Of the whole batch.
    size : int
        Inputs in the whole batch.
    inputs : range
    """

    def __init__(self, whole: ChunkedProducts | BatchRows, size: int, inputs: range) -> None:
        self._whole, self._size, self._rows = whole, size, slice(inputs.start, inputs.stop)

    @property
    def chunk(self) -> int:
        """Probes at a time."""
        return self._whole.chunk

    def matmat(self, block: Tensor) -> Tensor:
        """J v for a block."""
        return self._whole.matmat(self._embedded(block))[:, self._rows]

    def rmatmat(self, block: Tensor) -> Tensor:
        """J^T u for a block."""
        return self._whole.rmatmat(self._embedded(block))[:, self._rows]

    def _embedded(self, block: Tensor) -> Tensor:
        whole = block.new_zeros((block.shape[0], self._size, *block.shape[2:]))
        whole[:, self._rows] = block
        return whole


class BatchReference:
    """One product of the whole batch, with which the same product of any group of its inputs is compared."""

    def __init__(self, whole: ChunkedProducts | BatchRows, point: Tensor, rounding: float) -> None:
        self._vector = generic_vectors(point, 1, seed=7)
        self._product = whole.matmat(self._vector)[0]
        self._rounding = rounding

    def holds_for(
        self, part: ChunkedProducts | BatchRows, evaluation: Evaluation, inputs: range, rounding: float
    ) -> bool:
        """Whether the inputs alone have the Jacobians that they have in the batch, as far as rounding tells."""
        rows = slice(inputs.start, inputs.stop)
        vector, expected = self._vector[:, rows], self._product[rows]
        found = part.matmat(vector)[0]
        if torch.equal(found, expected):
            return True
        # Input by input: a large Jacobian would hide the difference of a small one.
        difference = max(relative_difference(one, other) for one, other in zip(found, expected, strict=True))
        of_jv = partial(sensitivity_of_matmat, evaluation.function, evaluation.point, vector[0], found)
        with torch.no_grad(), evaluation.numerics():
            return explained(difference, evaluation.unit, max(self._rounding, rounding), of_jv)
