"""Averages over phi'(h)^2 are exact at any distance from the real axis, for every activation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.integrate import quad

from isometry.errors import TheoryError
from isometry.theory.activations import Activation, get_activation
from isometry.theory.freeprobability.slope_law import point_masses, slope_law

SMOOTH = ["tanh", "erf", "erf_scaled", "sigmoid", "gelu", "silu", "elu", "selu", "softplus"]


def slow_average(name: str, q: float, w: complex) -> complex:
    """E 1/(w - phi'^2) by adaptive quadrature between points that crowd around every pole."""
    phi = get_activation(name)

    def d(x: float) -> float:
        return float(phi.derivative(np.array([math.sqrt(q) * x]))[0]) ** 2

    grid = np.linspace(-12, 12, 40001)
    distance = np.array(phi.derivative(math.sqrt(q) * grid)) ** 2 - abs(w)
    poles = grid[:-1][np.sign(distance[:-1]) * np.sign(distance[1:]) < 0]
    around = np.array([0.0, *(sign * 10.0**-k for sign in (-1, 1) for k in range(9))])
    cuts = np.unique(np.concatenate([np.linspace(-12, 12, 25), (poles[:, None] + around).ravel()]))
    cuts = cuts[np.abs(cuts) <= 12]
    total = 0j
    for low, high in itertools.pairwise(cuts):
        for part, unit in ((lambda z: z.real, 1), (lambda z: z.imag, 1j)):
            value = quad(
                lambda x, part=part: part(math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi) / (w - d(x))),
                low, high, epsabs=1e-13, epsrel=1e-11, limit=60,
            )[0]  # fmt: skip
            total += unit * value
    return total


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize(("radius", "angle"), [(0.6, 1.0), (0.3, 1e-2), (0.05, 1e-4)])
def test_averages_match_adaptive_quadrature(name: str, radius: float, angle: float) -> None:
    q = 0.7
    scale = float(np.max(get_activation(name).derivative(np.linspace(-3, 3, 61)) ** 2))
    w = scale * radius * complex(math.cos(angle), math.sin(angle))
    averages = slope_law(get_activation(name), q).averages(np.array([w]))
    expected = slow_average(name, q, w)
    # The reference holds 1e-9 next to a pole at a distance of 1e-4.
    assert abs(averages.one_plus_m[0] / w - expected) < 2e-9 * abs(expected)
    assert abs(averages.m[0] - (averages.one_plus_m[0] - 1)) < 1e-12 * (1 + abs(averages.m[0]))


@pytest.mark.parametrize("name", SMOOTH)
def test_derivatives_are_those_of_the_averages_and_the_logarithm_integrates_them(name: str) -> None:
    law = slope_law(get_activation(name), 0.4)
    w, step = np.array([0.35 + 0.2j]), 1e-5
    middle = law.averages(w)
    ahead, behind = (law.averages(w + sign * step, logarithm=True) for sign in (1, -1))
    # Central differences of step 1e-5: 1e-9 relative.
    assert w * (ahead.m - behind.m) / (2 * step) == pytest.approx(middle.m_rate, rel=1e-8)
    ratios = [w_at * one.m / one.one_plus_m for w_at, one in ((w + step, ahead), (w - step, behind))]
    assert w * np.log(ratios[0] / ratios[1]) / (2 * step) == pytest.approx(middle.ratio_rate, rel=1e-7)
    assert ahead.logarithm is not None
    assert behind.logarithm is not None
    # d/dw E log(1 - d/w) = E d/(w (w - d)) = m/w
    assert (ahead.logarithm - behind.logarithm) / (2 * step) == pytest.approx(middle.m / w, rel=1e-8)


@pytest.mark.parametrize("q", [1e-4, 0.3, 5.0])
def test_moments_of_scaled_erf_are_known(q: float) -> None:
    # phi' = exp(-pi h^2/4): mu_k = (1 + k pi q)^(-1/2), arXiv 1802.09979.
    got = slope_law(get_activation("erf_scaled"), q).moments(6)
    np.testing.assert_allclose(got, (1 + np.arange(1, 7) * math.pi * q) ** -0.5, rtol=1e-13)


def test_lerch_value_of_erf_is_reproduced() -> None:
    # E d/(w - d) at q = 0.1, w = 3, from the Lerch transcendent.
    got = slope_law(get_activation("erf_scaled"), 0.1).averages(np.array([3.0 + 0j])).m[0]
    assert got.real == pytest.approx(0.4163891471285, abs=1e-8) or got.real == pytest.approx(
        float(np.sum((1 + np.arange(1, 80) * math.pi * 0.1) ** -0.5 / 3.0 ** np.arange(1, 80))), abs=1e-13
    )


def test_piecewise_linear_activations_give_point_masses() -> None:
    relu = slope_law(get_activation("relu"), 1.0)
    assert relu.zero_mass == pytest.approx(0.5, abs=1e-16)
    assert relu.is_two_point
    hard = slope_law(get_activation("hard_tanh"), 0.3)
    assert hard.masses[0] == pytest.approx(math.erf(1 / math.sqrt(0.6)), rel=1e-14)
    leaky = slope_law(get_activation("leaky_relu(0.2)"), 9.0)
    np.testing.assert_allclose(leaky.values, [0.04, 1.0], rtol=1e-15)
    assert slope_law(get_activation("linear"), 2.0).is_constant


def test_a_constant_stretch_of_a_smooth_activation_is_a_point_mass() -> None:
    law = slope_law(get_activation("elu"), 1.0)
    np.testing.assert_allclose(law.values, [1.0])
    np.testing.assert_allclose(law.masses, [0.5], rtol=1e-15)
    assert law.continuous is not None
    assert float(law.continuous.mass.sum()) == pytest.approx(0.5, rel=1e-13)


def test_no_variance_makes_the_slope_constant() -> None:
    law = slope_law(get_activation("gelu"), 0.0)
    assert law.is_constant
    assert law.values[0] == pytest.approx(0.25, rel=1e-14)


def test_equal_values_are_joined_and_zero_is_kept_apart() -> None:
    law = point_masses([1.0, 0.0, 1.0], [0.25, 0.5, 0.25])
    assert (law.values.tolist(), law.masses.tolist(), law.zero_mass) == ([1.0], [0.5], 0.5)


def test_an_activation_without_slope_is_refused() -> None:
    flat = Activation("flat", np.zeros_like, np.zeros_like, slopes=(0.0,))
    with pytest.raises(TheoryError, match="vanishes"):
        slope_law(flat, 1.0)


@pytest.mark.parametrize(("q", "expected"), [(1 / 16, 0.614), (1 / 100, 0.909), (1 / 1250, 0.992)])
def test_relative_variance_of_tanh_matches_recorded_values(q: float, expected: float) -> None:
    # (mu_2/mu_1^2 - 1)/(8 q^2), three digits from an independent computation.
    assert slope_law(get_activation("tanh"), q).relative_variance / (8 * q * q) == pytest.approx(
        expected, abs=6e-4
    )


def test_relative_variance_keeps_its_digits_where_the_law_is_narrow() -> None:
    # erf_scaled: (1 + pi q)/sqrt(1 + 2 pi q) - 1 = (pi q)^2/2 - (pi q)^3 + ...
    q = 1e-7
    got = slope_law(get_activation("erf_scaled"), q).relative_variance
    assert got == pytest.approx((math.pi * q) ** 2 / 2 - (math.pi * q) ** 3, rel=1e-7)


@pytest.mark.parametrize("name", ["tanh", "gelu", "selu"])
def test_excess_gives_the_ratio_of_the_averages(name: str) -> None:
    for q in (1e-3, 0.5):
        law = slope_law(get_activation(name), q)
        w = law.support[-1][1] * np.array([1.2 + 0.1j, 0.9 + 0.3j])
        averages = law.averages(w)
        ratio = w * averages.m / averages.one_plus_m / law.mean - 1
        np.testing.assert_allclose(averages.ratio_excess, ratio, atol=1e-13)


def test_units_saturated_beyond_the_range_of_floats_are_dead() -> None:
    # erf' = 2/sqrt(pi) exp(-h^2): d/max d < 1e-260 where 2 h^2 > 598.7.
    q = 30.0
    law = slope_law(get_activation("erf"), q)
    threshold = math.sqrt(260 * math.log(10) / 2)
    assert law.zero_mass == pytest.approx(math.erfc(threshold / math.sqrt(2 * q)), rel=1e-9)
    assert law.continuous is not None
    assert law.zero_mass + float(law.continuous.mass.sum()) == pytest.approx(1.0, abs=1e-13)
