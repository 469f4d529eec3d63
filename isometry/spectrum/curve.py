"""`Curve`: a cumulative distribution on a grid of ln s plus point masses, as a prediction leaves it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isometry.errors import InputError

from .distribution import checked_probability
from .error_model import NO_PROBES, ErrorModel
from .extremes import Extremes
from .log_scale import same_place
from .monotone_cubic import cubic_pieces, monotone_cubic
from .probe_means import ProbeMean

Array = NDArray[np.float64]

_EXACT = ErrorModel(NO_PROBES, eps=0.0)
# Of ln s: an eighth of the unit of rounding of s.
_LEAST_BIT = 2.0**-55


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
    unbounded : bool
        Whether the support has no upper end. The grid then ends where no visible mass is left.
    """

    log_s: Array
    cdf_continuous: Array
    log_density: Array
    atom_log_s: Array
    atom_mass: Array
    log_even_moments: tuple[float, ...] = ()
    unbounded: bool = False

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

    def with_point_mass(self, log_s: float, mass: float) -> Curve:
        """The same law with a share ``mass`` of it moved to one place."""
        rest = 1.0 - mass
        log_rest = math.log(rest) if rest > 0 else -math.inf
        moments = tuple(
            float(np.logaddexp(log_rest + moment, math.log(mass) + 2 * (index + 1) * log_s))
            for index, moment in enumerate(self.log_even_moments)
        )
        return Curve(
            self.log_s,
            rest * self.cdf_continuous,
            rest * self.log_density,
            np.append(self.atom_log_s, log_s),
            np.append(rest * self.atom_mass, mass),
            moments,
            self.unbounded,
        )

    @property
    def kind(self) -> str:
        return "predicted"

    @property
    def errors(self) -> ErrorModel:
        return _EXACT

    @property
    def n_inputs(self) -> int:
        return 1

    @property
    def n_probes(self) -> int:
        return 1

    @property
    def highest_floor(self) -> float:
        return 0.0

    @property
    def relative_error(self) -> float:
        return 0.0

    @property
    def end_errors(self) -> tuple[float, float]:
        return 0.0, 0.0

    @property
    def proved_zero_mass(self) -> float:
        return self.zero_mass

    @property
    def zero_mass(self) -> float:
        return float(np.sum(self.atom_mass[np.isneginf(self.atom_log_s)]))

    @property
    def log_range(self) -> tuple[float, float]:
        places = np.concatenate([self.log_s, self.atom_log_s[np.isfinite(self.atom_log_s)]])
        return (float(places.min()), float(places.max())) if places.size else (np.nan, np.nan)

    @property
    def log_ends(self) -> tuple[float, float]:
        low, high = self.log_range
        return (low, np.inf) if self.unbounded else (low, high)

    @property
    def all_resolved(self) -> bool:
        return True

    @property
    def singular(self) -> bool:
        return self.zero_mass > 0

    @property
    def grid(self) -> Array:
        return self.log_s

    @property
    def point_masses(self) -> tuple[Array, Array]:
        order = np.argsort(self.atom_log_s)
        return self.atom_log_s[order], self.atom_mass[order]

    def _continuous(self, t: Array) -> Array:
        if self.log_s.size < 2:
            return np.zeros_like(t)
        value = monotone_cubic(self.log_s, self.cdf_continuous, self.log_density, t)
        return np.where(t < self.log_s[0], 0.0, value)

    def cdf(self, log_s: ArrayLike, *, left: bool = False) -> Array:
        t = np.asarray(log_s, float)
        slack = same_place(t)
        value = self._continuous(t)
        for place, mass in zip(self.atom_log_s, self.atom_mass, strict=True):
            value = value + mass * ((place < t - slack) if left else (place <= t + slack))
        return np.clip(value, 0.0, 1.0)

    def cdf_bounds(self, log_s: ArrayLike) -> tuple[Array, Array]:
        value = self.cdf(log_s)
        return value, value

    def limits(
        self,
        s: Array,
        extremes: Extremes | None,
        confidence: float,
        *,
        low: Array | None = None,
        simultaneous: bool = False,
    ) -> tuple[Array, Array]:
        with np.errstate(divide="ignore"):
            share = self.cdf(np.log(s))
            if low is not None:
                share = share - self.cdf(np.log(low), left=True)
        return share, share

    def share_below_floor(self, low: float) -> float:
        return 0.0

    def quantile(self, p: ArrayLike) -> Array:
        p = checked_probability(p)
        low, _ = self.log_range
        if np.isnan(low):
            return np.full(p.shape, -np.inf)
        # The two grid points or atoms that hold p between them.
        grid = np.unique(np.concatenate([self.log_s, self.atom_log_s[np.isfinite(self.atom_log_s)]]))
        above = np.searchsorted(np.maximum.accumulate(self.cdf(grid)), p)
        a, b = grid[np.clip(above - 1, 0, None)], grid[np.clip(above, None, grid.size - 1)]
        b = self._first_place(p, a, b)
        # Rounding at the very top: what is asked for beyond the total mass is the upper edge.
        t = np.where(self.cdf(np.asarray(low)) >= p, low, b)
        for place in self.atom_log_s:
            before, after = self.cdf(np.asarray(place), left=True), self.cdf(np.asarray(place))
            t = np.where((p > before) & (p <= after), place, t)
        return np.where((p <= self.zero_mass) & (self.zero_mass > 0), -np.inf, t)

    def _first_place(self, p: Array, a: Array, b: Array) -> Array:
        """Where the cdf reaches p between neighbours a <= b of grid and atoms, to the last bit of s: by bisection."""
        middle = 0.5 * (a + b)
        inside = np.zeros(p.shape, bool)
        if self.log_s.size > 1:
            inside = (self.log_s[0] < middle) & (middle < self.log_s[-1])
        if not inside.any():
            return b
        i = np.clip(np.searchsorted(self.log_s, middle, side="right") - 1, 0, self.log_s.size - 2)
        continuous = cubic_pieces(self.log_s, self.cdf_continuous, self.log_density, i)
        atoms = [mass * (place <= a) for place, mass in zip(self.atom_log_s, self.atom_mass, strict=True)]
        # Beside s = 1 ln s has more bits than s.
        while np.any(apart := (a < (middle := 0.5 * (a + b))) & (middle < b) & (b - a > _LEAST_BIT)):
            reached = inside & (sum(atoms, continuous(middle)) >= p)
            a, b = np.where(apart & ~reached, middle, a), np.where(apart & reached, middle, b)
        return b

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
            secant = np.diff(self.cdf_continuous) / width
            left, right = (np.minimum(d, 3 * secant) for d in (self.log_density[:-1], self.log_density[1:]))
            slope = 6 * u * (1 - u) * secant + (1 - u) * (1 - 3 * u) * left + u * (3 * u - 2) * right
            mass = np.maximum(0.5 * w[:, None] * width * slope, 0.0)
            with np.errstate(divide="ignore"):
                logs.append((power * (self.log_s[:-1] + u * width) + np.log(mass)).ravel())
        every = np.concatenate(logs)
        top = every.max() if every.size else -np.inf
        return float(top + np.log(np.sum(np.exp(every - top)))) if np.isfinite(top) else float(-np.inf)

    def row_moments(self, power: float) -> tuple[float, Array]:
        return self.log_moment(power), np.ones((1, 1))

    def row_cdf(self, log_s: ArrayLike, *, left: bool = False) -> Array:
        return self.cdf(log_s, left=left)[None, None]

    def standard_error(self, values: Array, *, over: str = "probes") -> float:
        return 0.0

    def moment_mean(self, order: int) -> tuple[float, ProbeMean]:
        return self.log_moment(2 * order), ProbeMean(1.0, 0.0, 0.0, 0.0)

    def share_stderr(self, log_s: ArrayLike, *, low: float | None = None) -> Array:
        return np.zeros(np.shape(log_s))

    def input(self, index: int) -> Curve:
        raise InputError("a prediction has no inputs")

    def shifted(self, shift: float) -> Curve:
        moments = tuple(m + 2 * (k + 1) * shift for k, m in enumerate(self.log_even_moments))
        return Curve(
            self.log_s + shift, self.cdf_continuous, self.log_density,
            self.atom_log_s + shift, self.atom_mass, moments, self.unbounded,
        )  # fmt: skip
