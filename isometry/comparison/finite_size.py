"""The expected fluctuation about the right law: finite width of the network, finite number of probes.

A network of width N follows the law of infinite width with fluctuations of order 1/sqrt(N), for each layer draws
its N slopes phi'(h_i) at random. What it may deviate is taken to be what **N independent draws from the predicted
law** would show:

* sup |F - G|: `KS_SCALE` / sqrt(N), the scale of Kolmogorov's law of the largest deviation;
* ln m_1: `MOMENT_SIGMAS` standard deviations sqrt((v + u) / N), v = m_2 / m_1^2 - 1, and v / 2N for the skew of a
  product (v = L (mu_2 / mu_1^2 - 1 - s_1), Pennington et al. 2017, arXiv 1711.04735, section 2.5). u = 2 comes from
  the input, whose N coordinates give the variance q of the first pre-activations to a relative sqrt(2 / N) only:
  it decays by the slope 1 - O(q) of the q-map while E phi'^2 falls by O(q) in every layer, which for a smooth odd phi
  at small q* adds up to that very sqrt(2 / N) in ln m_1. u = 0 for linear and (leaky) ReLU networks;
* Wasserstein-1: `WASSERSTEIN_SCALE` / sqrt(N) times the area int sqrt(F (1 - F)), what the standard deviation of
  such a sample's cdf encloses.

Where the law is that of the network's own layers (`isometry.predict_from_layers`) the slopes are given, and only
the directions of the weights are random, whose fluctuations are of order 1/N: the draws are then (N / `OWN_LAYERS`)^2,
at most `OWN_LAYERS_MOST`.

On top of it come the errors of the measurement: `SIGMAS` standard errors over probes (the largest over the
cdf; of a moment the interval of that confidence), and the truncation bound of the quadrature.

Calibration (``benchmarks/compare_calibration.py``; linear, ReLU, hard-tanh, tanh, Gaussian and orthogonal, depth 4 to
64, N = 128): sqrt(N) sup |F - G| has means 0.2 to 0.9, and the standard deviation of ln m_1 is 0.2 to 1.6 times
sqrt((v + u) / N), 0.2 for linear networks, which have no slopes to draw. Of
networks held to their own layers (width 128, depth 4 and 16, six ensembles, 12 draws each) every one stays within 0.62
of what is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from isometry.comparison.distances import places, spread_integral
from isometry.spectrum import Spectrum

Array = NDArray[np.float64]

LN10 = math.log(10)
MOMENTS = (1, 2, 3, 4)
# Exceeded by one sample in a hundred (Kolmogorov 1933).
KS_SCALE = 1.63
WASSERSTEIN_SCALE = 3.0
SIGMAS = 3.0
MOMENT_SIGMAS = 4.0
# Activations whose slopes do not depend on the variance of what enters them.
HOMOGENEOUS = ("linear", "relu", "leaky_relu")
OWN_LAYERS = 4.0
# The discrete free product is itself accurate to about 3e-3 in the cdf.
OWN_LAYERS_MOST = 25_000.0


@dataclass(frozen=True)
class ExpectedFluctuation:
    """How far a measurement of the right law strays from it at most: finite width, finite probes.

    Parameters
    ----------
    ks : float
        Bound on ``Distances.ks_beyond_error`` (finite width alone: the rest is inside the band).
    log_mean_square : float
        Bound on \\|ln m_1 ratio\\|.
    wasserstein, wasserstein_log10 : float
        Bounds on the distances of these names.
    log_moments : tuple of float
        Bounds on \\|ln(m_k ratio)\\|, k = 1..4.
    log_s_max : (float, float)
        Range of ln(measured s_max / predicted s_max).
    """

    ks: float
    log_mean_square: float
    wasserstein: float
    wasserstein_log10: float
    log_moments: tuple[float, ...]
    log_s_max: tuple[float, float]


def error_band(spectrum: Spectrum, t: Array) -> tuple[Array, Array]:
    """How far the true cdf may lie below and above the one reported: probes at `SIGMAS`, and truncation."""
    d = spectrum.distribution
    cdf, (lower, upper) = d.cdf(t), d.cdf_bounds(t)
    # The largest standard error, everywhere: a sup is taken, and in the tails few probes see nothing.
    error = SIGMAS * float(d.share_stderr(t).max(initial=0.0))
    if d.all_resolved and error == 0:
        return np.zeros(t.size), np.zeros(t.size)
    return np.maximum(cdf - lower, 0) + error, np.maximum(upper - cdf, 0) + error


def expected_fluctuation(
    measured: Spectrum, predicted: Spectrum, *, width: float, log_floor: float, tolerance: float
) -> ExpectedFluctuation:
    """How far a network of this width, measured this way, is expected to stray from the predicted law.

    Parameters
    ----------
    measured, predicted : Spectrum
    width : float
        Independent units of a layer; nan if unknown, and so is the result then.
    log_floor, tolerance : float
        As the distances have them; ``tolerance`` in ln s is the rounding allowed to places, and so to moments.
    """
    law = predicted.distribution
    draws = _draws(width, predicted)
    moments = tuple(_moment_fluctuation(measured, predicted, k, draws) + 2 * k * tolerance for k in MOMENTS)
    unit = 0.5 * law.log_moment(2)
    area = spread_integral(law, log_floor=-math.inf, log_unit=unit) if math.isfinite(unit) else math.nan
    log_area = spread_integral(law, log_floor=log_floor)
    noise = np.sum([_band_area(s, log_floor, unit) for s in (measured, predicted)], axis=0)
    top = law.log_ends[1]
    expected_top = float(law.quantile(max(1.0 - SIGMAS / draws, 0.0))) if draws < math.inf else top
    known = not math.isnan(draws) and math.isfinite(top)
    residual = measured.s_max_residual / measured.s_max if measured.s_max > 0 else 0.0
    return ExpectedFluctuation(
        ks=KS_SCALE / math.sqrt(draws),
        log_mean_square=moments[0],
        wasserstein=WASSERSTEIN_SCALE / math.sqrt(draws) * area + float(noise[0]),
        wasserstein_log10=WASSERSTEIN_SCALE / math.sqrt(draws) * log_area + float(noise[1]),
        log_moments=moments,
        log_s_max=(
            (expected_top - top - 0.5 * moments[0] - residual, 0.5 * moments[0] + residual)
            if known
            else (math.nan, math.nan)
        ),
    )


def _draws(width: float, predicted: Spectrum) -> float:
    """How many independent draws from the law a network of this width counts for."""
    if predicted.kind == "measured":
        # Two networks, two draws: their fluctuations add.
        return width / 2
    if predicted.provenance.get("own_layers"):
        return max(width, min((width / OWN_LAYERS) ** 2, OWN_LAYERS_MOST))
    return width


def _moment_fluctuation(measured: Spectrum, predicted: Spectrum, k: int, draws: float) -> float:
    """Bound on |ln m_k ratio|: the mean of `draws` independent s^(2k), and the errors over probes."""
    law = predicted.distribution
    variance = math.expm1(min(max(law.log_moment(4 * k) - 2 * law.log_moment(2 * k), 0.0), 700.0))
    # A common scale of all s: k times in ln m_k.
    variance += k * k * _input_variance(predicted)
    errors = sum(_log_error(s, k) for s in (measured, predicted))
    return MOMENT_SIGMAS * math.sqrt(variance / draws) + 0.5 * variance / draws + errors


def _input_variance(predicted: Spectrum) -> float:
    """N times the variance of ln m_1 that the input's own mean square causes."""
    ensemble = predicted.provenance.get("ensemble")
    activation = ensemble.get("activation") if isinstance(ensemble, Mapping) else None
    if activation is None or str(activation).partition("(")[0] in HOMOGENEOUS:
        return 0.0
    return 2.0


def _log_error(spectrum: Spectrum, k: int) -> float:
    """How far ln m_k may be off over probes, with the confidence of `SIGMAS`; nan where nothing tells."""
    mean = spectrum.distribution.moment_mean(k)[1]
    if not mean.mean > 0:
        return 0.0
    if math.isnan(mean.variance):
        return math.nan
    low, high = mean.interval(1 - 2 * float(ndtr(-SIGMAS)))
    return max(math.log(high / mean.mean), math.log(mean.mean / low) if low > 0 else math.inf)


def _band_area(spectrum: Spectrum, log_floor: float, log_unit: float) -> tuple[float, float]:
    """Area of half the error band in s / unit and in log10 s: what probes and truncation may add to a W1."""
    t = places(spectrum.distribution)
    t = t[t > log_floor]
    if t.size < 2:
        return 0.0, 0.0
    down, up = error_band(spectrum, t)
    height = 0.5 * (down + up)
    with np.errstate(over="ignore", invalid="ignore"):
        s = np.exp(t - log_unit)
    return float(np.trapezoid(height, s)), float(np.trapezoid(height, t) / LN10)


def network_width(measured: Spectrum, predicted: Spectrum) -> float:
    """Units of the narrowest layer, as far as the spectra know; nan where they do not."""
    for spectrum in (measured, predicted):
        ensemble = spectrum.provenance.get("ensemble")
        widths = ensemble.get("widths") if isinstance(ensemble, Mapping) else None
        if widths:
            return float(min(widths))
        own = spectrum.provenance.get("width")
        if isinstance(own, int | float) and own >= 1:
            return float(min(own, *(measured.shape or ())))
    if measured.kind == "predicted":
        return math.inf
    channels = measured.provenance.get("channels")
    if isinstance(channels, int) and isinstance(measured.provenance.get("ensemble"), Mapping):
        return float(channels)
    return float(min(measured.shape)) if measured.shape else math.nan
