"""Averages E f(u1, u2) over two correlated Gaussians, for the correlation map. Internal.

With u1 = sqrt(q1) (a s + b t), u2 = sqrt(q2) (a s - b t), a = sqrt((1+c)/2), b = sqrt((1-c)/2), and s, t independent
standard normals, both kinks and near-perfect correlation stay easy: for each s the kinks are known points in t,
and the rest varies in s on the scale b / a around them. The plane is cut there and Gauss-Legendre rules
are used on the cells, of two orders that must agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from isometry.errors import ConvergenceError, InputError, NonFiniteError
from isometry.theory.gaussian import checked_variance, gaussian_average, legendre_rule

Array = NDArray[np.float64]
PairFunction = Callable[[Array, Array], Array]

POINTS = (16, 22)
# exp(-z^2/2) is 2e-22 there; the functions averaged here grow no faster than powers.
TAIL = 10.0
# Between the two rules. The finer one, whose result is kept, is better by orders of magnitude.
TOLERANCE = 1e-12
ACCEPTABLE_ERROR = 1e-9
LEVELS = 4
BLOCK = 2_000_000


def checked_correlation(c: float) -> float:
    """The correlation as a float.

    Raises
    ------
    InputError
        When it is not within [-1, 1].
    """
    value = float(c)
    if not -1.0 <= value <= 1.0:
        raise InputError(f"a correlation lies between -1 and 1; got {c!r}.")
    return value


def pair_average(
    function: PairFunction,
    q: float,
    *,
    c: float,
    q2: float | None = None,
    kinks: Sequence[float] = (),
    one_minus_c: float | None = None,
) -> float:
    """E f(u1, u2) over centred Gaussians of variances q and q2 with correlation c.

    Parameters
    ----------
    function : callable
        Elementwise on two (n,) arrays.
    q, q2 : float
        Variances of u1 and u2; ``q2`` is q unless given.
    c : float
        Correlation, between -1 and 1.
    kinks : sequence of float
        Values of u1 or of u2 at which the function is not smooth.
    one_minus_c : float, optional
        1 - c, for correlations closer to one than float64 can say.

    Returns
    -------
    float
        The average, with an error of about 1e-13 E|f|.

    Raises
    ------
    InputError
        When q is no variance or c no correlation.
    NonFiniteError, ConvergenceError
        When the function is not finite, or the integral does not settle to 1e-9.
    """
    variances = (checked_variance(q), checked_variance(q if q2 is None else q2, name="q2"))
    correlation = checked_correlation(c)
    gap = 1.0 - correlation if one_minus_c is None else float(one_minus_c)
    sigma1, sigma2 = math.sqrt(variances[0]), math.sqrt(variances[1])
    if gap == 0.0 or correlation == -1.0:
        sign = 1.0 if gap == 0.0 else -1.0
        scaled = [kink / sigma for kink in kinks for sigma in (sigma1, sign * sigma2) if sigma != 0.0]
        return gaussian_average(
            lambda z: function(sigma1 * z, sign * sigma2 * z), 1.0, kinks=sorted(set(scaled))
        )
    together = math.sqrt((2.0 - gap) / 2.0)
    apart = math.sqrt(gap / 2.0)

    for level in range(LEVELS):
        coarse, _ = _rule(function, (sigma1, sigma2), (together, apart), kinks, level, POINTS[0])
        value, size = _rule(function, (sigma1, sigma2), (together, apart), kinks, level, POINTS[1])
        if not math.isfinite(value):
            raise NonFiniteError(
                f"the function is not finite within ten standard deviations (variances {variances[0]:.6g}, "
                f"{variances[1]:.6g}, correlation {correlation:.6g})."
            )
        moved = abs(value - coarse)
        if moved <= TOLERANCE * size:
            return value
    if moved <= ACCEPTABLE_ERROR * size:
        return value
    raise ConvergenceError(
        f"the average over two Gaussians of variances {variances[0]:.6g}, {variances[1]:.6g} and correlation "
        f"{correlation:.6g} did not settle: it still moves by {moved / size:.1e} of E|f|. List the function's kinks."
    )


def _rule(
    function: PairFunction,
    sigmas: tuple[float, float],
    mixing: tuple[float, float],
    kinks: Sequence[float],
    level: int,
    points: int,
) -> tuple[float, float]:
    """E f and E |f| by the product rule whose panels are halved ``level`` times, ``points`` on each."""
    together, apart = mixing
    nodes, weights = legendre_rule(points)
    outer = _refined(_outer_edges(sigmas, mixing, kinks), level)
    width = np.diff(outer)
    s = (outer[:-1, None] + width[:, None] * nodes).ravel()
    outer_weights = (width[:, None] * weights).ravel() * _density(s)

    lines = _lines(sigmas, kinks)
    base = np.linspace(-TAIL, TAIL, 11)
    panels = (base.size + 2 * lines[0].size) << level
    rows = max(1, BLOCK // (panels * points))
    total = size = 0.0
    for start in range(0, s.size, rows):
        part = s[start : start + rows]
        # u1 = sigma1 (a s + b t) and u2 = sigma2 (a s - b t) cross their lines at these t.
        crossings = [
            (line - together * part[:, None]) / apart * sign
            for line, sign in zip(lines, (1.0, -1.0), strict=True)
        ]
        edges = np.concatenate([np.broadcast_to(base, (part.size, base.size)), *crossings], axis=1)
        edges = _refined(np.sort(np.clip(edges, -TAIL, TAIL), axis=1), level)
        inner = np.diff(edges, axis=1)
        t = (edges[:, :-1, None] + inner[:, :, None] * nodes).reshape(part.size, -1)
        inner_weights = (inner[:, :, None] * weights).reshape(part.size, -1) * _density(t)
        centre = together * part[:, None]
        u1, u2 = sigmas[0] * (centre + apart * t), sigmas[1] * (centre - apart * t)
        with np.errstate(all="ignore"):
            values = np.asarray(function(u1.ravel(), u2.ravel()), dtype=np.float64).reshape(t.shape)
            terms = values * inner_weights
        total += float(outer_weights[start : start + rows] @ terms.sum(axis=1))
        size += float(outer_weights[start : start + rows] @ np.abs(terms).sum(axis=1))
    return total, size


def _lines(sigmas: tuple[float, float], kinks: Sequence[float]) -> tuple[Array, Array]:
    """Where to cut in u1 / sigma1 and in u2 / sigma2: every kink, and powers of two around it and around zero."""
    lines: list[Array] = []
    for sigma in sigmas:
        if sigma == 0.0:
            lines.append(np.zeros(0))
            continue
        steps = (
            np.exp2(np.arange(0, math.ceil(math.log2(max(sigma, 1e-3) * TAIL)) + 1))
            if sigma > 1.0
            else np.zeros(0)
        )
        centres = np.array(sorted({*map(float, kinks), *([0.0] if sigma > 1.0 else [])}))
        cuts = (centres[:, None] + np.concatenate([[0.0], steps, -steps])).ravel() / sigma
        lines.append(np.unique(cuts[np.abs(cuts) <= 2.0 * TAIL]))
    count = max(line.size for line in lines)
    # Equal lengths, padded with a line that is never crossed within the square.
    return tuple(np.concatenate([line, np.full(count - line.size, 1e9)]) for line in lines)  # type: ignore[return-value]


def _outer_edges(sigmas: tuple[float, float], mixing: tuple[float, float], kinks: Sequence[float]) -> Array:
    """Edges in s: panels of width two, and a geometric grading down to b / a around every kink."""
    together, apart = mixing
    edges = [np.linspace(-TAIL, TAIL, 11)]
    layer = max(apart / together, 1e-12)
    distances = (
        layer * np.exp2(np.arange(-1.0, math.log2(2.0 * TAIL / layer) + 1.0)) if layer < 2.0 else np.zeros(0)
    )
    for sigma in sigmas:
        if sigma == 0.0:
            continue
        for kink in kinks:
            edges.append(kink / (sigma * together) + np.concatenate([[0.0], distances, -distances]))
        if sigma > 1.0:
            powers = np.exp2(np.arange(0, math.ceil(math.log2(sigma * TAIL)) + 1)) / (sigma * together)
            for centre in {0.0, *map(float, kinks)}:
                edges.append(centre / (sigma * together) + np.concatenate([[0.0], powers, -powers]))
    joined = np.unique(np.concatenate(edges))
    return joined[np.abs(joined) <= TAIL]


def _refined(edges: Array, level: int) -> Array:
    """The same edges with every panel cut into 2^level equal parts, along the last axis."""
    if level == 0:
        return edges
    parts = 1 << level
    fractions = np.arange(parts) / parts
    inside = edges[..., :-1, None] + np.diff(edges, axis=-1)[..., None] * fractions
    return np.concatenate([inside.reshape(*edges.shape[:-1], -1), edges[..., -1:]], axis=-1)


def _density(z: Array) -> Array:
    return np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
