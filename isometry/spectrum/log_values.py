"""`LogValues`: all singular values one by one as ln s, each with a relative error, over any number of decades.

A product of many factors has singular values far outside the range of floats, and each of them can be known to a
relative error. (The values of a `.quadrature.Quadrature` are floats, known to a part of the largest one.)
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isometry.errors import InputError

from .distribution import checked_probability
from .error_model import NO_PROBES, ErrorModel
from .extremes import Extremes
from .log_scale import same_place
from .probe_means import ProbeMean

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LogValues:
    """All min(m, n) singular values of each input.

    Parameters
    ----------
    log_values : (inputs, K) array
        ln s, descending; -inf for s = 0.
    log_error : (inputs, K) array
        Bound of the error of ln s, that is of the relative error of s; 0 for a zero.
    proved_zeros : (inputs,) int array
        How many of the zeros a pattern of zeros in a factor proves; the others are zero to the rounding of a factor.
    errors : ErrorModel
        How well the products are known; there are no probes.

    Examples
    --------
    >>> import numpy as np
    >>> values = LogValues(np.log(10) * np.array([[0.0, -400.0]]), np.full((1, 2), 1e-12), np.zeros(1, int))
    >>> (values.quantile(0.5) / np.log(10)).tolist(), float(values.cdf(-300 * np.log(10)))
    (-400.0, 0.5)
    """

    log_values: Array
    log_error: Array
    proved_zeros: NDArray[np.int64]
    errors: ErrorModel = field(default_factory=lambda: ErrorModel(NO_PROBES))

    def __post_init__(self) -> None:
        values, error = np.asarray(self.log_values, float), np.asarray(self.log_error, float)
        if values.ndim != 2 or values.size == 0 or values.shape != error.shape:
            raise InputError(
                "log_values and log_error are (inputs, K) arrays of one shape with at least one value; got "
                f"{values.shape} and {error.shape}"
            )
        if np.any(np.isnan(values)) or np.any(values == np.inf):
            raise InputError("log_values hold NaN or inf")
        if np.any(values[:, 1:] > values[:, :-1]):
            raise InputError("log_values descend along each row")
        if np.any(~(error >= 0)) or np.any(np.isinf(error)):
            raise InputError("a log_error is a finite number of at least 0")
        zeros = np.isneginf(values).sum(axis=1)
        proved = np.asarray(self.proved_zeros)
        if proved.shape != zeros.shape or np.any((proved < 0) | (proved > zeros)):
            raise InputError(
                f"proved_zeros are counts of at most the zeros of each input, {zeros}; got {proved}"
            )
        if self.errors.random:
            raise InputError("values one by one have no random probes")

    @property
    def kind(self) -> str:
        return "measured"

    @property
    def n_inputs(self) -> int:
        return int(self.log_values.shape[0])

    @property
    def n_probes(self) -> int:
        return 1

    @property
    def dimension(self) -> int:
        """Number of singular values of each input."""
        return int(self.log_values.shape[1])

    def of_dimension(self, dimension: int) -> LogValues:
        """The same, known to stand for so many singular values of each input.

        Raises
        ------
        InputError
            When there is another number of them.
        """
        if dimension != self.dimension:
            raise InputError(
                f"there are {self.dimension} singular values of each input, and a Jacobian of this shape has "
                f"{dimension}"
            )
        return replace(self, errors=replace(self.errors, dimension=dimension))

    @property
    def highest_floor(self) -> float:
        return 0.0

    @property
    def relative_error(self) -> float:
        return float(self.log_error.max())

    @cached_property
    def _pooled(self) -> tuple[Array, Array]:
        """Distinct ln s, ascending, and the mass up to and including each."""
        places, counts = np.unique(self.log_values, return_counts=True)
        return places, np.cumsum(counts) / self.log_values.size

    @property
    def zero_mass(self) -> float:
        return float(np.isneginf(self.log_values).mean())

    @property
    def proved_zero_mass(self) -> float:
        """Mass at zero that a pattern of zeros proves."""
        return float(np.sum(self.proved_zeros) / self.log_values.size)

    @property
    def log_range(self) -> tuple[float, float]:
        finite = self.grid
        return (float(finite[0]), float(finite[-1])) if finite.size else (np.nan, np.nan)

    @property
    def log_ends(self) -> tuple[float, float]:
        return self.log_range

    @property
    def end_errors(self) -> tuple[float, float]:
        low, high = self.log_range
        found = (self.log_error[self.log_values == end] for end in (low, high))
        return tuple(float(error.max(initial=0.0)) for error in found)  # type: ignore[return-value]

    @property
    def all_resolved(self) -> bool:
        return True

    @property
    def singular(self) -> bool:
        return self.zero_mass > 0

    @property
    def grid(self) -> Array:
        places = self._pooled[0]
        return places[np.isfinite(places)]

    @property
    def point_masses(self) -> tuple[Array, Array]:
        if self.zero_mass > 0:
            return np.array([-np.inf]), np.array([self.zero_mass])
        return np.empty(0), np.empty(0)

    def cdf(self, log_s: ArrayLike, *, left: bool = False) -> Array:
        return self._share(self.log_values.ravel(), log_s, left=left)

    @staticmethod
    def _share(values: Array, log_s: ArrayLike, *, left: bool = False) -> Array:
        points = np.asarray(log_s, float)
        slack = same_place(points)
        places = points - slack if left else points + slack
        count = np.searchsorted(np.sort(values), places, side="left" if left else "right")
        return np.asarray(count / values.size)

    def cdf_bounds(self, log_s: ArrayLike) -> tuple[Array, Array]:
        """Lower and upper bound on the cdf: of the values that lie there certainly, and possibly."""
        certain, possible = self.log_values + self.log_error, self.log_values - self.log_error
        return self._share(certain.ravel(), log_s), self._share(possible.ravel(), log_s)

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
            lower, upper = self.cdf_bounds(np.log(s))
            if low is None:
                return lower, upper
            certain, possible = self.cdf_bounds(np.log(low))
        return np.maximum(lower - possible, 0.0), upper - certain

    def share_below_floor(self, low: float) -> float:
        return 0.0

    def quantile(self, p: ArrayLike) -> Array:
        t, cumulative = self._pooled
        # A cumulative sum carries rounding: p = 1/3 must find the value whose mass is 1/3.
        index = np.searchsorted(cumulative, checked_probability(p) - 8e-16 * t.size, side="left")
        return t[np.minimum(index, t.size - 1)]

    def log_moment(self, power: float) -> float:
        scale, means = self.row_moments(power)
        mean = float(means.mean())
        return float(np.log(mean) + scale) if mean > 0 else float(-np.inf)

    def row_moments(self, power: float) -> tuple[float, Array]:
        if power == 0:
            return 0.0, np.ones((self.n_inputs, 1))
        if power < 0 and self.zero_mass > 0:
            return 0.0, np.full((self.n_inputs, 1), np.inf)
        scale = float(np.max(power * self.log_values))
        if not np.isfinite(scale):
            return 0.0, np.zeros((self.n_inputs, 1))
        return scale, np.exp(power * self.log_values - scale).mean(axis=1)[:, None]

    def row_cdf(self, log_s: ArrayLike, *, left: bool = False) -> Array:
        return np.array([self._share(row, log_s, left=left)[None] for row in self.log_values])

    def standard_error(self, values: Array, *, over: str = "probes") -> float:
        return 0.0 if over == "probes" else self.errors.standard_error(values, over=over)

    def moment_mean(self, order: int) -> tuple[float, ProbeMean]:
        scale, means = self.row_moments(2 * order)
        return scale, ProbeMean(float(means.mean()), 0.0, 0.0, 0.0)

    def share_stderr(self, log_s: ArrayLike, *, low: float | None = None) -> Array:
        return np.zeros(np.shape(log_s))

    def input(self, index: int) -> LogValues:
        if not -self.n_inputs <= index < self.n_inputs:
            raise InputError(f"input {index} was asked for; there are {self.n_inputs}")
        pick = [index]
        return replace(
            self, log_values=self.log_values[pick], log_error=self.log_error[pick],
            proved_zeros=self.proved_zeros[pick],
        )  # fmt: skip

    def shifted(self, shift: float) -> LogValues:
        return replace(self, log_values=self.log_values + shift)
