"""Activations are what their names say, and Gaussian averages keep twelve digits from q = 1e-12 to 1e4."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, special

from isometry.errors import ConvergenceError, InputError, NonFiniteError, TheoryError
from isometry.theory.activations import (
    ACTIVATION_NAMES,
    Activation,
    get_activation,
    leaky_relu,
)
from isometry.theory.derivatives import difference_derivative
from isometry.theory.gaussian import gaussian_average
from isometry.theory.kinks import find_kinks, linear_slopes

VARIANCES = (1e-12, 1e-6, 1e-2, 0.5, 1.0, 30.0, 1e4)
# What the averages promise.
TWELVE_DIGITS = 1e-12


def saturated(q: float) -> float:
    """P(|h| > 1) for h ~ N(0, q)."""
    return math.erfc(1.0 / math.sqrt(2.0 * q))


@pytest.mark.parametrize("q", VARIANCES)
@pytest.mark.parametrize(
    ("function", "kinks", "exact"),
    [
        (lambda h: h**2, (), lambda q: q),
        (lambda h: h**6, (), lambda q: 15.0 * q**3),
        # Small where q is large: what counts lies within 1/sqrt(q) of zero.
        (lambda h: np.exp(-math.pi * h * h / 2.0), (), lambda q: 1.0 / math.sqrt(1.0 + math.pi * q)),
        (lambda h: special.erf(h) ** 2, (), lambda q: 2.0 / math.pi * math.asin(2.0 * q / (1.0 + 2.0 * q))),
        (np.cos, (), lambda q: math.exp(-q / 2.0)),
        (np.abs, (0.0,), lambda q: math.sqrt(2.0 * q / math.pi)),
        (lambda h: np.maximum(h, 0.0) ** 2, (0.0,), lambda q: q / 2.0),
        # Far out in the tail for small q: below 1e-300 at q = 1e-6, where both sides are zero.
        (lambda h: (np.abs(h) > 1.0) * 1.0, (-1.0, 1.0), saturated),
    ],
)
def test_averages_equal_closed_forms(function, kinks, exact, q: float) -> None:
    value = gaussian_average(function, q, kinks=kinks)
    if function is np.cos and q >= 30:
        # Twelve digits are of E|cos|, not of the e^-15 or e^-5000 that is left of the oscillation.
        assert abs(value - exact(q)) < TWELVE_DIGITS
    else:
        assert value == pytest.approx(exact(q), rel=TWELVE_DIGITS, abs=1e-300)


@pytest.mark.parametrize("q", VARIANCES)
def test_a_kink_that_is_not_listed_costs_time_and_not_digits(q: float) -> None:
    listed = gaussian_average(lambda h: np.clip(h, -0.3, 0.7) ** 2, q, kinks=(-0.3, 0.7))
    assert gaussian_average(lambda h: np.clip(h, -0.3, 0.7) ** 2, q) == pytest.approx(
        listed, rel=TWELVE_DIGITS
    )


def test_at_zero_variance_a_kink_at_zero_is_seen_from_both_sides() -> None:
    assert gaussian_average(np.cosh, 0.0) == 1.0
    assert gaussian_average(lambda h: (h > 0) * 1.0, 0.0, kinks=(0.0,)) == 0.5


def test_overflow_where_nothing_is_left_of_the_gaussian_does_not_matter() -> None:
    # exp overflows at 709, which is 22 standard deviations away; logaddexp does not overflow.
    naive = gaussian_average(lambda h: np.log(1.0 + np.exp(h)), 1e3)
    assert naive == pytest.approx(gaussian_average(lambda h: np.logaddexp(0.0, h), 1e3), rel=TWELVE_DIGITS)


def test_overflow_where_it_matters_is_refused() -> None:
    # E exp(h) = exp(q / 2) comes from h near q = 1000, where exp(h) is no float.
    with pytest.raises(NonFiniteError, match="overflow"):
        gaussian_average(np.exp, 1e3)
    assert gaussian_average(np.exp, 100.0) == pytest.approx(math.exp(50.0), rel=TWELVE_DIGITS)


def test_noise_is_an_error_and_not_an_answer() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(ConvergenceError, match="noisy"):
        gaussian_average(lambda h: h**2 + generator.normal(size=h.shape), 1.0)


@pytest.mark.parametrize("q", [-1e-9, float("nan"), float("inf")])
def test_what_is_no_variance_is_refused(q: float) -> None:
    with pytest.raises(InputError, match="variance"):
        gaussian_average(np.tanh, q)


FORMULAS = {
    "linear": lambda h: h,
    "relu": lambda h: np.maximum(h, 0.0),
    "leaky_relu": lambda h: np.where(h > 0, h, 0.01 * h),
    "hard_tanh": lambda h: np.minimum(1.0, np.maximum(-1.0, h)),
    "tanh": lambda h: (np.exp(h) - np.exp(-h)) / (np.exp(h) + np.exp(-h)),
    "erf": special.erf,
    "erf_scaled": lambda h: special.erf(math.sqrt(math.pi) * h / 2.0),
    "sigmoid": lambda h: 1.0 / (1.0 + np.exp(-h)),
    "gelu": lambda h: 0.5 * h * (1.0 + special.erf(h / math.sqrt(2.0))),
    "silu": lambda h: h / (1.0 + np.exp(-h)),
    "elu": lambda h: np.where(h > 0, h, np.exp(h) - 1.0),
    "selu": lambda h: 1.0507009873554805 * np.where(h > 0, h, 1.6732632423543772 * (np.exp(h) - 1.0)),
    "softplus": lambda h: np.log(1.0 + np.exp(h)),
    "relu6": lambda h: np.minimum(6.0, np.maximum(0.0, h)),
    "hard_sigmoid": lambda h: np.minimum(1.0, np.maximum(0.0, (h + 3.0) / 6.0)),
    "hard_swish": lambda h: h * np.minimum(1.0, np.maximum(0.0, (h + 3.0) / 6.0)),
    "celu": lambda h: np.where(h > 0, h, np.exp(h) - 1.0),
    "mish": lambda h: h * np.tanh(np.log1p(np.exp(h))),
    "softsign": lambda h: h / (1.0 + np.abs(h)),
    "squared_relu": lambda h: np.where(h > 0, h * h, 0.0),
    "sin": np.sin,
    "snake": lambda h: h + np.sin(h) ** 2,
}


def test_every_name_has_a_formula_here() -> None:
    assert set(FORMULAS) == set(ACTIVATION_NAMES)


@pytest.mark.parametrize("name", ACTIVATION_NAMES)
def test_functions_are_their_textbook_formulas(name: str) -> None:
    h = np.linspace(-8.0, 8.0, 161)
    # The textbook exp(h) - 1 has rounding of 1e-16, no more.
    np.testing.assert_allclose(get_activation(name).function(h), FORMULAS[name](h), rtol=1e-13, atol=3e-16)


@pytest.mark.parametrize("name", ACTIVATION_NAMES)
def test_derivatives_integrate_back_to_the_function(name: str) -> None:
    activation = get_activation(name)
    for lower, upper in ((-7.0, -0.4), (-0.4, 0.9), (0.9, 6.0)):
        kinks = [kink for kink in activation.kinks if lower < kink < upper]
        area, _ = integrate.quad(
            lambda h: activation.derivative(np.array([h]))[0],
            lower,
            upper,
            points=kinks or None,
            epsabs=1e-13,
        )
        ends = activation.function(np.array([lower, upper]))
        assert area == pytest.approx(ends[1] - ends[0], abs=1e-12)


def test_other_names_are_the_same_activation() -> None:
    assert get_activation("swish") is get_activation("silu")
    assert get_activation("ReLU_squared") is get_activation("squared_relu")


@pytest.mark.parametrize("name", ACTIVATION_NAMES)
def test_nothing_overflows(name: str) -> None:
    activation = get_activation(name)
    # The square itself leaves the range of floats beyond 1e154.
    largest = 1e150 if name == "squared_relu" else 1e300
    h = np.array([-largest, -1e6, -750.0, -40.0, 0.0, 40.0, 750.0, 1e6, largest])
    # GELU's own exp(-h^2 / 2) underflows, and its h^2 overflows to an exponent of minus infinity: that is right.
    with np.errstate(over="ignore", under="ignore", invalid="raise", divide="raise"):
        assert np.all(np.isfinite(activation.function(h)))
        assert np.all(np.isfinite(activation.derivative(h)))


def test_slopes_are_the_derivative_on_each_piece() -> None:
    for name in ("linear", "relu", "leaky_relu(0.2)", "hard_tanh", "relu6", "hard_sigmoid"):
        activation = get_activation(name)
        assert activation.slopes is not None
        edges = [-9.0, *activation.kinks, 9.0]
        middles = np.array([(a + b) / 2.0 for a, b in itertools.pairwise(edges)])
        np.testing.assert_array_equal(activation.derivative(middles), activation.slopes)


def test_the_two_erf_conventions_differ_in_their_slope_at_zero() -> None:
    zero = np.zeros(1)
    assert get_activation("erf").derivative(zero)[0] == pytest.approx(2.0 / math.sqrt(math.pi), rel=1e-15)
    assert get_activation("erf_scaled").derivative(zero)[0] == 1.0


def test_leaky_relu_takes_its_slope_in_either_way() -> None:
    assert get_activation("leaky_relu(0.2)") is leaky_relu(0.2)
    assert get_activation("leaky_relu(slope=-0.5)").slopes == (-0.5, 1.0)
    assert leaky_relu(0.0).function(np.array([-2.0, 3.0])).tolist() == [0.0, 3.0]
    assert get_activation(leaky_relu(0.3).name) is leaky_relu(0.3)


@pytest.mark.parametrize("name", ["tahn", "", "leaky_relu(", "leaky_relu(x)", "leaky_relu(inf)"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises((TheoryError, InputError), match=r"hard_tanh|leaky_relu\(0.2\)|finite"):
        get_activation(name)


def test_without_derivative_the_complex_step_is_exact() -> None:
    activation = get_activation(lambda h: h * np.exp(-(h**2)))
    h = np.linspace(-5.0, 5.0, 301)
    exact = (1.0 - 2.0 * h**2) * np.exp(-(h**2))
    np.testing.assert_allclose(activation.derivative(h), exact, rtol=0, atol=2e-15)


def test_a_function_of_reals_only_is_differentiated_by_differences() -> None:
    activation = get_activation(lambda h: special.gammaln(2.0 + np.abs(np.asarray(h, dtype=float))))
    assert activation.kinks == (0.0,)
    h = np.concatenate([np.linspace(-5.0, 5.0, 300), [1e-3, -1e-3, 1e-6]])
    # digamma is the derivative of gammaln. Beside the kink the stencil is one-sided: 1e-11 instead of 1e-13.
    np.testing.assert_allclose(
        activation.derivative(h), np.sign(h) * special.digamma(2.0 + np.abs(h)), rtol=0, atol=1e-11
    )


def test_a_jump_too_high_to_be_looked_for_is_seen_from_its_own_side() -> None:
    # The third derivative jumps at zero. A stencil across it would be off by 1e-6; abs() rules out the complex step.
    activation = get_activation(lambda h: np.abs(h) ** 3)
    assert activation.kinks == ()
    h = np.concatenate([np.linspace(-0.1, 0.1, 41), [1e-3, -1e-3]])
    np.testing.assert_allclose(activation.derivative(h), 3.0 * h * np.abs(h), rtol=0, atol=1e-11)


def test_a_lost_imaginary_part_is_noticed() -> None:
    def drops_imaginary(h):
        return np.tanh(np.real(h)) + 0j if np.iscomplexobj(h) else np.tanh(h)

    h = np.linspace(-3.0, 3.0, 61)
    np.testing.assert_allclose(
        get_activation(drops_imaginary).derivative(h), 1.0 / np.cosh(h) ** 2, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("name", ACTIVATION_NAMES)
def test_differences_agree_with_derivatives_also_beside_kinks(name: str) -> None:
    activation = get_activation(name)
    h = np.concatenate([np.linspace(-6.0, 6.0, 241) + 1e-4, [0.9999, 1.0001, -1e-5, 1e-5]])
    rough = difference_derivative(activation.function, kinks=activation.kinks)
    np.testing.assert_allclose(rough(h), activation.derivative(h), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("function", "kinks", "slopes"),
    [
        (lambda h: np.maximum(h, 0.0), (0.0,), (0.0, 1.0)),
        (lambda h: np.clip(h, -1.0, 1.0), (-1.0, 1.0), (0.0, 1.0, 0.0)),
        (lambda h: h * np.clip(h / 6.0 + 0.5, 0.0, 1.0), (-3.0, 3.0), None),
        (lambda h: np.where(h > 0, h, 2.0 * np.expm1(np.minimum(h, 0.0))), (0.0,), None),
        # Here it is the second derivative that jumps.
        (lambda h: h / (1.0 + np.abs(h)), (0.0,), None),
        (lambda h: np.where(h > 1.7, h * h, 3.4 * h - 2.89), (1.7,), None),
        (lambda h: np.tanh(30.0 * h), (), None),
        (lambda h: np.sin(5.0 * h), (), None),
    ],
)
def test_kinks_are_found_and_lines_are_known_for_lines(function, kinks, slopes) -> None:
    assert find_kinks(function) == kinks
    assert linear_slopes(function, kinks) == slopes


def test_a_kink_off_the_round_numbers_is_located() -> None:
    (kink,) = find_kinks(lambda h: np.maximum(h - 1.0 / 3.0, np.sin(h)))
    assert kink - 1.0 / 3.0 == pytest.approx(math.sin(kink), abs=1e-10)


def test_a_step_has_no_derivative_to_average() -> None:
    with pytest.raises(InputError, match=r"jumps near h = 1\.23"):
        get_activation(lambda h: h + 0.5 * (h > 1.23))


def test_a_users_relu_is_relu() -> None:
    activation = get_activation(lambda h: np.maximum(h, 0.0))
    assert activation.is_homogeneous
    assert gaussian_average(lambda h: activation.derivative(h) ** 2, 3.0, kinks=activation.kinks) == 0.5


def test_a_wrong_derivative_is_refused() -> None:
    with pytest.raises(InputError, match="not the derivative"):
        get_activation(np.tanh, derivative=lambda h: 1.0 - np.tanh(h))
    assert get_activation(np.tanh, derivative=lambda h: 1.0 - np.tanh(h) ** 2).name == "tanh"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (math.tanh, "failed"),
        (lambda h: np.exp(h) / np.exp(h).sum(), "elementwise"),
        (lambda h: h[:3], "elementwise"),
        (lambda h: 1.0 / (h - h), "finite"),
        (3.0, "name"),
    ],
)
def test_what_is_no_activation_is_refused_in_words(function, words: str) -> None:
    with pytest.raises(InputError, match=words):
        get_activation(function)


def test_an_activation_comes_back_and_takes_no_second_derivative() -> None:
    activation = get_activation("tanh")
    assert get_activation(activation) is activation
    with pytest.raises(InputError, match="brings its own"):
        get_activation("tanh", kinks=(0.0,))


@pytest.mark.parametrize("fields", [{"kinks": (1.0, 0.0)}, {"kinks": (0.0,), "slopes": (1.0,)}])
def test_pieces_and_kinks_must_fit(fields: dict) -> None:
    with pytest.raises(InputError, match="kinks"):
        Activation("bad", np.tanh, np.cosh, **fields)


def test_a_function_that_leaves_the_range_of_floats_is_on_no_line() -> None:
    with np.errstate(all="ignore"):
        assert get_activation(lambda h: np.exp(h * h / 10.0)).slopes is None
