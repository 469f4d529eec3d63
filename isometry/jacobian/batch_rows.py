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
from .reference import sensitivity_of_matmat, sensitivity_of_rmatmat
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
    """One product of the whole batch, with which the same product of any group of its inputs is compared.

    Parameters
    ----------
    whole : ChunkedProducts or BatchRows
    evaluation : Evaluation
    rounding : float
    reverse_only : bool
        Whether it is J^T u, for want of J v.
    """

    def __init__(
        self,
        whole: ChunkedProducts | BatchRows,
        evaluation: Evaluation,
        rounding: float,
        *,
        reverse_only: bool = False,
    ) -> None:
        self._reverse_only, self._rounding = reverse_only, rounding
        self._vector = generic_vectors(evaluation.value if reverse_only else evaluation.point, 1, seed=7)
        self._product = self._applied(whole, self._vector)

    def _applied(self, products: ChunkedProducts | BatchRows, vector: Tensor) -> Tensor:
        return (products.rmatmat if self._reverse_only else products.matmat)(vector)[0]

    def holds_for(
        self, part: ChunkedProducts | BatchRows, evaluation: Evaluation, inputs: range, rounding: float
    ) -> bool:
        """Whether the inputs alone have the Jacobians that they have in the batch, as far as rounding tells."""
        rows = slice(inputs.start, inputs.stop)
        vector, expected = self._vector[:, rows], self._product[rows]
        found = self._applied(part, vector)
        if torch.equal(found, expected):
            return True
        # Input by input: a large Jacobian would hide the difference of a small one.
        difference = max(relative_difference(one, other) for one, other in zip(found, expected, strict=True))
        sensitivity = sensitivity_of_rmatmat if self._reverse_only else sensitivity_of_matmat
        moved = partial(sensitivity, evaluation.function, evaluation.point, vector[0], found)
        with torch.no_grad(), evaluation.numerics():
            return explained(difference, evaluation.unit, max(self._rounding, rounding), moved)
