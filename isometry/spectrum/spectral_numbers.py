"""`SpectralNumbers`: what is known of a distribution of singular values, number by number. Internal: see `Spectrum`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isometry.errors import InputError

from .curve import Curve
from .extremes import Extremes
from .log_scale import exponential
from .log_values import LogValues
from .quadrature import Quadrature
from .summary import STOPPED
from .unlisted import Unlisted, unlisted

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SpectralNumbers:
    """The cdf, quantiles, moments and extremes of a spectrum, each with its error; `Spectrum` makes and shows one."""

    distribution: Quadrature | LogValues | Curve
    method: str
    shape: tuple[int, int] | None = None
    extremes: Extremes | None = None
    name: str = ""
    products: int = 0
    seconds: float = 0.0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.shape is not None and not isinstance(self.distribution, Curve):
            object.__setattr__(self, "distribution", self.distribution.of_dimension(min(self.shape)))
        if self.extremes is not None and isinstance(self.distribution, LogValues):
            raise InputError("values that are all known, each with its error, have no extremes beside them")

    # ---- what it is --------------------------------------------------------------------------------

    @property
    def kind(self) -> str:
        """ "measured" or "predicted", for labels; nothing needs to branch on it."""
        return self.distribution.kind

    @property
    def null_dimension(self) -> int:
        """|m - n|: zeros forced by the shape, not counted in the distribution. 0 where no shape is known."""
        return abs(self.shape[0] - self.shape[1]) if self.shape else 0

    @property
    def n_inputs(self) -> int:
        """Number of inputs whose Jacobians were averaged; 1 for a prediction."""
        return self.distribution.n_inputs

    @property
    def n_probes(self) -> int:
        """Number of probe vectors per input; 1 for an exact measurement or a prediction."""
        return self.distribution.n_probes

    @property
    def quadrature(self) -> Quadrature:
        """The nodes and weights of a measurement.

        Raises
        ------
        InputError
            For a prediction, and for values that are known as logarithms.
        """
        if isinstance(self.distribution, Quadrature):
            return self.distribution
        if isinstance(self.distribution, LogValues):
            raise InputError(
                "the values of a chain are logarithms (log_singular_values), not nodes with weights"
            )
        raise InputError("a prediction is a curve: nodes and weights are those of a measurement")

    @property
    def singular_values(self) -> Array:
        """All singular values of a measurement one by one, descending: (d,) for one input, (inputs, d) for several.

        Values at or below :attr:`floor` are rounding.

        Raises
        ------
        InputError
            When they were not computed one by one, or one of them is no float: see :attr:`log_singular_values`.

        Examples
        --------
        >>> from isometry.spectrum import Spectrum
        >>> Spectrum.from_singular_values([1.0, 3.0]).singular_values.tolist()
        [3.0, 1.0]
        """
        if isinstance(self.distribution, LogValues):
            logs = self.log_singular_values
            with np.errstate(over="ignore"):
                found = np.exp(logs)
            if np.any(np.isinf(found) | (found < np.finfo(float).tiny) & np.isfinite(logs)):
                raise InputError(
                    "singular values leave the range of floats: log_singular_values holds their natural logarithms"
                )
            return found
        if self.kind == "predicted":
            raise InputError("a prediction is a density: it has quantiles, and no singular values of its own")
        if self.distribution.errors.random:
            raise InputError(
                f"a measurement by random probes ({self.method}) has quantiles and the largest singular values "
                "(extremes.top), not each of them: measure with method='exact'"
            )
        values = -np.sort(-self.quadrature.nodes[:, 0], axis=1)
        return np.asarray(values[0] if self.n_inputs == 1 else values)

    @property
    def log_singular_values(self) -> Array:
        """ln of :attr:`singular_values`, which may leave the range of floats; -inf for zero.

        Examples
        --------
        >>> from isometry.spectrum import Spectrum
        >>> Spectrum.from_singular_values([1.0, 0.0]).log_singular_values.tolist()
        [0.0, -inf]
        """
        if isinstance(self.distribution, LogValues):
            logs = self.distribution.log_values
            return logs[0] if self.n_inputs == 1 else logs
        with np.errstate(divide="ignore"):
            return np.log(self.singular_values)

    def exponents(self, layers: int) -> tuple[Array, Array]:
        """(values, errors): ln s / layers of each rank, the mean over the inputs, and its standard error over them.

        The Lyapunov exponents of depth, as far as ``layers`` of them show. Both arrays are (d,), descending; -inf with
        an error of 0 for a zero. The error of one input is nan: how far others are from it is unknown. Bounds of the
        errors of a single ln s are in :attr:`relative_errors`.

        Parameters
        ----------
        layers : int
            Layers, or steps in time, of the measured Jacobian.

        Raises
        ------
        InputError
            When the values were not computed one by one, or an input has a zero where another has none.

        Examples
        --------
        >>> from isometry.spectrum import Spectrum
        >>> values, errors = Spectrum.from_singular_values([1024.0, 1.0]).exponents(10)
        >>> (values / np.log(2)).round(12).tolist(), errors.tolist()
        ([1.0, 0.0], [nan, nan])
        """
        if not (isinstance(layers, Integral) and layers >= 1):
            raise InputError(f"layers is a whole number of at least 1; got {layers!r}")
        logs = np.atleast_2d(self.log_singular_values) / int(layers)
        zero = np.isneginf(logs)
        if np.any(zero.any(axis=0) != zero.all(axis=0)):
            raise InputError(
                "some inputs have a zero singular value where others have none, and the mean of their exponents is "
                "-inf: take them one by one, spectrum.input(i).exponents(layers)"
            )
        finite = np.where(zero, 0.0, logs)
        spread = (
            finite.std(axis=0, ddof=1) / math.sqrt(len(logs))
            if len(logs) > 1
            else np.full(logs.shape[1], np.nan)
        )
        return np.where(zero[0], -np.inf, finite.mean(axis=0)), np.where(zero[0], 0.0, spread)

    @property
    def relative_errors(self) -> Array:
        """Bound of the relative error of each of :attr:`singular_values`, of the same shape; 0 for a zero.

        Raises
        ------
        InputError
            Where errors are a share of s_max, as those of all methods but "chain" are.
        """
        if isinstance(self.distribution, LogValues):
            errors = np.expm1(self.distribution.log_error)
            return errors[0] if self.n_inputs == 1 else errors
        raise InputError(
            f"a relative error of every value is what method='chain' gives; the errors of {self.method!r} are a share "
            "of s_max (extremes.top_residual, floor)"
        )

    @property
    def floor(self) -> float:
        """Largest s that cannot be told from zero, over the inputs; 0 for a prediction."""
        return self.distribution.highest_floor

    def input(self, index: int) -> Self:
        """The spectrum of one input of a measurement over several."""
        picked, e = self.distribution.input(index), self.extremes
        return replace(self, distribution=picked, extremes=e and e.input(index))

    def scaled(self, factor: float) -> Self:
        """The spectrum of ``factor * J``."""
        if not (factor > 0 and math.isfinite(factor)):
            raise InputError(f"a spectrum is scaled by a positive finite factor; got {factor}")
        return self.log_shifted(math.log(factor))

    def log_shifted(self, shift: float) -> Self:
        """The spectrum of exp(shift) J, for factors outside the range of floats."""
        e = self.extremes
        return replace(self, distribution=self.distribution.shifted(shift), extremes=e and e.shifted(shift))

    # ---- the distribution --------------------------------------------------------------------------

    def cdf(self, s: ArrayLike) -> Array:
        """Fraction of singular values <= s. Shape of ``s``."""
        with np.errstate(divide="ignore"):
            return self.distribution.cdf(np.log(_nonnegative(s)))

    def cdf_bounds(self, s: ArrayLike) -> tuple[Array, Array]:
        """Rigorous bounds on the cdf of the measures the probes see (truncation error only).

        Chebyshev-Markov-Stieltjes; see :meth:`isometry.spectrum.Quadrature.cdf_bounds`. Equal to the cdf for
        a prediction, and for an exact measurement from the floor upwards.
        """
        with np.errstate(divide="ignore"):
            return self.distribution.cdf_bounds(np.log(_nonnegative(s)))

    def cdf_band(
        self, s: ArrayLike, confidence: float = 0.95, *, simultaneous: bool = False
    ) -> tuple[Array, Array]:
        """(lower, upper): limits between which the true cdf lies with this confidence; each the shape of ``s``.

        The bounds of :meth:`cdf_bounds`, which never fail, widened by the interval over random probes, by rounding and
        by the residuals of deflated values. It is the cdf of the Jacobians at the inputs measured, not
        of others. Both limits rise with s, lie in [0, 1] and hold :meth:`cdf` between them; below the floor the band is
        what values anywhere in [0, floor] allow. An exact measurement's band is its cdf from the floor upwards, but
        within rounding of a singular value; a prediction's is its cdf.

        Parameters
        ----------
        s : array_like
            Singular values, >= 0.
        confidence : float
            Chance, over the draw of the probes, that the band holds the true cdf.
        simultaneous : bool
            By default the band is pointwise: it holds the cdf at each s with this confidence. With True it holds it at
            all s at once; it is wider.

        Notes
        -----
        The mass that a uniform probe gives to j of n singular directions, n = min(m, n), is Beta(j / 2, (n - j) / 2),
        so its variance is known and a single probe has an interval too. Inverting that distribution follows Clopper &
        Pearson (1934, Biometrika 26, 404); the simultaneous band is Kolmogorov's (1933). Orthogonal blocks of uniform
        probes vary less. Of Rademacher probes only a bound of the variance is known: their band is Chebyshev's, 2.3
        times as wide at 95 %, and pointwise alone. See :mod:`isometry.spectrum.cdf_bounds`.

        Raises
        ------
        InputError
            For a confidence outside of (0, 1), or a simultaneous band of Rademacher probes.

        Examples
        --------
        >>> from isometry.spectrum import Spectrum
        >>> spectrum = Spectrum.from_singular_values([3.0, 1.0, 1.0, 1e-20], floor=1e-9)
        >>> [float(limit) for limit in spectrum.cdf_band(2.0)], [float(limit) for limit in spectrum.cdf_band(1e-12)]
        ([0.75, 0.75], [0.0, 0.25])
        """
        points = _nonnegative(s)
        return self.distribution.limits(points, self.extremes, confidence, simultaneous=simultaneous)

    def density(
        self, edges: ArrayLike | None = None, *, log: bool = False, bins: int = 60
    ) -> tuple[Array, Array]:
        """(edges, density): mean density of s in each cell, mass over width.

        Parameters
        ----------
        edges : (b + 1,) array, optional
            Cell edges in s, increasing. By default ``bins`` cells over the support: equal in s, or equal in
            log10 s with ``log``.
        log : bool
            Density per unit of log10 s instead of per unit of s.

        Returns
        -------
        edges : (b + 1,) array
        density : (b,) array
            Integrates to the mass inside the edges; the mass at zero is never part of it.
        """
        if edges is None:
            low, high = self.support
            if not high > 0:
                raise InputError(
                    "all singular values lie at zero or below the floor: there is no density to show"
                )
            low, high = (min(end, np.finfo(float).max / 4) for end in (low, high))
            if log:
                low = max(low, np.finfo(float).tiny)
                edges = np.geomspace(low * (1 - 1e-9), high * (1 + 1e-9), bins + 1)
                if not edges[-1] > edges[0]:
                    edges = np.geomspace(low / 2, 2 * high, bins + 1)
            else:
                edges = np.linspace(0.0 if low < 0.2 * high else 0.98 * low, 1.02 * high, bins + 1)
        cells = np.asarray(edges, float)
        if cells.ndim != 1 or cells.size < 2 or np.any(np.diff(cells) <= 0) or cells[0] < 0:
            raise InputError("edges are at least two increasing non-negative numbers")
        if log and cells[0] == 0:
            raise InputError("a density in log s needs edges above zero")
        mass = np.diff(self.cdf(cells))
        return cells, mass / np.diff(np.log10(cells) if log else cells)

    def quantile(self, p: ArrayLike) -> Array:
        """Smallest s whose cdf reaches p; 0 inside the mass at zero. Shape of ``p``."""
        with np.errstate(over="ignore"):
            return np.exp(self.distribution.quantile(p))

    def log10_quantile(self, p: ArrayLike) -> Array:
        """log10 of :meth:`quantile`, for spectra that leave the range of floats; -inf inside the mass at zero."""
        return self.distribution.quantile(p) / math.log(10)

    def isometry(self, low: float = 0.5, high: float = 2.0) -> float:
        """Fraction of singular values in [low, high].

        Where the floor is above ``low`` the least it can be: see :meth:`isometry_bounds`.
        """
        _check_range(low, high)
        with np.errstate(divide="ignore"):
            ends = np.log(np.array([low, high], float))
        return float(self.distribution.cdf(ends[1]) - self.distribution.cdf(ends[0], left=True))

    def isometry_bounds(self, low: float = 0.5, high: float = 2.0) -> tuple[float, float]:
        """(least, most) that :meth:`isometry` can be, as the singular values below the floor lie outside or inside.

        Both are the same where the floor is below ``low``, as it is for a prediction and mostly for an exact
        measurement. A quadrature of few steps has a high floor.
        """
        share = self.isometry(low, high)
        hidden = self.distribution.share_below_floor(low) if low > 0 else 0.0
        return share, min(1.0, share + hidden)

    def spread_bounds(self, factor: float = 2.0) -> tuple[float, float]:
        """(least, most) fraction of singular values within a factor of the root mean square, as `isometry_bounds`.

        It does not depend on the scale: that of c J is the same.
        """
        d = self.distribution
        middle, width = 0.5 * d.log_moment(2), math.log(factor)
        if not math.isfinite(middle):
            return (0.0, 0.0)
        share = float(d.cdf(middle + width)) - float(d.cdf(middle - width, left=True))
        hidden = d.share_below_floor(exponential(middle - width))
        return share, min(1.0, share + hidden)

    def isometry_band(
        self, low: float = 0.5, high: float = 2.0, confidence: float = 0.95
    ) -> tuple[float, float]:
        """Limits between which the true fraction of singular values in [low, high] lies, as :meth:`cdf_band`.

        Narrower than the difference of two bands, for the mass in an interval varies less than its ends.
        """
        _check_range(low, high)
        bottom = np.array([low], float) if low > 0 else None
        lower, upper = self.distribution.limits(
            np.array([high], float), self.extremes, confidence, low=bottom
        )
        return float(lower[0]), float(upper[0])

    @property
    def support(self) -> tuple[float, float]:
        """Smallest and largest s apart from zero, (0, 0) when everything is zero.

        Either may be 0 or inf where it leaves the range of floats; see :meth:`log10_quantile`. The law of an activation
        with unbounded slope has no upper end: inf.
        """
        low, high = self.distribution.log_ends
        return (0.0, 0.0) if math.isnan(low) else (exponential(low), exponential(high))

    @property
    def atoms(self) -> list[tuple[float, float]]:
        """Point masses proper as (s, mass); for a measurement, at most the mass below the floor, at 0."""
        places, masses = self.distribution.point_masses
        return [(exponential(float(place)), float(mass)) for place, mass in zip(places, masses, strict=True)]

    @property
    def zero_mass(self) -> float:
        """Mass at s = 0; for a measurement, the mass that cannot be told from zero (see ``floor``)."""
        return self.distribution.zero_mass

    @property
    def below_floor(self) -> float:
        """The same as :attr:`zero_mass`, by the name that says what a measurement knows."""
        return self.zero_mass

    # ---- moments -----------------------------------------------------------------------------------

    def moment(self, order: int = 1) -> float:
        """E[s^(2 order)]: the moment m_order of lambda = s^2, the normalised trace of (J J^T)^order.

        The trace is normalised by min(m, n). May be 0 or inf where it leaves the range of floats; see
        :meth:`log10_moment`.
        """
        return exponential(self.distribution.log_moment(2 * order))

    def log10_moment(self, order: int = 1) -> float:
        """log10 of :meth:`moment`."""
        return self.distribution.log_moment(2 * order) / math.log(10)

    @property
    def mean_square(self) -> float:
        """E[s^2], the normalised squared Frobenius norm ||J||_F^2 / min(m, n)."""
        return self.moment(1)

    @property
    def variance(self) -> float:
        """Var[s^2] = m_2 - m_1^2, the sigma^2_JJ of Pennington et al. (2017, arXiv 1711.04735).

        0 or inf where it leaves the range of floats, as :meth:`moment`.
        """
        first, second = self.distribution.log_moment(2), self.distribution.log_moment(4)
        if not math.isfinite(second):
            return 0.0 if second < 0 else math.inf
        # Relative to m_2, so that neither square over- nor underflows on the way.
        share = -math.expm1(min(2 * first - second, 0.0)) + 0.0
        return share * math.exp(second) if second < 709.7 else (math.inf if share > 0 else 0.0)

    # ---- errors ------------------------------------------------------------------------------------

    def standard_error(self, row_values: Array, *, over: str = "probes") -> float:
        """Standard error of the mean of an (inputs, probes) array of values, one for each row of the measure.

        ``over="probes"``: the error of the number for the very inputs measured; 0 for an exact measurement, nan
        where one probe alone gives no spread. ``over="inputs"``: the error of the mean over the population the
        inputs were drawn from (it contains the probe error); nan for one input.
        """
        return self.distribution.standard_error(row_values, over=over)

    def moment_stderr(self, order: int = 1, *, over: str = "probes") -> float:
        """Standard error of :meth:`moment` over probes or over inputs; 0 for a prediction.

        Over probes from the law of the probes, so that one alone has an error; nan where the rule of a single probe is
        too short for it (``order`` steps), and where the moment is no float. Of random signs the law is a bound, which
        the spread of many replaces.
        """
        if over == "probes":
            scale, mean = self.distribution.moment_mean(order)
            error = mean.standard_error
        else:
            scale, values = self.distribution.row_moments(2 * order)
            error = self.standard_error(values, over=over)
        found = error * exponential(scale) if error > 0 else error
        return found if error == 0 or 0 < found < math.inf else math.nan

    @property
    def mean_square_stderr(self) -> float:
        """Standard error of :attr:`mean_square` over probes."""
        return self.moment_stderr(1)

    def mean_square_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of the mean square over probes; see :meth:`moment_interval`."""
        return self.moment_interval(1, level)

    def moment_interval(self, order: int = 1, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of :meth:`moment` over probes.

        The mean over probes is a sum of squared Gaussians; its law is taken for the Gamma law of its mean and variance,
        which the probes' own rules tell (`isometry.spectrum.probe_means`). It is not symmetric about the moment. Where
        rules are too short to tell a variance, Student's t on the spread of the probes; (least, inf) for one probe.
        """
        scale, mean = self.distribution.moment_mean(order)
        factor = exponential(scale)
        low, high = mean.interval(level)
        return (low * factor if low > 0 else 0.0), (high * factor if high > 0 else 0.0)

    def cdf_stderr(self, s: ArrayLike, *, over: str = "probes") -> Array:
        """Standard error of :meth:`cdf`, shape of ``s``; 0 for a prediction."""
        points = _nonnegative(s)
        with np.errstate(divide="ignore"):
            logs = np.log(points).ravel()
        if over == "probes":
            return self.distribution.share_stderr(logs).reshape(points.shape)
        rows = self.distribution.row_cdf(logs)
        errors = [self.standard_error(rows[..., place], over=over) for place in range(logs.size)]
        return np.array(errors).reshape(points.shape)

    def isometry_stderr(self, low: float = 0.5, high: float = 2.0, *, over: str = "probes") -> float:
        """Standard error of :meth:`isometry`; 0 for a prediction."""
        d = self.distribution
        if over == "probes":
            bottom = math.log(low) if low > 0 else None
            return float(d.share_stderr(math.log(high) if high > 0 else -math.inf, low=bottom))
        upper = d.row_cdf(math.log(high))
        lower = d.row_cdf(math.log(low) if low > 0 else -math.inf, left=True)
        return self.standard_error(upper - lower, over=over)

    # ---- extremes ----------------------------------------------------------------------------------

    @property
    def s_max(self) -> float:
        """Largest singular value (over the inputs); inf for a law without an upper end."""
        return float(self.extremes.top[:, 0].max()) if self.extremes is not None else self.support[1]

    @property
    def s_max_residual(self) -> float:
        """Residual bound of :attr:`s_max`; 0 for a prediction."""
        e = self.extremes
        if e is None:
            return _part(self.s_max, self.distribution.end_errors[1])
        return float(e.top_residual[int(e.top[:, 0].argmax()), 0])

    @property
    def unlisted(self) -> Unlisted | None:
        """How many singular values as large as the last one in the list of the largest ones are not in it.

        Of the input with the largest singular value, whose list reports show; None where there is no list. A Krylov
        method lists a multiple value less often than it occurs. Limits of 99.9 % confidence.
        """
        if self.extremes is None or not isinstance(self.distribution, Quadrature):
            return None
        best = int(self.extremes.top[:, 0].argmax())
        return unlisted(self.distribution.input(best), self.extremes.input(best))

    @property
    def s_min(self) -> float:
        """Smallest singular value (over the inputs); nan where it is not resolved.

        For a prediction the edge below which less than 1e-9 of the mass lies (the law of an activation whose slope
        comes near zero reaches down to zero in principle), and 0 with a mass at zero.
        """
        if self.extremes is None:
            return self.support[0] if self.zero_mass == 0 else math.nan if self.floor > 0 else 0.0
        if not np.all(self.extremes.bottom_resolved):
            return math.nan
        return float(self.extremes.bottom.min())

    @property
    def s_min_residual(self) -> float:
        """Residual bound of :attr:`s_min`; nan where it is not resolved."""
        if self.extremes is None:
            return _part(self.s_min, self.distribution.end_errors[0])
        e = self.extremes
        return float(e.bottom_residual[int(e.bottom.argmin())]) if np.all(e.bottom_resolved) else math.nan

    @property
    def s_min_bound(self) -> float:
        """An upper bound of the smallest singular value, known even where :attr:`s_min` is not."""
        if self.extremes is None:
            return self.floor if self.zero_mass > 0 else self.support[0]
        return float(self.extremes.bottom.min())

    @property
    def condition_number(self) -> float:
        """s_max / s_min: inf where J is singular to rounding, nan where s_min is not resolved.

        Singular values below the floor of an exact measurement are zero to rounding. Mass below the floor of a
        Krylov method is only too small for its steps, so the condition number is not known. Over several inputs,
        the largest of theirs.
        """
        d = self.distribution
        if self.below_floor > 0:
            return math.inf if d.singular else math.nan
        if self.extremes is None:
            low, high = d.log_ends
            return exponential(high - low) if not math.isnan(low) else math.nan
        e = self.extremes
        if not np.all(e.bottom_resolved):
            return math.nan
        return float((e.top[:, 0] / e.bottom).max())

    @property
    def condition_number_bound(self) -> float:
        """A lower bound of :attr:`condition_number`, known even where that is not; inf where J is singular."""
        if not math.isnan(self.condition_number):
            return self.condition_number
        if self.extremes is None:
            return self.s_max / self.floor if self.floor > 0 else 1.0
        # Of each input by itself: the largest and the smallest value of all may belong to two inputs.
        smallest = np.maximum(self.extremes.bottom, self.floor)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.where(smallest > 0, self.extremes.top[:, 0] / smallest, math.inf)
        return float(max(ratios.max(), 1.0))

    def _leading_values(self) -> tuple[tuple[float, float], ...]:
        """The largest values of the input with the largest one, with their errors, where all are known one by one."""
        if not isinstance(self.distribution, LogValues):
            return ()
        best = int(self.distribution.log_values[:, 0].argmax())
        logs, errors = self.distribution.log_values[best, :10], self.distribution.log_error[best, :10]
        values = [exponential(float(log)) for log in logs]
        return tuple(
            (s, _part(s, float(error))) for s, error in zip(values, errors, strict=True) if 0 < s < math.inf
        )

    @property
    def worst_relative_error(self) -> float:
        """Of a singular value known by itself, of a measurement; nan where errors are shares of s_max, or predicted."""
        return math.expm1(self.distribution.relative_error) if self.kind == "measured" else math.nan

    def _outside(self) -> dict[str, Any]:
        """The fields of a `Summary` that say what a prediction knows of a singular value outside its law."""
        found = self.provenance.get("outside")
        log10 = found.get("log10_s") if isinstance(found, Mapping) else None
        if not isinstance(found, Mapping) or not isinstance(log10, int | float) or not math.isfinite(log10):
            return {}
        value = 10.0**log10 if abs(log10) < 300 else math.nan
        return {
            "outside": value,
            "log10_outside": float(log10),
            "outside_certain": found.get("certain") is True,
        }

    @property
    def stopped(self) -> Mapping[str, Any]:
        """The record of why a measurement with a goal stopped, or that it was interrupted; empty without one."""
        found = self.provenance.get("stopped")
        if not isinstance(found, Mapping) or str(found.get("reason")) not in STOPPED:
            return {}
        return found if all(isinstance(found.get(key, 0), int | float) for key in ("error", "rtol")) else {}


def _part(value: float, share: float) -> float:
    """A share of a value, nan where that is infinite."""
    return value * math.expm1(share) if math.isfinite(value) else 0.0 if share == 0 else math.nan


def _nonnegative(s: ArrayLike) -> Array:
    values = np.asarray(s, float)
    if np.any(~(values >= 0)):
        raise InputError("singular values are not negative (and not NaN)")
    return values


def _check_range(low: float, high: float) -> None:
    if not 0 <= low <= high:
        raise InputError(f"isometry(low, high) needs 0 <= low <= high; got {low}, {high}")
