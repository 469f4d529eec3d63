"""All rows of a Jacobian with few outputs, from one batched reverse pass: cheaper than a recording.

The first evaluation keeps its graph; the rows, and one generic combination of them as a check, are then one batched
reverse pass. A difference of f checks them together: the derivative, its batching, and that f repeats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor
from torch.func import vmap

from .backends import Products
from .evaluation import Evaluation
from .failures import FAILURES_OF_DERIVATIVES
from .numerics import torch_warnings_silenced
from .rounding import UNITS_OF_A_CAST, generic_vectors, length, relative_difference

# Setting up a replay costs what so many rows cost.
MOST_OUTPUTS = 32
# Units of rounding that depth explains in a sum of rows; more may be a cast, which a recording looks for.
_MOST_UNITS = 4 * UNITS_OF_A_CAST
# By how much a difference of f may differ from J v, relative: the curvature of f is in it, and its rounding.
_CONTRADICTED = 0.2


class TrackedRun:
    """The first evaluation of a function with the graph of its derivative, for :meth:`products`."""

    def __init__(self) -> None:
        self._ends: tuple[Tensor, Tensor] | None = None

    def __call__(self, function: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
        """f(x); without a graph where f fails on tensors that have one."""
        with suppress(*FAILURES_OF_DERIVATIVES), torch.enable_grad():
            z = point.detach().clone().requires_grad_()
            value = function(z)
            self._ends = z, value
            return value.detach()
        return function(point)

    def products(self, evaluation: Evaluation) -> Products | None:
        """Both products from the rows of J; None where there are too many of them, or a check fails.

        Why it fails is then for the products to say that are made instead.
        """
        ends, self._ends = self._ends, None
        (m, n), at = (evaluation.value.numel(), evaluation.point.numel()), evaluation
        if ends is None or at.batch is not None or at.draws or m > min(MOST_OUTPUTS, n):
            return None
        z, value = ends
        (u,), (v,) = generic_vectors(at.value, 1, seed=1), generic_vectors(at.point, 1, seed=2)
        block = torch.cat([torch.eye(m, dtype=u.dtype, device=u.device).view(m, *u.shape), u[None]])
        try:
            with at.numerics(), torch_warnings_silenced():
                found = vmap(lambda w: torch.autograd.grad(value, z, w, retain_graph=True)[0])(block)
                rows, jtu = found[:m].reshape(m, n).contiguous(), found[m]
                jv = (rows @ v.reshape(n)).view(u.shape)
                step = _step(at, v, jv)
                moved = (at.function(at.point + step * v) - at.value) / step
        except FAILURES_OF_DERIVATIVES:
            return None
        error = relative_difference((u.reshape(1, m) @ rows).view(z.shape), jtu)
        agrees = relative_difference(moved, jv) < _CONTRADICTED or not bool((found != 0).any())
        if not bool(torch.isfinite(found).all()) or not agrees or error > _MOST_UNITS * at.unit:
            return None
        return Products(
            lambda block: (block.reshape(-1, n) @ rows.mT).view(-1, *u.shape),
            lambda block: (block.reshape(-1, m) @ rows).view(-1, *v.shape),
            f"the {m} rows of J, by autograd",
            8 * math.ceil(max(m, n) * z.element_size() / 8),
            (v, jv, u, jtu),
            True,
            error,
        )


def _step(evaluation: Evaluation, v: Tensor, jv: Tensor) -> float:
    """The step along v that changes f by a thousand units of its rounding, so that kinks and curvature are far."""
    eps, size = torch.finfo(v.dtype).eps, length(v)
    of_input = (length(evaluation.point) or 1.0) / size
    of_output = length(evaluation.value) / (length(jv) or math.inf)
    return min(1000 * eps * max(of_input, of_output), eps ** (1 / 3) * of_input)
