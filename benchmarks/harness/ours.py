"""What isometry does in each contest. Public names only; everything from model and input to the answer is timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import isometry

from . import networks
from .contest import Answer


def measured(network: dict[str, Any], method: str, **options: Any) -> Callable[[], Answer]:
    """`isometry.measure` with the operator's set-up and its checks."""
    model, x = networks.build(network)

    def work() -> Answer:
        return answer(isometry.measure(model, x, method, progress=False, **options))

    return work


def leading(network: dict[str, Any], *, count: int, tol: float, block: int = 8) -> Callable[[], Answer]:
    """`isometry.estimators.leading_triplets`: each with its residual, and a bound on what may be missing."""
    from isometry.estimators import leading_triplets

    model, x = networks.build(network)

    def work() -> Answer:
        found = leading_triplets(isometry.JacobianOperator(model, x), count, tol=tol, block=block)
        return {
            "top": found.values[0], "residuals": found.residuals[0], "upper": found.upper[0],
            "certified": bool(found.certified.all()), "confidence": float(found.confidence),
            "products": int(found.products),
        }  # fmt: skip

    return work


def answer(spectrum: isometry.Spectrum) -> Answer:
    """The numbers of a spectrum that the contests compare."""
    extremes, rules = spectrum.extremes, spectrum.distribution
    return {
        "nodes": rules.nodes[0], "weights": rules.weights[0],
        "top": extremes.top[0], "residuals": extremes.top_residual[0],
        "mean_square": float(spectrum.mean_square),
        "products": int(spectrum.products or 0),
    }  # fmt: skip


def dense_reference(
    network: dict[str, Any], *, squared: bool = False, dtype: str = "float64"
) -> Callable[[], Answer]:
    """All singular values, decomposed in float64, of the materialised Jacobian of the network in ``dtype``.

    With ``squared`` from the eigenvalues of J^T J, in a fraction of the time: what lies below 1e-8 s_max is lost by
    the square.
    """
    import torch

    model, x = networks.build(network, dtype=dtype)

    def work() -> Answer:
        if not squared:
            spectrum = isometry.measure(model, x, "exact", progress=False)
            return {"values": spectrum.distribution.nodes[0].ravel()}
        operator = isometry.JacobianOperator(model, x)
        m, n = operator.shape
        rows = m <= n
        shape, product = (
            (operator.output_shape, operator.rmatmat) if rows else (operator.input_shape, operator.matmat)
        )
        side = min(m, n)
        dense = torch.empty(side, max(m, n), dtype=torch.float64)
        for first in range(0, side, 64):
            last = min(first + 64, side)
            unit = torch.zeros(last - first, side, dtype=x.dtype)
            unit[torch.arange(last - first), torch.arange(first, last)] = 1
            dense[first:last] = product(unit.reshape(-1, *shape)).reshape(last - first, -1)
        squares = torch.linalg.eigvalsh(dense @ dense.T)
        return {"values": np.sqrt(squares.clamp_min(0).flip(0).numpy())}

    return work
