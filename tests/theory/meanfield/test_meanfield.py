"""Fixed points and depth scales against closed forms: arcsine and arc-cosine kernels, hard-tanh, powers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, optimize, special

from isometry.errors import InputError, TheoryError
from isometry.theory.activations import get_activation
from isometry.theory.meanfield import (
    c_map,
    c_star,
    chi_1,
    chi_c,
    every_variance_is_fixed,
    fixed_point,
    fixed_points,
    q_map,
    xi_c,
    xi_q,
)
from isometry.theory.meanfield.hermite import covariance, hermite_coefficients
from isometry.theory.meanfield.pairs import pair_average

ROOT_2 = math.sqrt(2.0)


def erf_covariance(q: float, c: float) -> float:
    """E erf(u1) erf(u2) = (2 / pi) asin(2 q c / (1 + 2 q)): Williams 1997."""
    return 2.0 / math.pi * math.asin(2.0 * q * c / (1.0 + 2.0 * q))


def relu_c_map(c: float) -> float:
    """(sqrt(1 - c^2) + c (pi - acos c)) / pi: the arc-cosine kernel of Cho and Saul 2009, at sigma_b = 0."""
    return (math.sqrt(1.0 - c * c) + c * (math.pi - math.acos(c))) / math.pi


# Fixed points of the variance ---------------------------------------------------------------------------------


def test_erf_fixed_point_solves_the_arcsine_equation() -> None:
    sigma_w, sigma_b = 1.7, 0.2
    exact = optimize.brentq(
        lambda q: sigma_w**2 * erf_covariance(q, 1.0) + sigma_b**2 - q, 0.1, 10.0, xtol=1e-15
    )
    assert fixed_point("erf", sigma_w, sigma_b) == pytest.approx(exact, rel=1e-13)


def test_hard_tanh_fixed_point_solves_its_error_function_equation() -> None:
    def q_map_exact(q: float) -> float:
        # E clip^2 = q (p - sqrt(2 / (pi q)) exp(-1/(2q))) + 1 - p, p = P(|h| < 1).
        inside = math.erf(1.0 / math.sqrt(2.0 * q))
        return (
            1.69 * (q * (inside - math.sqrt(2.0 / (math.pi * q)) * math.exp(-0.5 / q)) + 1.0 - inside) + 0.01
        )

    exact = optimize.brentq(lambda q: q_map_exact(q) - q, 0.1, 5.0, xtol=1e-15)
    assert fixed_point("hard_tanh", 1.3, 0.1) == pytest.approx(exact, rel=1e-13)
    assert q_map("hard_tanh", 0.4, 1.3, 0.1) == pytest.approx(q_map_exact(0.4), rel=1e-14)


def test_slope_is_the_derivative_of_the_q_map() -> None:
    for name in ("tanh", "hard_tanh", "selu", "softplus"):
        (point,) = [p for p in fixed_points(name, 0.9, 0.3) if p.stable]
        step = 1e-4 * point.q
        rise = q_map(name, point.q + step, 0.9, 0.3) - q_map(name, point.q - step, 0.9, 0.3)
        # Central difference: error of step^2 and of 1e-16 / step.
        assert point.slope == pytest.approx(rise / (2.0 * step), rel=1e-6)
        assert q_map(name, point.q, 0.9, 0.3) == pytest.approx(point.q, rel=1e-13)


def test_iterating_the_q_map_ends_at_the_fixed_point_at_the_rate_of_xi_q() -> None:
    sigma_w, sigma_b = 1.5, 0.3
    limit = fixed_point("tanh", sigma_w, sigma_b)
    q = 1.02 * limit
    for _ in range(12):
        before, q = q, q_map("tanh", q, sigma_w, sigma_b)
    assert abs(q - limit) < 1e-4
    rate = (q - limit) / (before - limit)
    # The rate itself is off by the distance that is left, 1e-6 or so.
    assert -1.0 / math.log(rate) == pytest.approx(xi_q("tanh", sigma_w, sigma_b), rel=1e-4)


@pytest.mark.parametrize(
    ("sigma_w", "sigma_b", "expected"),
    [
        (1.0, 0.3, [(0.18, 0.5, True)]),
        (1.0, 0.0, [(0.0, 0.5, True)]),
        (1.5, 0.0, [(0.0, 1.125, False)]),
        (1.5, 0.3, []),
        (ROOT_2, 0.3, []),
    ],
)
def test_relu_has_its_fixed_points_in_closed_form(sigma_w: float, sigma_b: float, expected: list) -> None:
    for activation in ("relu", lambda h: np.maximum(h, 0.0)):
        found = [(point.q, point.slope, point.stable) for point in fixed_points(activation, sigma_w, sigma_b)]
        assert [stable for *_, stable in found] == [stable for *_, stable in expected]
        np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-14)


def test_relu_off_criticality_says_that_there_is_none() -> None:
    with pytest.raises(TheoryError, match="no stable fixed point"):
        fixed_point("relu", 1.5, 0.1)


@pytest.mark.parametrize(
    ("activation", "sigma_w"),
    [("relu", ROOT_2), ("linear", 1.0), ("leaky_relu(0.2)", math.sqrt(2.0 / 1.04)), (lambda h: h, 1.0)],
)
def test_where_every_variance_is_fixed_none_is_singled_out(activation, sigma_w: float) -> None:
    assert every_variance_is_fixed(activation, sigma_w, 0.0)
    assert not every_variance_is_fixed(activation, sigma_w, 0.1)
    assert not every_variance_is_fixed(activation, 1.01 * sigma_w, 0.0)
    with pytest.raises(TheoryError, match="every variance is fixed"):
        fixed_points(activation, sigma_w, 0.0)
    assert q_map(activation, 0.37, sigma_w, 0.0) == pytest.approx(0.37, rel=1e-14)


def test_tanh_without_bias_splits_at_sigma_w_one() -> None:
    assert [point.q for point in fixed_points("tanh", 0.9, 0.0)] == [0.0]
    (at_one,) = fixed_points("tanh", 1.0, 0.0)
    assert at_one.stable
    assert at_one.slope == pytest.approx(1.0, rel=1e-14)
    zero, bulk = fixed_points("tanh", 1.1, 0.0)
    assert not zero.stable
    assert bulk.stable
    assert zero.slope == pytest.approx(1.21, rel=1e-14)


def test_weak_chaos_has_its_expansion() -> None:
    # E tanh^2 = q - 2 q^2 + 17/3 q^3 + ..: for sigma_w^2 = 1 + e, q* = e / (2 (1 + e)) (1 + 17/12 e + ..).
    excess = 1e-6
    _, bulk = fixed_points("tanh", math.sqrt(1.0 + excess), 0.0)
    assert bulk.q == pytest.approx(excess / 2.0 * (1.0 + excess * (17.0 / 12.0 - 1.0)), rel=1e-9)


def test_a_tiny_bias_makes_a_tiny_fixed_point() -> None:
    # At sigma_w = 1: q = q - 2 q^2 + sigma_b^2.
    assert fixed_point("tanh", 1.0, 1e-12) == pytest.approx(1e-12 / ROOT_2, rel=1e-9)
    # Far in the ordered phase phi is its tangent: q = sigma_b^2 / (1 - sigma_w^2).
    assert fixed_point("tanh", 0.5, 1e-15) == pytest.approx(1e-30 / 0.75, rel=1e-12)


def test_gelu_rests_at_zero_only_from_below_its_unstable_point() -> None:
    zero, unstable = fixed_points("gelu", 1.45, 0.0)
    assert zero.stable
    assert not unstable.stable
    assert fixed_point("gelu", 1.45, 0.0, q0=0.99 * unstable.q) == 0.0
    with pytest.raises(TheoryError, match="start from a smaller q0"):
        fixed_point("gelu", 1.45, 0.0, q0=1.01 * unstable.q)


def test_selu_keeps_unit_variance_and_is_not_critical() -> None:
    # Klambauer et al. 2017, arXiv 1706.02515: its constants are chosen for q* = 1. chi_1 by scipy's quad.
    assert fixed_point("selu", 1.0, 0.0) == pytest.approx(1.0, rel=1e-13)
    selu = get_activation("selu")

    def density(z: float) -> float:
        return selu.derivative(np.array([z]))[0] ** 2 * math.exp(-z * z / 2.0) / math.sqrt(2.0 * math.pi)

    exact = integrate.quad(density, -12.0, 0.0)[0] + integrate.quad(density, 0.0, 12.0)[0]
    assert chi_1("selu", 1.0, 1.0) == pytest.approx(exact, rel=1e-10)
    assert exact == pytest.approx(1.0716, abs=5e-5)


def test_a_falling_q_map_is_handled() -> None:
    # phi = exp(-h^2): E phi^2 = 1 / sqrt(1 + 4 q), so q sqrt(1 + 4 q) = sigma_w^2.
    exact = optimize.brentq(lambda q: q * math.sqrt(1.0 + 4.0 * q) - 9.0, 0.1, 10.0, xtol=1e-15)
    (point,) = fixed_points(lambda h: np.exp(-(h**2)), 3.0, 0.0)
    assert point.q == pytest.approx(exact, rel=1e-12)
    assert point.slope == pytest.approx(-2.0 * 9.0 * (1.0 + 4.0 * exact) ** -1.5, rel=1e-11)
    assert point.stable


def test_a_wave_has_its_fixed_point_although_its_averages_end_somewhere() -> None:
    # E sin^2 = (1 - exp(-2 q)) / 2.
    exact = optimize.brentq(lambda q: 1.62 * (1.0 - math.exp(-2.0 * q)) + 0.04 - q, 0.1, 5.0, xtol=1e-15)
    assert fixed_point(np.sin, 1.8, 0.2) == pytest.approx(exact, rel=1e-12)
    # E sin u sin v = exp(-q) sinh(q c).
    c = c_star(np.sin, 1.8, 0.2)
    assert 3.24 * math.exp(-exact) * math.sinh(exact * c) + 0.04 == pytest.approx(exact * c, rel=1e-12)


# Correlations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [-0.99, -0.3, 0.0, 0.5, 0.9, 0.999, 1.0 - 1e-9])
def test_c_maps_have_their_closed_forms(c: float) -> None:
    assert c_map("relu", c, sigma_w=ROOT_2, sigma_b=0.0) == pytest.approx(relu_c_map(c), abs=1e-13)
    q = 0.8
    erf = (2.25 * erf_covariance(q, c) + 0.04) / (2.25 * erf_covariance(q, 1.0) + 0.04)
    assert c_map("erf", c, sigma_w=1.5, sigma_b=0.2, q=q) == pytest.approx(erf, abs=1e-13)
    assert c_map("linear", c, sigma_w=0.7, sigma_b=0.0) == pytest.approx(c, abs=1e-15)


def test_near_one_the_c_map_keeps_the_digits_of_one_minus_c() -> None:
    # erf: 1 - c_map from the exact second difference of asin, evaluated without cancellation.
    q, distance = 0.8, 1e-10
    share = 2.0 * q / (1.0 + 2.0 * q)
    slope = share / math.sqrt(1.0 - share**2) / math.asin(share)
    assert covariance(get_activation("erf"), q).gap(distance) == pytest.approx(
        erf_covariance(q, 1.0) * slope * distance, rel=1e-8
    )
    # hard-tanh by the plane average: to first order q E phi'^2 (1 - c), with a correction of sqrt(1 - c).
    inside = math.erf(1.0 / math.sqrt(2.0 * q))
    gap = covariance(get_activation("hard_tanh"), q).gap(distance)
    assert gap == pytest.approx(q * inside * distance, rel=1e-4)


@pytest.mark.parametrize("q", [0.05, 1.0, 5.0, 200.0])
def test_erf_c_star_and_its_slope_come_from_the_arcsine(q: float) -> None:
    # Any q is stationary for some sigma_w once sigma_b = 0.1 is chosen.
    sigma_b = 0.1
    sigma_w = math.sqrt((q - sigma_b**2) / erf_covariance(q, 1.0))
    share = 2.0 * q / (1.0 + 2.0 * q)

    def distance(c: float) -> float:
        return (sigma_w**2 * erf_covariance(q, c) + sigma_b**2) / q - c

    chaotic = chi_1("erf", sigma_w, q) > 1.0
    exact = optimize.brentq(distance, 0.0, 1.0 - 1e-3, xtol=1e-15) if chaotic else 1.0
    assert c_star("erf", sigma_w, sigma_b, q=q) == pytest.approx(exact, rel=1e-12)
    slope = sigma_w**2 * 2.0 / math.pi * share / q / math.sqrt(1.0 - (share * exact) ** 2)
    assert chi_c("erf", sigma_w, sigma_b, q=q) == pytest.approx(slope, rel=1e-11)
    assert xi_c("erf", sigma_w, sigma_b, q=q) == pytest.approx(-1.0 / math.log(slope), rel=1e-9)


def test_hard_tanh_chi_c_is_a_probability() -> None:
    # chi_c = sigma_w^2 P(|u1| < 1, |u2| < 1), by an iterated one-dimensional integral.
    sigma_w, sigma_b = 1.3, 0.1
    q = fixed_point("hard_tanh", sigma_w, sigma_b)
    c = c_star("hard_tanh", sigma_w, sigma_b)
    assert c_map("hard_tanh", c, sigma_w=sigma_w, sigma_b=sigma_b) == pytest.approx(c, abs=1e-13)
    spread = math.sqrt(2.0 * q * (1.0 - c * c))

    def inner(u: float) -> float:
        inside = 0.5 * (math.erf((1.0 - c * u) / spread) + math.erf((1.0 + c * u) / spread))
        return inside * math.exp(-u * u / (2.0 * q)) / math.sqrt(2.0 * math.pi * q)

    both, _ = integrate.quad(inner, -1.0, 1.0, epsabs=1e-13)
    assert chi_c("hard_tanh", sigma_w, sigma_b) == pytest.approx(sigma_w**2 * both, rel=1e-11)


def test_the_checked_point_of_tanh() -> None:
    # (sigma_w^2, sigma_b^2) = (2.5, 0.2): an independent computation gave q* = 1.3084, c* = .8900, chi_c* = .96159.
    sigma_w, sigma_b = math.sqrt(2.5), math.sqrt(0.2)
    assert fixed_point("tanh", sigma_w, sigma_b) == pytest.approx(1.3084, abs=5e-5)
    assert c_star("tanh", sigma_w, sigma_b) == pytest.approx(0.8900, abs=5e-5)
    assert chi_c("tanh", sigma_w, sigma_b) == pytest.approx(0.96159, abs=5e-6)


@pytest.mark.parametrize(("sigma_w2", "six_xi"), [(1.5, 313), (2.0, 130), (2.5, 85), (3.0, 66), (4.0, 48)])
def test_trainable_depths_of_tanh_at_a_small_bias(sigma_w2: float, six_xi: float) -> None:
    # 6 xi_c at sigma_b^2 = 2e-5, an independent computation rounded to whole layers.
    assert 6.0 * xi_c("tanh", math.sqrt(sigma_w2), math.sqrt(2e-5)) == pytest.approx(six_xi, abs=0.5)


def test_ordered_phase_forgets_and_chaos_of_an_odd_function_decorrelates() -> None:
    assert c_star("tanh", 0.9, 0.2) == 1.0
    assert chi_c("tanh", 0.9, 0.2) == chi_1("tanh", 0.9, fixed_point("tanh", 0.9, 0.2)) < 1.0
    assert c_star("tanh", 1.5, 0.0) == 0.0
    # At c = 0 the slope is sigma_w^2 (E phi')^2.
    q = fixed_point("tanh", 1.5, 0.0)
    first = hermite_coefficients(np.tanh, q)[1] / math.sqrt(q)
    assert chi_c("tanh", 1.5, 0.0) == pytest.approx(2.25 * first**2, rel=1e-13)


def test_homogeneous_activations_at_criticality_have_infinite_depth_scales() -> None:
    for name, sigma_w in (("relu", ROOT_2), ("linear", 1.0)):
        assert c_star(name, sigma_w, 0.0) == 1.0
        assert xi_c(name, sigma_w, 0.0) == math.inf
        assert xi_q(name, sigma_w, 0.0, q=1.0) == math.inf


@pytest.mark.parametrize("name", ["tanh", "hard_tanh", "elu", "gelu"])
@pytest.mark.parametrize("c", [-0.6, 0.3, 0.95])
def test_series_and_plane_average_agree(name: str, c: float) -> None:
    phi = get_activation(name)
    plane = pair_average(lambda u, v: phi.function(u) * phi.function(v), 1.7, c=c, kinks=phi.kinks)
    assert covariance(phi, 1.7).value(c) == pytest.approx(plane, rel=1e-11)
    slope = pair_average(lambda u, v: phi.derivative(u) * phi.derivative(v), 1.7, c=c, kinks=phi.kinks)
    assert covariance(phi, 1.7).slope(c) == pytest.approx(slope, rel=1e-11)


@pytest.mark.parametrize("c", [-1.0, -0.7, 0.0, 0.99, 1.0 - 1e-12, 1.0])
def test_plane_averages_of_kinked_functions_have_their_closed_forms(c: float) -> None:
    relu = lambda h: np.maximum(h, 0.0)  # noqa: E731
    q, q2 = 2.5, 0.6
    value = pair_average(lambda u, v: relu(u) * relu(v), q, c=c, q2=q2, kinks=(0.0,))
    assert value == pytest.approx(math.sqrt(q * q2) * relu_c_map(c) / 2.0, abs=1e-13)
    orthant = pair_average(lambda u, v: (u > 0) * (v > 0) * 1.0, q, c=c, q2=q2, kinks=(0.0,))
    assert orthant == pytest.approx((math.pi - math.acos(c)) / (2.0 * math.pi), abs=1e-13)


def test_hermite_coefficients_of_a_cube_are_its_expansion() -> None:
    # (sqrt(q) z)^3 = q^1.5 (He_3 + 3 He_1), and He_3 = sqrt(6) h_3.
    expected = np.array([0.0, 3.0, 0.0, math.sqrt(6.0), 0.0, 0.0]) * 2.0**1.5
    np.testing.assert_allclose(hermite_coefficients(lambda h: h**3, 2.0, count=6), expected, atol=1e-13)


def test_a_steep_place_off_centre_is_resolved() -> None:
    # E erf(k (u - 1)) erf(k (v - 1)) by nested integration of the conditional mean, which is an erf itself.
    steep, q, c = 40.0, 1.0, 0.6
    phi = get_activation(lambda h: special.erf(steep * (h - 1.0)), kinks=())
    width = math.sqrt(1.0 / steep**2 + 2.0 * q * (1.0 - c * c))

    def integrand(u: float) -> float:
        mean = math.erf((c * u - 1.0) / width)
        return math.erf(steep * (u - 1.0)) * mean * math.exp(-u * u / 2.0) / math.sqrt(2.0 * math.pi)

    exact = sum(
        integrate.quad(integrand, a, b, epsabs=1e-14)[0] for a, b in ((-9, 0.9), (0.9, 1.1), (1.1, 9))
    )
    assert covariance(phi, q).value(c) == pytest.approx(exact, rel=1e-11)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: q_map("tanh", 1.0, -1.0, 0.0), "sigma_w"),
        (lambda: q_map("tanh", -1.0, 1.0, 0.0), "variance"),
        (lambda: c_map("tanh", 1.5, sigma_w=1.0, sigma_b=0.1), "between -1 and 1"),
        (lambda: fixed_points("tanh", 1.0, float("nan")), "sigma_b"),
        (lambda: c_star("tanh", 0.0, 0.1), "above zero"),
    ],
)
def test_what_is_out_of_range_is_named(call, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()


def test_no_stationary_variance_means_no_correlation_either() -> None:
    with pytest.raises(TheoryError, match="no stable fixed point"):
        c_star("softplus", 1.5, 0.1)
