"""s_min by solves: the interval holds the truth of multi-precision or dense arithmetic, or the cause is said."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from chain_samples import log_singular_values, network

from isometry.errors import InputError, NonFiniteError
from isometry.estimators import MatrixFactor, smallest_singular_value
from isometry.estimators.inverse_chain import SolvedSmallest, smallest_by_inverses
from isometry.jacobian import MatrixOperator

# The logarithm of a reference value is rounded.
ROUNDING = 4e-16


def solved(matrices, rounding: float = 0.0, **options) -> SolvedSmallest:
    factors = [MatrixFactor(torch.from_numpy(np.ascontiguousarray(m)), rounding) for m in matrices]
    return smallest_by_inverses(factors, **{"rtol": 1e-2, "delta": 1e-3, **options})


def conditioned(values, m: int, seed: int = 0) -> np.ndarray:
    """An m x n matrix with these singular values, to rounding."""
    generator, n = np.random.default_rng(seed), len(values)
    left, right = (np.linalg.qr(generator.normal(size=(size, n)))[0] for size in (m, n))
    return left * np.asarray(values) @ right.T


def assert_inside(found: SolvedSmallest, log_s_min: float) -> None:
    slack = ROUNDING * abs(log_s_min)
    assert found.log_lower - slack <= log_s_min <= found.log_upper + slack


a = network("dense", 8, 1, seed=2)[0]
CHAINS = {
    "dense": (network("dense", 8, 30), 120),
    "dense, 70 decades": (network("dense", 10, 110), 200),
    "residual": (network("residual", 8, 30), 60),
    "convolutional": (network("convolution", 10, 30), 120),
    "tall": (network("dense", 6, 8, widths=lambda k: 6 + k // 3), 60),
    "wide": (network("dense", 9, 8, widths=lambda k: 9 - k // 2), 60),
    "wider, and back": (network("dense", 6, 24, widths=lambda k: 6 + 2 * (k % 3)), 60),
    "wider in between": (network("dense", 6, 8, widths=lambda k: 9 if k < 7 else 6), 60),
    "orthogonal factors put in": (
        [*network("dense", 8, 12), (q := np.linalg.qr(a)[0]), q.T, *network("dense", 8, 12, seed=3)],
        120,
    ),
    "a matrix and its inverse": ([a, np.linalg.inv(a)], 60),
    "factors of 1e-200": ([1e-200 * m for m in network("dense", 6, 6)], 60),
    "one dimension": (network("dense", 1, 10), 60),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_of_any_condition_number_are_closed(name):
    matrices, digits = CHAINS[name]
    found = solved(matrices)
    assert_inside(found, log_singular_values(matrices, digits)[-1])
    assert found.log_upper - found.log_lower <= 1e-3
    assert not found.cause
    assert not found.zeros


def test_entries_that_shrink_beyond_the_range_of_floats_are_no_zeros():
    found = solved([np.diag([1.0, 1e-200])] * 3)
    assert not found.zeros
    assert_inside(found, -600 * math.log(10))


@pytest.mark.parametrize("extra", [0, 23])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("values", "width"),
    [
        (np.logspace(0, -6, 150), 1e-2),
        (np.append(np.linspace(0.5, 1, 110), np.full(40, 1e-6)), 1e-2),
        # Rounding is 3e-15 times the condition number, twice or so.
        (np.logspace(0, -12, 150), 0.05),
        (np.append(np.linspace(0.5, 1, 147), [1e-12] * 3), 0.1),
    ],
    ids=["1e6", "a cluster of 1e6", "1e12", "a cluster of 1e12"],
)
def test_single_matrices_are_closed_up_to_1e12(values, width, extra, transposed):
    matrix = conditioned(values, len(values) + extra)
    found = solved([matrix.T if transposed else matrix])
    dense = np.linalg.svd(matrix, compute_uv=False)[-1]
    # The dense reference is off by some units of s_max; ten.
    noise = 10 * 2.0**-52
    assert math.exp(found.log_lower) - noise <= dense <= math.exp(found.log_upper) + noise
    assert found.log_upper - found.log_lower <= width
    image = (matrix.T if transposed and not extra else matrix) @ found.short.numpy()
    assert np.linalg.norm(image) <= math.exp(found.log_upper) + noise


@pytest.mark.parametrize("values", [np.logspace(0, -17, 60), np.append(np.linspace(0.5, 1, 59), 0.0)])
def test_what_float64_cannot_tell_from_singular_is_said(values):
    found = solved([conditioned(values, 60)])
    assert found.log_lower == -math.inf
    assert math.exp(found.log_upper) < 1e-12
    assert found.singular
    assert found.cause.startswith("J is singular, or of a condition number of ")
    dense = network("dense", 60, 1)[0]
    assert solved([dense, conditioned(values, 60), dense]).cause.startswith("factor 2 of 3 is singular")


def test_zeros_by_the_pattern_are_counted_and_their_vector_is_shown():
    generator = np.random.default_rng(0)
    dense, other = generator.normal(size=(2, 8, 8))
    columns, rows = (np.diag((np.arange(8) < live) * 1.0) for live in (6, 7))
    for matrices, zeros in (
        ([dense, columns @ other], 2),
        ([dense, other @ columns, other], 2),
        ([other @ rows, dense], 1),
        ([dense[:5], other[:, :5]], 3),
        ([dense, columns @ other, dense, np.diag((np.arange(8) < 3) * 1.0)], 5),
        ([np.zeros((8, 8))], 8),
    ):
        found = solved(matrices)
        assert found.zeros == zeros
        assert found.log_lower == found.log_upper == -math.inf
        product = np.linalg.multi_dot([np.eye(8), *matrices[::-1], np.eye(8)])
        assert np.linalg.norm(product @ found.short.numpy()) <= 1e-13 * np.linalg.norm(product)


def test_rounding_of_the_factors_is_in_the_interval():
    matrices = network("dense", 12, 6, seed=8)
    expected = log_singular_values(matrices, 60)[-1]
    rounded = [m.astype(np.float32).astype(float) for m in matrices]
    found = solved(rounded, rounding=2.0**-23)
    assert_inside(found, expected)
    exact = solved(rounded)
    assert abs(expected - exact.log_lower) > 10 * (exact.log_upper - exact.log_lower)


def test_what_cannot_be_inverted_is_refused():
    with pytest.raises(NonFiniteError):
        solved([np.eye(2), np.array([[1.0, np.nan], [0.0, 1.0]])])
    with pytest.raises(InputError, match="do not fit into memory_limit"):
        solved(network("dense", 8, 12), memory_limit=3000)
    with pytest.raises(InputError, match="at least one factor"):
        solved([])


@pytest.mark.parametrize("transposed", [False, True])
def test_operators_are_solved_where_products_alone_are_not_enough(transposed):
    matrix = conditioned(np.logspace(0, -6, 140), 150)
    operator = MatrixOperator(torch.from_numpy(matrix.T.copy() if transposed else matrix))
    found = smallest_singular_value(operator)
    assert found.solved == ("matrix",)
    assert found.converged[0]
    assert found.lower[0] <= np.linalg.svd(matrix, compute_uv=False)[-1] <= found.upper[0]
    # u and v belong to it, and J v is no longer than the bound.
    image = operator.matmat(found.right[None])[0], operator.rmatmat(found.left[None])[0]
    assert float(torch.linalg.vector_norm(image[1 if transposed else 0])) <= found.upper[0] * (1 + 1e-6)
    assert torch.allclose(image[1], float(found.upper[0]) * found.right, atol=1e-9)
    assert found.products == 2 * 64 + 140
    small = smallest_singular_value(operator, memory_limit=10**5)
    assert small.solved == ("products",)
    assert "solves with the " in small.cause[0]
    assert "more than memory_limit (0.0001 GB); raise it" in str(small)


def test_each_matrix_of_a_batch_is_solved_for_itself():
    matrices = [
        np.eye(90),
        conditioned(np.logspace(0, -5, 90), 90),
        np.diag((np.arange(90) < 88) * 1.0) @ conditioned(np.logspace(0, -1, 90), 90),
    ]
    found = smallest_singular_value(MatrixOperator(torch.from_numpy(np.stack(matrices))))
    assert found.solved == ("products", "matrix", "matrix")
    assert found.converged.all()
    assert found.zeros.tolist() == [0, 0, 2]
    assert found.lower[1] <= np.linalg.svd(matrices[1], compute_uv=False)[-1] <= found.upper[1]
    assert str(found).splitlines()[2] == "s_min = 0: 2 singular values are zero, by the pattern of J"


def test_float32_says_what_to_do():
    matrix = torch.from_numpy(conditioned(np.logspace(0, -5, 90), 90)).float()
    found = smallest_singular_value(MatrixOperator(matrix))
    truth = np.linalg.svd(matrix.double().numpy(), compute_uv=False)[-1]
    assert found.lower[0] <= truth <= found.upper[0]
    assert not found.converged[0]
    assert str(found).endswith("measure with dtype=torch.float64")


def test_factors_beyond_the_range_of_floats():
    matrices = [torch.from_numpy(1e-60 * m) for m in network("dense", 6, 12)]
    product = torch.linalg.multi_dot([*matrices[::-1], torch.eye(6, dtype=torch.float64)])
    found = smallest_singular_value(MatrixOperator(product), factors=[MatrixFactor(m) for m in matrices])
    expected = log_singular_values([m.numpy() for m in matrices], 60)[-1]
    assert found.log_lower[0] <= expected <= found.log_upper[0]
    assert found.converged[0]
    assert str(found).startswith("s_min = 10^-7")
    with pytest.raises(InputError, match="factors are those of one J, and this operator holds 2"):
        smallest_singular_value(MatrixOperator(torch.ones(2, 6, 6)), factors=[MatrixFactor(matrices[0])])


def test_factors_of_another_matrix_are_refused():
    matrices = [torch.from_numpy(m) for m in network("dense", 6, 4, widths=lambda k: 7 if k < 3 else 6)]
    operator = MatrixOperator(torch.linalg.multi_dot(matrices[::-1]))
    right = [MatrixFactor(m) for m in matrices]
    assert smallest_singular_value(operator, factors=right).converged[0]
    for wrong, message in (
        ([*right[:2], right[1], *right[2:]], "differs from J by"),
        ([MatrixFactor(matrices[0]), MatrixFactor(matrices[0].T)], "differs from J by"),
        (right[:3], "product of the factors is 7 x 6, and J is 6 x 6"),
        (right[::-1], "factor 2 of the chain takes|differs from J by|product of the factors is"),
        ([], "at least one factor"),
    ):
        with pytest.raises(InputError, match=message):
            smallest_singular_value(operator, factors=wrong)
