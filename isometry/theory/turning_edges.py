"""Ends of the spectrum of a product of several kinds of layers: real t where d log z / dt = 0.

Above the spectrum t > 0 and every w_g is real and above the values of d_g; in a gap between 0 and the spectrum
t < -1 and every w_g is real and below them, or negative. Each is found from t by a monotone inversion.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from isometry.theory.edges import Band
from isometry.theory.product import FreeProduct, lower_log
from isometry.theory.slope_law import SlopeLaw

Array = NDArray[np.float64]

# w may come this close to a value of d, relatively.
CLOSEST = -25.0


def outer_band(product: FreeProduct) -> Band:
    """The ends of the spectrum in log lambda; gaps inside it are not looked for."""
    above = np.linspace(-40.0, 30.0, 141)
    high, high_edge = _last_before_turn(lambda y: _log_z(product, np.exp(y)), above)
    low, low_edge = -math.inf, False
    if all(
        group.size * group.law.nonzero_mass > 1.0 + 1e-9 or group.law.support[0][0] > 0.0
        for group in product.groups
    ):
        below = np.linspace(-30.0, 30.0, 121)
        place, found = _last_before_turn(lambda y: _log_z(product, -1.0 - np.exp(y)), below)
        if found:
            low, low_edge = place, True
    return Band(low, high, low_edge, high_edge)


def _last_before_turn(log_z: Callable[[Array], Array], grid: Array) -> tuple[float, bool]:
    """Extremum of log z nearest to the start of the grid: (value, whether it is one).

    Without one, the value where real solutions end.
    """
    values = log_z(grid)
    for _ in range(9):
        known = np.isfinite(values)
        if not known[0] or np.sum(known) < 3:
            return math.nan, False
        end = grid.size if known.all() else int(np.argmin(known))
        change = np.diff(values[:end])
        turns = np.flatnonzero(change[:-1] * change[1:] < 0)
        if turns.size == 0:
            if end == grid.size or grid[end] - grid[end - 1] < 1e-9:
                return float(values[end - 1]), False
            a, b = grid[end - 1], grid[end]
            grid = np.concatenate([[grid[end - 2]], np.linspace(a, b, 12)])
        else:
            first = int(turns[0])
            middle = values[first + 1]
            if np.ptp(values[first : first + 3]) < 1e-11 * max(1.0, abs(float(middle))):
                return float(middle), True
            grid = np.linspace(grid[first], grid[first + 2], 17)
        values = log_z(grid)
    return float(values[np.argmin(np.abs(np.gradient(values, grid)))]), True


def _log_z(product: FreeProduct, t: Array) -> Array:
    """log z at (n,) real t > 0 or t < -1; nan where z is not positive or a w_g is not real."""
    result = product.explicit_log_z(t.astype(complex), 1.0 + t.astype(complex))
    for group in product.groups:
        w = _real_inverse(group.law, t / group.size)
        known = np.isfinite(w)
        averages = group.law.averages(np.where(known, w, -1.0).astype(complex))
        result = result + group.count * (lower_log(averages.m) - lower_log(averages.h))
        result[~known] = np.nan
    return np.where(np.abs(result.imag) < 1e-3, result.real, np.nan)


def _real_inverse(law: SlopeLaw, x: Array) -> Array:
    """Real w off the range of d with m(w) = x, (n,); nan where there is none."""
    smallest, largest = law.support[0][0], law.support[-1][1]
    result = np.full(x.size, np.nan)
    upper = x > 0
    if np.any(upper):
        # w = largest (1 + e^y), m falls with y.
        result[upper] = _bisected(
            law, x[upper], lambda y: largest * (1.0 + np.exp(y)), CLOSEST, 60.0, falling=True
        )
    negative = (x < 0) & (x > -law.nonzero_mass)
    if np.any(negative):
        # w = -e^y, m rises from -P(d > 0) to 0.
        result[negative] = _bisected(law, x[negative], lambda y: -np.exp(y), -60.0, 60.0, falling=False)
    lower = x < -law.nonzero_mass
    if np.any(lower) and smallest > 0:
        # w = smallest/(1 + e^-y), m falls from -P(d > 0) toward -inf.
        result[lower] = _bisected(
            law, x[lower], lambda y: smallest / (1.0 + np.exp(-y)), -60.0, -CLOSEST, falling=True
        )
    return result


def _bisected(
    law: SlopeLaw, x: Array, place: Callable[[Array], Array], low: float, high: float, *, falling: bool
) -> Array:
    def excess(y: Array) -> Array:
        value = law.averages(place(y).astype(complex)).m.real - x
        return -value if falling else value

    a, b = np.full(x.size, low), np.full(x.size, high)
    at_a, at_b = excess(a), excess(b)
    possible = (at_a <= 0) & (at_b >= 0)
    for iteration in range(60):
        # Regula falsi with the Illinois weights, and every third step a bisection.
        with np.errstate(all="ignore"):
            y = (a * at_b - b * at_a) / (at_b - at_a)
        y = np.where(np.isfinite(y) & (y > a) & (y < b) & (iteration % 3 < 2), y, 0.5 * (a + b))
        value = excess(y)
        left = value < 0
        at_b = np.where(left, 0.5 * at_b, at_b)
        at_a = np.where(left, at_a, 0.5 * at_a)
        a, at_a = np.where(left, y, a), np.where(left, value, at_a)
        b, at_b = np.where(left, b, y), np.where(left, at_b, value)
        if np.all((b - a < 1e-13) | (np.abs(value) < 1e-15 * np.abs(x)) | ~possible):
            break
    return np.where(possible, place(y), np.nan)
