"""Spatial modes: rates read off the full covariance recursion, and closed forms of the Fourier factors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from isometry.errors import InputError
from isometry.theory.meanfield import c_map, c_star, chi_c, fixed_point, q_map, xi_c
from isometry.theory.meanfield.convolution import (
    average_covariance,
    checked_profile,
    covariance_recursion,
    covariance_step,
    delta_profile,
    fourier_modes,
    mode_amplitudes,
    mode_depth_scales,
    mode_factors,
    uniform_covariance,
    uniform_profile,
)

# A chaotic point: in the ordered phase c* = 1 is the edge of what a correlation can be.
SIGMA_W, SIGMA_B = math.sqrt(2.5), math.sqrt(0.2)
POINT = {"activation": "tanh", "sigma_w": SIGMA_W, "sigma_b": SIGMA_B}
PROFILES = {
    "uniform": uniform_profile(3, dimensions=1),
    "peaked": np.array([1.0, 4.0, 1.0]) / 6.0,
    "lopsided": np.array([0.1, 0.3, 0.6]),
    "delta": delta_profile(3, dimensions=1),
}


def state() -> tuple[float, float, float]:
    """(q*, c*, chi_c*) of the point."""
    return (
        fixed_point("tanh", SIGMA_W, SIGMA_B),
        c_star("tanh", SIGMA_W, SIGMA_B),
        chi_c("tanh", SIGMA_W, SIGMA_B),
    )


@pytest.mark.parametrize("size", [5, 8])
def test_uniform_kernels_have_dirichlet_factors(size: int) -> None:
    f = np.arange(size)
    np.testing.assert_allclose(
        fourier_modes(PROFILES["uniform"], size),
        (1.0 + 2.0 * np.cos(2.0 * np.pi * f / size)) / 3.0,
        atol=1e-15,
    )


def test_a_lopsided_kernel_has_the_phase_of_the_defining_sum() -> None:
    f = np.arange(8)
    exact = 0.1 * np.exp(-2j * np.pi * f / 8) + 0.3 + 0.6 * np.exp(2j * np.pi * f / 8)
    np.testing.assert_allclose(fourier_modes(PROFILES["lopsided"], 8), exact, atol=1e-15)


def test_a_separable_kernel_factorises_over_the_axes() -> None:
    row, column = PROFILES["peaked"], PROFILES["lopsided"]
    np.testing.assert_allclose(
        fourier_modes(np.outer(row, column), (5, 8)),
        np.outer(fourier_modes(row, 5), fourier_modes(column, 8)),
        atol=1e-15,
    )


def test_an_even_kernel_is_centred_on_its_left_middle_tap() -> None:
    assert delta_profile(4, dimensions=1).tolist() == [0.0, 1.0, 0.0, 0.0]
    np.testing.assert_array_equal(fourier_modes(delta_profile(4), 6), np.ones((6, 6)))


def test_a_kernel_larger_than_the_grid_wraps() -> None:
    # Seven taps on three positions: two of them per position, and three on the centre.
    wrapped = fourier_modes(uniform_profile(7, dimensions=1), 3)
    direct = [sum(np.exp(2j * np.pi * f * b / 3) for b in range(-3, 4)) / 7.0 for f in range(3)]
    np.testing.assert_allclose(wrapped, direct, atol=1e-15)


@pytest.mark.parametrize("name", PROFILES)
def test_singular_values_of_the_averaging_operator_are_the_mode_moduli(name: str) -> None:
    size = 5
    columns = []
    for index in range(size * size):
        unit = np.zeros(size * size)
        unit[index] = 1.0
        columns.append(
            average_covariance(unit.reshape(size, size) + unit.reshape(size, size).T, PROFILES[name])
        )
    # On symmetric matrices E + E^T; the operator itself by its action on a basis, below.
    dense = np.zeros((size * size, size * size))
    for index in range(size * size):
        a, b = divmod(index, size)
        for offset, variance in zip((-1, 0, 1), PROFILES[name], strict=True):
            dense[((a - offset) % size) * size + (b - offset) % size, index] += variance
    for index, column in enumerate(columns):
        a, b = divmod(index, size)
        expected = dense[:, index] + dense[:, b * size + a]
        np.testing.assert_allclose(column.ravel(), expected, atol=1e-15)
    singular = np.sort(np.linalg.svd(dense, compute_uv=False))
    moduli = np.sort(np.repeat(np.abs(fourier_modes(PROFILES[name], size)), size))
    np.testing.assert_allclose(singular, moduli, atol=1e-14)


def test_the_transpose_is_the_adjoint() -> None:
    generator = np.random.default_rng(3)
    profile = generator.dirichlet(np.ones(9)).reshape(3, 3)
    left, right = (matrix @ matrix.T for matrix in generator.normal(size=(2, 12, 12)))
    forward = np.sum(left * average_covariance(right.reshape(3, 4, 3, 4), profile).reshape(12, 12))
    backward = np.sum(
        average_covariance(left.reshape(3, 4, 3, 4), profile, transpose=True).reshape(12, 12) * right
    )
    assert forward == pytest.approx(backward, rel=1e-13)


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("frequency", [0, 1, 2, 4])
def test_modes_on_a_line_decay_at_the_predicted_rate(name: str, frequency: int) -> None:
    size, displacement, step = 8, 2, 1e-5
    q, c, chi = state()
    rest = uniform_covariance(size, q=q, c=c, dimensions=1)
    position = np.arange(size)
    wave = np.zeros((size, size))
    wave[position, (position + displacement) % size] = np.cos(2.0 * np.pi * frequency * position / size + 0.3)
    wave = wave + wave.T
    moved = (
        covariance_step(rest + step * wave, PROFILES[name], **POINT)
        - covariance_step(rest - step * wave, PROFILES[name], **POINT)
    ) / (2.0 * step)
    rate = mode_amplitudes(moved, displacement)[frequency] / mode_amplitudes(wave, displacement)[frequency]
    # The difference quotient has errors of step^2 = 1e-10 and of 1e-15 / step.
    assert rate == pytest.approx(chi * fourier_modes(PROFILES[name], size)[frequency], abs=2e-9)


def test_rates_equal_values_computed_elsewhere() -> None:
    # One step of an independent implementation at this point, to five digits.
    _, _, chi = state()
    np.testing.assert_allclose(
        mode_factors(PROFILES["uniform"], 8, chi=chi)[1:3], [0.77383, 0.32053], atol=6e-6
    )
    np.testing.assert_allclose(
        mode_factors(PROFILES["peaked"], 8, chi=chi)[1:3], [0.86771, 0.64106], atol=6e-6
    )
    np.testing.assert_allclose(mode_factors(PROFILES["delta"], 8, chi=chi), np.full(8, 0.96159), atol=6e-6)


def test_modes_on_a_plane_decay_at_the_predicted_rate() -> None:
    size, displacement, step, frequency = (3, 4), (1, 2), 1e-5, (1, 1)
    profile = np.outer(PROFILES["peaked"], PROFILES["lopsided"])
    q, c, chi = state()
    rest = uniform_covariance(size, q=q, c=c)
    row, column = np.indices(size)
    wave = np.zeros(size * 2)
    wave[row, column, (row + 1) % 3, (column + 2) % 4] = np.cos(2.0 * np.pi * (row / 3 + column / 4) + 0.3)
    wave = wave + wave.transpose(2, 3, 0, 1)
    moved = (
        covariance_step(rest + step * wave, profile, **POINT)
        - covariance_step(rest - step * wave, profile, **POINT)
    ) / (2.0 * step)
    rate = mode_amplitudes(moved, displacement)[frequency] / mode_amplitudes(wave, displacement)[frequency]
    assert rate == pytest.approx(chi * fourier_modes(profile, size)[frequency], abs=2e-9)


def test_the_recursion_comes_to_rest_at_the_fully_connected_fixed_point() -> None:
    size = 4
    generator = np.random.default_rng(0)
    factors = generator.normal(size=(size, 2 * size))
    states = covariance_recursion(factors @ factors.T, PROFILES["peaked"], depth=110, **POINT)
    q, c, _ = state()
    far = [np.max(np.abs(one - uniform_covariance(size, q=q, c=c, dimensions=1))) for one in states]
    assert far[0] > 1
    assert far[110] < 4e-3
    # At the rate of the slowest factor, .96159, and a little faster as long as the deviation is not small.
    assert far[110] / far[90] == pytest.approx(0.96159**20, rel=0.05)


def test_a_uniform_covariance_follows_the_scalar_maps() -> None:
    # Uniform in space, one step is one step of the q-map and of the c-map, whatever the kernel, kinks included.
    q, c = 0.9, 0.4
    for activation in ("tanh", "relu"):
        after = covariance_step(
            uniform_covariance(3, q=q, c=c),
            uniform_profile(3),
            activation=activation,
            sigma_w=1.3,
            sigma_b=0.2,
        )
        variance = q_map(activation, q, 1.3, 0.2)
        correlation = c_map(activation, c, sigma_w=1.3, sigma_b=0.2, q=q)
        np.testing.assert_allclose(after, uniform_covariance(3, q=variance, c=correlation), rtol=1e-12)


def test_variances_that_differ_from_place_to_place_have_the_arcsine_covariance() -> None:
    variances = np.array([0.3, 0.7, 1.9])
    covariance = np.sqrt(np.outer(variances, variances)) * (0.35 + 0.65 * np.eye(3))
    after = covariance_step(
        covariance, delta_profile(1, dimensions=1), activation="erf", sigma_w=1.0, sigma_b=0.0
    )
    scale = np.sqrt(np.outer(1.0 + 2.0 * variances, 1.0 + 2.0 * variances))
    np.testing.assert_allclose(after, 2.0 / np.pi * np.arcsin(2.0 * covariance / scale), rtol=1e-12)


def test_depth_scales() -> None:
    critical = mode_depth_scales(PROFILES["uniform"], 8, chi=1.0)
    assert critical[0] == math.inf
    # -1 / log((1 + 2 cos(pi/4)) / 3): mode one is gone in five layers even on the critical line.
    assert critical[1] == pytest.approx(4.6032, abs=1e-4)
    assert np.all(mode_depth_scales(delta_profile(3), 8, chi=1.0) == math.inf)
    _, _, chi = state()
    assert mode_depth_scales(PROFILES["peaked"], 8, chi=chi)[0] == pytest.approx(
        xi_c("tanh", SIGMA_W, SIGMA_B), rel=1e-10
    )
    # A two-tap average removes the highest frequency in one layer.
    assert mode_depth_scales([0.5, 0.5], 8, chi=1.0)[4] == 0.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: checked_profile([0.5, 0.6]), "sums to one"),
        (lambda: checked_profile([1.5, -0.5]), "zero or more"),
        (lambda: checked_profile(np.ones((1, 1, 1))), "shape"),
        (lambda: uniform_profile(0), "kernel_size"),
        (lambda: uniform_profile(3, dimensions=3), "1 or 2"),
        (lambda: fourier_modes(uniform_profile(3), (4,)), "axes"),
        (lambda: mode_factors(uniform_profile(3), 4, chi=-0.1), "chi"),
        (lambda: average_covariance(np.eye(4), uniform_profile(3)), "n1, n2"),
        (lambda: average_covariance(np.triu(np.ones((3, 3))), [1.0]), "symmetric"),
        (lambda: average_covariance(-np.eye(3), [1.0]), "diagonal"),
        (lambda: mode_amplitudes(np.eye(3), (1, 1)), "displacement"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(call, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()
