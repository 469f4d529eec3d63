"""An activation's deviation from its tangent at zero, without cancellation. Internal.

Mean-field theory near criticality at small q* needs differences such as q E phi'^2 - E phi^2, which is 4/3 q^3
for tanh: at q = 1e-12 the subtraction has lost every digit. Two functions carry them,

    slope_change(h)  = phi'(h) - phi'(0+-),
    slope_deficit(h) = phi'(h) - (phi(h) - phi(0)) / h,

both zero for a linear phi. Near h = 0 they are summed from the Taylor coefficients of phi' there, which come
from a Chebyshev interpolant (one on each side when 0 is a kink), so that no digits are lost; elsewhere they are
taken as written.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

from isometry.errors import TheoryError
from isometry.theory.activations import Activation

Array = NDArray[np.float64]

DEGREE = 28
LARGEST_RADIUS = 0.5
SMALLEST_RADIUS = 1e-3
# Interpolation coefficients of O(1) data carry rounding of about this size: below it there is nothing to keep.
ROUNDING = 4e-16


@dataclass(frozen=True)
class Remainder:
    """An activation's behaviour around zero.

    Parameters
    ----------
    activation : Activation
        The function.
    value : float
        phi(0).
    slopes : (float, float)
        phi'(0-) and phi'(0+).
    radius : float
        Where |h| is smaller the series are used; 0 when phi' has no convergent series (an undeclared kink at 0).
    series : tuple of two arrays
        Taylor coefficients of phi'(h) in h / radius, for h < 0 and for h >= 0.
    """

    activation: Activation
    value: float
    slopes: tuple[float, float]
    radius: float
    series: tuple[Array, Array]

    @property
    def mean_square_slope(self) -> float:
        """E phi'(h)^2 at vanishing variance: the mean of phi'(0-)^2 and phi'(0+)^2."""
        return (self.slopes[0] ** 2 + self.slopes[1] ** 2) / 2.0

    def slope_at_zero(self, h: Array) -> Array:
        """phi'(0-) or phi'(0+), the one on the side of h, (n,)."""
        return np.where(h < 0, self.slopes[0], self.slopes[1])

    def slope_change(self, h: Array) -> Array:
        """phi'(h) - phi'(0+-), (n,)."""
        return self._evaluate(h, np.ones(DEGREE + 1), self.activation.derivative(h) - self.slope_at_zero(h))

    def slope_deficit(self, h: Array) -> Array:
        """phi'(h) - (phi(h) - phi(0)) / h, (n,)."""
        safe = np.where(h == 0, 1.0, h)
        direct = self.activation.derivative(h) - (self.activation.function(h) - self.value) / safe
        # phi' = sum d_m h^m gives (phi - phi(0))/h = sum d_m h^m / (m + 1).
        order = np.arange(DEGREE + 1)
        return self._evaluate(h, order / (order + 1.0), np.where(h == 0, 0.0, direct))

    def _evaluate(self, h: Array, factors: Array, direct: Array) -> Array:
        if self.activation.slopes is not None:
            # Linear by pieces: on the pieces that touch zero the answer is exactly zero.
            kinks = self.activation.kinks
            lower = max((kink for kink in kinks if kink < 0), default=-np.inf)
            upper = min((kink for kink in kinks if kink > 0), default=np.inf)
            return np.where((h > lower) & (h < upper), 0.0, direct)
        if self.radius == 0.0:
            return direct
        near = np.abs(h) < self.radius
        result = np.array(direct, dtype=np.float64)
        x = h[near] / self.radius
        terms = [series * factors for series in self.series]
        for side in terms:
            side[0] = 0.0
        left = np.polynomial.polynomial.polyval(x, terms[0])
        right = np.polynomial.polynomial.polyval(x, terms[1])
        result[near] = np.where(x < 0, left, right)
        return result


@lru_cache(maxsize=64)
def remainder(activation: Activation) -> Remainder:
    """The activation's `Remainder` (kept, since it is asked for at every q).

    Raises
    ------
    TheoryError
        When phi' is unbounded at zero.
    """
    value, scale = (float(part) for part in np.abs(activation.function(np.array([0.0, 1.0]))))
    # h + 0.3 - 0.3 and its like: a value at zero that is rounding would switch the exact formulas off.
    value = 0.0 if value < 1e-15 * scale else float(activation.function(np.zeros(1))[0])
    if activation.slopes is not None:
        piece = int(np.searchsorted(activation.kinks, 0.0))
        after = piece + 1 if 0.0 in activation.kinks else piece
        slopes = (activation.slopes[piece], activation.slopes[after])
        return Remainder(activation, value, slopes, 0.0, (np.zeros(1), np.zeros(1)))
    nearest = min((abs(kink) for kink in activation.kinks if kink != 0.0), default=np.inf)
    radius = min(LARGEST_RADIUS, 0.999 * nearest)
    while radius >= min(SMALLEST_RADIUS, 0.5 * nearest):
        left = right = None if 0.0 in activation.kinks else _taylor(activation, -radius, radius)
        if left is None:
            # Also where phi'' jumps at zero without being declared.
            left, right = _taylor(activation, -radius, 0.0), _taylor(activation, 0.0, radius)
        if left is not None and right is not None:
            return Remainder(activation, value, (float(left[0]), float(right[0])), radius, (left, right))
        radius /= 2.0
    with np.errstate(all="ignore"):
        below, above = activation.derivative(np.array([-1e-300, 1e-300]))
        near = np.abs(activation.derivative(np.array([-1e-9, 1e-9])))
    if not max(abs(below), abs(above)) <= 1e3 * float(near.max()) + 1e-300:
        raise TheoryError(
            f"phi' of {activation.name} is unbounded at h = 0, so a signal of small variance grows without bound. "
            "Mean-field theory needs a bounded derivative there."
        )
    return Remainder(activation, value, (float(below), float(above)), 0.0, (np.zeros(1), np.zeros(1)))


def _taylor(activation: Activation, lower: float, upper: float) -> Array | None:
    """Taylor coefficients at 0 of phi', (DEGREE + 1,), in units of the larger edge; None where not resolved."""
    radius = max(abs(lower), abs(upper))
    middle, half = (lower + upper) / 2.0, (upper - lower) / 2.0
    count = DEGREE + 1
    # cos of the Chebyshev angles, as a sine so that nodes are symmetric to the last bit and even functions stay even.
    nodes = np.sin(np.pi * (DEGREE - 2.0 * np.arange(count)) / (2.0 * count))
    values = activation.derivative(middle + half * nodes)
    # The cosine sum itself, with angles reduced as whole numbers: a recurrence for T_n is ten times noisier.
    turns = np.outer(np.arange(count), 2 * np.arange(count) + 1) % (4 * count)
    coefficients = 2.0 / count * (np.cos(np.pi * turns / (2.0 * count)) @ values)
    coefficients[0] /= 2.0
    size = float(np.max(np.abs(values)))
    if not np.all(np.isfinite(coefficients)) or np.max(np.abs(coefficients[-4:])) > 1e-13 * size:
        return None
    # Noise in coefficient n moves the slope at the edge by n^2 times as much, so the noisy tail goes: everything
    # after the last coefficient that stands out. Small ones before it are dropped too (the odd ones of an even phi').
    significant = np.abs(coefficients) > ROUNDING * size
    quiet = [not significant[n : n + 3].any() for n in range(DEGREE + 1)]
    degree = quiet.index(True) if True in quiet else DEGREE + 1
    coefficients = np.where(significant, coefficients, 0.0)[: max(degree, 1)]
    polynomial = np.polynomial.Polynomial(chebyshev.cheb2poly(coefficients))
    # In the variable x = (h - middle) / half of the interpolant, with h = radius t.
    shifted = polynomial(np.polynomial.Polynomial([-middle / half, radius / half]))
    taylor = np.zeros(DEGREE + 1)
    taylor[: shifted.coef.size] = shifted.coef
    return taylor
