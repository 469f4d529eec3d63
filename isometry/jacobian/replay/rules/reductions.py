"""Reductions over axes, as a diagonal of derivatives and a sum; and running sums.

The derivatives come from autograd, so that its conventions (at ties of a maximum) hold.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from isometry.jacobian.replay.maps import Identity, Sum, UnfusedMap, diagonal
from isometry.jacobian.replay.tape import NoRule, Operation

from .elementwise import derivatives, elementwise
from .registry import Link, argument, only_argument, output, rule


@rule(
    "sum", "nansum", "mean", "var", "std", "prod", "amax", "amin", "logsumexp", "norm", "linalg_vector_norm", "max",
    "min", "median", "mode", "kthvalue",
)  # fmt: skip
def _reduction(operation: Operation) -> list[Link]:
    if len(operation.sources) > 1:
        # max and min of two tensors.
        return elementwise(operation)
    x = only_argument(operation)
    made = output(operation, 0)
    if made.dtype != x.dtype:
        raise NoRule(f"{operation.function} (of two precisions)")
    axes = argument(operation, "dim")
    if axes is None or axes == []:
        axes = range(x.dim())
    axes = sorted({axis % max(x.dim(), 1) for axis in ([axes] if isinstance(axes, int) else axes)})
    gradients = derivatives(operation, made, expand=False)
    if not gradients:
        return []
    return [Link(0, 0, (diagonal(gradients[0], x.shape), Sum(x.shape, axes) if axes else Identity()))]


class _Cumulative(UnfusedMap):
    """Running sums along one axis."""

    def __init__(self, shape: Sequence[int], axis: int) -> None:
        self._shape, self._axis = tuple(shape), axis + 1

    def matmat(self, v: Tensor, overwrite: bool) -> Tensor:
        return v.reshape(-1, *self._shape).cumsum(self._axis)

    def rmatmat(self, u: Tensor, overwrite: bool) -> Tensor:
        return u.reshape(-1, *self._shape).flip(self._axis).cumsum(self._axis).flip(self._axis)


@rule("cumsum")
def _cumsum(operation: Operation) -> list[Link]:
    x = only_argument(operation)
    if x.dim() == 0:
        return [Link(0, 0, (Identity(),))]
    return [Link(0, 0, (_Cumulative(x.shape, argument(operation, "dim") % x.dim()),))]
