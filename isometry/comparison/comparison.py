"""`compare`: how far a measured spectrum lies from a predicted one, and what fluctuation is expected.

Two spectra in, one `Comparison` out: Kolmogorov-Smirnov and Wasserstein-1 distances, ratios of moments, differences
of edges; each once as the spectra are (raw) and once with the measured mean square set to the predicted one (shape).

"Agrees" needs a scale: what a network of finite width, measured with finitely many probes, is expected to show. It is
worked out in :mod:`isometry.comparison.finite_size`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isometry.comparison.distances import kolmogorov_smirnov, wasserstein
from isometry.comparison.finite_size import (
    MOMENTS,
    ExpectedFluctuation,
    error_band,
    expected_fluctuation,
    network_width,
)
from isometry.comparison.ratios import (
    Edge,
    edge_dict,
    edge_of,
    exponential,
    log_ratio_of,
    ratio_text,
)  # fmt: skip
from isometry.errors import InputError
from isometry.spectrum import Spectrum
from isometry.spectrum.formatting import json_ready, plain
from isometry.spectrum.plotting import report_package

Array = NDArray[np.float64]

LN10 = math.log(10)
# Places closer than so many units of rounding of the measurement, in ln s, are one place; and never less than 1e-6.
ROUNDING_UNITS = 1000
SMALLEST_TOLERANCE = 1e-6
# Rounding of a dense SVD, where the spectra themselves name no floor; relative to s_max.
SMALLEST_FLOOR = 1e-13


@dataclass(frozen=True)
class Distances:
    """Distances between two spectra.

    Parameters
    ----------
    ks : float
        sup |F - G|, places within the tolerance counting as one.
    ks_at : float
        s where it is reached; nan for distance zero.
    ks_beyond_error : float
        The same to the nearest curve inside the error band of the measurement (probes and truncation).
    wasserstein : float
        Wasserstein-1 distance in s, in units of the predicted root mean square of s.
    wasserstein_log10 : float
        Wasserstein-1 distance in log10 s, all mass below the floor moved to the floor.
    log_moment_ratios : tuple of float
        ln(measured m_k / predicted m_k) for k = 1..4, m_k = E s^(2k).
    """

    ks: float
    ks_at: float
    ks_beyond_error: float
    wasserstein: float
    wasserstein_log10: float
    log_moment_ratios: tuple[float, ...]

    @property
    def moment_ratios(self) -> tuple[float, ...]:
        """measured m_k / predicted m_k for k = 1..4; inf or 0 where they leave the range of floats."""
        return tuple(exponential(value) for value in self.log_moment_ratios)


@dataclass(frozen=True, eq=False)
class Comparison:
    """A measured spectrum beside a predicted one.

    Parameters
    ----------
    measured, predicted : Spectrum
        The two, as given.
    raw : Distances
        As they are.
    shape : Distances
        With the measured spectrum scaled to the predicted mean square.
    expected_fluctuation : ExpectedFluctuation
        Bounds of what finite width and finitely many probes cause; nan where the width is not known.
    s_max, s_min : Edge
    width : float
        Number of independent units a layer of the network has; nan if unknown.
    floor : float
        s below which nothing is compared but the total mass.
    tolerance : float
        Difference in ln s within which two places are one.
    """

    measured: Spectrum = field(repr=False)
    predicted: Spectrum = field(repr=False)
    raw: Distances
    shape: Distances
    expected_fluctuation: ExpectedFluctuation
    s_max: Edge
    s_min: Edge
    width: float
    floor: float
    tolerance: float

    @property
    def inside_band(self) -> float:
        """Fraction of the prediction's percentiles, from the floor upwards, where its cdf is in the measured 95 % band.

        See :meth:`isometry.Spectrum.cdf_band`. The band is for the one network measured; a network of finite width
        strays from its law by more. nan where the band has next to no width, as for an exact measurement, or nothing
        is above the floor.
        """
        with np.errstate(over="ignore"):
            s = np.asarray(self.predicted.quantile(np.linspace(0.01, 0.99, 99)))
        s = s[(s > self.floor) & np.isfinite(s)]
        lower, upper = self.measured.cdf_band(s)
        if not s.size or np.median(upper - lower) < 1e-9:
            return math.nan
        law = self.predicted.cdf(s)
        return float(np.mean((lower <= law) & (law <= upper)))

    @property
    def agrees(self) -> bool | None:
        """Whether mean square and distance are within the expected fluctuation; None where that is not known.

        The distance may be within it raw or in shape: a mean square that is off by no more moves the whole of a narrow
        law, which the raw distance would hold against it a second time.
        """
        shift = abs(self.raw.log_moment_ratios[0])
        nearest = min(self.raw.ks_beyond_error, self.shape.ks_beyond_error)
        return _both(
            _within(nearest, self.expected_fluctuation.ks),
            _within(shift, self.expected_fluctuation.log_mean_square),
        )

    @property
    def agrees_in_shape(self) -> bool | None:
        """Whether the distance is within the expected fluctuation once the measured mean square is divided out.

        A point mass whose place the weights alone decide (the p^-L of hard-tanh) is moved by that division: a
        spectrum that agrees raw need not agree in shape.
        """
        return _within(self.shape.ks_beyond_error, self.expected_fluctuation.ks)

    def verdict(self) -> str:
        """One sentence: is this the predicted law?"""
        distance = f"KS {self.raw.ks:.3g}{self._beyond_text()}, expected fluctuation {self.expected_fluctuation.ks:.3g}"
        ratio = ratio_text(self.raw.log_moment_ratios[0])
        if self.agrees is None:
            return (
                f"cannot tell: KS {self.raw.ks:.3g}, but the expected fluctuation is unknown; give width= (units of a "
                "layer), and measure with two probes or more"
            )
        if self.agrees:
            if not _within(self.raw.ks_beyond_error, self.expected_fluctuation.ks):
                bound = self.expected_fluctuation.ks
                distance = f"KS {self.shape.ks:.3g} in shape ({self.raw.ks:.3g} raw), expected fluctuation {bound:.3g}"
            return f"agrees: {distance}; mean square {ratio} of the predicted"
        if _within(self.raw.ks_beyond_error, self.expected_fluctuation.ks):
            allowed = exponential(self.expected_fluctuation.log_mean_square)
            return (
                f"disagrees in the mean square only: {ratio} of the predicted, expected within a factor of "
                f"{allowed:.3g}; {distance}"
            )
        if self.agrees_in_shape:
            return (
                f"agrees in shape only: mean square {ratio} of the predicted; KS {self.raw.ks:.3g} raw, "
                f"{self.shape.ks:.3g} with that divided out, expected fluctuation {self.expected_fluctuation.ks:.3g}"
            )
        return f"disagrees: {distance}; mean square {ratio} of the predicted"

    def _beyond_text(self) -> str:
        if self.raw.ks == self.raw.ks_beyond_error:
            return ""
        return f" ({self.raw.ks_beyond_error:.3g} beyond the error of the measurement)"

    def rows(self) -> list[tuple[str, str, str, str]]:
        """The table as (label, raw, shape, expected fluctuation): what every rendering of a comparison shows."""
        a, b, c = self.raw, self.shape, self.expected_fluctuation
        table = [
            ("KS", f"{a.ks:.3g}", f"{b.ks:.3g}", ""),
            (
                "KS beyond error",
                f"{a.ks_beyond_error:.3g}",
                f"{b.ks_beyond_error:.3g}",
                _at_most(c.ks),
            ),
            ("W1 in s / rms", f"{a.wasserstein:.3g}", f"{b.wasserstein:.3g}", _at_most(c.wasserstein)),
            ("W1 in log10 s", f"{a.wasserstein_log10:.3g}", f"{b.wasserstein_log10:.3g}",
             _at_most(c.wasserstein_log10)),
        ]  # fmt: skip
        for k, raw, shape, bound in zip(
            MOMENTS, a.log_moment_ratios, b.log_moment_ratios, c.log_moments, strict=True
        ):
            allowed = c.log_mean_square if k == 1 else bound
            factor = "" if math.isnan(allowed) else f"1 within x {exponential(allowed):.3g}"
            table.append((f"m{k} ratio", ratio_text(raw), ratio_text(shape), factor))
        low, high = c.log_s_max
        span = "" if math.isnan(low) else f"{exponential(low):.3g} .. {exponential(high):.3g}"
        mean = 0.5 * self.raw.log_moment_ratios[0]
        for label, edge, text in (("s_max ratio", self.s_max, span), ("s_min ratio", self.s_min, "")):
            table.append((label, ratio_text(edge.log_ratio), ratio_text(edge.log_ratio - mean), text))
        return table

    def summary(self) -> str:
        """The table as text."""
        head = ("", "raw", "shape", "expected")
        table = [head, *self.rows()]
        widths = [max(len(row[i]) for row in table) for i in range(4)]
        first = _title(self.measured, "measured")
        second = _title(self.predicted, "predicted")
        known = "unknown" if math.isnan(self.width) else f"{self.width:g}"
        lines = [f"Comparison of {first} with {second}"]
        lines += ["  " + "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip()
                  for row in table]  # fmt: skip
        lines.append(
            f"  width {known}; floor s = {self.floor:.2g}; places within {self.tolerance:.1g} are one"
        )
        if not math.isnan(self.inside_band):
            lines.append(
                f"  predicted cdf inside the 95 % band of the measured one at {100 * self.inside_band:.0f} % of s"
            )
        lines.append(f"  {self.verdict()}")
        return plain("\n".join(lines), keep="\n")

    __str__ = summary

    def __repr__(self) -> str:
        return plain(f"<Comparison: {self.verdict()}>")

    def to_dict(self) -> dict[str, Any]:
        """Every number as plain JSON values; None for what is unknown or leaves the range of floats."""
        values = {
            "measured": self.measured.name or self.measured.method,
            "predicted": self.predicted.name or self.predicted.method,
            "verdict": self.verdict(),
            "agrees": self.agrees,
            "agrees_in_shape": self.agrees_in_shape,
            "width": self.width,
            "floor": self.floor,
            "tolerance": self.tolerance,
            "raw": _distances_dict(self.raw),
            "shape": _distances_dict(self.shape),
            "by_chance": {
                "ks": self.expected_fluctuation.ks,
                "log_mean_square": self.expected_fluctuation.log_mean_square,
                "wasserstein": self.expected_fluctuation.wasserstein,
                "wasserstein_log10": self.expected_fluctuation.wasserstein_log10,
                "log_moments": self.expected_fluctuation.log_moments,
                "log_s_max": self.expected_fluctuation.log_s_max,
            },
            "inside_band": self.inside_band,
            "s_max": edge_dict(self.s_max),
            "s_min": edge_dict(self.s_min),
        }
        plain: dict[str, Any] = json_ready(values)
        return plain

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """Draw the two densities above, the two cdfs with the error band below; returns the Matplotlib figure.

        With ``ax`` the two cdfs alone are drawn into it, and it is returned. Options are those of
        `isometry.report.plot_comparison` and `isometry.report.plot_comparison_cdf`.
        """
        report = report_package()
        if ax is None:
            return report.plot_comparison(self, **options)
        return report.plot_comparison_cdf(self, ax, **options)


def compare(
    measured: Spectrum,
    predicted: Spectrum,
    *,
    width: float | None = None,
    floor: float | None = None,
    tolerance: float | None = None,
) -> Comparison:
    """How far ``measured`` lies from ``predicted``, and what fluctuation is expected.

    Parameters
    ----------
    measured, predicted : Spectrum
        Either may be of either kind; the second is the one taken as the law.
    width : float, optional
        Independent units of a layer: the width of a dense network, the channels (not channels x pixels) of a
        convolutional one. By default the narrowest width that the spectra's provenance names, else min(m, n) of the
        measured shape. ``math.inf`` for two measurements of one network, which differ by their probes alone.
    floor : float, optional
        s below which nothing is compared but the total mass, which counts as lying at the floor. By default the
        larger of the two spectra's own floors; where both are zero, 1e-13 of the larger s_max, or, where a measurement
        knows each value to a relative error ("chain"), a tenth of the smallest value of both.
    tolerance : float, optional
        Difference in ln s within which two places are one, so that rounding does not part an atom from its
        prediction. By default 1000 units of rounding of the measurement's dtype, at least 1e-6.

    Returns
    -------
    Comparison

    Raises
    ------
    InputError
        When an argument is out of its range, or one of the two is not a Spectrum.

    Examples
    --------
    >>> import numpy as np
    >>> law = Spectrum.from_singular_values(np.linspace(0.5, 1.5, 1000))
    >>> sample = Spectrum.from_singular_values(np.linspace(0.5, 1.5, 100))
    >>> compare(sample, law).agrees
    True
    """
    for name, value in (("measured", measured), ("predicted", predicted)):
        if not isinstance(value, Spectrum):
            raise InputError(
                f"{name} is a Spectrum (isometry.measure, isometry.predict); got {type(value).__name__}"
            )
    for name, number, low in (("width", width, 1.0), ("floor", floor, 0.0), ("tolerance", tolerance, 0.0)):
        if number is not None and not number >= low:
            raise InputError(f"{name} is a number of at least {low:g}; got {number!r}")
    width = float(width) if width is not None else network_width(measured, predicted)
    tolerance = _tolerance(measured, predicted) if tolerance is None else float(tolerance)
    shift = 0.5 * (predicted.distribution.log_moment(2) - measured.distribution.log_moment(2))
    shift = shift if math.isfinite(shift) else 0.0
    scaled = replace(measured, distribution=measured.distribution.shifted(shift), extremes=None)
    log_floor = _log_floor(measured, predicted, floor)
    # The floor that the measurement brings with it moves with the measurement.
    shape_floor = log_floor if floor is not None else _log_floor(scaled, predicted, None)
    return Comparison(
        measured,
        predicted,
        raw=_distances(measured, predicted, log_floor, tolerance),
        shape=_distances(scaled, predicted, shape_floor, tolerance),
        expected_fluctuation=expected_fluctuation(
            measured, predicted, width=width, log_floor=log_floor, tolerance=tolerance
        ),
        s_max=edge_of(measured, predicted, top=True),
        s_min=edge_of(measured, predicted, top=False),
        width=width,
        floor=exponential(log_floor),
        tolerance=tolerance,
    )


# ---- distances -----------------------------------------------------------------------------------------


def _distances(measured: Spectrum, predicted: Spectrum, log_floor: float, tolerance: float) -> Distances:
    first, second = measured.distribution, predicted.distribution
    plain = kolmogorov_smirnov(first, second, log_floor=log_floor, tolerance=tolerance)

    def band(t: Array) -> tuple[Array, Array]:
        (a, b), (c, d) = error_band(measured, t), error_band(predicted, t)
        return a + d, b + c

    beyond = kolmogorov_smirnov(first, second, log_floor=log_floor, tolerance=tolerance, band=band)
    unit = 0.5 * second.log_moment(2)
    return Distances(
        ks=plain.value,
        ks_at=exponential(plain.log_s),
        ks_beyond_error=beyond.value,
        wasserstein=wasserstein(first, second, log_floor=-math.inf, log_unit=unit),
        wasserstein_log10=wasserstein(first, second, log_floor=log_floor),
        log_moment_ratios=tuple(
            log_ratio_of(first.log_moment(2 * k), second.log_moment(2 * k)) for k in MOMENTS
        ),
    )


def _tolerance(*spectra: Spectrum) -> float:
    return max(SMALLEST_TOLERANCE, ROUNDING_UNITS * max(s.distribution.errors.eps for s in spectra))


def _log_floor(measured: Spectrum, predicted: Spectrum, floor: float | None) -> float:
    if floor is not None:
        return math.log(floor) if floor > 0 else -math.inf
    largest = max(measured.floor, predicted.floor)
    if largest > 0:
        return math.log(largest)
    relative = [spectrum.distribution.relative_error for spectrum in (measured, predicted)]
    if all(error >= 0 for error in relative) and any(error > 0 for error in relative):
        # Every value is known, however small: the floor lies below all of them.
        lows = [spectrum.distribution.log_range[0] for spectrum in (measured, predicted)]
        return min((low for low in lows if math.isfinite(low)), default=0.0) - LN10
    tops = [spectrum.distribution.log_range[1] for spectrum in (measured, predicted)]
    known = [top for top in tops if math.isfinite(top)]
    return max(known) + math.log(SMALLEST_FLOOR) if known else -math.inf


# ---- numbers -------------------------------------------------------------------------------------------


def _within(value: float, bound: float) -> bool | None:
    return None if math.isnan(value) or math.isnan(bound) else value <= bound


def _both(first: bool | None, second: bool | None) -> bool | None:
    """False as soon as one is False, unknown as long as one is unknown."""
    if first is False or second is False:
        return False
    return None if first is None or second is None else True


def _at_most(value: float) -> str:
    return "" if math.isnan(value) else f"<= {value:.3g}"


def _title(spectrum: Spectrum, otherwise: str) -> str:
    return spectrum.name or f"{otherwise} ({spectrum.method})"


def _distances_dict(distances: Distances) -> dict[str, Any]:
    logs = distances.log_moment_ratios
    return {
        "ks": distances.ks,
        "ks_at": distances.ks_at,
        "ks_beyond_error": distances.ks_beyond_error,
        "wasserstein": distances.wasserstein,
        "wasserstein_log10": distances.wasserstein_log10,
        "moment_ratios": {f"m{k}": exponential(value) for k, value in zip(MOMENTS, logs, strict=True)},
        "log10_moment_ratios": {f"m{k}": v / LN10 for k, v in zip(MOMENTS, logs, strict=True)},
    }
