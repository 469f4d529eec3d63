"""Operations that act on each entry by itself: a diagonal, with the derivative that autograd gives.

So every convention (at the kink of ReLU) is PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from isometry.jacobian.replay.maps import Identity, LinearMap, UnfusedMap, broadcast, diagonal, gather
from isometry.jacobian.replay.tape import NoRule, Operation, map_tensors

from .registry import Link, argument, only_argument, output, require_first_output, rule, rule_by_tag, tensors

_aten = torch.ops.aten

# Derivatives from the output, by autograd's own formulas for the activations of very deep networks: autograd itself
# takes a hundred microseconds longer to get there.
_FROM_OUTPUT: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
    "tanh": _aten.tanh_backward.default,
    "sigmoid": _aten.sigmoid_backward.default,
    "relu": lambda ones, output: _aten.threshold_backward.default(ones, output, 0),
}
# From the input and the further arguments of the operation, likewise.
_FROM_INPUT: dict[Any, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "hardtanh": (_aten.hardtanh_backward.default, ("min_val", "max_val")),
    "gelu": (lambda ones, x, kind: _aten.gelu_backward.default(ones, x, approximate=kind), ("approximate",)),
    "silu": (_aten.silu_backward.default, ()),
    "hardswish": (_aten.hardswish_backward.default, ()),
}


# By name those that PyTorch does not tag as pointwise.
@rule("threshold", "gelu", "mish", "hardswish", "hardsigmoid", "log_sigmoid_forward", "_prelu_kernel")
@rule_by_tag(torch.Tag.pointwise)
def elementwise(operation: Operation) -> list[Link]:
    """A diagonal for each argument that depends on the input, after broadcasting it."""
    require_first_output(operation)
    made = output(operation, 0)
    formula = _FROM_OUTPUT.get(operation.name)
    if formula is not None:
        slope = formula(torch.ones_like(made), made.detach())
        return [Link(0, 0, (diagonal(slope, made.shape),))]
    arguments = tensors(operation)
    if operation.name in _FROM_INPUT and made.dtype == arguments[0].dtype:
        backward, options = _FROM_INPUT[operation.name]
        x = arguments[0].detach()
        slope = backward(torch.ones_like(x), x, *(argument(operation, name) for name in options))
        return [Link(0, 0, (diagonal(slope, made.shape),))]
    out = []
    if operation.name == "add" and argument(operation, "alpha", 1) == 1:
        same = {arguments[position].dtype for position in operation.sources} == {made.dtype}
        if same:
            return [Link(p, 0, (broadcast(arguments[p].shape, made.shape),)) for p in operation.sources]
    for position, gradient in derivatives(operation, made, expand=True).items():
        tensor = arguments[position]
        if tensor.dtype != made.dtype:
            raise NoRule(f"{operation.function} (of two precisions)")
        out.append(Link(position, 0, (broadcast(tensor.shape, made.shape), diagonal(gradient, made.shape))))
    return out


def derivatives(operation: Operation, made: Tensor, *, expand: bool) -> dict[int, Tensor]:
    """d (sum of the first output) / d argument for each argument that matters, by autograd on the operation alone.

    Parameters
    ----------
    operation : Operation
    made : Tensor
        Its first output.
    expand : bool
        Whether arguments are broadcast to the shape of the output before, so that each entry has its own derivative.
    """
    leaves: dict[int, Tensor] = {}

    def leaf(position: int, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if position not in operation.sources:
            return tensor
        tensor = tensor.expand(made.shape) if expand else tensor
        leaves[position] = (tensor.clone() if tensor.is_inference() else tensor).requires_grad_()
        return leaves[position]

    args, kwargs = map_tensors(operation.args, operation.kwargs, leaf)
    with torch.enable_grad():
        value = operation.functional()(*args, **kwargs)
        value = value[0] if isinstance(value, list | tuple) else value
        if not value.requires_grad:
            return {}
        gradients = torch.autograd.grad(
            value, list(leaves.values()), torch.ones_like(value), allow_unused=True
        )
    return {
        position: gradient
        for position, gradient in zip(leaves, gradients, strict=True)
        if gradient is not None
    }


@rule("glu")
def _gated(operation: Operation) -> list[Link]:
    """a sigmoid(b): one diagonal for each half of the entries along an axis."""
    x, made = only_argument(operation), operation.output
    axis = argument(operation, "dim") % x.dim()
    (slopes,) = derivatives(operation, made, expand=False).values()
    places = torch.arange(x.numel(), device=x.device).view(x.shape)
    halves = zip(places.chunk(2, axis), slopes.chunk(2, axis), strict=True)
    return [
        Link(0, 0, (gather(index.reshape(-1), x.numel()), diagonal(slope, made.shape)))
        for index, slope in halves
    ]


@rule("detach", "zero", "floor", "ceil", "round", "trunc", "sign")
def _constant(operation: Operation) -> list[Link]:
    only_argument(operation)
    return []


class _Cast(UnfusedMap):
    """The same numbers in another precision."""

    aliases = True

    def __init__(self, source: torch.dtype, result: torch.dtype) -> None:
        self._source, self._result = source, result

    def matmat(self, v: Tensor, overwrite: bool) -> Tensor:
        return v.to(self._result)

    def rmatmat(self, u: Tensor, overwrite: bool) -> Tensor:
        return u.to(self._source)


@rule("_to_copy")
def _to_copy(operation: Operation) -> list[Link]:
    x = only_argument(operation)
    same = x.dtype == operation.output.dtype
    cast: LinearMap = Identity() if same else _Cast(x.dtype, operation.output.dtype)
    return [Link(0, 0, (cast,))]
