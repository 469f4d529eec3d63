"""leading_triplets: residuals that hold, the right order, and nothing missed where it says so."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from isometry.errors import InputError
from isometry.estimators import LeadingTriplets, leading_triplets
from isometry.jacobian import MatrixOperator

D = 120
Kind = Callable[[np.random.Generator], np.ndarray]
KINDS: dict[str, Kind] = {
    "clustered": lambda r: np.concatenate([2 + 1e-7 * r.standard_normal(9), r.uniform(0.1, 1.8, D - 9)]),
    "repeated": lambda r: np.repeat(r.uniform(0.1, 3.0, 3), [13, 47, 60]),
    "rank deficient": lambda r: np.concatenate([r.uniform(0.5, 1.5, 4), np.zeros(D - 4)]),
    "heavy-tailed": lambda r: np.exp(3 * r.standard_normal(D)),
    "isometric": lambda r: np.ones(D),
    "graded": lambda r: np.logspace(0, -20, D),
    "a dense edge": lambda r: np.linspace(0.05, 2.0, D),
    "gaussian": lambda r: np.linalg.svd(r.standard_normal((D, D)), compute_uv=False),
    "tiny": lambda r: 1e-30 * r.uniform(0.1, 3.0, D),
    "zero": lambda r: np.zeros(D),
    "a single row": lambda r: r.uniform(0.1, 2.0, 1),
    "seven": lambda r: r.uniform(0.1, 2.0, 7),
}
SHAPES = {"square": 0, "tall": 40, "wide": -40}


def shape_of(count: int, extra: int) -> tuple[int, int]:
    return (count + extra, count) if extra >= 0 else (count, count - extra)


def assert_claims_hold(a: Tensor, sigma: np.ndarray, found: LeadingTriplets) -> None:
    """Against the dense truth, to rounding: that of the products, and as much for the reference."""
    rank, dense = found.values.shape[1], a.double()
    eps = torch.finfo(a.dtype).eps
    # The stated rounding, 8 units of s_max, grows with the root of the number of steps; 16 for the dense SVD.
    noise = 8 * eps * math.sqrt(max(1.0, found.blocks / 2)) * sigma[0] + 16 * np.finfo(float).eps * sigma[0]
    u, v = (part.reshape(rank, -1).double() for part in (found.left, found.right))
    s = torch.from_numpy(found.values[0])
    assert np.all(np.diff(found.values[0]) <= 0)
    # The units of the vectors are their own rounding: (r, r) Gram matrices of 1, not of s.
    for part in (u, v):
        assert float((part @ part.T - torch.eye(rank)).abs().max()) < 100 * eps * math.sqrt(
            max(1.0, found.blocks / 2)
        )
    forward = torch.linalg.vector_norm(v @ dense.T - u * s[:, None], dim=1)
    backward = torch.linalg.vector_norm(u @ dense - v * s[:, None], dim=1)
    assert np.all(torch.maximum(forward, backward).numpy() <= found.residuals[0] + noise)
    assert np.all(np.abs(found.values[0][:, None] - sigma).min(axis=1) <= found.residuals[0] + noise)
    # Interlacing: never above the value of its rank. With confidence, never far below it.
    assert np.all(found.values[0] <= sigma[:rank] + noise)
    assert np.all(found.upper[0] >= sigma[:rank] - noise)
    certified = found.certified[0]
    allowed = np.maximum(1e-6 * sigma[:rank], 0) + (3 + 2 / math.sqrt(1e-6)) * noise
    assert np.all(np.abs(found.values[0] - sigma[:rank])[certified] <= allowed[certified])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "seeds", [range(2), pytest.param(range(2, 12), marks=pytest.mark.slow)], ids=["", "more"]
)
def test_claims_hold_on_random_matrices(kind: str, shape: str, seeds: range, known) -> None:
    """Twelve of each kind and shape: 432 matrices in all, both precisions, bases from tight to roomy."""
    for seed in seeds:
        s = KINDS[kind](np.random.default_rng(seed))
        dtype = torch.float64 if seed % 2 else torch.float32
        truth = known(s, shape_of(s.size, SHAPES[shape]), dtype, seed)
        options = {"block": 1 + seed % 4, "basis": 24 + 8 * (seed % 3)}
        found = leading_triplets(MatrixOperator(truth.a), 6, seed=seed, **options)
        assert_claims_hold(truth.a, truth.s, found)
        assert found.converged.all()
        assert found.confidence >= 0.999
        if kind in ("heavy-tailed", "isometric", "graded", "zero", "rank deficient"):
            assert found.certified.all()


def test_copies_beyond_the_block_are_found(known) -> None:
    """30 copies of the largest value, blocks of 4: the first space closes with 4 of them, the check finds the rest."""
    truth = known(np.repeat([2.0, 1.0, 0.25], [30, 100, 70]))
    for seed in range(5):
        found = leading_triplets(MatrixOperator(truth.a), 12, block=4, seed=seed)
        assert found.values[0] == pytest.approx(np.full(12, 2.0), abs=1e-12)
        assert found.certified.all()


def test_the_error_of_the_value_is_the_square_of_the_residual(known) -> None:
    """A gap of 1 and residuals of 1e-4: the interval is 1e-8 wide (Kato 1949, Temple 1928), and holds."""
    truth = known(np.concatenate([[4.0, 3.0], np.linspace(0.1, 2.0, 398)]))
    found = leading_triplets(MatrixOperator(truth.a), 2, tol=1e-3)
    width = found.upper[0] - found.values[0]
    assert np.all(found.residuals[0] > 1e-8)
    assert np.all(width <= 2 * found.residuals[0] ** 2 / 0.5 + 1e-12)
    assert np.all((found.values[0] <= truth.s[:2] + 1e-13) & (truth.s[:2] <= found.upper[0]))


def test_a_budget_that_ends_early_says_so(known) -> None:
    truth = known(np.linspace(0.1, 2.0, 300))
    operator = MatrixOperator(truth.a)
    short = leading_triplets(operator, 5, max_products=160)
    assert operator.products == short.products <= 160
    assert not short.converged.all()
    assert not short.certified.any()
    # Not converged, and still bounded from both sides.
    assert short.confidence == 0.999
    assert np.all((short.values[0] <= truth.s[:5] + 1e-13) & (truth.s[:5] <= short.upper[0]))
    least = leading_triplets(operator, 5, max_products=10)
    assert least.confidence == 0
    assert np.all(np.isinf(least.upper))
    assert np.all(np.abs(least.values[0][:, None] - truth.s).min(axis=1) <= least.residuals[0])


def test_each_of_a_batch_is_found_as_if_alone(known) -> None:
    each = [
        known(KINDS[kind](np.random.default_rng(1)), (D + 9, D))
        for kind in ("heavy-tailed", "gaussian", "zero")
    ]
    batch = leading_triplets(MatrixOperator(torch.stack([one.a for one in each])), 4)
    assert batch.left.shape == (4, 3, D + 9)
    assert batch.right.shape == (4, 3, D)
    for index, one in enumerate(each):
        assert batch.values[index] == pytest.approx(one.s[:4], rel=1e-9)
        assert batch.converged[index].all()


def test_extremes_of_the_found(known) -> None:
    truth = known(np.linspace(0.1, 2.0, 60), (60, 70))
    extremes = leading_triplets(MatrixOperator(truth.a), 3).extremes()
    assert extremes.top[0] == pytest.approx(truth.s[:3], rel=1e-6)
    assert extremes.bottom[0] >= truth.s[-1] - 1e-13
    assert not extremes.bottom_resolved[0]


def test_seeds_repeat_and_products_are_counted(known) -> None:
    operator = MatrixOperator(known(np.linspace(0.1, 2.0, 90)).a)
    seen: list[tuple[int, int]] = []
    first = leading_triplets(operator, 3, seed=5, progress=lambda done, total: seen.append((done, total)))
    again = leading_triplets(operator, 3, seed=5)
    assert np.array_equal(first.values, again.values)
    assert torch.equal(first.left, again.left)
    assert first.products + again.products == operator.products
    assert seen[-1] == (3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is at least 1; got 0"),
        ({"tol": 0.0}, "tol is a positive relative residual"),
        ({"delta": 1.0}, "delta is a probability"),
        ({"block": 0}, "block is at least 1"),
        (
            {"rank": 3, "block": 4, "basis": 10},
            "basis=10 is too small for rank 3 and blocks of 4: 11 at least",
        ),
    ],
)
def test_options_that_make_no_sense(options: dict[str, int], message: str, known) -> None:
    with pytest.raises(InputError, match=message):
        leading_triplets(MatrixOperator(known(np.ones(40)).a), **options)
