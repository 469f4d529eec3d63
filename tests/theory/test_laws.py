"""The closed forms agree with each other and with direct integration, so that they can judge the solver."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize_scalar

from isometry.errors import InputError
from isometry.theory import laws


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0, 3.0])
def test_marchenko_pastur_cdf_is_the_integral_of_its_density(ratio: float) -> None:
    a, b = laws.marchenko_pastur_edges(ratio)

    def density(x: float) -> float:
        return math.sqrt((b - x) * (x - a)) / (2 * math.pi * x * min(ratio, 1.0))

    for share in (0.2, 0.6, 1.0):
        x = a + share * (b - a)
        # x = a + (b - a) sin^2 takes the square roots at the ends away.
        top = math.asin(math.sqrt(share))
        integral = quad(
            lambda u: density(a + (b - a) * math.sin(u) ** 2) * (b - a) * math.sin(2 * u), 1e-12, top
        )[0]
        assert laws.marchenko_pastur_cdf(x, ratio) == pytest.approx(integral, abs=1e-9)
    assert laws.marchenko_pastur_cdf(b, ratio) == pytest.approx(1.0, abs=1e-14)


def test_one_layer_of_fuss_catalan_is_the_square_marchenko_pastur_law() -> None:
    log_lambda, above, density = laws.fuss_catalan_curve(1, np.linspace(0.05, 1.5, 12))
    x = np.exp(log_lambda)
    np.testing.assert_allclose(1 - above, laws.marchenko_pastur_cdf(x, 1.0), atol=1e-14)
    np.testing.assert_allclose(density, np.sqrt(x * (4 - x)) / (2 * np.pi), rtol=1e-12)


@pytest.mark.parametrize("depth", [2, 7, 40])
def test_fuss_catalan_mass_is_the_integral_of_its_density_and_its_moments_are_those_numbers(
    depth: int,
) -> None:
    angle = np.linspace(0, math.pi / (depth + 1), 40001)[1:-1]
    log_lambda, above, density = laws.fuss_catalan_curve(depth, angle)
    steps = -0.5 * (density[1:] + density[:-1]) * np.diff(log_lambda)
    # Trapezoid on 40,000 cells, away from the end where log lambda runs to -inf: 1e-6.
    upper = above[1:] < 0.5
    np.testing.assert_allclose(np.cumsum(steps)[upper], (above[1:] - above[0])[upper], atol=1e-6)
    x = np.exp(log_lambda)
    for order in (1, 2, 3):
        y = density * x**order
        moment = -np.sum(0.5 * (y[1:] + y[:-1]) * np.diff(log_lambda))
        assert math.log(moment) == pytest.approx(laws.fuss_catalan_log_moment(depth, order), abs=1e-6)
    assert log_lambda[0] == pytest.approx(laws.fuss_catalan_log_edge(depth), abs=1e-4)


def test_catalan_numbers_are_the_moments_of_one_gaussian_layer() -> None:
    got = [math.exp(laws.fuss_catalan_log_moment(1, order)) for order in range(1, 7)]
    np.testing.assert_allclose(got, [1, 2, 5, 14, 42, 132], rtol=1e-13)


@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
@pytest.mark.parametrize("depth", [1, 3, 8])
def test_relu_moments_have_the_published_mean_and_variance(depth: int, weights: str) -> None:
    # Over the whole spectrum m1 = 1 and Var = 2L (Gaussian) or L (orthogonal); arXiv 1802.09979, table 1.
    assert laws.relu_moment(depth, 1, weights) == 2
    variance = laws.relu_moment(depth, 2, weights) / 2 - 1
    assert variance == (2 * depth if weights == "gaussian" else depth)


@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
def test_relu_edge_is_the_limit_of_moment_ratios(weights: str) -> None:
    depth, order = 3, 200
    ratio = float(laws.relu_moment(depth, order + 1, weights) / laws.relu_moment(depth, order, weights))
    edge = math.exp(laws.relu_gaussian_log_edge(depth))
    edge = edge if weights == "gaussian" else laws.relu_orthogonal_edge(depth)
    # A square-root edge: m_{k+1}/m_k = edge (1 - 3/(2k) + O(1/k^2)), the last term a few times 1/k^2 = 2.5e-5.
    assert ratio == pytest.approx(edge * (1 - 1.5 / order), rel=3e-4)


@pytest.mark.parametrize("variance", [0.25, 0.7, 2.0])
def test_bernoulli_limit_has_mass_one_mean_one_and_its_variance(variance: float) -> None:
    place, mass = laws.bernoulli_limit_atom(variance)
    top = math.e * variance

    def moment(order: int) -> float:
        # x = e^u takes the divergence at zero away; below e^-60 less than 1/60 of nothing is left.
        value = quad(
            lambda u: math.exp((order + 1) * u) * float(laws.bernoulli_limit_density(math.exp(u), variance)),
            -700, math.log(top), limit=2000, points=[-100, -20, -3],
        )[0]  # fmt: skip
        return value + mass * place**order

    # The density falls like 1/(x log^2 x): the mass below e^-700 is 1/700 of s0^2, and is left out.
    assert moment(0) == pytest.approx(1.0, abs=1.2 * variance / 690)
    assert moment(1) == pytest.approx(1.0, abs=1e-6)
    assert moment(2) == pytest.approx(1.0 + variance, abs=1e-5)


@pytest.mark.parametrize("variance", [0.0008, 0.25, 1.0, 3.0])
def test_smooth_limit_edges_are_the_extrema_of_z(variance: float) -> None:
    def log_z(x: float) -> float:
        return math.log((1 + x) / x) + variance * x

    # The minimum of z over x > 0 is the upper edge, its maximum over x < -1 the lower one.
    upper = minimize_scalar(lambda y: log_z(math.exp(y)), bounds=(-9, 9), method="bounded").fun
    lower = -minimize_scalar(lambda y: -log_z(-1 - math.exp(y)), bounds=(-9, 9), method="bounded").fun
    np.testing.assert_allclose(laws.smooth_limit_edges(variance), np.exp([lower, upper]), rtol=1e-8)


def test_residual_edges_match_the_recorded_values() -> None:
    # Recorded for c = 0.125 and 0.5 from an independent computation, three digits.
    np.testing.assert_allclose(laws.residual_edges(0.125), (0.364, 2.75), rtol=2e-3)
    np.testing.assert_allclose(laws.residual_edges(0.5), (0.125, 8.01), rtol=5e-3)


def test_a_ratio_below_zero_is_refused() -> None:
    with pytest.raises(InputError, match="ratio"):
        laws.marchenko_pastur_edges(-1.0)
