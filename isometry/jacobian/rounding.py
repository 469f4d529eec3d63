"""How far the products of a Jacobian are off by rounding, measured on vectors that a cast inside the model rounds too.

A product A v as computed is not linear: each cast and each sum in it rounds. ||A v + A w - A (v + w)|| shows that
rounding, provided that v + w itself is exact and that v, w and v + w are rounded by the casts: vectors of small whole
numbers are exact in half precision and would show nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .perturbation import TIMES_SENSITIVITY, length_of_difference, norm

# Units of rounding from which on a cast inside the model is looked for.
UNITS_OF_A_CAST = 64
# Units of rounding of s_max that a product of a shallow network may be off by.
UNITS_OF_ROUNDING = 8
# Units by which two computations of one product may differ without further question.
UNITS_ALLOWED = 16
# Multiples of the nonlinearity that a product shows by which it may differ from another computation of it.
_TIMES_NONLINEARITY = 8


def rounding_by_depth(operations: int, unit: float) -> float:
    """The relative rounding that a product through so many operations has: each adds half a unit of random sign.

    Where one direction dominates, what products of a few vectors differ by is a single random number, and may be small
    by chance.
    """
    return math.sqrt(operations) * unit / 2


def graph_nodes(value: Tensor) -> set[Any]:
    """The operations that a value was made by, as autograd has recorded them."""
    seen: set[Any] = set()
    left: list[Any] = [value.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [before for before, _ in node.next_functions]
    return seen


def generic_vectors(like: Tensor, count: int, seed: int) -> Tensor:
    """(count, \\*shape) vectors of about unit length with generic entries, such that the sum of any two is exact.

    Entries are 1 + g, g normal, so that what a mean would add is not missed, on a grid of 2^(4 - p), p being the digits
    of the type, and below 8: each has at most p - 1 digits, and a sum of two at most p. That is more than a coarser
    type has (p is 24 for float32, 11 for half, 8 for bfloat16). The length is that of the vectors that measurements
    take, where half precision underflows as it does there.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn((count, *like.shape), generator=generator, dtype=torch.float64)
    step = 16 * torch.finfo(like.dtype).eps
    entries = ((1 + drawn).clamp(-7, 7) / step).round() * step
    return (entries * 2.0 ** -round(math.log2(like.numel()) / 2)).to(like)


def with_sum(v: Tensor, w: Tensor) -> Tensor:
    """v, w and v + w as one block."""
    return torch.stack([v, w, v + w])


def nonlinearity(products: Tensor) -> float:
    """||A v + A w - A (v + w)|| over the length of the three, which ``products`` holds."""
    out = products.double()
    # A power of two: the scaling is exact.
    out = torch.ldexp(out, torch.tensor(-math.frexp(float(out.abs().max()))[1]))
    return float((out[0] + out[1] - out[2]).norm() / max(float(out.norm()), 1e-300))


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """||a - b|| / ||b|| over what is finite; inf where they are not finite at different places."""
    if not torch.equal(torch.isfinite(found), torch.isfinite(expected)):
        return math.inf
    difference = length_of_difference(found, expected)
    return 0.0 if difference == 0 else difference / (length(expected) or math.nan)


def length(vector: Tensor) -> float:
    """||v|| over the entries that are finite."""
    return norm(vector.reshape(-1)[torch.isfinite(vector.reshape(-1))])


def explained(difference: float, unit: float, nonlinear: float, sensitivity: Callable[[], float]) -> bool:
    """Whether rounding explains that two computations of one product differ.

    Parameters
    ----------
    difference : float
        Relative.
    unit : float
        Of rounding of the products.
    nonlinear : float
        :func:`nonlinearity` of the products.
    sensitivity : callable
        By how much rounding inside the model and its derivative moves the product, relative. It takes a few products,
        and is asked only where 16 units and 8 times the nonlinearity do not explain the difference.
    """
    if difference <= max(UNITS_ALLOWED * unit, _TIMES_NONLINEARITY * nonlinear):
        return True
    return difference <= TIMES_SENSITIVITY * sensitivity()


def adjoint_difference(v: Tensor, jv: Tensor, u: Tensor, jtu: Tensor) -> float:
    """|<J v, u> - <v, J^T u>| / (|J v| |u| + |v| |J^T u|)."""
    # Each factor is scaled first: a deep network's products may be 1e-30 or 1e30.
    scale = max(float(jv.abs().max()) or 1.0, float(jtu.abs().max()) or 1.0)
    v, jv, u, jtu = v.double(), jv.double() / scale, u.double(), jtu.double() / scale
    size = float(jv.norm() * u.norm() + jtu.norm() * v.norm())
    return abs(float((jv * u).sum()) - float((jtu * v).sum())) / size if size > 0 else 0.0
