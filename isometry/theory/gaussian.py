"""Gaussian averages E f(sqrt(q) z), z ~ N(0, 1), to rounding. Internal but for `gaussian_average`.

Gauss-Hermite rules lose digits at kinks and wherever the function changes faster than the Gaussian. Here the
line is cut into panels, at every kink and with a geometric grading around h = 0 where activations change, a
16-point Gauss-Legendre rule is used on each, and panels are halved until the two resolutions agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from isometry.errors import ConvergenceError, InputError, NonFiniteError

Array = NDArray[np.float64]
ArrayFunction = Callable[[Array], Array]

POINTS_PER_PANEL = 16
# exp(-z^2/2) is a denormal at 38: float64 holds nothing outside, and averages that come from the tail
# alone (a hard-tanh that almost never saturates) keep all their digits.
TAIL = 38.0
PANEL_TOLERANCE = 1e-15
# Relative error at the limit of panels (a function with noise in it) above which the average is refused.
ACCEPTABLE_ERROR = 1e-9
MAXIMUM_PANELS = 6000
# Where the panels next to a point hold as much after that many halvings as before, the integral diverges there.
HALVINGS = 12
UNCHANGED = 0.9


@lru_cache(maxsize=8)
def legendre_rule(points: int) -> tuple[Array, Array]:
    """Nodes and weights, (points,) each, of the Gauss-Legendre rule on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return (nodes + 1.0) / 2.0, weights / 2.0


def checked_variance(q: float, *, name: str = "q") -> float:
    """The variance as a float.

    Raises
    ------
    InputError
        When it is negative or not finite.
    """
    value = float(q)
    if not math.isfinite(value) or value < 0:
        raise InputError(f"{name} is a variance and must be a finite number of zero or more; got {q!r}.")
    return value


def gaussian_average(function: ArrayFunction, q: float, *, kinks: Sequence[float] = ()) -> float:
    """Average of a function over a centred Gaussian, E f(h) with h ~ N(0, q).

    Parameters
    ----------
    function : callable
        Maps an (n,) float64 array to an (n,) array, elementwise.
    q : float
        Variance of h, zero or more. At q = 0 the value is f(0), or the mean of f(0-) and f(0+) where 0 is a kink.
    kinks : sequence of float
        Points h where the function or a derivative of it jumps. The integral is cut there. A kink that is
        not listed is found by bisection and costs time, not digits.

    Returns
    -------
    float
        The average. The error is about 1e-15 E|f|, and below 1e-12 E|f| for any piecewise smooth f at q from
        1e-12 to 1e4.

    Raises
    ------
    InputError
        When q is no variance, or the function does not return one number per point.
    NonFiniteError
        When the function is nan or inf where the Gaussian still has weight, or its average diverges.
    ConvergenceError
        When the integral does not settle to 1e-9 (noise in the function, or a pole).
    """
    variance = checked_variance(q)
    if variance == 0.0:
        tiny = 1e-300 if 0.0 in tuple(kinks) else 0.0
        return float(np.mean(_evaluated(function, np.array([-tiny, tiny]))))
    sigma = math.sqrt(variance)
    edges = _panel_edges(sigma, kinks)
    lower, upper = edges[:-1], edges[1:]
    coarse, coarse_size = _panel_integrals(function, sigma, lower, upper)
    _refuse_non_finite(coarse, coarse_size, sigma, lower, upper)
    lower, upper, coarse = (part[np.isfinite(coarse_size)] for part in (lower, upper, coarse))
    scale = float(coarse_size[np.isfinite(coarse_size)].sum())
    if scale == 0.0:
        return 0.0
    if max(abs(coarse[0]), abs(coarse[-1])) > PANEL_TOLERANCE * scale:
        raise NonFiniteError(
            f"the average over a Gaussian of variance {variance:.6g} diverges, or nearly: the function grows as fast "
            "as the Gaussian falls. Use a smaller q."
        )

    done: list[float] = []
    panels = lower.size
    largest: list[float] = []
    while lower.size:
        top = int(np.argmax(np.abs(coarse)))
        largest.append(abs(float(coarse[top])))
        # Of panels next to the resolution of h itself nothing is learned.
        resolved = upper[top] - lower[top] > 1e-12 * max(abs(lower[top]), abs(upper[top]))
        if resolved and len(largest) > 2 * HALVINGS and largest[-1] > UNCHANGED * largest[-1 - HALVINGS]:
            raise NonFiniteError(
                f"the average over a Gaussian of variance {variance:.6g} diverges: the function grows like one over "
                f"the distance, or faster, next to h = {sigma * lower[top]:.3g}."
            )
        middle = (lower + upper) / 2.0
        half_lower = np.stack([lower, middle], axis=1)
        half_upper = np.stack([middle, upper], axis=1)
        halves, _ = _panel_integrals(function, sigma, half_lower.ravel(), half_upper.ravel())
        if not np.all(np.isfinite(halves)):
            where = sigma * middle[~np.isfinite(halves).reshape(-1, 2).all(axis=1)][0]
            raise NonFiniteError(
                f"the function is not finite near h = {where:.6g} (average at q = {variance:.6g})."
            )
        halves = halves.reshape(-1, 2)
        difference = np.abs(halves.sum(axis=1) - coarse)
        open_panels = difference > PANEL_TOLERANCE * scale
        # A panel that can no longer be halved holds at most one rounding of the integral.
        open_panels &= (middle > lower) & (middle < upper)
        done.extend(halves[~open_panels].ravel().tolist())
        panels += 2 * int(open_panels.sum())
        if panels > MAXIMUM_PANELS:
            left = float(difference[open_panels].sum())
            if left > ACCEPTABLE_ERROR * scale:
                raise ConvergenceError(
                    f"the Gaussian average at q = {variance:.6g} did not settle: {left / scale:.1e} of E|f| is still "
                    f"moving after {panels} panels. The function is noisy or singular; give its exact derivative, "
                    "or list its kinks."
                )
            done.extend(halves[open_panels].ravel().tolist())
            break
        lower = half_lower[open_panels].ravel()
        upper = half_upper[open_panels].ravel()
        coarse = halves[open_panels].ravel()
    return math.fsum(done)


def _panel_edges(sigma: float, kinks: Sequence[float]) -> Array:
    """Edges in z: unit panels where the mass is, every kink, points at h = +-2^k around zero and around each kink."""
    outwards = np.array([*range(13), 14, 16, 19, 22, 26, 30, TAIL], dtype=np.float64)
    pieces = [np.concatenate([-outwards, outwards])]
    centres = sorted({0.0, *(float(kink) for kink in kinks)})
    # From 1/64 in h outwards. Where sigma is small the whole Gaussian lies within, and nothing is added.
    exponents = np.arange(-6, math.ceil(math.log2(max(sigma, 1e-3) * TAIL)) + 1)
    steps = np.concatenate([[0.0], np.exp2(exponents), -np.exp2(exponents)])
    pieces.extend((centre + steps) / sigma for centre in centres)
    edges = np.unique(np.concatenate(pieces))
    return edges[np.abs(edges) <= TAIL]


def _panel_integrals(
    function: ArrayFunction, sigma: float, lower: Array, upper: Array
) -> tuple[Array, Array]:
    """Integrals of f(sigma z) and of |f(sigma z)| against the Gaussian, one per panel, (panels,) each."""
    nodes, weights = legendre_rule(POINTS_PER_PANEL)
    width = upper - lower
    z = lower[:, None] + width[:, None] * nodes
    density = np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    values = _evaluated(function, (sigma * z).ravel()).reshape(z.shape)
    with np.errstate(invalid="ignore", over="ignore"):
        terms = values * density
        return (terms @ weights) * width, (np.abs(terms) @ weights) * width


def _evaluated(function: ArrayFunction, points: Array) -> Array:
    with np.errstate(all="ignore"):
        values = np.asarray(function(points))
    if values.shape != points.shape:
        raise InputError(
            f"the function must return one number per point: it got {points.shape} and returned {values.shape}. "
            "Write it with numpy operations on whole arrays."
        )
    return values.astype(np.float64, copy=False)


def _refuse_non_finite(integrals: Array, sizes: Array, sigma: float, lower: Array, upper: Array) -> None:
    """Raise where the function is not finite, unless its last finite panels show that the rest is negligible."""
    bad = ~np.isfinite(integrals)
    if not bad.any():
        return
    total = float(sizes[~bad].sum())
    beside = np.zeros_like(bad)
    beside[1:] |= bad[:-1]
    beside[:-1] |= bad[1:]
    # Only outermost panels may be dropped: everything between two finite ones counts.
    finite = np.flatnonzero(~bad)
    inside = finite.size == 0 or bad[finite[0] : finite[-1]].any()
    if inside or not total > 0 or np.any(sizes[beside & ~bad] > 1e-20 * total):
        index = int(np.flatnonzero(bad)[np.argmin(np.abs(lower + upper)[bad])])
        raise NonFiniteError(
            f"the function is not finite for some h between {sigma * lower[index]:.6g} and {sigma * upper[index]:.6g}, "
            f"where the Gaussian of variance {sigma * sigma:.6g} still has weight. Write it so that it does not "
            "overflow, or use a smaller q."
        )
