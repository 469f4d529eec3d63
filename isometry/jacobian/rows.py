"""All rows of a Jacobian with few outputs, from one batched reverse pass: cheaper than a recording.

The first evaluation keeps its graph; the rows, and one generic combination of them as a check, are then one batched
reverse pass. A difference of f checks them together: the derivative, its batching, and that f repeats. Where rounding
hides the difference, as it does where J is tiny, one product J v in forward mode does.
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
from .reference import reference_matmat, reference_rmatmat
from .rounding import (
    UNITS_OF_A_CAST,
    generic_vectors,
    graph_nodes,
    length,
    relative_difference,
    rounding_by_depth,
)

# Setting up a replay costs what so many rows cost.
MOST_OUTPUTS = 32
# Units of rounding that depth explains in a sum of rows; more may be a cast, which a recording looks for.
_MOST_UNITS = 4 * UNITS_OF_A_CAST
# By how much a difference of f may differ from J v, relative: the curvature of f is in it, and its rounding.
_CONTRADICTED = 0.2


class TrackedRun:
    """The first evaluation of a function with the graph of its derivative, for :meth:`products` or :meth:`reverse`."""

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
        ends = self._ends
        (m, n), at = (evaluation.value.numel(), evaluation.point.numel()), evaluation
        if ends is None or at.batch is not None or at.draws or m > min(MOST_OUTPUTS, n):
            return None
        z, value = ends
        self._ends = None
        nodes = graph_nodes(value)
        (u,), (v,) = generic_vectors(at.value, 1, seed=1), generic_vectors(at.point, 1, seed=2)
        block = torch.cat([torch.eye(m, dtype=u.dtype, device=u.device).view(m, *u.shape), u[None]])
        try:
            with at.numerics(), torch_warnings_silenced():
                found = vmap(lambda w: torch.autograd.grad(value, z, w, retain_graph=True)[0])(block)
                rows, jtu = found[:m].reshape(m, n).contiguous(), found[m]
                jv = (rows @ v.reshape(n)).view(u.shape)
                error = relative_difference((u.reshape(1, m) @ rows).view(z.shape), jtu)
                if bool((found != 0).any()):
                    error = max(error, _difference_from_another(at, v, jv))
                if not error <= _MOST_UNITS * at.unit or not bool(torch.isfinite(found).all()):
                    return None
        except FAILURES_OF_DERIVATIVES:
            return None
        return Products(
            lambda block: (block.reshape(-1, n) @ rows.mT).view(-1, *u.shape),
            lambda block: (block.reshape(-1, m) @ rows).view(-1, *v.shape),
            f"the {m} rows of J, by autograd",
            8 * math.ceil(max(m, n) * z.element_size() / 8),
            (v, jv, u, jtu),
            True,
            # Where J has nearly rank one, the error of one combination is a single random number.
            2 * max(error, rounding_by_depth(len(nodes), at.unit)),
            # Those that are trained; the others change nothing any more.
            reached=tuple(node.variable for node in nodes if hasattr(node, "variable")),
        )

    def reverse(self, evaluation: Evaluation, u: Tensor) -> tuple[Tensor, Tensor]:
        """J^T u and f(x) from the graph, which is freed; by :func:`reference_rmatmat` where there is none."""
        ends, self._ends = self._ends, None
        if ends is not None:
            z, value = ends
            with suppress(*FAILURES_OF_DERIVATIVES):
                return torch.autograd.grad(value, z, u, materialize_grads=True)[0], evaluation.value
        return reference_rmatmat(evaluation.function, evaluation.point, u)


def _difference_from_another(evaluation: Evaluation, v: Tensor, jv: Tensor) -> float:
    """How far J v is from that of another evaluation, relative: 0 where a difference of f agrees, else by forward mode.

    inf where neither agrees.
    """
    at = evaluation
    step = _step(at, v, jv)
    if step is not None:
        moved = (at.function(at.point + step * v) - at.value) / step
        if relative_difference(moved, jv) < _CONTRADICTED:
            return 0.0
    found = reference_matmat(at.function, at.point, v)
    if found is None or not torch.equal(found[1], at.value):
        return math.inf
    return relative_difference(found[0], jv)


def _step(evaluation: Evaluation, v: Tensor, jv: Tensor) -> float | None:
    """The step along v that changes f by a thousand units of its rounding, so that kinks and curvature are far.

    None where that is too far, and ten units are, too: what agrees then may agree by chance.
    """
    eps, size = torch.finfo(v.dtype).eps, length(v)
    of_input = (length(evaluation.point) or 1.0) / size
    of_output = length(evaluation.value) / (length(jv) or math.inf)
    wanted, most = 1000 * eps * max(of_input, of_output), eps ** (1 / 3) * of_input
    return min(wanted, most) if wanted < 100 * most else None
