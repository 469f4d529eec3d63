"""What the certified cdf rests on, apart from any estimator: intervals of Beta masses, residuals entering squared."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import special

from isometry import measure
from isometry.errors import InputError
from isometry.spectrum import ErrorModel, Extremes, Quadrature, Spectrum
from isometry.spectrum.cdf_bounds import cdf_bounds, place_bounds
from isometry.spectrum.probe_intervals import band_half_width, limits_by_variance, probe_degrees, share_limits

DRAWS = 10_000


@pytest.mark.parametrize(("n", "k"), [(8, 2), (20, 1), (64, 1), (64, 16), (1000, 1), (1000, 16)])
@pytest.mark.parametrize("share", ["one direction", "a tenth", "half", "all but one"])
def test_limits_of_a_share_cover(n: int, k: int, share: str) -> None:
    """Masses drawn as squares of uniform vectors: within 1.2 % of 95 %, and on either side within 1.4 % of 2.5 %.

    Four standard deviations of 10,000 draws are 0.9 % and 0.6 %; the rest is for taking the mean of a few Beta
    variables for one, which is worst at few dimensions.
    """
    count = {"one direction": 1, "a tenth": -(-n // 10), "half": n // 2, "all but one": n - 1}[share]
    generator = np.random.default_rng(n * 100 + count + k)
    mass = generator.beta(count / 2, (n - count) / 2, (DRAWS, k)).mean(axis=1)
    mass.sort()

    def limits(mass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return share_limits(mass, mass, probe_degrees([n] * k), 0.95)

    truth = count / n
    # Both limits grow with the mass, so bisection counts the draws whose limits lie above or below the truth.
    for limit in limits(mass[:: DRAWS // 100]):
        assert np.all(np.diff(limit) >= 0)
    too_high = DRAWS - bisect_right(mass, truth, key=lambda one: limits(np.array([one]))[0].item())
    too_low = bisect_left(mass, truth, key=lambda one: limits(np.array([one]))[1].item())
    assert 1 - (too_high + too_low) / DRAWS == pytest.approx(0.95, abs=0.012)
    assert too_high / DRAWS == pytest.approx(0.025, abs=0.014)
    assert too_low / DRAWS == pytest.approx(0.025, abs=0.014)


def test_the_mean_mass_varies_as_said() -> None:
    """Two matrices with 2 probes each: the variance is at most 2 F (1 - F) / D, and just that where both F are one."""
    generator = np.random.default_rng(0)
    for counts, most in (((10, 10), 1.0), ((4, 16), 0.64)):
        mass = np.mean([generator.beta(c / 2, (40 - c) / 2, (200_000, 2)) for c in counts], axis=(0, 2))
        bound = 2 * 0.25 * 0.75 / probe_degrees([40] * 4)
        # F (1 - F) of 0.1 and 0.4 is 0.165 in the mean, beside 0.1875; 1 % is three standard errors.
        expected = bound if most == 1.0 else bound * 0.165 / 0.1875
        assert mass.var() == pytest.approx(expected, rel=0.015)


def test_nothing_and_everything_are_certain() -> None:
    """A set of j >= 1 directions has no mass with probability zero."""
    mass = np.array([0.0, 1.0])
    lower, upper = share_limits(mass, mass, probe_degrees([50] * 3), 0.95)
    assert lower == pytest.approx([0, 1], abs=1e-12)
    assert upper == pytest.approx([0, 1], abs=1e-12)


@pytest.mark.parametrize(("n", "k"), [(8, 3), (60, 1), (400, 4)])
def test_the_simultaneous_band_covers_everywhere_at_once(n: int, k: int) -> None:
    """At n places at once; a bridge seen at few places strays less, so at most 99.9 %."""
    generator = np.random.default_rng(n)
    squares = generator.standard_normal((2000, k, n)) ** 2
    cumulative = np.cumsum(squares, axis=-1) / squares.sum(-1, keepdims=True)
    stray = np.abs(cumulative.mean(axis=1) - np.arange(1, n + 1) / n).max(axis=1)
    covered = np.mean(stray <= band_half_width(probe_degrees([n] * k), 0.95))
    # Down by four standard deviations of 2000 draws.
    assert 0.95 - 0.0195 <= covered <= 0.999


@pytest.mark.parametrize("spread", [1e-6, 1e-3, 0.03, 0.3])
def test_residuals_shift_what_is_left_by_their_square(spread: float) -> None:
    """Deflate approximate singular vectors of random matrices: the exact counts lie between the shifted ones."""
    generator = np.random.default_rng(int(1e6 * spread))
    tightest = []
    for _ in range(40):
        n, r = 30, int(generator.integers(1, 6))
        values = np.concatenate([generator.uniform(1.5, 3, r), generator.uniform(0.05, 1.8, n - r)])
        left, right = (np.linalg.qr(generator.standard_normal((n, n)))[0] for _ in range(2))
        a = left * values @ right.T
        span = np.linalg.qr(right[:, :r] + spread * generator.standard_normal((n, r)))[0]
        u, s, w = np.linalg.svd(a @ span, full_matrices=False)
        v = span @ w.T
        residual = np.linalg.norm(a.T @ u - v * s, axis=0)
        rest = np.linalg.svd(a @ (np.eye(n) - v @ v.T), compute_uv=False)[: n - r]
        t = np.linspace(0, 3.5, 701)
        t = t[np.abs(t[:, None] - np.concatenate([values, rest])).min(axis=1) > 1e-9]
        lower, upper = place_bounds(t, s, residual)
        assert np.all(np.diff(lower) >= 0)
        assert np.all(np.diff(upper) >= 0)
        truth = (values <= t[:, None]).sum(axis=1)
        least = (s + residual <= t[:, None]).sum(1) + (rest <= lower[:, None] - 1e-9).sum(1)
        most = (s - residual <= t[:, None]).sum(1) + (rest <= upper[:, None] + 1e-9).sum(1)
        assert np.all(least <= truth)
        assert np.all(truth <= most)
        tightest.append((upper - lower).max() / (np.square(residual).sum() / s.min() + residual.max()))
    # As sharp as it claims: nowhere further than the residuals, and mostly their squares, allow.
    assert max(tightest) < 4


def test_random_signs_cover_where_their_distribution_is_worst() -> None:
    """Singular vectors of two entries each: a probe's mass of one of them is 0 or 2 / n, with equal chances."""
    n, k, generator = 40, 3, np.random.default_rng(0)
    for count in (1, 4, 12):
        mass = 2 * generator.integers(0, 2, (4000, k, count)).sum(-1).mean(-1) / n
        lower, upper = limits_by_variance(mass, mass, n * k, 0.95)
        assert np.mean((lower <= count / n) & (count / n <= upper)) >= 0.95
        # The interval of uniform probes would not: nothing seen of one direction is no direction to it.
        if count == 1:
            lower, upper = share_limits(mass, mass, probe_degrees([n] * k), 0.95)
            assert np.mean((lower <= count / n) & (count / n <= upper)) < 0.9


def test_the_band_knows_the_kind_of_its_probes() -> None:
    nodes, weights = np.array([[[1.0, 2.0]]]), np.array([[[0.3001, 0.6999]]])
    d = Quadrature(nodes, weights, np.zeros(1), np.ones(nodes.shape, bool))
    uniform = Spectrum(d, "lanczos", (10, 10))
    signs = Spectrum(replace(d, errors=ErrorModel("rademacher")), "lanczos", (10, 10))
    for s in (1.5, 0.5, 2.5):
        inner, outer = uniform.cdf_band(s), signs.cdf_band(s)
        assert outer[0] <= inner[0] <= inner[1] <= outer[1]
    with pytest.raises(InputError, match="probe='gaussian'"):
        signs.cdf_band(1.0, simultaneous=True)


def test_the_relative_rounding_of_the_products_widens_the_band() -> None:
    nodes, weights = np.array([[[1.0, 2.0]]]), np.array([[[0.3001, 0.6999]]])
    d = Quadrature(nodes, weights, np.zeros(1), np.ones(nodes.shape, bool), ErrorModel(rounding=1e-3))
    spectrum = Spectrum(d, "lanczos", (10, 10))
    lower, upper = spectrum.cdf_band([0.9985, 0.9995, 1.0005, 1.0015])
    assert np.all(upper == pytest.approx([0, upper[2], upper[2], upper[2]], abs=1e-9))
    assert np.all(lower == pytest.approx([0, 0, 0, lower[3]], abs=1e-9))
    assert upper[2] > 0.3
    assert lower[3] > 0
    # A measurement records it: 8 units, or what its linearity test found.
    measured = measure(torch.nn.Linear(4, 4), torch.ones(4), "lanczos", probes=1, steps=2, progress=False)
    assert measured.distribution.errors.rounding >= 8 * torch.finfo(torch.float32).eps


def test_a_leading_value_has_no_sampling_error_but_its_residual() -> None:
    """Four dimensions, one value found at 3 with residual 0.01, the rest at one node of each of two probes."""
    nodes = np.array([[[3.0, 1.0], [3.0, 1.0]]])
    weights = np.full(nodes.shape, [0.25, 0.75])
    spectrum = Spectrum(
        Quadrature(nodes, weights, np.zeros(1), np.ones(nodes.shape, bool), counted=np.ones(nodes.shape, bool)),
        "randomized", (4, 4),
        Extremes(np.array([[3.0]]), np.array([[0.01]]), np.ones(1), np.zeros(1), np.ones(1, bool)),
    )  # fmt: skip
    d = spectrum.quadrature
    found = cdf_bounds(d, spectrum.extremes, d.errors, np.array([0.5, 2.0, 2.995, 3.005, 3.02]))
    # Three quarters at one place: all of three directions, certain as well.
    assert found.share == 0.0
    assert found.resolved_lower.tolist() == [0, 0.75, 0.75, 0.75, 1]
    assert found.resolved_upper.tolist() == [0, 0.75, 1, 1, 1]


def test_a_single_probe_has_an_interval() -> None:
    """A probe that finished with masses 0.3 and 0.7 in ten dimensions: the Beta distribution inverted, by SciPy."""
    nodes = np.array([[[1.0, 2.0]]])
    weights = np.array([[[0.3001, 0.6999]]])
    spectrum = Spectrum(
        Quadrature(nodes, weights, np.zeros(1), np.ones(nodes.shape, bool)), "lanczos", (10, 10)
    )
    lower, upper = spectrum.cdf_band([0.5, 1.5, 2.5], 0.9)
    assert (lower[0], upper[0], lower[2], upper[2]) == pytest.approx((0, 0, 1, 1), abs=1e-9)
    assert special.betaincc(5 * lower[1], 5 * (1 - lower[1]), 0.3001) == pytest.approx(0.05, rel=1e-6)
    assert special.betainc(5 * upper[1], 5 * (1 - upper[1]), 0.3001) == pytest.approx(0.05, rel=1e-6)
