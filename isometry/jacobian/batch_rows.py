"""Products for some inputs of a batch, made from those of the whole batch. Internal.

A model may couple the values of a batch without coupling its derivatives: x.tanh() * x.detach().abs().amax(), or
x / len(x). Each input then has a Jacobian of its own, which depends on the others, their number or its place among
them, and a group of inputs evaluated alone has another one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from isometry.errors import FallbackWarning, IsometryError, warn_caller

from .chunks import ChunkedProducts
from .evaluation import Evaluation
from .function import PointFunction
from .numerics import torch_warnings_silenced
from .reference import (
    reference_rmatmat,
    sensitivity_of_matmat,
    sensitivity_of_rmatmat,
)
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


def warn_where_the_batch_enters(
    evaluation: Evaluation,
    checked: tuple[Tensor, ...],
    rounding: float,
    alone: Callable[[int], Sequence[Callable[[], PointFunction]]],
) -> None:
    """Warn where the first or the last sample of a batch has another Jacobian when it is evaluated alone.

    Parameters
    ----------
    evaluation : Evaluation
        Of the batch.
    checked : tuple of Tensor
        v, J v, u and J^T u of all samples.
    rounding : float
        Of the products, relative.
    alone : callable
        For the number of a sample callables that make its function, in as many ways as other inputs may be cut; one of
        them is right. One that fails says nothing: a model may take batches of one size alone.
    """
    last = len(evaluation.point) - 1
    with evaluation.numerics(), torch_warnings_silenced():
        differs = any(_differs(evaluation, checked, rounding, k, alone(k)) for k in (last, 0))
    if differs:
        warn_caller(
            "the Jacobian of a sample depends on the batch (on the values or the number of the other samples, or on "
            "its place among them): alone it has another one. Measured are the Jacobians in this batch; for those of "
            "single samples measure them one by one",
            FallbackWarning,
        )


def _differs(
    evaluation: Evaluation,
    checked: tuple[Tensor, ...],
    rounding: float,
    number: int,
    alone: Sequence[Callable[[], PointFunction]],
) -> bool:
    u, expected = (block[number : number + 1] for block in checked[2:])
    differs = False
    for make in alone:
        found = _product_alone(make, u)
        if found is None:
            continue
        product, sensitivity = found
        if product.shape == expected.shape and explained(
            relative_difference(product, expected), evaluation.unit, rounding, sensitivity
        ):
            return False
        differs = True
    return differs


def _product_alone(make: Callable[[], PointFunction], u: Tensor) -> tuple[Tensor, Callable[[], float]] | None:
    """J^T u of a sample alone, and its sensitivity to rounding; None where it fails."""
    try:
        part = make()
        found = reference_rmatmat(part.function, part.point, u)[0]
    except IsometryError:
        return None
    except Exception:
        return None
    return found, partial(sensitivity_of_rmatmat, part.function, part.point, u, found)
