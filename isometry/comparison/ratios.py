"""Ratios of two spectra in logs, where neither overflows, and the numbers and words they are reported as."""

from __future__ import annotations

import math
from dataclasses import dataclass

from isometry.spectrum import Spectrum
from isometry.spectrum.formatting import power_text

LN10 = math.log(10)


@dataclass(frozen=True)
class Edge:
    """One edge of the two spectra: the values of s, the residual bound, and ln(measured / predicted).

    ``measured`` and ``log_ratio`` are nan where the measurement did not resolve the edge, ``log_ratio`` also where a
    law has no upper end.
    """

    measured: float
    residual: float
    predicted: float
    log_ratio: float


def edge_of(measured: Spectrum, predicted: Spectrum, *, top: bool) -> Edge:
    """The upper edge of two spectra, or the lower one."""
    return Edge(
        float(measured.s_max if top else measured.s_min),
        float(measured.s_max_residual if top else measured.s_min_residual),
        float(predicted.s_max if top else predicted.s_min),
        log_ratio_of(_log_edge(measured, top=top), _log_edge(predicted, top=top)),
    )


def _log_edge(spectrum: Spectrum, *, top: bool) -> float:
    """ln of s_max or s_min; from the distribution, which does not overflow, where that is what they are."""
    if spectrum.extremes is not None:
        return _log(spectrum.s_max if top else spectrum.s_min)
    low, high = spectrum.distribution.log_ends
    # No measured value compares with a law that has no upper end.
    high = math.nan if high == math.inf else high
    return high if top else (-math.inf if spectrum.zero_mass > 0 else low)


def log_ratio_of(log_a: float, log_b: float) -> float:
    """ln(a / b), 0 for 0 / 0."""
    return 0.0 if log_a == log_b else log_a - log_b


def _log(value: float) -> float:
    return math.log(value) if value > 0 else (-math.inf if value == 0 else math.nan)


def exponential(value: float) -> float:
    """e^value, inf where it overflows."""
    return math.exp(value) if value < 709.7 else (math.nan if math.isnan(value) else math.inf)


def ratio_text(log_ratio: float) -> str:
    """A ratio as a person reads it."""
    return power_text(log_ratio / LN10)


def edge_dict(edge: Edge) -> dict[str, float]:
    """An edge by the names of its JSON."""
    return {
        "measured": edge.measured,
        "residual": edge.residual,
        "predicted": edge.predicted,
        "difference": edge.measured - edge.predicted,
        "log10_ratio": edge.log_ratio / LN10,
    }
