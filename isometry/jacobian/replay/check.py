"""Comparing the products of a replay with those of torch.func, before the replay is used."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad as forward_mode
from torch.func import vjp

from isometry.jacobian.numerics import ONE_FORWARD_MODE

from .tape import NoRule

# Units of rounding by which two evaluations of one product may differ: some hundred over a thousand layers.
_UNITS = 1000
# Multiples of the rounding that a product shows by itself by which they may differ.
_TIMES_NOISE = 32


class Disagreement(Exception):
    """A recorded map that is not the Jacobian. The text gives the difference."""


def reference_rmatmat(function: Callable[[Tensor], Tensor], point: Tensor, u: Tensor) -> Tensor:
    """J^T u by torch.func, or by plain autograd where that fails.

    Raises
    ------
    NoRule
        Where neither differentiates the function: there is nothing to compare with.
    """
    try:
        return vjp(function, point)[1](u)[0]
    except (NotImplementedError, RuntimeError) as error:
        if "mutate a captured Tensor" in str(error):
            # Plain autograd would run it, and change what belongs to the caller.
            raise NoRule("writing to a tensor that belongs to the model") from error
    try:
        with torch.enable_grad():
            z = point.detach().clone().requires_grad_()
            return torch.autograd.grad(function(z), z, u, materialize_grads=True)[0]
    except (NotImplementedError, RuntimeError) as error:
        raise NoRule("a derivative that autograd has not either") from error


def reference_matmat(function: Callable[[Tensor], Tensor], point: Tensor, v: Tensor) -> Tensor | None:
    """J v by forward mode, or None where an operation has no forward-mode formula."""
    try:
        # PyTorch's forward mode itself: torch.func.jvp wraps each operation once more, for the same number.
        with ONE_FORWARD_MODE, torch.inference_mode(False), torch.enable_grad(), forward_mode.dual_level():
            value = function(forward_mode.make_dual(point.detach().clone(), v.clone()))
            tangent = forward_mode.unpack_dual(value).tangent
            return torch.zeros_like(value) if tangent is None else tangent.clone()
    except (NotImplementedError, RuntimeError):
        return None


def compare(what: str, found: Tensor, expected: Tensor, unit: float, noise: Callable[[], float]) -> None:
    """Raise Disagreement where two products differ by more than rounding, or are not finite at different places.

    Parameters
    ----------
    what : str
        For the message.
    found, expected : Tensor
    unit : float
        Of rounding, relative.
    noise : callable
        The length of the rounding in ``found``; called only where the two differ by more than 1000 units, as they may
        where large terms cancel in J (layer norm along its own input).
    """
    finite = torch.isfinite(expected)
    if not torch.equal(finite, torch.isfinite(found)):
        raise Disagreement(f"{what} is not finite where that of torch.func is, or the other way round")
    difference = float((found - expected)[finite].double().norm())
    size = float(expected[finite].double().norm())
    if difference <= _UNITS * unit * size or difference <= _TIMES_NOISE * noise():
        return
    raise Disagreement(
        f"{what} differs from that of torch.func by {difference / size if size else float('inf'):.1e} of its length"
    )


def rounding_of(product: Callable[[Tensor], Tensor], vector: Tensor, found: Tensor, seed: int) -> float:
    """||A v + A w - A (v + w)|| for another w, given ``found`` = A v; v of whole numbers, so that v + w is exact."""
    generator = torch.Generator().manual_seed(seed)
    other = torch.randint(-127, 128, vector.shape, generator=generator).to(vector)
    out = product(torch.stack([other, vector + other])).double()
    return float((found.double() + out[0] - out[1]).norm())


def compare_adjoint(v: Tensor, jv: Tensor, u: Tensor, jtu: Tensor, unit: float) -> None:
    """Raise Disagreement where <J v, u> is not <v, J^T u>."""
    left, right = (float((a.double() * b.double()).sum()) for a, b in ((jv, u), (v, jtu)))
    size = float(jv.double().norm() * u.double().norm() + jtu.double().norm() * v.double().norm())
    if not abs(left - right) <= _UNITS * unit * size:
        raise Disagreement(f"<J v, u> and <v, J^T u> differ by {abs(left - right) / size:.1e} of their size")
