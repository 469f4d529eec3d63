"""Edges of the spectrum: real w off the values of d where dz/dw = 0.

Outside the spectrum w, t and z are real. A stretch of the real axis is a gap of the spectrum where arg z = 0 there
and K = d log z / d log w > 0; it ends where K = 0, an edge with a square root, or at a value of d itself, when the
density there is too thin to make an edge (or is a point mass).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from isometry.theory.leading import LeadingCurve

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Band:
    """One interval of radii that carries continuous mass.

    ``low`` is -inf where the spectrum has no lower edge. ``low_edge``, ``high_edge`` say whether the end is a true
    edge, with a square root.
    """

    low: float
    high: float
    low_edge: bool
    high_edge: bool


def find_bands(curve: LeadingCurve) -> list[Band]:
    """Bands of log |w|, increasing; empty when the spectrum consists of point masses."""
    support = curve.group.law.support
    gaps: list[tuple[float, bool, float, bool]] = []
    lower_ends = [0.0] + [high for _, high in support]
    upper_ends = [low for low, _ in support] + [math.inf]
    for a, b in zip(lower_ends, upper_ends, strict=True):
        if b == 0.0:
            continue
        gaps += _gaps_between(curve, a, b)
    bands: list[Band] = []
    low, low_edge = -math.inf, False
    for start, start_edge, end, end_edge in [*gaps, (math.inf, False, math.inf, False)]:
        if start > low and math.isfinite(start):
            bands.append(Band(low, start, low_edge, start_edge))
        low, low_edge = end, end_edge
    return bands


def _gaps_between(curve: LeadingCurve, a: float, b: float) -> list[tuple[float, bool, float, bool]]:
    """Gaps (start, start is an edge, end, end is an edge) in log |w| between neighbouring values a < b of d."""
    if a == 0.0:
        # Downward from b; below b e^-200 nothing changes any more.
        grid = math.log(b) - np.exp(np.linspace(math.log(200.0), -25.0, 110))
    elif math.isinf(b):
        grid = math.log(a) + np.logaddexp(0.0, np.linspace(-25.0, 45.0, 110))
    else:
        share = 1.0 / (1.0 + np.exp(-np.linspace(-25.0, 25.0, 160)))
        grid = math.log(a) + (math.log(b) - math.log(a)) * share
    grid = np.unique(grid)
    inside = (np.exp(grid) > a * (1 + 1e-12)) & (np.exp(grid) < b * (1 - 1e-12))
    grid = grid[inside]
    if grid.size < 2:
        return []
    radius = np.exp(grid)
    with np.errstate(divide="ignore", invalid="ignore"):
        # A point of the grid may hit t = -nu exactly.
        value, slope = curve.log_z(radius.astype(complex))
    open_gap = _filled(
        (np.abs(value.imag) < 1e-3) & (slope.real > 0), _is_noise(curve, radius, slope.real, a, b)
    )
    found: list[tuple[float, bool, float, bool]] = []
    starts = [(-math.inf if a == 0.0 else math.log(a), False)] if open_gap[0] else []
    ends: list[tuple[float, bool]] = []
    for index in np.flatnonzero(np.diff(open_gap.astype(int))):
        place = _boundary(curve, float(grid[index]), float(grid[index + 1]))
        (ends if open_gap[index] else starts).append((place, True))
    if open_gap[-1]:
        ends.append((math.inf if math.isinf(b) else math.log(b), False))
    for start, end in zip(starts, ends, strict=True):
        found.append((*start, *end))
    return found


def _is_noise(curve: LeadingCurve, radius: Array, slope: Array, a: float, b: float) -> NDArray[np.bool_]:
    """Where K is smaller than its rounding: next to a point mass, where it is a difference of large terms.

    It may vanish there exactly: L (1 - p) = 1, as for two orthogonal ReLU layers.
    """
    distance = np.minimum(np.abs(radius - a), np.abs(radius - b) if math.isfinite(b) else np.inf) / radius
    terms = 2.0 + 2.0 * curve.product.terms
    return np.abs(slope) <= 8e-16 * terms / distance


def _filled(known: NDArray[np.bool_], unknown: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The values with unknown ones taken from the nearest known neighbour toward the middle of the grid."""
    result = known.copy()
    sure = np.flatnonzero(~unknown)
    if sure.size:
        nearest = sure[np.argmin(np.abs(np.arange(known.size)[:, None] - sure), axis=1)]
        result[unknown] = known[nearest[unknown]]
    return result


def _boundary(curve: LeadingCurve, low: float, high: float) -> float:
    """log w of the zero of K between two points; where K is all rounding there, the middle."""

    def slope(log_w: float) -> float:
        return float(curve.log_z(np.array([math.exp(log_w)], complex))[1][0].real)

    if not slope(low) * slope(high) < 0:
        return 0.5 * (low + high)
    return float(brentq(slope, low, high, xtol=1e-15, rtol=1e-14))
