"""Products of a Jacobian by torch.func for single vectors, with the output of the evaluation that they belong to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad as forward_mode
from torch.func import vjp

from isometry.errors import IsometryError

from .failures import FAILURES_OF_DERIVATIVES, is_out_of_memory
from .numerics import forward_mode_turn
from .perturbation import sensitivity
from .rounding import length

Function = Callable[[Tensor], Tensor]


class NoReference(Exception):
    """Neither torch.func nor plain autograd differentiates the function. The text says why."""


def reference_rmatmat(function: Function, point: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """J^T u by torch.func, or by plain autograd where that fails, and f(x).

    Raises
    ------
    NoReference
        Where neither differentiates the function.
    """
    try:
        value, product = vjp(function, point)[:2]
        return product(u)[0], value.detach()
    except FAILURES_OF_DERIVATIVES as error:
        _pass_on(error)
        if "mutate a captured Tensor" in str(error):
            # Plain autograd would run it, and change what belongs to the caller.
            raise NoReference("writing to a tensor that belongs to the model") from error
    try:
        with torch.enable_grad():
            z = point.detach().clone().requires_grad_()
            value = function(z)
            return torch.autograd.grad(value, z, u, materialize_grads=True)[0], value.detach()
    except FAILURES_OF_DERIVATIVES as error:
        _pass_on(error)
        raise NoReference("a derivative that autograd has not either") from error


def reference_matmat(function: Function, point: Tensor, v: Tensor) -> tuple[Tensor, Tensor] | None:
    """J v by forward mode, and f(x); None where an operation has no forward-mode formula."""
    try:
        # PyTorch's forward mode itself: torch.func.jvp wraps each operation once more, for the same number.
        with forward_mode_turn(), torch.inference_mode(False), torch.enable_grad(), forward_mode.dual_level():
            value = function(forward_mode.make_dual(point.detach().clone(), v.clone()))
            primal, tangent = forward_mode.unpack_dual(value)
            return torch.zeros_like(primal) if tangent is None else tangent.clone(), primal.detach().clone()
    except FAILURES_OF_DERIVATIVES as error:
        _pass_on(error)
        return None


def _pass_on(error: Exception) -> None:
    """Raise errors that say nothing about the way of differentiating: ours, and lack of memory."""
    if isinstance(error, IsometryError) or is_out_of_memory(error):
        raise error


def sensitivity_of_rmatmat(function: Function, point: Tensor, u: Tensor, jtu: Tensor) -> float:
    """By how much rounding inside the model and its derivative moves J^T u, over the length of J^T u."""
    return sensitivity(lambda z: reference_rmatmat(function, z, u)[0], point) / (length(jtu) or 1.0)


def sensitivity_of_matmat(function: Function, point: Tensor, v: Tensor, jv: Tensor) -> float:
    """By how much rounding inside the model and its derivative moves J v, over the length of J v."""

    def run(z: Tensor) -> Tensor:
        found = reference_matmat(function, z, v)
        return torch.zeros_like(jv) if found is None else found[0]

    return sensitivity(run, point) / (length(jv) or 1.0)
