"""smallest_singular_value: inside its interval, or refused; never a value that is silently wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from isometry.errors import InputError
from isometry.estimators import SmallestSingularValue, smallest_singular_value
from isometry.jacobian import MatrixOperator

D = 160
BULK = np.linspace(0.7, 1.0, D - 1)
SPECTRA = {
    "isometric": np.ones(D),
    "well conditioned": np.linspace(0.5, 1.0, D),
    "no gap": np.linspace(0.02, 1.0, D),
    "tiny below a bulk": np.append(BULK, 1e-6),
    "two tiny below a bulk": np.append(BULK[1:], [1e-6, 3e-4]),
    "a thousandth below a bulk": np.append(BULK, 1e-3),
    "singular": np.append(BULK, 0.0),
    "half of it zero": np.concatenate([BULK[: D // 2], np.zeros(D - D // 2)]),
    "graded": np.logspace(0, -12, D),
    "repeated": np.repeat([2.0, 1.0, 0.25], [20, 100, D - 120]),
    "tiny as a whole": 1e-30 * np.linspace(0.7, 1.0, D),
    "zero": np.zeros(D),
    "one": np.array([3.0]),
}
SHAPES = {"square": 0, "tall": 25, "wide": -25}


def shape_of(count: int, extra: int) -> tuple[int, int]:
    return (count + extra, count) if extra >= 0 else (count, count - extra)


def assert_true(found: SmallestSingularValue, sigma: np.ndarray, a: torch.Tensor) -> None:
    # The dense reference has rounding of its own; 16 units of s_max.
    noise = 16 * np.finfo(float).eps * sigma[0]
    assert found.lower[0] - noise <= sigma[-1] <= found.upper[0] + noise
    if found.converged[0]:
        assert found.upper[0] - found.lower[0] <= 1e-2 * found.upper[0]
        assert "confidence" in str(found)
    else:
        assert str(found).startswith(f"s_min not converged: at most {found.upper[0]:.3g}: ")
        assert "max_products=120 ends the search" in str(found) or found.zero[0]
    assert np.abs(found.upper[0] - sigma).min() <= 2 * found.residual[0] + noise
    v = found.right.reshape(-1).double()
    assert (
        float(torch.linalg.vector_norm(a.double() @ v)) <= found.upper[0] + noise or a.shape[0] < a.shape[1]
    )


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    "seeds", [range(1), pytest.param(range(1, 9), marks=pytest.mark.slow)], ids=["", "more"]
)
def test_the_interval_holds_or_it_is_refused(
    spectrum: str, shape: str, dtype: torch.dtype, seeds: range, known
) -> None:
    s = SPECTRA[spectrum]
    for seed in seeds:
        truth = known(s, shape_of(s.size, SHAPES[shape]), dtype, seed)
        # Room for 60 of 160 vectors: nothing is known by exhaustion.
        options = {} if s.size < D else {"max_products": 120}
        found = smallest_singular_value(MatrixOperator(truth.a), seed=seed, **options)
        assert_true(found, truth.s, truth.a)
        if spectrum in ("isometric", "repeated", "tiny as a whole", "one"):
            assert found.converged[0]
        if spectrum in ("no gap", "graded"):
            assert not found.converged[0]
        if spectrum in ("singular", "half of it zero", "zero"):
            assert found.zero[0]
            assert found.upper[0] <= 20 * torch.finfo(dtype).eps
        if spectrum == "tiny below a bulk" and dtype == torch.float64:
            # What is easy to get 1,500 times too large.
            assert found.converged[0]
            assert found.upper[0] == pytest.approx(1e-6, rel=1e-2)


def test_an_isometry_takes_one_step(known) -> None:
    operator = MatrixOperator(known(np.ones(D), (D + 20, D)).a)
    found = smallest_singular_value(operator)
    assert (found.blocks, found.products) == (2, 4)
    assert found.upper[0] == pytest.approx(1.0, abs=1e-13)
    assert found.lower[0] == pytest.approx(1.0, abs=1e-11)


def test_a_few_steps_below_a_bulk_refuse(known) -> None:
    """The isolated 1e-6 has not been met after two steps: "at most 0.4" is said, and not 0.4."""
    found = smallest_singular_value(MatrixOperator(known(SPECTRA["tiny below a bulk"]).a), max_products=8)
    assert found.upper[0] > 0.05
    assert not found.converged[0]
    assert found.lower[0] == 0.0
    assert str(found).startswith("s_min not converged: at most 0.")


def test_exhausted_it_is_exact(known) -> None:
    truth = known(np.linspace(0.02, 1.0, 60), (60, 80))
    found = smallest_singular_value(MatrixOperator(truth.a))
    assert found.confidence == 1.0
    assert found.upper[0] == pytest.approx(truth.s[-1], rel=1e-12)
    assert found.converged[0]


def test_each_of_a_batch_for_itself(known) -> None:
    each = [known(SPECTRA[name], (D, D + 3)) for name in ("isometric", "tiny below a bulk", "singular")]
    found = smallest_singular_value(MatrixOperator(torch.stack([one.a for one in each])), max_products=200)
    assert found.left.shape == (3, D)
    assert found.right.shape == (3, D + 3)
    assert found.converged.tolist() == [True, True, False]
    assert found.zero.tolist() == [False, False, True]
    for index, one in enumerate(each):
        assert found.lower[index] - 1e-14 <= one.s[-1] <= found.upper[index] + 1e-14
    assert len(str(found).splitlines()) == 3


def test_the_lower_bound_fails_no_more_often_than_stated(known) -> None:
    """At delta = 0.2 over 60 seeds: 23 failures are the 0.9999 quantile. Steps too few to converge."""
    truth = known(SPECTRA["a thousandth below a bulk"])
    operator = MatrixOperator(truth.a)
    failures = sum(
        smallest_singular_value(operator, delta=0.2, max_products=28, seed=seed).lower[0] > truth.s[-1]
        for seed in range(60)
    )
    assert failures <= 23


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": 0.0}, "rtol is a positive relative width"),
        ({"delta": 0.0}, "delta is a probability"),
        ({"block": 0}, "block is at least 1"),
        ({"max_products": 2}, "the limits hold 1 vectors, fewer than a single block of 2"),
        ({"memory_limit": 100}, "the limits hold 0 vectors"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, float], message: str, known) -> None:
    with pytest.raises(InputError, match=message):
        smallest_singular_value(MatrixOperator(known(np.ones(40)).a), **options)
