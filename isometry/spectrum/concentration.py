"""Parts of a distribution that a histogram does not show: point masses, narrow clusters, long tails.

All singular values of a delta-orthogonal network lie within a thousandth of each other. The density of such a cluster
is a spike whose height depends on the cells alone and which flattens everything beside it, so it is shown as a mass at
a place. The law of a ReLU network extends to s = 0 with next to no mass: its tail is cropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .distribution import Distribution
from .formatting import percent_text, power_text

Array = NDArray[np.float64]

# Mass in a window of one cell from which on it is shown as a point mass.
CONCENTRATED = 0.3
# So many point masses at most are shown one by one.
MOST = 8


def shown_range(distribution: Distribution) -> tuple[float, float]:
    """The range of ln s to show: all of it, unless a hundredth of the mass takes most of the picture.

    The lower end is at most half the span of the upper 99 % below that span. (nan, nan) when all mass is at zero.
    """
    low, high = distribution.log_range
    if math.isnan(low):
        return low, high
    zero = distribution.zero_mass
    main = float(distribution.quantile(np.asarray(zero + 0.01 * (1 - zero))))
    return max(low, main - 0.5 * (high - main)) if high > main > low else low, high


@dataclass(frozen=True)
class Concentration:
    """Mass within [low, high] of ln s; low = high for a point mass proper."""

    low: float
    high: float
    mass: float

    @property
    def log_s(self) -> float:
        """ln s of the middle."""
        return 0.5 * (self.low + self.high)

    def text(self) -> str:
        """For a legend: '40 % at s = 1', '97 % within 0.3 % of s = 1.01'."""
        place = power_text(self.log_s / math.log(10))
        spread = math.expm1(0.5 * (self.high - self.low))
        where = f"at s = {place}" if spread < 1e-9 else f"within {_one_digit(100 * spread)} % of s = {place}"
        return f"{percent_text(self.mass)} {where}"


def _one_digit(value: float) -> str:
    """A positive number to one significant digit; from 1 to 10,000 without an exponent: 20, not 2e+01."""
    rounded = float(f"{value:.1g}")
    return f"{rounded:.0f}" if 1 <= rounded < 1e4 else f"{rounded:.1g}"


def concentrations(distribution: Distribution, log_edges: Array) -> list[Concentration]:
    """Point masses away from zero, and windows no wider than the narrowest cell that hold a large share.

    Parameters
    ----------
    distribution : Distribution
    log_edges : (b + 1,) array
        The cells of the picture, in ln s.

    Returns
    -------
    list of Concentration, largest first
    """
    places, masses = distribution.point_masses
    finite = np.isfinite(places)
    order = np.argsort(-masses[finite])[:MOST]
    found = [
        Concentration(float(place), float(place), float(mass))
        for place, mass in zip(places[finite][order], masses[finite][order], strict=True)
    ]
    edges = log_edges[np.isfinite(log_edges)]
    width = float(np.diff(edges).min()) if edges.size > 1 else 0.0
    levels = np.linspace(0, 1, 257)
    start = np.unique(np.asarray(distribution.quantile(levels)))
    start = start[np.isfinite(start)]
    # Each round takes at least CONCENTRATED of the mass, so there are at most three.
    for _ in range(int(1 / CONCENTRATED)):
        start, end = _apart_from(found, start, start + width)
        if start.size == 0:
            break
        inside = cell_mass(distribution, start, end, without=found)
        best = int(np.argmax(inside))
        if inside[best] < CONCENTRATED:
            break
        found.append(_tightened(distribution, float(start[best]), float(end[best]), inside[best]))
    return found


def _apart_from(found: Sequence[Concentration], start: Array, end: Array) -> tuple[Array, Array]:
    """The windows cut so that they touch none of the concentrations: what lies in two would be counted twice."""
    for one in found:
        # A cdf takes places that differ by rounding for one, so the cut is a little wider.
        gap = 1e-10 * max(1.0, abs(one.low), abs(one.high))
        outside = (start < one.low - gap) | (start > one.high + gap)
        start, end = start[outside], end[outside]
        end = np.where((start < one.low) & (end >= one.low - gap), one.low - gap, end)
    return start, end


def _tightened(distribution: Distribution, low: float, high: float, mass: float) -> Concentration:
    """The window, cut down to where its mass really lies."""
    below = float(distribution.cdf(np.asarray(low), left=True))
    upto = float(distribution.cdf(np.asarray(high)))
    # Where the cdf first passes `below`, and where it reaches `upto`.
    ends = np.asarray(distribution.quantile(np.clip([below + 1e-12, upto - 1e-12], 0, 1)))
    return Concentration(float(max(ends[0], low)), float(min(ends[1], high)), float(mass))


def cell_mass(
    distribution: Distribution, low: Array, high: Array, *, without: Sequence[Concentration] = ()
) -> Array:
    """Mass of each [low, high] in ln s, less what the concentrations already account for."""
    mass = np.asarray(distribution.cdf(high)) - np.asarray(distribution.cdf(low, left=True))
    for one in without:
        a, b = np.maximum(low, one.low), np.minimum(high, one.high)
        if one.low == one.high:
            mass = mass - one.mass * (a <= b)
            continue
        shared = np.asarray(distribution.cdf(np.maximum(b, a))) - np.asarray(distribution.cdf(a, left=True))
        mass = mass - np.where(a <= b, shared, 0.0)
    return np.maximum(mass, 0.0)


def cell_masses(
    distribution: Distribution, log_edges: Array, *, without: Sequence[Concentration] = ()
) -> Array:
    """Mass of every cell between neighbouring edges, each cell with its lower edge and without its upper.

    The first cell never counts mass at zero; the last one has its upper edge.
    """
    edges = np.asarray(log_edges, float)
    left = np.asarray(distribution.cdf(edges, left=True)).copy()
    left[-1] = float(distribution.cdf(edges[-1]))
    left = np.maximum(left, distribution.zero_mass)
    for one in without:
        if one.low == one.high:
            left = left - one.mass * ((one.low < edges) | (edges == edges[-1]) & (one.low <= edges))
            continue
        a = np.clip(edges, one.low, one.high)
        gone = np.asarray(distribution.cdf(a, left=True)) - float(
            distribution.cdf(np.asarray(one.low), left=True)
        )
        gone = np.where(edges > one.high, one.mass, gone)
        left = left - gone
    return np.maximum(np.diff(left), 0.0)
