"""Zeros of phi' of order two and more, where a power law replaces values lost to rounding. Internal.

At phi' = c (x - x0)^k + ... values smaller than the rounding of phi' are noise, over a width eps^(1/k) that holds
visible mass for k >= 2. Where |phi'| falls below 1e-8 of its maximum it is continued as |x - x0|^k on either side. The
law of phi' depends on the width between the two places alone, so x0 need not be accurate; the neglected terms change
that width by its square, relatively.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

Array = NDArray[np.float64]
ArrayFunction = Callable[[Array], Array]

# Relative to the largest |phi'|: where the power law starts, and what counts as zero at its middle.
LEVEL = 1e-8
ZERO = 1e-13
# Distance from a zero at which it is tried; the place of a multiple zero is not known better.
NEAR = 1e-9
# Exponents below this are simple zeros, whose noise holds no mass.
SMALLEST_ORDER = 1.5
# Exponents this close to a whole number are that number.
WHOLE = 0.05


@dataclass(frozen=True)
class _Side:
    """|phi'| = size (distance/width)^order within ``width`` of ``zero``, on the side of the sign."""

    zero: float
    sign: float
    width: float
    order: float
    size: float


def without_noise(
    slope: ArrayFunction, zeros: Sequence[float], bounds: tuple[float, float], largest: float
) -> ArrayFunction:
    """|phi'| with its multiple zeros replaced by power laws.

    Parameters
    ----------
    slope : callable
        phi' on (n,) arrays.
    zeros : sequence of float
        Places where phi' may have a multiple zero; the others are left as they are.
    bounds : (float, float)
        Interval outside which phi' is not evaluated.
    largest : float
        Largest |phi'|.
    """
    sides = [
        side
        for zero in zeros
        for sign in (-1.0, 1.0)
        if (side := _side(slope, zero, sign, bounds, largest)) is not None
    ]

    def smooth(x: Array) -> Array:
        result = np.abs(slope(x))
        for side in sides:
            distance = side.sign * (x - side.zero)
            inside = (distance >= 0.0) & (distance < side.width)
            result[inside] = side.size * (distance[inside] / side.width) ** side.order
        return result

    return smooth if sides else lambda x: np.abs(slope(x))


def _side(
    slope: ArrayFunction, zero: float, sign: float, bounds: tuple[float, float], largest: float
) -> _Side | None:
    """The power law on one side of a zero, or None where the zero is simple, or no zero."""
    room = bounds[1] - zero if sign > 0 else zero - bounds[0]

    def size(distance: float) -> float:
        return abs(float(slope(np.array([zero + sign * distance]))[0]))

    if room < 4.0 * NEAR or not size(NEAR) <= ZERO * largest:
        return None
    level, outer = LEVEL * largest, NEAR
    while size(outer) < level:
        outer *= 2.0
        if 2.0 * outer > room:
            return None
    width = float(
        brentq(lambda y: math.log((size(math.exp(y)) + 1e-300) / level), math.log(outer / 2), math.log(outer))
    )
    width = math.exp(width)
    order = math.log2(size(2.0 * width) / level) if size(2.0 * width) > 0 else 0.0
    if abs(order - round(order)) < WHOLE:
        order = float(round(order))
    return _Side(zero, sign, width, order, level) if order >= SMALLEST_ORDER else None
