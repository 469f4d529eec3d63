"""The two ways a distribution of singular values is known, behind one set of questions.

:class:`Quadrature` holds nodes and weights, per input and per probe, as a measurement leaves them;
:class:`Curve` holds a cumulative distribution on a grid plus point masses, as a prediction leaves it.
Both answer in t = ln s, natural logarithm of the singular value, because the squares of deep products
range over 1e-300 .. 1e300 and beyond; t = -inf stands for s = 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isometry.errors import InputError

Array = NDArray[np.float64]


class Distribution(Protocol):
    """What everything downstream may ask of a distribution of singular values."""

    @property
    def zero_mass(self) -> float:
        """Mass at s = 0 (a measurement counts what lies below its floor)."""
        ...

    @property
    def log_range(self) -> tuple[float, float]:
        """(min, max) of ln s over the support without zero; (nan, nan) when all mass sits at zero."""
        ...

    @property
    def point_masses(self) -> tuple[Array, Array]:
        """(ln s, mass) of the point masses proper."""
        ...

    def cdf(self, log_s: ArrayLike, *, left: bool = False) -> Array:
        """Mass of {ln s <= log_s}, or of {ln s < log_s} with ``left``."""
        ...

    def quantile(self, p: ArrayLike) -> Array:
        """Smallest ln s whose cdf reaches p."""
        ...

    def log_moment(self, power: float) -> float:
        """ln E[s^power]."""
        ...

    def shifted(self, shift: float) -> Distribution:
        """The distribution of ln s + shift, that is of exp(shift) J."""
        ...


def times_exp(values: Array, shift: float) -> Array:
    """``values * exp(shift)`` where the product is a float although exp(shift) may not be one."""
    half = float(np.exp(np.clip(shift / 2, -700.0, 700.0)))
    with np.errstate(over="ignore"):
        shifted = np.asarray(values, float) * half * half
    if not np.array_equal(np.isfinite(shifted), np.isfinite(values)):
        raise InputError(f"singular values times exp({shift:g}) leave the range of floats")
    return shifted


def _same_place(t: Array) -> Array:
    """How far apart two values of ln s may be and still mean the same s.

    ln and exp do not undo one another to the last bit. Without this a point mass would lie beyond the very s
    that :meth:`Distribution.quantile` names, and its mass would be missing from the cdf there.
    """
    return 4 * np.finfo(float).eps * np.maximum(1.0, np.abs(np.where(np.isfinite(t), t, 0.0)))


def _checked_probability(p: ArrayLike) -> Array:
    p = np.asarray(p, dtype=float)
    if np.any(~(p >= 0) | ~(p <= 1)):
        raise InputError(f"a quantile is asked at probabilities in [0, 1]; got {p}")
    return p


def monotone_cubic(grid: Array, values: Array, slopes: Array, at: Array) -> Array:
    """Values at ``at`` of the cubic through increasing values at the grid points, limited so that it never falls.

    Between grid points it is the cubic that has these values and slopes, no slope above three times the secant (Fritsch
    and Carlson 1980, SIAM J. Numer. Anal. 17, 238); beyond the ends it is constant.
    """
    i = np.clip(np.searchsorted(grid, at, side="right") - 1, 0, grid.size - 2)
    width, rise = grid[i + 1] - grid[i], values[i + 1] - values[i]
    u = np.clip((at - grid[i]) / width, 0.0, 1.0)
    left, right = (np.minimum(slopes[j] * width, 3 * rise) for j in (i, i + 1))
    return values[i] + u * u * (3 - 2 * u) * rise + u * (1 - u) * ((1 - u) * left - u * right)


@dataclass(frozen=True, eq=False)
class Quadrature:
    """Nodes and weights per input and probe.

    Parameters
    ----------
    nodes : (inputs, probes, K) array
        Singular values, >= 0, in any order. Padding has weight 0.
    weights : (inputs, probes, K) array
        Mass of each node; every (input, probe) row sums to 1.
    floor : (inputs,) array
        Nodes at or below it cannot be told from zero: they count as one mass at zero.
    resolved : (inputs, probes, K) bool array
        True where the mass at the node is that of a resolved singular value; False where the node is a
        Gauss node, whose mass stands for its neighbourhood (see :meth:`cdf_bounds`).
    """

    nodes: Array
    weights: Array
    floor: Array
    resolved: NDArray[np.bool_] = field(repr=False)

    def __post_init__(self) -> None:
        nodes, weights = np.asarray(self.nodes, float), np.asarray(self.weights, float)
        if nodes.ndim != 3 or nodes.shape != weights.shape or nodes.shape != np.shape(self.resolved):
            raise InputError(
                "nodes, weights and resolved are (inputs, probes, K) arrays of one shape; got "
                f"{nodes.shape}, {weights.shape}, {np.shape(self.resolved)}"
            )
        if nodes.size == 0:
            raise InputError("a distribution needs at least one node")
        if not (np.all(np.isfinite(nodes)) and np.all(np.isfinite(weights))):
            raise InputError("nodes or weights hold NaN or inf")
        if np.any(nodes < 0) or np.any(weights < 0):
            raise InputError("singular values and weights are not negative")
        if not np.allclose(weights.sum(-1), 1.0, atol=1e-6):
            raise InputError(f"the weights of every row sum to 1; got sums {weights.sum(-1).ravel()[:5]}")
        if np.shape(self.floor) != (nodes.shape[0],):
            raise InputError(f"floor has one entry per input ({nodes.shape[0]}); got {np.shape(self.floor)}")

    @cached_property
    def nodes_above_floor(self) -> Array:
        """Nodes with everything at or below the floor set to zero; (inputs, probes, K)."""
        return np.where(self.nodes <= self.floor[:, None, None], 0.0, self.nodes)

    @cached_property
    def _pooled(self) -> tuple[Array, Array]:
        """Distinct log nodes, ascending, and the cumulative mass up to and including each."""
        rows = self.nodes.shape[0] * self.nodes.shape[1]
        present = self.weights > 0
        s, w = self.nodes_above_floor[present], self.weights[present] / rows
        values, where = np.unique(s, return_inverse=True)
        mass = np.bincount(where, weights=w)
        cumulative = np.cumsum(mass)
        with np.errstate(divide="ignore"):
            return np.log(values), cumulative / cumulative[-1]

    @property
    def zero_mass(self) -> float:
        t, cumulative = self._pooled
        return float(cumulative[0]) if t[0] == -np.inf else 0.0

    @property
    def log_range(self) -> tuple[float, float]:
        finite = self._pooled[0][np.isfinite(self._pooled[0])]
        return (float(finite[0]), float(finite[-1])) if finite.size else (np.nan, np.nan)

    @property
    def point_masses(self) -> tuple[Array, Array]:
        if self.zero_mass > 0:
            return np.array([-np.inf]), np.array([self.zero_mass])
        return np.empty(0), np.empty(0)

    def cdf(self, log_s: ArrayLike, *, left: bool = False) -> Array:
        t, cumulative = self._pooled
        points = np.asarray(log_s, float)
        slack = _same_place(points)
        index = np.searchsorted(
            t, points - slack if left else points + slack, side="left" if left else "right"
        )
        return np.concatenate([[0.0], cumulative])[index]

    def quantile(self, p: ArrayLike) -> Array:
        t, cumulative = self._pooled
        # A cumulative sum carries rounding: p = 1/3 must find the node whose mass is 1/3.
        index = np.searchsorted(cumulative, _checked_probability(p) - 8e-16 * t.size, side="left")
        return t[np.minimum(index, t.size - 1)]

    def log_moment(self, power: float) -> float:
        """ln E[s^power]; the nodes below the floor count with the values they have.

        Their share of a positive moment is below floor^power, so it does not matter; for a negative
        power the moment of a distribution with mass at zero is infinite.
        """
        if power < 0 and self.zero_mass > 0:
            return float(np.inf)
        values = self.row_moments(power)[1]
        scale = self.row_moments(power)[0]
        mean = float(values.mean())
        return float(np.log(mean) + scale) if mean > 0 else float(-np.inf)

    def row_moments(self, power: float) -> tuple[float, Array]:
        """(scale, (inputs, probes) array a): E[s^power] of each row is exp(scale) * a."""
        present = self.weights > 0
        # Scaled by the node that dominates, the largest or for a negative power the smallest: no power overflows.
        dominant = self.nodes[present].max() if power >= 0 else self.nodes[present].min()
        dominant = float(dominant) or 1.0
        with np.errstate(divide="ignore"):
            terms = (np.where(present, self.nodes, dominant) / dominant) ** power
            return power * float(np.log(dominant)), np.sum(self.weights * terms, axis=-1)

    def row_cdf(self, log_s: float, *, left: bool = False) -> Array:
        """Mass of {ln s <= log_s} for every row, (inputs, probes)."""
        slack = float(_same_place(np.asarray(log_s, float)))
        t = self._log(self.nodes_above_floor)
        inside = t < log_s - slack if left else t <= log_s + slack
        return np.sum(self.weights * inside, axis=-1)

    @staticmethod
    def _log(values: Array) -> Array:
        with np.errstate(divide="ignore"):
            return np.log(values)

    def cdf_bounds(self, log_s: ArrayLike) -> tuple[Array, Array]:
        """Lower and upper bound on the cdf of the measures the probes see.

        The Chebyshev-Markov-Stieltjes inequalities (Szego, Orthogonal Polynomials, 1939, section 3.41): for a
        Gauss rule with nodes x_1 < x_2 < ... and partial sums S_j, S_{j-1} <= F(x_j -) <= F(x_j) <= S_j.
        Between nodes the bound loses one further weight on either side. Masses of resolved nodes are exact down to
        the floor; below it they may lie anywhere from zero to the floor.
        This is the truncation error alone; the statistical error of the probes comes on top.
        """
        points = np.asarray(log_s, float)
        reach = np.atleast_1d(points + _same_place(points)).ravel()
        lower, upper = np.zeros(reach.size), np.zeros(reach.size)
        inputs, probes, size = self.nodes.shape
        floor = np.broadcast_to(self.floor[:, None, None], self.nodes.shape)
        lowest, highest = self._log(self.nodes_above_floor), self._log(np.maximum(self.nodes, floor))
        for t, low, high, w, sure in zip(
            *(a.reshape(inputs * probes, size)
              for a in (self._log(self.nodes), lowest, highest, self.weights, self.resolved)),
            strict=True,
        ):  # fmt: skip
            lower += w[sure] @ (high[sure, None] <= reach)
            upper += w[sure] @ (low[sure, None] <= reach)
            order = np.argsort(t[~sure])
            gauss, mass = t[~sure][order], w[~sure][order]
            partial = np.concatenate([[0.0], np.cumsum(mass)])
            below = np.searchsorted(gauss, reach, side="right")
            lower += partial[np.maximum(below - 1, 0)]
            upper += partial[np.minimum(below + 1, mass.size)]
        rows = inputs * probes
        return (lower / rows).reshape(points.shape), np.minimum(upper / rows, 1.0).reshape(points.shape)

    def shifted(self, shift: float) -> Quadrature:
        return Quadrature(
            times_exp(self.nodes, shift), self.weights, times_exp(self.floor, shift), self.resolved
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Curve:
    """A cumulative distribution on a grid of ln s, plus point masses.

    Parameters
    ----------
    log_s : (G,) array
        ln s, increasing. The first and last entry are the edges of the continuous part. May be empty.
    cdf_continuous : (G,) array
        Mass of the continuous part up to each grid point, from about 0 to its total.
    log_density : (G,) array
        Density of the continuous part per unit of ln s (d mass / d ln s), >= 0, finite. Between grid points
        the cdf is the cubic that has these values and slopes.
    atom_log_s, atom_mass : (A,) arrays
        Point masses; ln s = -inf for those at zero.
    log_even_moments : tuple of float
        ln E[s^2], ln E[s^4], ... where they are known exactly; they take precedence over integration.
    """

    log_s: Array
    cdf_continuous: Array
    log_density: Array
    atom_log_s: Array
    atom_mass: Array
    log_even_moments: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not (np.shape(self.log_s) == np.shape(self.cdf_continuous) == np.shape(self.log_density)):
            raise InputError("log_s, cdf_continuous and log_density are of one length")
        if np.any(np.diff(self.log_s) <= 0):
            raise InputError("log_s increases strictly")
        if np.any(np.diff(self.cdf_continuous) < 0) or np.any(self.log_density < 0):
            raise InputError("a cdf does not fall and a density is not negative")
        if np.shape(self.atom_log_s) != np.shape(self.atom_mass):
            raise InputError("atom_log_s and atom_mass are of one length")
        total = (float(self.cdf_continuous[-1]) if self.log_s.size else 0.0) + float(np.sum(self.atom_mass))
        if not abs(total - 1) < 1e-5:
            raise InputError(f"the masses of a distribution sum to 1; got {total}")

    @property
    def zero_mass(self) -> float:
        return float(np.sum(self.atom_mass[np.isneginf(self.atom_log_s)]))

    @property
    def log_range(self) -> tuple[float, float]:
        places = np.concatenate([self.log_s, self.atom_log_s[np.isfinite(self.atom_log_s)]])
        return (float(places.min()), float(places.max())) if places.size else (np.nan, np.nan)

    @property
    def point_masses(self) -> tuple[Array, Array]:
        order = np.argsort(self.atom_log_s)
        return self.atom_log_s[order], self.atom_mass[order]

    @cached_property
    def _slopes(self) -> tuple[Array, Array]:
        """Slopes at the two ends of every interval, limited so that the cubic never falls."""
        secant = np.diff(self.cdf_continuous) / np.diff(self.log_s)
        return np.minimum(self.log_density[:-1], 3 * secant), np.minimum(self.log_density[1:], 3 * secant)

    def _continuous(self, t: Array) -> Array:
        if self.log_s.size < 2:
            return np.zeros_like(t)
        grid, mass = self.log_s, self.cdf_continuous
        inside = monotone_cubic(grid, mass, self.log_density, t)
        return np.where(t < grid[0], 0.0, np.where(t >= grid[-1], mass[-1], inside))

    def cdf(self, log_s: ArrayLike, *, left: bool = False) -> Array:
        t = np.asarray(log_s, float)
        slack = _same_place(t)
        value = self._continuous(t)
        for place, mass in zip(self.atom_log_s, self.atom_mass, strict=True):
            value = value + mass * ((place < t - slack) if left else (place <= t + slack))
        return np.clip(value, 0.0, 1.0)

    def quantile(self, p: ArrayLike) -> Array:
        p = _checked_probability(p)
        low, high = self.log_range
        if np.isnan(low):
            return np.full(p.shape, -np.inf)
        a, b = np.full(p.shape, low), np.full(p.shape, high)
        for _ in range(80):
            middle = 0.5 * (a + b)
            reached = self.cdf(middle) >= p
            a, b = np.where(reached, a, middle), np.where(reached, middle, b)
        # Rounding at the very top: what is asked for beyond the total mass is the upper edge.
        t = np.where(self.cdf(np.asarray(low)) >= p, low, b)
        for place in self.atom_log_s:
            before, after = self.cdf(np.asarray(place), left=True), self.cdf(np.asarray(place))
            t = np.where((p > before) & (p <= after), place, t)
        return np.where((p <= self.zero_mass) & (self.zero_mass > 0), -np.inf, t)

    def log_moment(self, power: float) -> float:
        half = power / 2
        if half == int(half) and 1 <= half <= len(self.log_even_moments):
            return float(self.log_even_moments[int(half) - 1])
        if power == 0:
            return 0.0
        if power < 0 and self.zero_mass > 0:
            return float(np.inf)
        logs = []
        finite = np.isfinite(self.atom_log_s) & (self.atom_mass > 0)
        logs.append(power * self.atom_log_s[finite] + np.log(self.atom_mass[finite]))
        if self.log_s.size > 1:
            x, w = np.polynomial.legendre.leggauss(5)
            u = 0.5 * (x + 1)[:, None]
            width = np.diff(self.log_s)
            left, right = self._slopes
            secant = np.diff(self.cdf_continuous) / width
            slope = 6 * u * (1 - u) * secant + (1 - u) * (1 - 3 * u) * left + u * (3 * u - 2) * right
            mass = np.maximum(0.5 * w[:, None] * width * slope, 0.0)
            with np.errstate(divide="ignore"):
                logs.append((power * (self.log_s[:-1] + u * width) + np.log(mass)).ravel())
        every = np.concatenate(logs)
        top = every.max() if every.size else -np.inf
        return float(top + np.log(np.sum(np.exp(every - top)))) if np.isfinite(top) else float(-np.inf)

    def shifted(self, shift: float) -> Curve:
        moments = tuple(m + 2 * (k + 1) * shift for k, m in enumerate(self.log_even_moments))
        return Curve(
            self.log_s + shift, self.cdf_continuous, self.log_density,
            self.atom_log_s + shift, self.atom_mass, moments,
        )  # fmt: skip
