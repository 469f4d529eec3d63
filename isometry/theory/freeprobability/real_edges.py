"""Ends of the bands of a product of several kinds of layers: real t where d log z / dt = 0. Internal.

Where there is no spectrum t is real and falls as lambda grows, and every w_g is real and stays in one gap of the values
of d_g: above the spectrum t > 0 and w_g lies above all of them; between 0 and the spectrum t < -1 and w_g lies below
them, or is negative; in a gap of the spectrum w_g may lie between two of them. There m_g falls from one value to the
next, so w_g is found from t by a monotone inversion.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from isometry.theory.freeprobability.continuation import transform_of
from isometry.theory.freeprobability.edges import Band
from isometry.theory.freeprobability.product import FreeProduct, group_log_z
from isometry.theory.freeprobability.slope_law import SlopeLaw

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]
Index = NDArray[np.intp]

# Branches of the real inverse of m: w above the values of d, negative, between 0 and the values, between two values.
ABOVE, NEGATIVE, BELOW, BETWEEN = 0, 1, 2, 3
# The coordinate y of each runs between these; w comes within e^-25 of a value of d, relatively.
LOWEST, HIGHEST = np.array([-25.0, -80.0, -80.0, -25.0]), np.array([80.0, 80.0, 25.0, 25.0])
# How close a path along real t comes to 0, -1 and infinity: e^-ZERO, e^-ONE, e^INFINITY. Nearer by slopes are rounding.
ZERO, ONE, INFINITY = 18.0, 12.0, 30.0
TURN = ZERO + ONE
STEPS = np.linspace(0.0, 6.0, 49)
# How close to an edge a linear slope is integrated, and how close to a point mass, where t is infinite, an edge is it.
CLOSE, AT_ATOM = 1e-5, 1e-7


def outer_band(product: FreeProduct) -> Band:
    """The ends of the spectrum in log lambda - C, without gaps inside it."""
    axis = RealAxis(product)
    # Bands of rare values are narrow: their two ends must not fall between two points.
    step = 0.5 if any(group.law.continuous is not None for group in product.groups) else 0.1
    high, high_edge = _extremum(lambda y: axis.log_z(np.exp(y), np.exp(y)), np.arange(-40.0, 30.0, step))
    low: float = -math.inf
    low_edge: bool | None = False
    if all(
        group.size * group.law.nonzero_mass > 1.0 + 1e-9 or _has_floor(group.law) for group in product.groups
    ):
        grid = _crowded(np.arange(-30.0, 30.0, step), axis.poles)
        low, low_edge = _extremum(lambda y: axis.log_z(-1.0 - np.exp(y), -np.exp(y)), grid)
        if not low_edge:
            low = -math.inf
    return Band(low, high, bool(low_edge), bool(high_edge))


def gap_around(product: FreeProduct, unknown: ComplexArray) -> tuple[float, float] | None:
    """The ends, in log lambda - C, of the gap in which a real solution lies; None where it lies in none.

    ``unknown`` is the solution (u, v_1 .. v_K) of `continuation`. A point mass ends a gap, for t is infinite there.
    """
    below, inside = np.empty(len(product.groups), int), False
    for number, (group, w) in enumerate(zip(product.groups, -np.exp(unknown[1:]).real, strict=True)):
        intervals = np.array(group.law.support)
        if np.any((intervals[:, 0] <= w) & (w <= intervals[:, 1])):
            return None
        below[number] = np.count_nonzero(intervals[:, 1] < w)
        inside |= 0.0 < w < intervals[-1, 1]
    if not inside:
        # Above the whole spectrum, or all w are negative.
        return None
    axis, start = RealAxis(product, below), _place_on_path(unknown[0])
    low, high = (_end_of_gap(axis, start, direction, product.atoms) for direction in (-1.0, 1.0))
    return (low, high) if low < high else None


def _end_of_gap(
    axis: RealAxis, start: float, direction: float, atoms: tuple[tuple[float, float], ...]
) -> float:
    """log lambda - C at the end of the gap that holds ``start``, which is a place of `_path`, as are directions."""

    def log_z(p: Array) -> tuple[Array, Array]:
        return axis.log_z(*_path(p))

    value, is_edge = math.nan, None
    while is_edge is None and -ZERO - INFINITY < start < TURN + ONE + INFINITY:
        grid = _crowded(start + direction * STEPS, axis.poles + TURN + ONE)
        found, is_edge = _extremum(log_z, grid)
        value, start = value if math.isnan(found) else found, float(grid[-1])
    places = np.array([place for place, _ in atoms])
    distance = np.abs(places - value)
    return float(places[np.argmin(distance)]) if np.any(distance < AT_ATOM) else value


def _crowded(grid: Array, poles: Array) -> Array:
    """The grid with more points next to poles: where few units are dead a pole and a zero lie between two edges."""
    offsets = np.geomspace(1e-8, 0.3, 20)
    near = np.add.outer(poles, np.concatenate([-offsets, offsets])).ravel()
    low, high = float(grid.min()), float(grid.max())
    points = np.unique(np.append(grid, near[(near > low) & (near < high)]))
    return np.asarray(points if grid[-1] > grid[0] else points[::-1], np.float64)


def _path(p: Array) -> tuple[Array, Array]:
    """t, which falls as p grows: from infinity over 0 at p = 0 and -1 at p = TURN to minus infinity; and dt/dp."""
    inside = (p >= 0.0) & (p < TURN)
    outer = np.exp(np.where(p < 0.0, -p - ZERO, p - TURN - ONE))
    inner = np.exp(np.where(inside, p - ZERO, 0.0))
    between = -inner / (1.0 + inner)
    t = np.where(inside, between, np.where(p < 0.0, outer, -1.0 - outer))
    return t, np.where(inside, between / (1.0 + inner), -outer)


def _place_on_path(u: complex) -> float:
    """p of u = log(-t/(1 + t)), t real."""
    t, one_plus_t = (float(part[0].real) for part in transform_of(np.array([u])))
    if t > 0.0:
        return -math.log(t) - ZERO
    return u.real + ZERO if one_plus_t > 0.0 else math.log(-one_plus_t) + TURN + ONE


def _has_floor(law: SlopeLaw) -> bool:
    """Whether d stays away from zero, by more than a Gaussian tail that was cut."""
    smallest, largest = law.support[0][0], law.support[-1][1]
    return smallest > (0.0 if law.continuous is None else 1e-3 * largest)


def _extremum(log_z: Callable[[Array], tuple[Array, Array]], grid: Array) -> tuple[float, bool | None]:
    """The first extremum of log z(y) along a grid, and True; or log z where real solutions end, and False.

    Or log z at the end of the grid, and None.
    """
    last = grid[-1]
    for _ in range(16):
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
            if abs(b - a) < CLOSE:
                # Integrate the linear slope from the nearer side: an error of third order in b - a.
                return float(value[i] + 0.5 * share * (b - a) * slope[i]), True
            near = np.clip(share + np.array([-1.0, -0.1, -0.01, 0.01, 0.1, 1.0]), 0.0, 1.0)
            # Where the slope is a step the secant says nothing.
            grid = a + (b - a) * np.unique([*near, 0.25, 0.5, 0.75])
        elif end == grid.size and grid[-1] == last:
            return float(value[-1]), None
        elif end == grid.size or abs(grid[end] - grid[end - 1]) < 1e-9:
            return float(value[end - 1]), False
        else:
            grid = np.linspace(grid[end - 1], grid[end], 8)
    return float(value[0]), True


class RealAxis:
    """log z(t) at real t off the spectrum, every w_g real; solutions found start the next ones.

    Parameters
    ----------
    product : FreeProduct
    below : (K,) array, optional
        How many of the intervals of its values lie below each w_g; by default none or all of them.
    """

    def __init__(self, product: FreeProduct, below: Index | None = None) -> None:
        laws = [group.law for group in product.groups]
        self._product = product
        self._counts = np.array([group.count for group in product.groups])
        self._sizes = np.array([group.size for group in product.groups])
        self._ranks = np.array([law.nonzero_mass for law in laws])
        self._smallest = np.array([law.support[0][0] for law in laws])
        self._largest = np.array([law.support[-1][1] for law in laws])
        number = np.arange(len(laws))
        below = np.zeros(number.size, int) if below is None else below
        self._between = (below > 0) & (below < [len(law.support) for law in laws])
        neighbours = [
            (law.support[k - 1][1], law.support[k][0]) if inner else (1.0, 1.0)
            for law, k, inner in zip(laws, below, self._between, strict=True)
        ]
        self._left, self._right = np.array(neighbours).T
        branches = [ABOVE, NEGATIVE, BELOW, BETWEEN]
        ends = np.stack(
            [
                self._place(np.full(number.size, branch), number, np.full(number.size, y[branch]))[0]
                for branch in branches
                for y in (LOWEST, HIGHEST)
            ]
        )
        off = (ends == 0.0) | (np.repeat(branches, 2) == BETWEEN)[:, None] & ~self._between
        at_ends = product.averages(np.where(off, -1.0, ends).astype(complex)).m.real.reshape(4, 2, -1)
        # At w = 0, where a narrow law's average has no digits.
        at_ends[[NEGATIVE, BELOW], 0] = -self._ranks
        # Measures of m at the ends of y, (4, 2, K)
        self._at_ends = _measure(np.array(branches)[:, None, None], at_ends)[0]
        self._known: dict[tuple[int, int], tuple[Array, Array]] = {}

    @property
    def poles(self) -> Array:
        """log(-1 - t) where t = -nu or a w_g is zero: there z has a pole or a zero."""
        t = np.concatenate([self._sizes, self._sizes * self._ranks, self._product.sizes])
        return np.log(np.unique(t[t > 1.0 + 1e-9]) - 1.0)

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
        """(w, dw/dy) on a branch; |m| falls with y, and rises on the branch below; between two values m falls."""
        growing, falling = np.exp(y), np.exp(-y)
        largest, below = self._largest[law], self._smallest[law] / (1.0 + falling)
        left, span = self._left[law], (self._right - self._left)[law]
        of_branch = [branch == ABOVE, branch == NEGATIVE, branch == BETWEEN]
        w = np.select(of_branch, [largest * (1.0 + growing), -growing, left + span / (1.0 + falling)], below)
        rate = np.select(
            of_branch,
            [largest * growing, -growing, span / (1.0 + falling) / (1.0 + growing)],
            below / (1.0 + growing),
        )
        return w, rate

    def _inverse(self, x: Array) -> Array:
        """Real w_g off the range of d_g with m_g(w_g) = x, (n, K); nan where there is none."""
        law = np.broadcast_to(np.arange(x.shape[1]), x.shape).ravel()
        x, shape = x.ravel(), x.shape
        branch = np.where(x > 0, ABOVE, np.where(x > -self._ranks[law], NEGATIVE, BELOW))
        branch = np.where(self._between[law], BETWEEN, branch)
        target = _measure(branch, x)[0]
        ends = self._at_ends[branch, :, law]
        possible = (target > ends.min(axis=1)) & (target < ends.max(axis=1))
        possible &= (branch != BELOW) | (self._smallest[law] > 0)
        # m falls like 1/w from far away.
        y = np.where(branch == BETWEEN, 0.0, HIGHEST[branch] - np.abs(target - ends[:, 1]))
        for key, (measures, known) in self._known.items():
            own = (law == key[0]) & (branch == key[1])
            y[own] = np.interp(target[own], measures, known)
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
                value, steepness = _measure(branch[active], averages.m.real)
                value = value - target[active]
                moved = here - value / (steepness * averages.m_rate.real * rate / w)
            over = (value > 0) == (branch[active] == BELOW)
            low[active], high[active] = np.where(over, low[active], here), np.where(over, here, high[active])
            inside = np.isfinite(moved) & (moved > low[active]) & (moved < high[active])
            settled = (np.abs(moved - here) < 1e-7) | (high[active] - low[active] < 1e-13)
            middle = np.where(settled, here, 0.5 * (low[active] + high[active]))
            y[active] = np.where(inside, moved, middle)
            active = active[~settled]
        for key in set(zip(law[possible].tolist(), branch[possible].tolist(), strict=True)):
            own = possible & (law == key[0]) & (branch == key[1])
            measures, known = self._known.get(key, (np.empty(0), np.empty(0)))
            measures, known = np.concatenate([measures, target[own]]), np.concatenate([known, y[own]])
            order = np.argsort(measures)
            self._known[key] = measures[order], known[order]
        return np.where(possible, self._place(branch, law, y)[0], np.nan).reshape(shape)


def _measure(branch: Index, m: Array) -> tuple[Array, Array]:
    """A smooth scale for m, and its slope: log |m|, or arcsinh m between two values, where m changes its sign."""
    between = branch == BETWEEN
    with np.errstate(divide="ignore"):
        return (
            np.where(between, np.arcsinh(m), np.log(np.abs(m))),
            np.where(between, 1.0 / np.hypot(1.0, m), 1.0 / m),
        )
