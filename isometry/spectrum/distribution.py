"""`Distribution`: what everything downstream may ask of a distribution of singular values, measured or predicted.

Three classes answer: `.quadrature.Quadrature` holds nodes and weights, per input and per probe, as a measurement leaves
them; `.log_values.LogValues` all values as logarithms, as a chain leaves them; `.curve.Curve` a cumulative distribution
on a grid plus point masses, as a prediction leaves it. All answer in t = ln s, natural logarithm of the singular value,
because the squares of deep products range over 1e-300 .. 1e300 and beyond; t = -inf stands for s = 0.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isometry.errors import InputError

from .error_model import ErrorModel
from .extremes import Extremes
from .probe_means import ProbeMean

Array = NDArray[np.float64]


class Distribution(Protocol):
    """A distribution of singular values and how well it is known. A prediction has no errors: each of them is 0."""

    @property
    def kind(self) -> str:
        """ "measured" or "predicted"."""
        ...

    @property
    def errors(self) -> ErrorModel:
        """How random its probes were and how well its products are known."""
        ...

    @property
    def n_inputs(self) -> int:
        """Number of inputs whose Jacobians were averaged."""
        ...

    @property
    def n_probes(self) -> int:
        """Number of probe vectors per input; 1 where there were none."""
        ...

    @property
    def highest_floor(self) -> float:
        """Largest s that cannot be told from zero, over the inputs."""
        ...

    @property
    def relative_error(self) -> float:
        """Largest relative error of a singular value, however small that is; nan where errors are shares of s_max."""
        ...

    @property
    def end_errors(self) -> tuple[float, float]:
        """Relative errors of the smallest and the largest singular value apart from zero; 0 where residuals say it."""
        ...

    @property
    def zero_mass(self) -> float:
        """Mass at s = 0 (a measurement counts what lies below its floor)."""
        ...

    @property
    def proved_zero_mass(self) -> float:
        """The part of it that is zero without rounding; nan where nothing is known of that."""
        ...

    @property
    def all_resolved(self) -> bool:
        """Whether all mass lies where it is said to, and none stands for its neighbourhood."""
        ...

    @property
    def singular(self) -> bool:
        """Whether singular values lie at zero, to rounding; mass below a floor of too few steps says nothing of it."""
        ...

    @property
    def log_range(self) -> tuple[float, float]:
        """(min, max) of ln s where there is visible mass apart from zero; (nan, nan) when all mass sits at zero."""
        ...

    @property
    def log_ends(self) -> tuple[float, float]:
        """Ends of the support in ln s, apart from zero: `log_range`, or inf above where there is no upper end."""
        ...

    @property
    def point_masses(self) -> tuple[Array, Array]:
        """(ln s, mass) of the point masses proper."""
        ...

    @property
    def grid(self) -> Array:
        """ln s at which the cdf is given, increasing: the nodes of a quadrature, the grid points of a curve."""
        ...

    def cdf(self, log_s: ArrayLike, *, left: bool = False) -> Array:
        """Mass of {ln s <= log_s}, or of {ln s < log_s} with ``left``."""
        ...

    def cdf_bounds(self, log_s: ArrayLike) -> tuple[Array, Array]:
        """Lower and upper bound on the cdf (truncation error only)."""
        ...

    def limits(
        self,
        s: Array,
        extremes: Extremes | None,
        confidence: float,
        *,
        low: Array | None = None,
        simultaneous: bool = False,
    ) -> tuple[Array, Array]:
        """Limits of the fraction of singular values at or below ``s``, from ``low`` on where that is given.

        All errors together; see :meth:`isometry.Spectrum.cdf_band`. In s, not in ln s.
        """
        ...

    def share_below_floor(self, low: float) -> float:
        """Mass below those floors that reach up to s = ``low``: it may lie on either side of ``low``."""
        ...

    def quantile(self, p: ArrayLike) -> Array:
        """Smallest ln s whose cdf reaches p."""
        ...

    def log_moment(self, power: float) -> float:
        """ln E[s^power]."""
        ...

    def standard_error(self, values: Array, *, over: str = "probes") -> float:
        """Standard error of the mean of an (inputs, probes) array, one value for each row; 0 without random probes."""
        ...

    def moment_mean(self, order: int) -> tuple[float, ProbeMean]:
        """(scale, mean): E[s^(2 order)] is exp(scale) times a mean over probes, with the law of its error."""
        ...

    def share_stderr(self, log_s: ArrayLike, *, low: float | None = None) -> Array:
        """Standard error over probes of the mass of {ln s <= log_s}, from ``low`` on where that is given."""
        ...

    def row_moments(self, power: float) -> tuple[float, Array]:
        """(scale, (inputs, probes) array a): E[s^power] of each row is exp(scale) * a."""
        ...

    def row_cdf(self, log_s: ArrayLike, *, left: bool = False) -> Array:
        """As :meth:`cdf` for every row, (inputs, probes, *log_s.shape)."""
        ...

    def input(self, index: int) -> Distribution:
        """The distribution of one input."""
        ...

    def shifted(self, shift: float) -> Distribution:
        """The distribution of ln s + shift, that is of exp(shift) J."""
        ...


def checked_probability(p: ArrayLike) -> Array:
    p = np.asarray(p, dtype=float)
    if np.any(~(p >= 0) | ~(p <= 1)):
        raise InputError(f"a quantile is asked at probabilities in [0, 1]; got {p}")
    return p
