"""How far an answer is from the singular values of the dense float64 Jacobian."""

from __future__ import annotations

import numpy as np

from .contest import Answer


def of_top(answer: Answer, values: np.ndarray, count: int) -> dict[str, float]:
    """Largest relative error of the leading ``count`` values (infinite where fewer came), beside the bound stated.

    The bound is ours alone: the distance from a value to the upper bound of its rank, or its residual.
    """
    top = np.asarray(answer["top"], dtype=np.float64)[:count]
    if top.size < count or not np.isfinite(top).all():
        return {"top error": float("inf")}
    found = {"top error": float(np.max(np.abs(top - values[:count]) / values[:count]))}
    if "upper" in answer:
        found["certified to"] = float(np.max(answer["upper"][:count] / top - 1))
    if "residuals" in answer:
        found["residual"] = float(np.max(answer["residuals"][:count] / top))
    return found


def of_all(answer: Answer, values: np.ndarray) -> dict[str, float]:
    """Largest error of any value, in units of s_max."""
    top = np.sort(np.asarray(answer["top"], dtype=np.float64))[::-1]
    return {"error / s_max": float(np.max(np.abs(top - values)) / values[0])}


def of_density(answer: Answer, values: np.ndarray) -> dict[str, float]:
    """Earth mover's distance in units of the mean singular value, and relative error of the mean square.

    Both are mostly chance of the probes: with as many probes all methods should show about the same, and a much larger
    one is an error of the method.
    """
    from scipy.stats import wasserstein_distance

    nodes = np.asarray(answer["nodes"], dtype=np.float64)
    weights = np.asarray(answer["weights"], dtype=np.float64) / nodes.shape[0]
    distance = wasserstein_distance(nodes.ravel(), values, weights.ravel())
    mean_square, true = float(np.sum(weights * nodes**2)), float(np.mean(values**2))
    return {
        "distance / mean s": float(distance / values.mean()),
        "mean square error": abs(mean_square - true) / true,
    }
