"""Products of matrices and vectors, in which either factor may depend on the input."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from isometry.jacobian.replay.maps import (
    BatchedLeftProduct,
    BatchedRightProduct,
    LinearMap,
    RightProduct,
    broadcast,
    diagonal,
)
from isometry.jacobian.replay.tape import Operation

from .registry import Link, argument, rule, tensors


@rule("mm", "addmm", "mv", "addmv", "dot", "vdot")
def _matrix_product(operation: Operation) -> list[Link]:
    factors = [tensor.detach() for tensor in tensors(operation)]
    at = 1 if operation.name.startswith("add") else 0
    left, right = factors[at], factors[at + 1]
    rows = left if left.dim() == 2 else left[None]
    columns = right if right.dim() == 2 else right[:, None]
    width = columns.shape[1]
    out = _by_factor(
        operation,
        rows,
        columns,
        at,
        lambda matrix: RightProduct(matrix),
        lambda matrix: RightProduct(matrix.T) if width == 1 else BatchedLeftProduct(matrix[None], width),
        _multiple(operation, "alpha"),
    )
    return out + _added(operation, factors[0])


@rule("bmm", "baddbmm")
def _batched_product(operation: Operation) -> list[Link]:
    factors = [tensor.detach() for tensor in tensors(operation)]
    at = 1 if operation.name == "baddbmm" else 0
    left, right = factors[at], factors[at + 1]
    rows, columns = left.shape[1], right.shape[2]
    out = _by_factor(
        operation,
        left,
        right,
        at,
        lambda matrices: BatchedRightProduct(matrices, rows),
        lambda matrices: BatchedLeftProduct(matrices, columns),
        _multiple(operation, "alpha"),
    )
    return out + (_added(operation, factors[0]) if at else [])


def _by_factor(
    operation: Operation, left: Tensor, right: Tensor, at: int, of_rows: Callable[[Tensor], LinearMap],
    of_columns: Callable[[Tensor], LinearMap], then: Sequence[LinearMap] = (),
) -> list[Link]:  # fmt: skip
    """The links of the factors that depend on the input, tensors number ``at`` and ``at + 1``."""
    out = []
    if at in operation.sources:
        out.append(Link(at, 0, (of_rows(right), *then)))
    if at + 1 in operation.sources:
        out.append(Link(at + 1, 0, (of_columns(left), *then)))
    return out


def _multiple(operation: Operation, name: str) -> tuple[LinearMap, ...]:
    factor = float(argument(operation, name, 1))
    return () if factor == 1.0 else (diagonal(torch.tensor(factor, dtype=torch.float64), ()),)


def _added(operation: Operation, bias: Tensor) -> list[Link]:
    """The link of the summand of addmm and its like."""
    if not operation.name.startswith(("add", "badd")) or 0 not in operation.sources:
        return []
    return [Link(0, 0, (broadcast(bias.shape, operation.output.shape), *_multiple(operation, "beta")))]
