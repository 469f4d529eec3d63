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
from isometry.theory.product import FreeProduct, group_log_z
from isometry.theory.slope_law import SlopeLaw

Array = NDArray[np.float64]

# Solutions found so far, by group and branch: log |x| and y, to start the next from.
Place = Callable[[Array], tuple[Array, Array]]
Memory = dict[tuple[int, int], tuple[Array, Array]]

# w may come this close to a value of d, relatively.
CLOSEST = -25.0


def outer_band(product: FreeProduct) -> Band:
    """The ends of the spectrum in log lambda - C; gaps inside it are not looked for."""
    memory: Memory = {}
    high, high_edge = _extremum(lambda y: _log_z(product, np.exp(y), np.exp(y), memory), -40.0, 30.0)
    low, low_edge = -math.inf, False
    if all(
        group.size * group.law.nonzero_mass > 1.0 + 1e-9 or _has_floor(group.law) for group in product.groups
    ):
        memory = {}
        low, low_edge = _extremum(
            lambda y: _log_z(product, -1.0 - np.exp(y), -np.exp(y), memory), -30.0, 30.0
        )
        if not low_edge:
            low = -math.inf
    return Band(low, high, low_edge, high_edge)


def _has_floor(law: SlopeLaw) -> bool:
    """Whether d stays away from zero, by more than a Gaussian tail that was cut."""
    smallest, largest = law.support[0][0], law.support[-1][1]
    return smallest > (0.0 if law.continuous is None else 1e-3 * largest)


def _extremum(log_z: Callable[[Array], tuple[Array, Array]], start: float, stop: float) -> tuple[float, bool]:
    """The first extremum of log z(y) from the start on, and True; or log z where real solutions end, and False."""
    grid = np.linspace(start, stop, 29)
    for _ in range(12):
        value, slope = log_z(grid)
        known = np.isfinite(slope)
        if not known[0]:
            return math.nan, False
        end = grid.size if known.all() else int(np.argmin(known))
        turns = np.flatnonzero(slope[: end - 1] * slope[1:end] < 0)
        if turns.size:
            i = int(turns[0])
            a, b = grid[i], grid[i + 1]
            share = slope[i] / (slope[i] - slope[i + 1])
            if b - a < 1e-3:
                # Integrate the linear slope from the nearer side: an error of third order in b - a.
                return float(value[i] + 0.5 * share * (b - a) * slope[i]), True
            middle = a + share * (b - a)
            grid = np.unique(np.clip(middle + (b - a) * np.array([-1, -0.1, -0.01, 0.01, 0.1, 1]), a, b))
        elif end == grid.size or grid[end] - grid[end - 1] < 1e-9:
            return float(value[end - 1]), False
        else:
            grid = np.linspace(grid[end - 1], grid[end], 8)
    return float(value[0]), True


def _log_z(product: FreeProduct, t: Array, rate: Array, memory: Memory) -> tuple[Array, Array]:
    """log z at (n,) real t > 0 or t < -1 and its slope in y, dt/dy = rate; nan where z or a w_g is not real."""
    at, above = t.astype(complex), (1.0 + t).astype(complex)
    with np.errstate(divide="ignore", invalid="ignore"):
        # A point of the grid may hit t = -nu exactly.
        result, slope = product.explicit_log_z(at, above), product.explicit_slope(at, above)
    for index, group in enumerate(product.groups):
        w = _real_inverse(group.law, t / group.size, memory, index)
        known = np.isfinite(w)
        averages = group.law.averages(np.where(known, w, -1.0).astype(complex))
        result = result + group.count * group_log_z(averages)
        slope = slope + group.count * averages.ratio_rate / (group.size * averages.m_rate)
        result[~known] = np.nan
    real = np.isfinite(result.real) & (np.abs(result.imag) < 1e-3)
    return np.where(real, result.real, np.nan), np.where(real, slope.real * rate, np.nan)


def _real_inverse(law: SlopeLaw, x: Array, memory: Memory, index: int) -> Array:
    """Real w off the range of d with m(w) = x, (n,); nan where there is none."""
    smallest, largest = law.support[0][0], law.support[-1][1]
    result = np.full(x.size, np.nan)
    # |m| falls with y above the range of d and on the negative axis, and rises below the range.
    branches: list[tuple[NDArray[np.bool_], Place, float, float]] = [
        (x > 0, lambda y: (largest * (1.0 + np.exp(y)), largest * np.exp(y)), CLOSEST, 80.0),
        ((x < 0) & (x > -law.nonzero_mass), lambda y: (-np.exp(y), -np.exp(y)), -80.0, 80.0),
    ]
    if smallest > 0:
        branches.append(
            (
                x < -law.nonzero_mass,
                lambda y: (smallest / (1.0 + np.exp(-y)), smallest / (1.0 + np.exp(-y)) / (1.0 + np.exp(y))),
                -80.0,
                -CLOSEST,
            )
        )
    for number, (chosen, place, low, high) in enumerate(branches):
        if np.any(chosen):
            log_x, y = memory.get((index, number), (np.empty(0), np.empty(0)))
            target = np.log(np.abs(x[chosen]))
            guess = np.interp(target, log_x, y) if y.size else None
            found = _inverted(law, target, place, low, high, guess)
            result[chosen] = place(found)[0]
            new = np.isfinite(found)
            log_x, y = np.concatenate([log_x, target[new]]), np.concatenate([y, found[new]])
            order = np.argsort(log_x)
            memory[index, number] = log_x[order], y[order]
    return result


def _inverted(
    law: SlopeLaw, target: Array, place: Place, low: float, high: float, guess: Array | None
) -> Array:
    """y in [low, high] with log |m(w)| = target, place(y) = (w, dw/dy), bracketed Newton; nan where none is."""

    def excess(y: Array) -> tuple[Array, Array]:
        w, rate = place(y)
        averages = law.averages(w.astype(complex))
        return np.log(np.abs(averages.m.real)) - target, (averages.m_rate / averages.m).real * rate / w

    ends = np.array([low, high])
    at_ends = np.log(np.abs(law.averages(place(ends)[0].astype(complex)).m.real))
    possible = (target > at_ends.min()) & (target < at_ends.max())
    rising = bool(at_ends[1] > at_ends[0])
    a, b = np.full(target.size, low), np.full(target.size, high)
    if guess is None:
        # m falls like 1/w from far away.
        guess = high - np.abs(target - at_ends[1])
    y = np.clip(guess, low + 1e-3, high - 1e-3)
    result = y.copy()
    active = np.flatnonzero(possible)
    everything = target
    for _ in range(100):
        if active.size == 0:
            break
        target = everything[active]
        here = y[active]
        value, slope = excess(here)
        above = (value > 0) == rising
        a[active], b[active] = np.where(above, a[active], here), np.where(above, here, b[active])
        with np.errstate(all="ignore"):
            moved = here - value / slope
        inside = np.isfinite(moved) & (moved > a[active]) & (moved < b[active])
        settled = (np.abs(moved - here) < 1e-7) | (b[active] - a[active] < 1e-13)
        y[active] = np.where(inside, moved, np.where(settled, here, 0.5 * (a[active] + b[active])))
        active = active[~settled]
    result[possible], result[~possible] = y[possible], np.nan
    return result
