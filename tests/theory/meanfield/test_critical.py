"""The critical line keeps its digits down to q* = 1e-12, and says where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special

from isometry.errors import InputError, TheoryError
from isometry.theory.activations import get_activation
from isometry.theory.meanfield import chi_1, critical_point, critical_variances, fixed_points, q_map
from isometry.theory.meanfield.remainder import remainder

# 60-digit quadrature (mpmath) of 1 / E phi'^2 and q - E phi^2 / E phi'^2.
REFERENCE = [
    ("tanh", 1e-12, 1.000000000002, 1.3333333333253332529e-36),
    ("tanh", 1e-8, 1.0000000199999997, 1.3333332533333384037e-24),
    ("tanh", 1e-4, 1.0001999700113272374, 1.3325338316509403006e-12),
    ("tanh", 1e-2, 1.0197107607412671778, 1.2579958713242901203e-6),
    ("tanh", 0.3, 1.457998944230237284, 0.012390189286485602085),
    ("tanh", 100.0, 18.829984685629546762, 82.666304959045913518),
    ("gelu", 1e-12, 3.9999999999898140836, 6.3661977236405031921e-25),
    ("gelu", 1.0, 2.1936999035323951899, 0.067191674705633734172),
    ("silu", 1e-12, 3.999999999996, 2.4999999999937498994e-25),
    ("elu", 1e-12, 1.0000007978841974226, 1.2499983377414636526e-25),
    ("elu", 1e-3, 1.0248673750697736093, 1.1984007668259991566e-7),
    ("selu", 1e-3, 0.49445101622627758362, 1.7870821047424836665e-7),
    ("selu", 1.0, 0.93320580177802944508, 0.066794198221970554922),
]


@pytest.mark.parametrize(("name", "q", "sigma_w2", "sigma_b2"), REFERENCE)
def test_both_variances_equal_sixty_digit_values(
    name: str, q: float, sigma_w2: float, sigma_b2: float
) -> None:
    point = critical_point(name, q_star=q)
    assert point.sigma_w2 == pytest.approx(sigma_w2, rel=1e-14)
    # Rounding of the third derivative at zero, from an interpolant, is what is left.
    assert point.sigma_b2 == pytest.approx(sigma_b2, rel=2e-12)
    assert point.chi_1 == pytest.approx(1.0, abs=1e-14)
    assert point.xi_c == math.inf
    assert (point.sigma_w, point.sigma_b) == (math.sqrt(point.sigma_w2), math.sqrt(point.sigma_b2))


@pytest.mark.parametrize("q", [1e-12, 1e-6, 1e-2, 1.0, 1e3])
def test_erf_has_the_closed_form(q: float) -> None:
    point = critical_point("erf", q_star=q)
    assert point.sigma_w2 == pytest.approx(math.pi / 4.0 * math.sqrt(1.0 + 4.0 * q), rel=1e-14)
    # q - sqrt(1 + 4q)/2 asin(2q / (1 + 2q)): a difference with an error of 1e-16 q, so of use from 0.01 on.
    if q >= 1e-2:
        exact = q - 0.5 * math.sqrt(1.0 + 4.0 * q) * math.asin(2.0 * q / (1.0 + 2.0 * q))
        assert point.sigma_b2 == pytest.approx(exact, rel=1e-11)
    else:
        assert point.sigma_b2 == pytest.approx(4.0 / 3.0 * q**3 * (1.0 - 5.5 * q), rel=20.0 * q * q + 2e-12)


@pytest.mark.parametrize("q", [0.02, 0.3, 5.0])
def test_hard_tanh_has_the_closed_form(q: float) -> None:
    inside = math.erf(1.0 / math.sqrt(2.0 * q))
    point = critical_point("hard_tanh", q_star=q)
    assert point.sigma_w2 == pytest.approx(1.0 / inside, rel=1e-14)
    # sigma_b^2 = (sqrt(2 q / pi) exp(-1/(2q)) - (1 - p)) / p, both terms exponentially small and close.
    exact = (math.sqrt(2.0 * q / math.pi) * math.exp(-0.5 / q) - math.erfc(1.0 / math.sqrt(2.0 * q))) / inside
    assert point.sigma_b2 == pytest.approx(exact, rel=1e-11)


def test_hard_tanh_needs_hardly_any_bias_at_a_thousandth() -> None:
    # To leading order sqrt(2 q / pi) e^(-1/2q) 2 q: from erfc(x) = e^(-x^2) / (x sqrt(pi)) (1 - 1/(2 x^2) + ...).
    q = 1e-3
    tail = math.exp(-0.5 / q) * math.sqrt(2.0 * q / math.pi)
    exact = tail * (1.0 - special.erfcx(1.0 / math.sqrt(2.0 * q)) / math.sqrt(2.0 * q / math.pi))
    assert 0.0 < critical_point("hard_tanh", q_star=q).sigma_b2 == pytest.approx(exact, rel=1e-10)
    # Linear to all digits, the variance is still held: from above, where the function saturates.
    assert critical_point("hard_tanh", q_star=1e-6).stable


@pytest.mark.parametrize(
    ("depth", "sigma_w2", "sigma_b2"),
    [
        (16, 1.11538, 2.37e-4),
        (1250, 1.001598, 6.8e-10),
        (4000, 1.000500, 2.1e-11),
        (10_000, 1.000200, 1.3e-12),
    ],
)
def test_points_of_deep_tanh_networks(depth: int, sigma_w2: float, sigma_b2: float) -> None:
    # q* = 1 / depth, the recipe of the demonstration of Xiao et al. 2018; values computed independently.
    point = critical_point("tanh", q_star=1.0 / depth)
    assert point.sigma_w2 == pytest.approx(sigma_w2, abs=5.1e-6 if depth == 16 else 5.1e-7)
    assert point.sigma_b2 == pytest.approx(sigma_b2, rel=0.025)


@pytest.mark.parametrize("name", ["tanh", "erf_scaled", "hard_tanh", "elu", "selu", "gelu", "silu"])
def test_a_critical_point_is_a_fixed_point_with_chi_one(name: str) -> None:
    point = critical_point(name, q_star=0.7)
    assert chi_1(name, point.sigma_w, 0.7) == pytest.approx(1.0, rel=1e-13)
    assert q_map(name, 0.7, point.sigma_w, point.sigma_b) == pytest.approx(0.7, rel=1e-13)
    (fixed,) = [f for f in fixed_points(name, point.sigma_w, point.sigma_b) if abs(f.q - 0.7) < 1e-6]
    assert fixed.stable is point.stable
    assert fixed.slope == pytest.approx(point.q_slope, rel=1e-9)


@pytest.mark.parametrize("name", ["tanh", "hard_tanh", "elu", "gelu"])
def test_the_line_can_be_entered_by_each_of_its_coordinates(name: str) -> None:
    point = critical_point(name, q_star=0.2)
    by_bias = critical_point(name, sigma_b=point.sigma_b)
    by_weight = critical_point(name, sigma_w=point.sigma_w)
    assert by_bias.q_star == pytest.approx(0.2, rel=1e-11)
    assert by_weight.q_star == pytest.approx(0.2, rel=1e-11)


def test_a_tiny_bias_still_finds_its_point() -> None:
    # sigma_b^2 = 4/3 q^3.
    point = critical_point("tanh", sigma_b=math.sqrt(4.0 / 3.0 * 1e-36))
    assert point.q_star == pytest.approx(1e-12, rel=1e-11)
    assert critical_point("tanh", sigma_b=math.sqrt(2.01e-5)).sigma_w2 == pytest.approx(1.0499956, abs=5e-8)


def test_without_bias_the_line_ends_at_zero_variance() -> None:
    point = critical_point("tanh", sigma_b=0.0)
    assert (point.q_star, point.sigma_w2, point.sigma_b2) == (0.0, 1.0, 0.0)
    assert point.stable
    # phi'(0)^2 = 1/4 for GELU, and E phi^2 bends upwards from there.
    gelu = critical_point("gelu", sigma_b=0.0)
    assert gelu.sigma_w2 == pytest.approx(4.0, rel=1e-14)
    assert not gelu.stable


def test_xi_q_keeps_its_digits_too() -> None:
    # 1 - slope = 2 q to leading order for tanh: 1/(2q) layers.
    assert critical_point("tanh", q_star=1e-12).xi_q == pytest.approx(0.5e12, rel=1e-10)


@pytest.mark.parametrize("name", ["gelu", "silu"])
def test_gelu_and_silu_are_critical_where_they_are_not_stable(name: str) -> None:
    point = critical_point(name, q_star=1.0)
    assert not point.stable
    assert point.q_slope > 1.0
    assert "unstable" in point.note
    before, after = (q_map(name, q, point.sigma_w, point.sigma_b) for q in (0.99, 1.01))
    assert before < 0.99
    assert after > 1.01


def test_selu_is_critical_away_from_its_own_fixed_point() -> None:
    # Its self-normalising point, q* = 1 at sigma_w = 1 and no bias, has chi_1 = 1.0716.
    point = critical_point("selu", q_star=1.0)
    assert point.sigma_w2 == pytest.approx(1.0 / 1.07157, rel=1e-5)
    assert point.sigma_b2 > 0.06


@pytest.mark.parametrize(("name", "sigma_w2"), [("relu", 2.0), ("linear", 1.0), ("leaky_relu(0.5)", 1.6)])
def test_homogeneous_activations_have_one_point(name: str, sigma_w2: float) -> None:
    point = critical_point(name, sigma_b=0.0)
    assert point.sigma_w2 == pytest.approx(sigma_w2, rel=1e-15)
    assert critical_point(name, sigma_w=math.sqrt(sigma_w2)).sigma_b2 == 0.0
    assert critical_point(name, q_star=0.3).q_star == 0.3
    assert "Every variance is stationary" in point.note
    with pytest.raises(TheoryError, match="any bias adds to it"):
        critical_point(name, sigma_b=0.1)
    with pytest.raises(TheoryError, match="only critical point is"):
        critical_point(name, sigma_w=1.3)


@pytest.mark.parametrize("arguments", [{"q_star": 1.0}, {"sigma_b": 0.1}, {"sigma_w": 1.2}, {"q_star": 0.0}])
def test_softplus_has_none_and_says_why(arguments: dict) -> None:
    with pytest.raises(TheoryError, match=r"no critical point.*phi\(0\) = 0.6931"):
        critical_point("softplus", **arguments)


def test_softplus_needs_a_negative_bias_variance_at_every_q() -> None:
    for q in np.geomspace(1e-12, 1e6, 37):
        assert critical_variances("softplus", q)[1] < 0.0


def test_shifting_softplus_to_zero_gives_it_a_critical_line() -> None:
    point = critical_point(lambda h: np.logaddexp(0.0, h) - math.log(2.0), q_star=0.5)
    assert point.sigma_b2 > 0.0


def test_sigmoid_is_critical_for_strong_weights_only() -> None:
    with pytest.raises(TheoryError, match="no critical point at"):
        critical_point("sigmoid", q_star=1.0)
    point = critical_point("sigmoid", sigma_b=0.0)
    assert point.sigma_b2 == pytest.approx(0.0, abs=1e-12)
    assert q_map("sigmoid", point.q_star, point.sigma_w, 0.0) == pytest.approx(point.q_star, rel=1e-12)
    assert chi_1("sigmoid", point.sigma_w, point.q_star) == pytest.approx(1.0, rel=1e-12)


def test_a_weight_that_the_line_does_not_reach_is_refused_with_its_range() -> None:
    with pytest.raises(TheoryError, match="runs between 1 and"):
        critical_point("tanh", sigma_w=0.9)


def test_a_users_function_is_as_good_as_a_named_one() -> None:
    # Complex step for the first; differences for the second, which refuses complex numbers.
    named = critical_point("tanh", q_star=1e-12)
    for function in (lambda h: np.tanh(h), lambda h: np.tanh(np.asarray(h, dtype=float))):
        point = critical_point(function, q_star=1e-12)
        # Differences have errors of 1e-13, divided by the square of the interpolation radius, 0.5.
        assert point.sigma_b2 == pytest.approx(named.sigma_b2, rel=1e-9)


@pytest.mark.parametrize(
    "arguments", [{}, {"q_star": 1.0, "sigma_b": 0.1}, {"q_star": -1.0}, {"sigma_b": -0.1}, {"sigma_w": 0.0}]
)
def test_exactly_one_coordinate_in_range_is_needed(arguments: dict) -> None:
    with pytest.raises(InputError, match=r"exactly one|variance|sigma_b|sigma_w"):
        critical_point("tanh", **arguments)


@pytest.mark.parametrize("h", [1e-9, -1e-6, 1e-3, 0.3, 0.4999, 0.5001, 2.0])
def test_the_remainder_of_tanh_is_its_taylor_series(h: float) -> None:
    # tanh' - 1 = -h^2 + 2/3 h^4 - 17/45 h^6 + ...; tanh' - tanh/h = -2/3 h^2 + 8/15 h^4 - 34/105 h^6 + ...
    near = remainder(get_activation("tanh"))
    points = np.array([h])
    if abs(h) < 2e-3:
        assert near.slope_change(points)[0] == pytest.approx(-(h**2) + 2.0 / 3.0 * h**4, rel=1e-12)
        assert near.slope_deficit(points)[0] == pytest.approx(
            -2.0 / 3.0 * h**2 + 8.0 / 15.0 * h**4, rel=1e-12
        )
    else:
        assert near.slope_change(points)[0] == pytest.approx(-(math.tanh(h) ** 2), rel=1e-12)
        exact = 1.0 / math.cosh(h) ** 2 - math.tanh(h) / h
        assert near.slope_deficit(points)[0] == pytest.approx(exact, rel=1e-11)
