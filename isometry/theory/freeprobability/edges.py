"""Edges of the spectrum: real w off the values of d where dz/dw = 0. Internal.

Outside the spectrum w, t and z are real. A stretch of the real axis is a gap of the spectrum where arg z = 0 there
and K = d log z / d log w > 0; it ends where K = 0, an edge with a square root, or at a value of d itself, when the
density there is too thin to make an edge (or is a point mass). K has poles where t = -nu; between neighbouring ones it
is smooth, and its zeros are found on a grid that crowds at both.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar

from isometry.theory.freeprobability.leading import LeadingCurve

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]


# Poles from which on the intervals between them get fewer points.
MANY = 16
BISECTIONS = 70


@dataclass(frozen=True)
class Band:
    """One interval of radii that carries continuous mass.

    ``low`` is -inf where the spectrum has no lower edge. ``low_edge``, ``high_edge`` say whether the end is a true
    edge, with a square root. ``mass_above`` is the continuous mass above the low end, where a gap below tells it.
    """

    low: float
    high: float
    low_edge: bool
    high_edge: bool
    mass_above: float | None = None


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
    # Below b e^-200, or above a e^45, nothing changes any more.
    low = math.log(b) - 200.0 if a == 0.0 else math.log(a)
    high = math.log(a) + 45.0 if math.isinf(b) else math.log(b)
    poles = _poles(curve, low, high)
    ends = [low, *poles, high]
    # With widths that all differ there are a hundred intervals, none of which is wide.
    points = 160 if len(ends) < MANY else 40
    grid = np.unique(np.concatenate([_between(*pair, points) for pair in itertools.pairwise(ends)]))
    grid = grid[(np.exp(grid) > a * (1 + 1e-12)) & (np.exp(grid) < b * (1 - 1e-12))]
    if grid.size < 2:
        return []
    value, slope = _on_axis(curve, grid)
    dips = _dips(curve, grid, slope, poles)
    if dips:
        grid = np.sort(np.append(grid, dips))
        value, slope = _on_axis(curve, grid)
    open_gap = _filled((np.abs(value.imag) < 1e-3) & (slope > 0), _is_noise(curve, np.exp(grid), slope, a, b))
    found: list[tuple[float, bool, float, bool]] = []
    starts = [(-math.inf if a == 0.0 else math.log(a), False)] if open_gap[0] else []
    stops: list[tuple[float, bool]] = []
    for index in np.flatnonzero(np.diff(open_gap.astype(int))):
        place = _boundary(curve, float(grid[index]), float(grid[index + 1]), poles)
        (stops if open_gap[index] else starts).append((place, True))
    if open_gap[-1]:
        stops.append((math.inf if math.isinf(b) else math.log(b), False))
    for start, stop in zip(starts, stops, strict=True):
        found.append((*start, *stop))
    return found


def _on_axis(curve: LeadingCurve, log_w: Array) -> tuple[ComplexArray, Array]:
    """log z and K at (n,) real w."""
    with np.errstate(divide="ignore", invalid="ignore"):
        # A point of the grid may hit t = -nu exactly.
        value, slope = curve.log_z(np.exp(log_w).astype(complex))
    return value, slope.real


def _between(low: float, high: float, points: int) -> Array:
    """A grid inside an interval of log w, crowded at both ends: next to a pole or a value of d zeros of K hide."""
    return low + (high - low) / (1.0 + np.exp(-np.linspace(-25.0, 25.0, points)))


def _poles(curve: LeadingCurve, low: float, high: float) -> list[float]:
    """Places in log w where K has a pole, t = 0 or t = -nu; t falls with w between neighbouring values of d."""

    def one_plus_t(log_w: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            # Where h = 0 the ratio m/h is infinite, which is not used here.
            return curve.one_plus_t(np.exp(log_w).astype(complex)).real

    ends = np.array([low + 1e-12 * max(1.0, abs(low)), high - 1e-12 * max(1.0, abs(high))])
    at_low, at_high = one_plus_t(ends)
    # At t = -size; size 0 is the pole of 1/t.
    sizes = np.unique([0.0, 1.0, curve.group.size, *curve.product.sizes.tolist()])
    targets = 1.0 - sizes[(at_low > 1.0 - sizes) & (1.0 - sizes > at_high)]
    below, above = np.full(targets.size, ends[0]), np.full(targets.size, ends[1])
    for _ in range(BISECTIONS if targets.size else 0):
        middle = 0.5 * (below + above)
        right = one_plus_t(middle) > targets
        below, above = np.where(right, middle, below), np.where(right, above, middle)
        if np.all(above - below <= 2e-15 * np.maximum(np.abs(middle), 1e-3)):
            break
    return sorted((0.5 * (below + above)).tolist())


def _dips(curve: LeadingCurve, grid: Array, slope: Array, poles: list[float]) -> list[float]:
    """Places between grid points where K may touch zero and turn back: a narrow band, or a narrow gap."""
    size, interval = np.abs(slope), np.searchsorted(poles, grid)
    inner = np.arange(1, grid.size - 1)
    same = (interval[inner - 1] == interval[inner + 1]) & (slope[inner - 1] * slope[inner] > 0)
    same &= slope[inner] * slope[inner + 1] > 0
    lowest = (size[inner] <= size[inner - 1]) & (size[inner] <= size[inner + 1])
    # A flat stretch is no dip.
    deep = size[inner] < 0.5 * np.maximum(size[inner - 1], size[inner + 1])
    found = []
    for index in inner[same & lowest & deep]:
        sign = math.copysign(1.0, slope[index])
        lowest_point = minimize_scalar(
            lambda log_w, sign=sign: sign * _on_axis(curve, np.array([log_w]))[1][0],
            bounds=(grid[index - 1], grid[index + 1]), method="bounded", options={"xatol": 1e-9},
        )  # fmt: skip
        if lowest_point.fun <= 0:
            found.append(float(lowest_point.x))
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
        lost = np.flatnonzero(unknown)
        after = np.clip(np.searchsorted(sure, lost), 1, max(sure.size - 1, 1))
        before, after = sure[after - 1], sure[np.minimum(after, sure.size - 1)]
        result[lost] = known[np.where(lost - before <= after - lost, before, after)]
    return result


def _boundary(curve: LeadingCurve, low: float, high: float, poles: list[float]) -> float:
    """log w of the pole or zero of K between two points; where K is all rounding, the middle."""
    for pole in poles:
        if low < pole < high:
            return pole

    def slope(log_w: float) -> float:
        return float(_on_axis(curve, np.array([log_w]))[1][0])

    if not slope(low) * slope(high) < 0:
        return 0.5 * (low + high)
    return float(brentq(slope, low, high, xtol=1e-15, rtol=1e-14))
