"""Central differences of a function: a witness where its forward and its reverse derivative contradict one another."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .evaluation import Evaluation
from .numerics import torch_warnings_silenced
from .rounding import generic_vectors, length, relative_difference

# Two steps, one half of the other, have to give the same vector to this part of its length; a derivative that differs
# by more than the other part contradicts them.
_KNOWN, _CONTRADICTED = 0.02, 0.2


def difference(evaluation: Evaluation, v: Tensor) -> Tensor | None:
    """J v by central differences, (\\*output); None where two steps disagree, or where it is zero."""
    at = evaluation
    eps = torch.finfo(at.point.dtype).eps
    # The step that balances curvature and rounding, for entries of the size of the point's.
    size = (length(at.point) or length(v)) / (length(v) or 1.0) * eps ** (1 / 3)
    with at.numerics(), torch_warnings_silenced():
        found = [
            (at.function(at.point + h * v).detach() - at.function(at.point - h * v).detach()) / (2 * h)
            for h in (size, size / 2)
        ]
    known = length(found[0]) > 0 and relative_difference(found[1], found[0]) < _KNOWN
    return found[1] if known else None


def contradicts_reverse(evaluation: Evaluation, rmatmat: Callable[[Tensor], Tensor]) -> bool | None:
    """Whether J^T u is not the transpose of what central differences say of J v; None where they say nothing.

    u is J v by differences itself, so that <J^T u, v> is |J v|^2 and does not cancel.
    """
    (v,) = generic_vectors(evaluation.point, 1, seed=11)
    w = difference(evaluation, v)
    if w is None:
        return None
    scaled = (w / length(w)).to(w)
    with evaluation.numerics(), torch_warnings_silenced():
        (jtu,) = rmatmat(scaled[None])
    return abs(float((jtu.double() * v.double()).sum()) / length(w) - 1) > _CONTRADICTED


def contradicts_forward(evaluation: Evaluation, v: Tensor, jv: Tensor) -> bool:
    """Whether central differences give another J v."""
    w = difference(evaluation, v)
    return w is not None and relative_difference(jv, w) > _CONTRADICTED
