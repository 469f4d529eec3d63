"""`compare`: how far a measured spectrum lies from a predicted one, and what fluctuation is expected.

Two spectra in, one `Comparison` out: Kolmogorov-Smirnov and Wasserstein-1 distances, ratios of moments, differences
of edges; each once as the spectra are (raw) and once with the measured mean square set to the predicted one (shape).

"Agrees" needs a scale: what networks of the law show, drawn at this width and measured as the spectrum was
(:mod:`isometry.comparison.replicas`). Each of distance, mean square and edges gets a p-value
(:mod:`isometry.comparison.significance`), and the power of the test is reported beside them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isometry.comparison.distances import kolmogorov_smirnov, wasserstein
from isometry.comparison.error_band import error_band
from isometry.comparison.expected import MOMENTS, ExpectedFluctuation, expected_fluctuation
from isometry.comparison.power import Alternative, alternatives
from isometry.comparison.ratios import (
    Edge,
    edge_dict,
    edge_of,
    exponential,
    log_ratio_of,
    ratio_text,
)  # fmt: skip
from isometry.comparison.replicas import network_width, replicas
from isometry.comparison.significance import LEVEL, UNKNOWN, PValues, Tests, sample_of
from isometry.errors import InputError
from isometry.spectrum import Spectrum
from isometry.spectrum.formatting import json_ready, plain, power_text
from isometry.spectrum.plotting import report_package

Array = NDArray[np.float64]

LN10 = math.log(10)
# Places closer than so many units of rounding of the measurement, in ln s, are one place; and never less than 1e-6.
ROUNDING_UNITS = 1000
SMALLEST_TOLERANCE = 1e-6
# Rounding of a dense SVD, where the spectra themselves name no floor; relative to s_max.
SMALLEST_FLOOR = 1e-13
# A test that lets half of the mass lie elsewhere tells nothing.
USELESS_DISTANCE = 0.5
# Power from which on a wrong law counts as told.
TOLD = 0.8


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
    p : PValues
        Share of right networks that stray as far, in distance (of shape), mean square, edges, and mean square and
        shape together; nan where unknown.
    critical_distance : float
        Distance in shape, from the mean of networks of this width, that one right network in twenty exceeds.
    s_max, s_min : Edge
    width : float
        Number of independent units a layer of the network has; nan if unknown.
    log_floor : float
        ln s below which nothing is compared but the total mass; -inf for none.
    tolerance : float
        Difference in ln s within which two places are one.
    """

    measured: Spectrum = field(repr=False)
    predicted: Spectrum = field(repr=False)
    raw: Distances
    shape: Distances
    p: PValues
    critical_distance: float
    s_max: Edge
    s_min: Edge
    width: float
    log_floor: float
    tolerance: float
    _tests: Tests | None = field(repr=False)

    @property
    def floor(self) -> float:
        """s below which nothing is compared but the total mass; 0 also where it is below the range of floats."""
        return exponential(self.log_floor)

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
        """Whether a right network strays as far in one of twenty cases or more; None where nothing can be told.

        Nothing can be told where chance is not known, and where it allows so much that half of the mass could lie
        elsewhere.
        """
        p = self.p.smallest
        if p < LEVEL:
            return False
        return None if math.isnan(p) or not self.tells_shapes else True

    @property
    def agrees_in_shape(self) -> bool | None:
        """Whether distance and smooth moments are those of chance once the mean square is divided out."""
        p = self.p.smallest_in_shape
        if p < LEVEL:
            return False
        return None if math.isnan(p) or not self.tells_shapes else True

    @property
    def tells_shapes(self) -> bool:
        """Whether the distance has the power to tell a law whose mass lies elsewhere by half."""
        return not math.isnan(self.p.distance) and self.critical_distance <= USELESS_DISTANCE

    @cached_property
    def expected_fluctuation(self) -> ExpectedFluctuation:
        """Ranges that finite width and finitely many probes cause; nan where the width is not known."""
        drawn = None if self._tests is None else self._tests.replicas
        return expected_fluctuation(
            drawn, self.predicted.distribution, log_floor=self.log_floor, tolerance=self.tolerance
        )

    @cached_property
    def _alternatives(self) -> list[Alternative]:
        return [] if self._tests is None else alternatives(self._tests.replicas, self.predicted)

    @cached_property
    def power(self) -> dict[str, float]:
        """Share of networks of other laws that this comparison would tell from the predicted, by the other law's name.

        Empty where chance is not known.
        """
        return {
            one.name: self._tests.power(one.replicas) for one in self._alternatives if self._tests is not None
        }

    @cached_property
    def differences(self) -> dict[str, tuple[str, float]]:
        """The number in which each of those laws differs most, and by how many standard deviations of one network."""
        return {
            one.name: self._tests.difference(one.replicas)
            for one in self._alternatives
            if self._tests is not None
        }

    def verdict(self) -> str:
        """One sentence: is this the predicted law?"""
        ratio = ratio_text(self.raw.log_moment_ratios[0])
        distance = f"KS {self.raw.ks:.3g} raw, {self.shape.ks:.3g} in shape"
        if self.agrees is None:
            if math.isnan(self.p.smallest):
                return (
                    f"cannot tell: {distance}, but what chance does is unknown; give width= (units of a layer), and "
                    "measure with two probes or more"
                )
            return f"cannot tell: {distance}; so few values or probes show any distance in shape by chance"
        chance = f"p {_p_text(self.p.smallest)}"
        if self.agrees:
            return f"agrees: {distance}; mean square {ratio} of the predicted; {chance}"
        failed = [
            name
            for name, p in (
                ("distance", self.p.distance),
                ("mean square", self.p.mean_square),
                ("edges", self.p.edges),
                ("mean square and shape together", self.p.joint),
            )
            if p < LEVEL
        ] or ["all of them together"]
        if "mean square" in failed and "edges" not in failed and self.agrees_in_shape:
            return f"agrees in shape only: mean square {ratio} of the predicted; {distance}; {chance}"
        return f"disagrees in {', '.join(failed)}: {distance}; mean square {ratio} of the predicted; {chance}"

    def rows(self) -> list[tuple[str, str, str, str]]:
        """The table as (label, raw, shape, expected fluctuation): what every rendering of a comparison shows."""
        a, b, c = self.raw, self.shape, self.expected_fluctuation
        table = [
            ("KS", f"{a.ks:.3g}", f"{b.ks:.3g}", _below(c.ks, c.ks_shape)),
            ("KS beyond error", f"{a.ks_beyond_error:.3g}", f"{b.ks_beyond_error:.3g}", ""),
            ("W1 in s / rms", f"{a.wasserstein:.3g}", f"{b.wasserstein:.3g}", ""),
            ("W1 in log10 s", f"{a.wasserstein_log10:.3g}", f"{b.wasserstein_log10:.3g}", ""),
        ]
        for k, raw, shape, span in zip(
            MOMENTS, a.log_moment_ratios, b.log_moment_ratios, c.log_moments, strict=True
        ):
            table.append((f"m{k} ratio", ratio_text(raw), ratio_text(shape), _span(span)))
        mean = 0.5 * self.raw.log_moment_ratios[0]
        for label, edge, span in (
            ("s_max ratio", self.s_max, c.log_s_max),
            ("s_min ratio", self.s_min, c.log_s_min),
        ):
            table.append((label, ratio_text(edge.log_ratio), ratio_text(edge.log_ratio - mean), _span(span)))
        table.append(("p of the distance", "", _p_text(self.p.distance), ""))
        table.append(("p of the mean square", _p_text(self.p.mean_square), "", ""))
        table.append(("p of the edges", "", _p_text(self.p.edges), ""))
        table.append(("p of both together", _p_text(self.p.joint), _p_text(self.p.shape), ""))
        return table

    def summary(self) -> str:
        """The table as text."""
        head = ("", "raw", "shape", "95 % by chance")
        table = [head, *self.rows()]
        widths = [max(len(row[i]) for row in table) for i in range(4)]
        first = _title(self.measured, "measured")
        second = _title(self.predicted, "predicted")
        known = "unknown" if math.isnan(self.width) else f"{self.width:g}"
        lines = [f"Comparison of {first} with {second}"]
        lines += ["  " + "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip()
                  for row in table]  # fmt: skip
        lines.append(
            f"  width {known}; floor s = {power_text(self.log_floor / LN10)}; "
            f"places within {self.tolerance:.1g} are one"
        )
        if self.expected_fluctuation.source:
            lines.append(f"  chance: {self.expected_fluctuation.source}")
        if self.power:
            lines.append(f"  could tell {self.power_text()}")
        if not math.isnan(self.inside_band):
            lines.append(
                f"  predicted cdf inside the 95 % band of the measured one at {100 * self.inside_band:.0f} % of s"
            )
        lines.append(f"  {self.verdict()}")
        return plain("\n".join(lines), keep="\n")

    def power_text(self) -> str:
        """Which other laws this comparison would tell in four of five cases, and what hides the others."""
        parts = []
        for name, power in self.power.items():
            told, (number, deviations) = power >= TOLD, self.differences[name]
            most = f", at most {deviations:.1f} sd off, in {number}" if number and not told else ""
            parts.append(f"{name}: {'yes' if told else 'no'} ({100 * power:.0f} %{most})")
        return "; ".join(parts)

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
            "log10_floor": self.log_floor / LN10,
            "tolerance": self.tolerance,
            "raw": _distances_dict(self.raw),
            "shape": _distances_dict(self.shape),
            "p": {
                "distance": self.p.distance,
                "mean_square": self.p.mean_square,
                "edges": self.p.edges,
                "joint": self.p.joint,
                "shape": self.p.shape,
                "smallest": self.p.smallest,
            },
            "power": self.power,
            "differences": {
                name: {"in": number, "standard_deviations": value}
                for name, (number, value) in self.differences.items()
            },
            "by_chance": _expected_dict(self.expected_fluctuation),
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

    Notes
    -----
    The first comparison with an ensemble at a width draws networks of it, a few seconds; later ones remember them.
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
    drawn = replicas(measured, predicted, width=width)
    tests = None
    if drawn is not None:
        second = None
        if predicted.kind == "measured" and width < math.inf:
            again = replicas(predicted, predicted, width=width)
            second = None if again is None else (sample_of(predicted), again)
        tests = Tests(drawn, second, log_floor=log_floor, tolerance=tolerance)
    return Comparison(
        measured,
        predicted,
        raw=_distances(measured, predicted, log_floor, tolerance),
        shape=_distances(scaled, predicted, shape_floor, tolerance),
        p=UNKNOWN if tests is None else tests.p_values(sample_of(measured)),
        critical_distance=math.nan if tests is None else tests.critical_distance,
        s_max=edge_of(measured, predicted, top=True),
        s_min=edge_of(measured, predicted, top=False),
        width=width,
        log_floor=log_floor,
        tolerance=tolerance,
        _tests=tests,
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


def _below(raw: float, shape: float) -> str:
    return "" if math.isnan(raw) else f"<= {raw:.3g}, {shape:.3g} in shape"


def _span(span: tuple[float, float]) -> str:
    return "" if math.isnan(span[0]) else f"{exponential(span[0]):.3g} .. {exponential(span[1]):.3g}"


def _p_text(p: float) -> str:
    return "" if math.isnan(p) else ("< 0.0001" if p < 1e-4 else f"{p:.2g}")


def _expected_dict(expected: ExpectedFluctuation) -> Mapping[str, Any]:
    return {
        "ks": expected.ks,
        "ks_shape": expected.ks_shape,
        "log_mean_square": expected.log_moments[0],
        "log_moments": expected.log_moments,
        "log_s_max": expected.log_s_max,
        "log_s_min": expected.log_s_min,
        "source": expected.source,
    }


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
