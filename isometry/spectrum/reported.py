"""The numbers that reports show of a spectrum, and its verdict: what fills a `Summary`. Internal."""

from __future__ import annotations

import math

from .advice import advice_on_spectrum
from .formatting import number_text
from .log_scale import exponential
from .spectral_numbers import SpectralNumbers
from .summary import REPORTED_QUANTILES, Summary, quantile_text, recorded_shares, verdict_text

_LONGEST_REASON = 160


def summary_of(numbers: SpectralNumbers) -> Summary:
    """The summary of a spectrum: every rendering of it takes its numbers from here."""
    hidden = -math.inf if numbers.floor > 0 else math.nan
    levels = [float(p) for p in REPORTED_QUANTILES]
    logs = dict(zip(REPORTED_QUANTILES, numbers.log10_quantile(levels).tolist(), strict=True))
    quantiles = {
        # Below a floor above zero a quantile is not known.
        p: math.nan if log10 == hidden else _representable(value, log10)
        for (p, log10), value in zip(logs.items(), numbers.quantile(levels).tolist(), strict=True)
    }
    ends = numbers.distribution.log_ends
    # Nothing is below zero: where the smallest value found is zero, s_min is known.
    known_zero = max(numbers.s_min_bound, numbers.floor) == 0
    s_min, s_min_residual = (0.0, 0.0) if known_zero else (numbers.s_min, numbers.s_min_residual)
    log10_s_min, log10_s_max = (
        (end if numbers.extremes is None else _log(value)) / math.log(10)
        for end, value in zip(ends, (s_min, numbers.s_max), strict=True)
    )
    if numbers.zero_mass > 0:
        log10_s_min = -math.inf if s_min == 0 else math.nan
    if math.isnan(log10_s_max):
        log10_s_max = -math.inf
    log10_condition = _log(numbers.condition_number) / math.log(10)
    if numbers.extremes is None and math.isfinite(log10_s_min):
        log10_condition = log10_s_max - log10_s_min
    log10_mean_square = numbers.log10_moment(1)
    low, high = numbers.mean_square_interval()
    e = numbers.extremes
    best = int(e.top[:, 0].argmax()) if e is not None else 0
    return Summary(
        name=numbers.name,
        kind=numbers.kind,
        method=numbers.method,
        shape=numbers.shape,
        null_dimension=numbers.null_dimension,
        inputs=numbers.n_inputs,
        probes=numbers.n_probes,
        s_max=_representable(numbers.s_max, log10_s_max),
        s_max_residual=numbers.s_max_residual,
        log10_s_max=log10_s_max,
        s_min=_representable(s_min, log10_s_min),
        s_min_residual=s_min_residual,
        s_min_upper_bound=_representable(max(numbers.s_min_bound, numbers.floor), log10_s_min),
        log10_s_min=log10_s_min,
        condition_number=_representable(numbers.condition_number, log10_condition),
        log10_condition_number=log10_condition,
        condition_number_bound=numbers.condition_number_bound,
        mean_square=_representable(numbers.mean_square, log10_mean_square),
        mean_square_stderr=numbers.mean_square_stderr,
        mean_square_stderr_inputs=numbers.moment_stderr(1, over="inputs") if numbers.n_inputs > 1 else math.nan,
        mean_square_interval95=(_representable(low, log10_mean_square), _representable(high, log10_mean_square)),
        log10_mean_square=log10_mean_square,
        # E[s^4] below the range of floats says nothing of it.
        variance=numbers.variance if not -300 > numbers.log10_moment(2) > -math.inf else math.nan,
        quantiles=quantiles,
        log10_quantiles=logs,
        floor=numbers.floor,
        zero_mass=numbers.zero_mass,
        proved_zero_mass=numbers.distribution.proved_zero_mass,
        relative_error=numbers.worst_relative_error,
        scale=_representable(math.sqrt(numbers.mean_square), log10_mean_square / 2),
        log10_scale=log10_mean_square / 2,
        spread=numbers.spread_bounds(),
        isometry=numbers.isometry_bounds(),
        isometry_stderr=numbers.isometry_stderr(),
        isometry_limits95=numbers.isometry_band(),
        verdict=verdict_of(numbers),
        products=numbers.products,
        seconds=numbers.seconds,
        # Fewer may have been found than were asked for: the rest is nan.
        top=numbers._leading_values() if e is None else tuple(
            (float(s), float(residual))
            for s, residual in zip(e.top[best, :10], e.top_residual[best, :10], strict=True)
            if math.isfinite(s)
        ),
        unlisted=numbers.unlisted,
        instead_of=str(numbers.provenance.get("instead_of", "")),
        advice=() if numbers.kind != "measured" else advice_on_spectrum(
            numbers.provenance, log10_mean_square=log10_mean_square, log10_s_max=log10_s_max,
            zero_mass=numbers.zero_mass,
            relative_error=numbers.mean_square_stderr / numbers.mean_square if numbers.mean_square > 0 else math.nan,
        ),
        slow_products=_slow_products(numbers.provenance.get("products_by")),
        stopped=numbers.stopped or None,
        shares=recorded_shares(numbers.provenance.get("shares")),
        **numbers._outside(),
        seed=numbers.provenance.get("seed"),
        dtype=numbers.provenance.get("dtype"),
        device=numbers.provenance.get("device"),
    )  # fmt: skip


def _slow_products(products_by: object) -> str:
    """The backend of products, in one short line, where it is not a replay or rows that are there."""
    if not isinstance(products_by, str) or ("torch.func" not in products_by and "alone" not in products_by):
        return ""
    line = " ".join(products_by.split())
    return line if len(line) <= _LONGEST_REASON else line[:_LONGEST_REASON] + " ..."


def verdict_of(numbers: SpectralNumbers, low: float = 0.5, high: float = 2.0) -> str:
    """The sentence of :meth:`isometry.Spectrum.verdict`."""
    median = float(numbers.log10_quantile(0.5)), text_of_quantile(numbers, 0.5)
    log10 = 0.5 * numbers.log10_moment(1)
    scale = log10, number_text(_representable(exponential(log10 * math.log(10)), log10), log10)
    return verdict_text(numbers.spread_bounds(), scale, median, numbers.zero_mass, numbers.floor, low, high)


def text_of_quantile(numbers: SpectralNumbers, p: float) -> str:
    """A quantile as a person reads it."""
    log10 = float(numbers.log10_quantile(p))
    return quantile_text(_representable(float(numbers.quantile(p)), log10), log10, numbers.floor)


def _log(value: float) -> float:
    """ln of a number, -inf of zero, nan of nan."""
    return math.log(value) if value > 0 else -math.inf if value == 0 else math.nan


def _representable(value: float, log10: float) -> float:
    """The value; nan where it is 0 or inf only because a float cannot hold the number whose log10 is given."""
    return math.nan if math.isfinite(log10) and (value == 0 or math.isinf(value)) else value
