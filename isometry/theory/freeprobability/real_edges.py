"""Ends of the spectrum of a product of several kinds of layers: real t where d log z / dt = 0. Internal.

Above the spectrum t > 0 and every w_g is real and above the values of d_g; in a gap between 0 and the spectrum
t < -1 and every w_g is real and below them, or negative. Each is found from t by a monotone inversion.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from isometry.theory.freeprobability.edges import Band
from isometry.theory.freeprobability.product import FreeProduct, group_log_z
from isometry.theory.freeprobability.slope_law import SlopeLaw

Array = NDArray[np.float64]
Index = NDArray[np.intp]

# Branches of the real inverse of m: w above the values of d, w negative, w between 0 and the values.
ABOVE, NEGATIVE, BELOW = 0, 1, 2
# The coordinate y of each runs between these; w comes within e^-25 of a value of d, relatively.
LOWEST, HIGHEST = np.array([-25.0, -80.0, -80.0]), np.array([80.0, 80.0, 25.0])


def outer_band(product: FreeProduct) -> Band:
    """The ends of the spectrum in log lambda - C, without gaps inside it."""
    axis = RealAxis(product)
    high, high_edge = _extremum(lambda y: axis.log_z(np.exp(y), np.exp(y)), -40.0, 30.0)
    low, low_edge = -math.inf, False
    if all(
        group.size * group.law.nonzero_mass > 1.0 + 1e-9 or _has_floor(group.law) for group in product.groups
    ):
        low, low_edge = _extremum(lambda y: axis.log_z(-1.0 - np.exp(y), -np.exp(y)), -30.0, 30.0)
        if not low_edge:
            low = -math.inf
    return Band(low, high, low_edge, high_edge)


def _has_floor(law: SlopeLaw) -> bool:
    """Whether d stays away from zero, by more than a Gaussian tail that was cut."""
    smallest, largest = law.support[0][0], law.support[-1][1]
    return smallest > (0.0 if law.continuous is None else 1e-3 * largest)


def _extremum(log_z: Callable[[Array], tuple[Array, Array]], start: float, stop: float) -> tuple[float, bool]:
    """The first extremum of log z(y) from the start on, and True; or log z where real solutions end, and False."""
    # Bands of rare values are narrow: their two ends must not fall between two points.
    grid = np.linspace(start, stop, 141)
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


class RealAxis:
    """log z(t) at real t off the spectrum, every w_g real; solutions found start the next ones."""

    def __init__(self, product: FreeProduct) -> None:
        laws = [group.law for group in product.groups]
        self._product = product
        self._counts = np.array([group.count for group in product.groups])
        self._sizes = np.array([group.size for group in product.groups])
        self._ranks = np.array([law.nonzero_mass for law in laws])
        self._smallest = np.array([law.support[0][0] for law in laws])
        self._largest = np.array([law.support[-1][1] for law in laws])
        number = np.arange(len(laws))
        ends = np.stack(
            [
                self._place(np.full(number.size, branch), number, np.full(number.size, y[branch]))[0]
                for branch in (ABOVE, NEGATIVE, BELOW)
                for y in (LOWEST, HIGHEST)
            ]
        )
        ends = np.where(ends == 0.0, -1.0, ends)
        # log |m| at the ends of y, (3, 2, K)
        self._at_ends = np.log(np.abs(product.averages(ends.astype(complex)).m.real)).reshape(3, 2, -1)
        self._known: dict[tuple[int, int], tuple[Array, Array]] = {}

    def log_z(self, t: Array, rate: Array) -> tuple[Array, Array]:
        """log z at (n,) real t > 0 or t < -1 and its slope in y, dt/dy = rate; nan where z or a w_g is not real."""
        at, above = t.astype(complex), (1.0 + t).astype(complex)
        w = self._inverse(t[:, None] / self._sizes)
        known = np.all(np.isfinite(w), axis=1)
        averages = self._product.averages(np.where(np.isfinite(w), w, -1.0).astype(complex))
        with np.errstate(divide="ignore", invalid="ignore"):
            # A point of the grid may hit t = -nu exactly.
            result = self._product.explicit_log_z(at, above) + group_log_z(averages) @ self._counts
            slope = self._product.explicit_slope(at, above)
            slope = slope + (averages.ratio_rate / averages.m_rate) @ (self._counts / self._sizes)
        real = known & np.isfinite(result.real) & (np.abs(result.imag) < 1e-3)
        return np.where(real, result.real, np.nan), np.where(real, slope.real * rate, np.nan)

    def _place(self, branch: Index, law: Index, y: Array) -> tuple[Array, Array]:
        """(w, dw/dy) on a branch; |m| falls with y, and rises on the branch below."""
        growing, falling = np.exp(y), np.exp(-y)
        largest, below = self._largest[law], self._smallest[law] / (1.0 + falling)
        w = np.select([branch == ABOVE, branch == NEGATIVE], [largest * (1.0 + growing), -growing], below)
        rate = np.select(
            [branch == ABOVE, branch == NEGATIVE], [largest * growing, -growing], below / (1.0 + growing)
        )
        return w, rate

    def _inverse(self, x: Array) -> Array:
        """Real w_g off the range of d_g with m_g(w_g) = x, (n, K); nan where there is none."""
        law = np.broadcast_to(np.arange(x.shape[1]), x.shape).ravel()
        x, shape = x.ravel(), x.shape
        branch = np.where(x > 0, ABOVE, np.where(x > -self._ranks[law], NEGATIVE, BELOW))
        with np.errstate(divide="ignore"):
            target = np.log(np.abs(x))
        ends = self._at_ends[branch, :, law]
        possible = (target > ends.min(axis=1)) & (target < ends.max(axis=1))
        possible &= (branch != BELOW) | (self._smallest[law] > 0)
        # m falls like 1/w from far away.
        y = HIGHEST[branch] - np.abs(target - ends[:, 1])
        for key, (log_x, known) in self._known.items():
            own = (law == key[0]) & (branch == key[1])
            y[own] = np.interp(target[own], log_x, known)
        low, high = LOWEST[branch], HIGHEST[branch]
        y = np.clip(y, low + 1e-3, high - 1e-3)
        active = np.flatnonzero(possible)
        for _ in range(100):
            if active.size == 0:
                break
            here = y[active]
            w, rate = self._place(branch[active], law[active], here)
            averages = self._product.averages(w.astype(complex), law[active])
            with np.errstate(all="ignore"):
                value = np.log(np.abs(averages.m.real)) - target[active]
                moved = here - value / ((averages.m_rate / averages.m).real * rate / w)
            over = (value > 0) == (branch[active] == BELOW)
            low[active], high[active] = np.where(over, low[active], here), np.where(over, here, high[active])
            inside = np.isfinite(moved) & (moved > low[active]) & (moved < high[active])
            settled = (np.abs(moved - here) < 1e-7) | (high[active] - low[active] < 1e-13)
            middle = np.where(settled, here, 0.5 * (low[active] + high[active]))
            y[active] = np.where(inside, moved, middle)
            active = active[~settled]
        for key in set(zip(law[possible].tolist(), branch[possible].tolist(), strict=True)):
            own = possible & (law == key[0]) & (branch == key[1])
            log_x, known = self._known.get(key, (np.empty(0), np.empty(0)))
            log_x, known = np.concatenate([log_x, target[own]]), np.concatenate([known, y[own]])
            order = np.argsort(log_x)
            self._known[key] = log_x[order], known[order]
        return np.where(possible, self._place(branch, law, y)[0], np.nan).reshape(shape)
