"""Averages over windows and interpolation: linear operations that PyTorch has with their backward operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from isometry.jacobian.replay.maps import UnfusedMap
from isometry.jacobian.replay.tape import NoRule, Operation

from .registry import Link, argument, only_argument, rule

_aten = torch.ops.aten


class _BatchOperation(UnfusedMap):
    """A linear operation on (batch, ...) with its transpose; probes are further samples of its batch.

    Parameters
    ----------
    forward : callable
        (batch, *source) -> (batch, *result).
    backward : callable
        (batch, *result) and the shape (batch, *source) -> (batch, *source).
    source, result : sequence of int
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        backward: Callable[[Tensor, tuple[int, ...]], Tensor],
        source: Sequence[int],
        result: Sequence[int],
    ) -> None:
        self._forward, self._backward = forward, backward
        self._source, self._result = tuple(source), tuple(result)

    def matmat(self, v: Tensor, overwrite: bool) -> Tensor:
        return self._forward(v.reshape(-1, *self._source))

    def rmatmat(self, u: Tensor, overwrite: bool) -> Tensor:
        u = u.reshape(-1, *self._result)
        return self._backward(u, (u.shape[0], *self._source))


@rule("avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d")
def _average_pool(operation: Operation) -> list[Link]:
    x = only_argument(operation)
    options = operation.args[1:]
    forward = operation.function
    backward = getattr(_aten, f"{operation.name}_backward").default
    adaptive = operation.name.startswith("_")
    if not adaptive:
        # The backward operation has no default values.
        options = tuple(argument(operation, parameter.name) for parameter in forward._schema.arguments[1:])
    axes = 3 if "3d" in operation.name else 2
    batch_axes = x.dim() - axes - 1

    def transposed(u: Tensor, shape: tuple[int, ...]) -> Tensor:
        like = u.new_empty(shape)
        return backward(u.contiguous(), like) if adaptive else backward(u.contiguous(), like, *options)

    made = _BatchOperation(
        lambda v: forward(v, *options), transposed, x.shape[batch_axes:], operation.output.shape[batch_axes:]
    )
    return [Link(0, 0, (made,))]


@rule("upsample_bilinear2d", "upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d")
def _upsample(operation: Operation) -> list[Link]:
    x = only_argument(operation)
    if operation.function._overloadname != "default":
        raise NoRule(str(operation.function))
    options = operation.args[1:]
    forward, backward = operation.function, getattr(_aten, f"{operation.name}_backward").default

    def transposed(u: Tensor, shape: tuple[int, ...]) -> Tensor:
        return backward(u.contiguous(), options[0], list(shape), *options[1:])

    made = _BatchOperation(
        lambda v: forward(v, *options), transposed, x.shape[1:], operation.output.shape[1:]
    )
    return [Link(0, 0, (made,))]
