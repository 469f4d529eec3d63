"""Kinks of a function given without them, and whether it is linear between them. Internal.

A kink shows in differences of order m + 1 over a width w: they fall like w^m where the m-th derivative jumps, and
faster where it does not. The search narrows each peak of the differences until the two can be told apart, and places
the kink where the two sides, continued as polynomials, meet. It finds jumps of phi' (ReLU) and phi'' (softsign, ELU).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from isometry.errors import InputError

Array = NDArray[np.float64]
ArrayFunction = Callable[[Array], Array]

REACH = 64.0
SPACING = 2.0**-10
# Three widths, each a quarter of the last; the third difference of values of order one loses its digits below 2^-16.
FINAL_WIDTH = {1: 2.0**-20, 2: 2.0**-16}
SMALLEST_JUMP = 1e-3
CANDIDATES = 64
# Growth of secants per halving of the distance that means an unbounded derivative.
STEEPER = 2.0**0.05


def find_kinks(function: ArrayFunction) -> tuple[float, ...]:
    """Points between -64 and 64, increasing, where phi' or phi'' jumps by more than 1e-3.

    Parameters
    ----------
    function : callable
        phi, elementwise on (n,) arrays.

    Raises
    ------
    InputError
        When phi itself jumps: it has no derivative for mean-field theory to average.
    """
    found: list[float] = []
    for order in (1, 2):
        # Off the round numbers by an irrational shift, so that a kink at zero lies between two points.
        grid = np.arange(-REACH, REACH, SPACING) + SPACING * math.pi / 10.0
        bend = _jump(function, grid, SPACING, order)
        peaks = np.flatnonzero(
            (bend[1:-1] >= bend[:-2]) & (bend[1:-1] > bend[2:]) & (bend[1:-1] > SMALLEST_JUMP)
        )
        peaks = peaks[np.argsort(bend[peaks + 1], kind="stable")[::-1][:CANDIDATES]] + 1
        for start in grid[peaks]:
            kink = _narrowed(function, float(start), order)
            if kink is not None and all(abs(kink - other) > 1e-4 for other in found):
                found.append(kink)
    return tuple(sorted(found))


def linear_slopes(function: ArrayFunction, kinks: Sequence[float]) -> tuple[float, ...] | None:
    """The slope on each piece between the kinks, or None where phi is not linear by pieces."""
    # Far beyond the range of the search for kinks, so that a wave with more of them is not taken for a line.
    edges = [-4.0 * REACH, *kinks, 4.0 * REACH]
    slopes = []
    for lower, upper in itertools.pairwise(edges):
        points = np.linspace(lower, upper, 65)
        values = function(points)
        slope = (values[-1] - values[0]) / (points[-1] - points[0])
        line = values[0] + slope * (points - points[0])
        # Values beyond the range of floats are on no line.
        if not np.max(np.abs(values - line)) <= 1e-13 * (1.0 + np.max(np.abs(values))):
            return None
        # Slopes are mostly round numbers; the end points are not exact enough to say more than this.
        rounded = round(float(slope), 12)
        slopes.append(rounded + 0.0)
    return tuple(slopes)


def vertical_tangent(function: ArrayFunction, kinks: Sequence[float]) -> tuple[float, float] | None:
    """(kink, a) where phi' is unbounded like |h - kink|^(a - 1), a < 0.95; None where it is bounded by each kink."""
    # A kink of this kind is located to 1e-6 only.
    distance = np.exp2(-np.arange(6.0, 19.0))
    for kink in kinks:
        for sign in (-1.0, 1.0):
            values = function(kink + sign * distance * max(1.0, abs(kink)))
            slopes = np.abs(np.diff(values)) / -np.diff(distance)
            if slopes[0] > SMALLEST_JUMP and np.all(slopes[1:] > STEEPER * slopes[:-1]):
                growth = math.log2(slopes[-1] / slopes[0]) / (slopes.size - 1)
                return float(kink), 1.0 - growth
    return None


def _jump(function: ArrayFunction, points: Array, width: float, order: int) -> Array:
    """The jump of the derivative of this order that would explain the difference over ``width``, (points,)."""
    offsets = np.arange(order + 2) - (order + 1) / 2.0
    values = np.asarray(
        function(np.concatenate([points + width * offset for offset in offsets])), dtype=np.float64
    )
    return np.abs(np.diff(values.reshape(order + 2, -1), n=order + 1, axis=0)[0]) / width**order


def _narrowed(function: ArrayFunction, centre: float, order: int) -> float | None:
    """The kink near a peak of the differences, or None when the peak was only a sharp bend."""
    width = SPACING
    jumps: list[float] = []
    while width > FINAL_WIDTH[order]:
        width /= 4.0
        points = centre + width * np.arange(-4.0, 5.0)
        bend = _jump(function, points, width, order)
        centre = float(points[int(np.argmax(bend))])
        jumps.append(float(bend.max()))
    # Over the last factor of sixteen in width: a smooth function falls sixteen-fold, a kink stays (within a
    # factor of two, by where it lies between the points), a jump of a lower derivative grows sixteen-fold.
    change = jumps[-1] / jumps[-3] if jumps[-3] > 0 else 0.0
    if change > 5.0:
        if order > 1:
            return None
        raise InputError(
            f"the activation jumps near h = {centre:.6g}, or its derivative is unbounded there. Mean-field theory "
            "averages the square of the derivative, which diverges; use a continuous function with a bounded one."
        )
    if change < 0.3 or jumps[-1] < SMALLEST_JUMP:
        return None
    offsets = width * np.array([64.0, 112.0, 160.0, 208.0, 256.0])
    left = np.polynomial.Polynomial.fit(-offsets, function(centre - offsets), order + 1, domain=[-1, 1])
    right = np.polynomial.Polynomial.fit(offsets, function(centre + offsets), order + 1, domain=[-1, 1])
    # The two sides differ by (h - kink)^order times the jump.
    gap = (left - right).deriv(order - 1) if order > 1 else left - right
    slope = gap.deriv()(0.0)
    step = -gap(0.0) / slope if slope != 0.0 else math.inf
    if not math.isfinite(step) or abs(step) > 16.0 * width:
        return centre
    location = centre + float(step)
    digits = 6 if order == 1 else 4
    rounded = round(location, digits)
    return rounded + 0.0 if abs(location - rounded) < 10.0 ** (-digits - 2) else location
