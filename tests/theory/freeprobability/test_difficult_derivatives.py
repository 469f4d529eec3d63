"""Difficult derivatives (multiple zeros, noise, no bound): exact laws, or errors in bounded time and memory."""

from __future__ import annotations

import math
import resource
import types
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special

from isometry.errors import ConvergenceError, InputError, NonFiniteError, TheoryError
from isometry.theory import Activation, chi_1, gaussian_average, get_activation, predict
from isometry.theory.freeprobability import panel_tree, panels

Array = NDArray[np.float64]


def snake(h: Array) -> Array:
    """phi' = 1 + sin 2h has a double zero at -pi/4 + k pi, and rounds to zero within 1e-8 of it."""
    return h + np.sin(h) ** 2


def real_snake(h: Array) -> Array:
    """The same for real numbers only, whose derivative is taken by differences."""
    if np.iscomplexobj(h):
        raise TypeError("real numbers only")
    return snake(h)


SNAKES = {
    "given": Activation("snake", snake, lambda h: 1.0 + np.sin(2.0 * h)),
    "complex step": get_activation(snake),
    "differences": get_activation(real_snake),
}


def small_slope_mass(q: float, size: float) -> float:
    """P(1 + sin 2h <= size), h ~ N(0, q): 2 sin^2 of the distance to the nearest zero is below it."""
    reach, centres = math.asin(math.sqrt(size / 2.0)), -math.pi / 4 + math.pi * np.arange(-30, 31)
    density = np.exp(-0.5 * centres**2 / q) / math.sqrt(2.0 * math.pi * q)
    if reach < 1e-4:
        return float(2.0 * reach * density.sum())
    ends = (special.ndtr((centres + sign * reach) / math.sqrt(q)) for sign in (1.0, -1.0))
    return float(np.sum(next(ends) - next(ends)))


def mean_log_slope(q: float) -> float:
    """E log(1 + sin 2h), from its Fourier series."""
    k = np.arange(1, 200)
    terms = (-1.0) ** (k + 1) * np.exp(-2.0 * k**2 * q) * np.cos(k * math.pi / 2.0) / k
    return float(-math.log(2.0) + 2.0 * terms.sum())


@pytest.mark.parametrize(
    ("how", "q"), [("given", 0.2), ("given", 4.0), ("complex step", 0.8), ("differences", 0.2)]
)
def test_one_layer_has_the_mass_of_small_slopes(how: str, q: float) -> None:
    spectrum = predict(SNAKES[how], 1, weights="orthogonal", sigma_w=0.6, sigma_b=0.3, q0=q)
    noise = 1e-6 if how == "differences" else 1e-8
    for size in (1e-16, 1e-12, 1e-9, 1e-4, 0.3):
        mass = small_slope_mass(q, size)
        if mass > 1e-8:
            assert float(spectrum.cdf(0.6 * size)) == pytest.approx(mass, rel=1e-4 + noise, abs=2e-9)


@pytest.mark.parametrize(
    ("how", "weights", "q", "depth"),
    [
        ("given", "gaussian", 0.8, 1), ("given", "gaussian", 0.2, 3), ("given", "orthogonal", 4.0, 6),
        ("complex step", "orthogonal", 0.8, 1), ("differences", "gaussian", 4.0, 3),
    ],
)  # fmt: skip
def test_products_have_their_mean_logarithm(how: str, weights: str, q: float, depth: int) -> None:
    spectrum = predict(SNAKES[how], depth, weights=weights, sigma_w=0.6, sigma_b=0.0, q0=q)
    curve = spectrum.distribution
    # q changes from layer to layer; follow the q-map by a plain quadrature.
    z = np.linspace(-12.0, 12.0, 4001)
    weight = np.exp(-0.5 * z * z) / np.exp(-0.5 * z * z).sum()
    expected, variance = 0.0, q
    for _ in range(depth):
        expected += math.log(0.36) - (weights == "gaussian") + 2.0 * mean_log_slope(variance)
        variance = 0.36 * float(weight @ snake(math.sqrt(variance) * z) ** 2)
    low, high = curve.log_s[:-1], curve.log_s[1:]
    mean_cdf = (curve.cdf(low) + 4 * curve.cdf(0.5 * (low + high)) + curve.cdf(high)) / 6
    mean = 2.0 * (curve.log_s[-1] - float(np.sum(mean_cdf * (high - low))))
    # The grid ends at a mass of 5e-10, some decay lengths of 4 in log lambda above the bottom.
    assert mean == pytest.approx(expected, abs=1e-6 * depth + 1e-8 * (high[-1] - low[0]))


def wave(h: Array) -> Array:
    return np.sin(1e9 * h) * np.cos(3e7 * h * h)


def noisy(size: float) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """h tanh h, and its derivative with noise."""
    return (
        lambda h: h * np.tanh(h),
        lambda h: np.tanh(h) + h * np.cosh(np.minimum(np.abs(h), 300.0)) ** -2.0 + size * wave(h),
    )


NOISY: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "noise of 1e-6": noisy(1e-6),
    "three thousand waves": (lambda h: np.sin(3000.0 * h), lambda h: 3000.0 * np.cos(3000.0 * h)),
}


MIXED = {"weights": ("orthogonal", "gaussian"), "readout": True, "sigma_w": 1.0, "q0": 1.0}


@pytest.mark.parametrize("kind", NOISY)
def test_a_derivative_that_cannot_be_resolved_is_an_error_that_names_the_function(kind: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConvergenceError, match=rf"^{kind}, mixed, 1 layers: .*noisy"):
        predict(Activation(kind, *NOISY[kind]), 1, **MIXED)
    # Kilobytes: no more than a gigabyte, where it had no bound.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000


def test_little_noise_does_no_harm() -> None:
    clean, little = (predict(Activation("own", *noisy(size)), 1, **MIXED) for size in (0.0, 1e-10))
    np.testing.assert_allclose(little.distribution.log_range[1], clean.distribution.log_range[1], atol=1e-9)
    np.testing.assert_allclose(little.cdf([0.1, 0.5, 1.0]), clean.cdf([0.1, 0.5, 1.0]), atol=1e-8)


@pytest.mark.parametrize(
    ("bound", "module"), [("MOST_PANELS", panels), ("MOST_PANELS", panel_tree), ("MOST_PAIRS", panel_tree)]
)
def test_panels_have_a_bound(bound: str, module: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, bound, 2)
    with pytest.raises(ConvergenceError, match=r"^tanh, gaussian, 2 layers: .*panels"):
        predict("tanh", 2, sigma_w=1.5, sigma_b=0.1)


POWERS = [0.3, 0.5, 0.6, 0.75, 0.97]


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("place", [0.0, 0.37])
def test_an_unbounded_derivative_is_refused(power: float, place: float) -> None:
    def function(h: Array) -> Array:
        return np.sign(h - place) * np.abs(h - place) ** power

    def derivative(h: Array) -> Array:
        return power * np.abs(h - place) ** (power - 1.0)

    for kinks in ((), (place,)):
        own = Activation("own", function, derivative, kinks=kinks)
        with np.errstate(all="ignore"), pytest.raises((TheoryError, NonFiniteError, ConvergenceError)):
            predict(own, 2, sigma_w=1.0, sigma_b=0.3, q0=1.0)
    if power <= 0.5:
        # Its mean square is infinite.
        with (
            np.errstate(all="ignore"),
            pytest.raises((TheoryError, NonFiniteError), match=r"diverges|unbounded"),
        ):
            chi_1(Activation("own", function, derivative, kinks=(place,)), 1.0, 1.0)
    if power < 0.95:
        with pytest.raises(InputError, match="unbounded"):
            get_activation(function)


@pytest.mark.parametrize("power", [-0.3, -0.5, -0.75, -0.9, -0.95, -1.0, -1.2, -2.0])
def test_an_average_over_a_power_is_exact_or_diverges(power: float) -> None:
    def function(h: Array) -> Array:
        return np.abs(h) ** power

    if power > -1.0:
        exact = 2.0 ** (power / 2.0) * special.gamma((1.0 + power) / 2.0) / math.sqrt(math.pi)
        assert gaussian_average(function, 1.0, kinks=(0.0,)) == pytest.approx(exact, rel=1e-12)
    else:
        with pytest.raises(NonFiniteError, match="diverges"):
            gaussian_average(function, 1.0)
        with pytest.raises(NonFiniteError, match="diverges"):
            gaussian_average(lambda h: function(h - 0.3), 1.0)


def test_an_average_of_what_grows_like_the_inverse_gaussian_diverges() -> None:
    assert gaussian_average(lambda h: np.exp(0.4 * h * h), 1.0) == pytest.approx(math.sqrt(5.0), rel=1e-12)
    with pytest.raises(NonFiniteError, match="diverges"):
        gaussian_average(lambda h: np.exp(0.48 * h * h), 1.0)
