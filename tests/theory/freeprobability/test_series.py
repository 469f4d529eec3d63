"""Moments by series inversion, against direct expansions and sampled matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest

from isometry.theory.activations import get_activation
from isometry.theory.freeprobability.product import FreeProduct, Group
from isometry.theory.freeprobability.series import log_inverse_s_series, log_moments, series_exp, series_log
from isometry.theory.freeprobability.slope_law import point_masses, slope_law


def test_series_exponential_and_logarithm_are_inverse() -> None:
    a = np.array([0.0, 0.7, -0.2, 0.05, 1.3])
    np.testing.assert_allclose(series_log(series_exp(a)), a, atol=1e-14)
    x = 1e-3
    assert np.polyval(series_exp(a)[::-1], x) == pytest.approx(math.exp(np.polyval(a[::-1], x)), rel=1e-13)


def test_s_transform_of_a_two_point_law_is_its_rational_function() -> None:
    # S = (1 + x)/(p + x)/a, so log 1/S - log(a p) = log(1 + x/p) - log(1 + x).
    p, a = 0.3, 2.5
    log_mean, coefficients = log_inverse_s_series(point_masses([0.0, a], [1 - p, p]), 7)
    orders = np.arange(1, 7)
    assert log_mean == pytest.approx(math.log(a * p))
    expected = -((-1 / p) ** orders) / orders + (-1.0) ** orders / orders
    np.testing.assert_allclose(coefficients[1:], expected, rtol=1e-9)


def test_one_layer_has_the_moments_of_its_slope() -> None:
    law = slope_law(get_activation("tanh"), 0.8)
    product = FreeProduct(0.0, np.array([1.0]), np.array([1.0]), (Group(law, 1.0, 1.0),))
    np.testing.assert_allclose(np.exp(log_moments(product, 6)), law.moments(6), rtol=1e-11)


def test_moments_match_sampled_networks() -> None:
    rng = np.random.default_rng(1)
    depth, width, q = 3, 400, 0.6
    phi = get_activation("tanh")
    moments = []
    for _ in range(8):
        product = np.eye(width)
        for _ in range(depth):
            slope = phi.derivative(math.sqrt(q) * rng.standard_normal(width))
            product = slope[:, None] * (rng.standard_normal((width, width)) / math.sqrt(width) @ product)
        lam = np.linalg.svd(product, compute_uv=False) ** 2
        moments.append([np.mean(lam**order) for order in (1, 2, 3)])
    law = slope_law(phi, q)
    expected = log_moments(
        FreeProduct(0.0, np.array([1.0]), np.array([1.0 + depth]), (Group(law, 1.0, depth),)), 3
    )
    mean, error = np.mean(moments, axis=0), np.std(moments, axis=0, ddof=1) / math.sqrt(8)
    # Four standard errors, and a bias of order 1/width^2.
    assert np.all(np.abs(mean - np.exp(expected)) < 4 * error + 1e-3 * mean)


def test_the_scale_is_kept_as_a_logarithm() -> None:
    product = FreeProduct(-1e5, np.array([1.0]), np.array([11.0]))
    expected = [k * -1e5 + value for k, value in zip((1, 2), (0.0, math.log(11.0)), strict=True)]
    np.testing.assert_allclose(log_moments(product, 2), expected, rtol=1e-14)
