"""All singular values of a product of factors, against multi-precision arithmetic and identities of products."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from chain_samples import log_singular_values, network

from isometry.errors import InputError, NonFiniteError
from isometry.estimators import MatrixFactor, chain
from isometry.estimators.graded_chain import ChainValues, chain_singular_values

# The logarithm of a reference value is rounded, too.
ROUNDING = 4e-16


def values_of(matrices, **options) -> ChainValues:
    return chain_singular_values([MatrixFactor(torch.from_numpy(m)) for m in matrices], **options)


def errors_over_bounds(found: ChainValues, expected) -> np.ndarray:
    """|error| / bound of every value that is not zero; the zeros agree."""
    assert np.array_equal(np.isneginf(found.log_values), np.isneginf(expected))
    finite = np.isfinite(expected)
    error = np.abs(found.log_values[finite] - expected[finite]) - ROUNDING * np.abs(expected[finite])
    return np.maximum(error, 0) / found.log_error[finite]


QUICK = {
    "dense": (network("dense", 6, 40), 120),
    "one factor": (network("dense", 8, 1), 40),
    "rank-deficient": (network("relu", 8, 8, seed=3), 60),
    "bottleneck": (network("dense", 7, 9, widths=lambda layer: 3 if layer == 4 else 7), 60),
    "more outputs than inputs, and back": (network("dense", 5, 9, widths=lambda k: 5 + 2 * (k % 3)), 60),
    "few outputs": (network("dense", 9, 6, widths=lambda k: 2 if k == 5 else 9), 60),
    "a matrix and its inverse": ([(a := network("dense", 8, 1, seed=2)[0]), np.linalg.inv(a)], 60),
    "graded rows": ([np.diag(10.0 ** np.arange(0, -40, -5)), network("dense", 8, 1)[0]] * 3, 400),
    "factors of 1e-200": ([1e-200 * m for m in network("dense", 5, 6)], 60),
    "a cluster": ([np.eye(6)] * 5, 40),
    "one dimension": (network("dense", 1, 30), 60),
}


@pytest.mark.parametrize("name", QUICK)
def test_every_value_is_within_its_bound(name):
    matrices, digits = QUICK[name]
    found = values_of(matrices)
    assert errors_over_bounds(found, log_singular_values(matrices, digits)).max(initial=0.0) <= 1
    assert found.log_error.max() < 1e-8


LONG = {
    "dense, 150 decades": (network("dense", 20, 150), 320),
    "dense, 700 decades": (network("dense", 12, 900), 1200),
    "residual": (network("residual", 16, 150), 320),
    "rectangular": (network("dense", 14, 400, widths=lambda k: 10 + k * 7 % 9), 700),
    "rank-deficient": (network("relu", 24, 60), 300),
    "convolutional": (network("convolution", 24, 250), 500),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_bounds_over_hundreds_of_decades_hold_and_are_no_more_than_a_hundred_times_the_error(name):
    matrices, digits = LONG[name]
    ratios = errors_over_bounds(values_of(matrices), log_singular_values(matrices, digits))
    assert ratios.max() <= 1
    # Reference and result agree to the last bit of some values; the kinds together are what the median is of.
    assert np.median(ratios) > 1 / 200


@pytest.mark.slow
def test_a_wide_chain_agrees_with_the_dense_svd_above_its_floor():
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(512, 512, generator=generator, dtype=torch.float64) / 512**0.5 for _ in range(12)]
    found = chain_singular_values([MatrixFactor(m) for m in matrices])
    product = torch.linalg.multi_dot(matrices[::-1])
    dense = torch.linalg.svdvals(product).numpy()
    above = dense > 1e-9 * dense[0]
    # The dense SVD is off by some units of s_max.
    allowed = found.log_error[above] + 512 * 2.0**-52 * dense[0] / dense[above]
    assert np.all(np.abs(found.log_values[above] - np.log(dense[above])) <= allowed)


def test_the_logs_sum_to_those_of_the_determinants():
    matrices = network("dense", 24, 60, seed=5)
    expected = sum(np.linalg.slogdet(m)[1] for m in matrices)
    found = values_of(matrices)
    assert found.log_values.sum() == pytest.approx(expected, rel=1e-10)


def test_a_transposed_a_scaled_and_a_rotated_chain_have_the_same_values():
    matrices = network("dense", 10, 25, widths=lambda k: 10 + k % 2, seed=6)
    whole = values_of(matrices)
    middle = len(matrices) // 2
    size = matrices[middle].shape[1]
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]
    for other, shift in (
        ([m.T for m in reversed(matrices)], 0.0),
        ([1e100 * m for m in matrices], len(matrices) * 100 * math.log(10)),
        ([*matrices[:middle], rotation, rotation.T, *matrices[middle:]], 0.0),
    ):
        found = values_of(other)
        allowed = found.log_error + whole.log_error + 1e-15 * abs(shift)
        assert np.all(np.abs(found.log_values - shift - whole.log_values) <= allowed)


def test_windows_of_a_few_decades_give_what_one_gives(monkeypatch):
    import isometry.estimators.graded_svd as graded_svd

    matrices = network("dense", 40, 30, seed=7)
    found = values_of(matrices)
    monkeypatch.setattr(graded_svd, "_CORE", 300.0)
    whole = values_of(matrices)
    assert found.log_values[0] - found.log_values[-1] > 30 * math.log(10)
    assert np.abs(found.log_values - whole.log_values).max() < 1e-13


def test_zeros_by_pattern_are_proved_and_others_are_zero_to_rounding():
    generator = np.random.default_rng(1)
    dense = generator.normal(size=(8, 8))
    # Columns of zeros, a layer norm's projection, and a row twice in place of another, each after a dense factor.
    dead = generator.normal(size=(8, 8)) * (np.arange(8) < 6)
    centred = np.eye(8) - 1 / 8
    pooled = np.eye(8)[[0, 0, 2, 3, 4, 5, 6, 7]]
    for factor, zeros, proved in ((dead, 2, 2), (centred, 1, 0), (pooled, 1, 1)):
        found = values_of([dense, factor, dense])
        assert int(np.isneginf(found.log_values).sum()) == zeros
        assert found.proved_zeros == proved
        expected = np.linalg.svd(dense @ factor @ dense, compute_uv=False)[: 8 - zeros]
        assert np.allclose(np.exp(found.log_values[: 8 - zeros]), expected, rtol=1e-9)
    nothing = values_of([dense, np.zeros((8, 8)), dense])
    assert np.all(np.isneginf(nothing.log_values))
    assert nothing.proved_zeros == 8


def test_rounding_of_the_factors_is_in_the_errors():
    """Factors rounded to float32, said to be known to that, are within the errors of those that were not."""
    matrices = network("dense", 12, 16, seed=8)
    exact = values_of(matrices)
    rounded = [torch.from_numpy(m).float().double() for m in matrices]
    found = chain_singular_values([MatrixFactor(m, rounding=2.0**-23) for m in rounded])
    moved = np.abs(found.log_values - exact.log_values)
    assert np.all(moved <= found.log_error)
    assert moved.max() > 1e3 * exact.log_error.min()


def test_a_chain_that_is_none_is_refused():
    with pytest.raises(InputError, match="at least one factor"):
        chain([])
    with pytest.raises(InputError, match="factor 2 of the chain takes 3 numbers, and factor 1 gives 2"):
        values_of([np.ones((2, 3)), np.ones((3, 3))])
    with pytest.raises(NonFiniteError):
        values_of([np.eye(2), np.array([[1.0, np.nan], [0.0, 1.0]])])
