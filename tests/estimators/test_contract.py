"""What every estimator owes, on every matrix: an estimator joins by one line in ESTIMATORS.

The matrices have chosen singular values. Seeds are fixed, so that each run decides the same; where a statement is
statistical its level is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch

from isometry.errors import InputError, NonFiniteError
from isometry.estimators import exact, lanczos, randomized
from isometry.jacobian import MatrixOperator
from isometry.spectrum import Quadrature, Spectrum

ESTIMATORS = {
    "exact": exact,
    "exact in small blocks": partial(exact, block=7),
    "lanczos": partial(lanczos, probes=6, steps=12),
    "lanczos to the end": partial(lanczos, probes=3, steps=1000),
    "one probe, one step": partial(lanczos, probes=1, steps=1),
    "randomized": partial(randomized, rank=5, probes=4, steps=10),
    "randomized, with a budget": partial(randomized, rank=5, products=130, probes=4, steps=10),
    "randomized, a bare sketch": partial(randomized, rank=5, products=30, probes=2, steps=4),
    "randomized, full rank": partial(randomized, rank=1000),
}

ONES = np.ones(40)
MATRICES = {
    "spread": (np.linspace(0.1, 2.0, 40), (40, 40)),
    "clustered": (np.concatenate([1 + 1e-6 * np.linspace(-1, 1, 30), np.full(10, 0.3)]), (40, 40)),
    "repeated": (np.repeat([2.0, 1.0, 0.25], [10, 20, 10]), (40, 40)),
    "rank deficient": (np.concatenate([np.linspace(0.5, 1.5, 25), np.zeros(15)]), (40, 40)),
    "twelve decades": (np.logspace(0, -12, 40), (40, 40)),
    "isometry": (ONES, (40, 40)),
    "isometry into a larger space": (ONES, (55, 40)),
    "co-isometry": (ONES, (40, 55)),
    "tall": (np.linspace(0.1, 2.0, 40), (60, 40)),
    "wide": (np.linspace(0.1, 2.0, 40), (40, 60)),
    "one large among small": (np.concatenate([[100.0], np.linspace(0.5, 1.5, 39)]), (40, 40)),
    "tiny": (1e-30 * np.linspace(0.5, 2.0, 40), (40, 40)),
    "huge": (1e30 * np.linspace(0.5, 2.0, 40), (40, 40)),
    "zero": (np.zeros(12), (12, 15)),
    "one by seven": (np.array([3.0]), (1, 7)),
    "seven by one": (np.array([3.0]), (7, 1)),
}
DTYPES = [torch.float32, torch.float64]

every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)
every_matrix = pytest.mark.parametrize("matrix", MATRICES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def rounding(dtype: torch.dtype, s_max: float) -> float:
    """8 units of rounding of s_max are what the package states for its products; as many for the dense reference."""
    return (8 * torch.finfo(dtype).eps + 8 * np.finfo(float).eps) * s_max


@pytest.fixture(scope="module")
def measured(known) -> Callable[[str, str, torch.dtype], tuple[Any, Spectrum, int]]:
    """(estimator, matrix, dtype) -> the known matrix, the spectrum, measured once for all tests, and its products."""
    truth_of = cache(lambda matrix, dtype: known(*MATRICES[matrix], dtype))

    @cache
    def measure(estimator: str, matrix: str, dtype: torch.dtype) -> tuple[Any, Spectrum, int]:
        truth = truth_of(matrix, dtype)
        operator = MatrixOperator(truth.a)
        spectrum = ESTIMATORS[estimator](operator)
        return truth, spectrum, operator.products

    return measure


@every_estimator
@every_matrix
@every_dtype
def test_values_keep_their_promises(estimator: str, matrix: str, dtype: torch.dtype, measured) -> None:
    shape = MATRICES[matrix][1]
    truth, spectrum, products = measured(estimator, matrix, dtype)
    sigma, noise = truth.s, rounding(dtype, truth.s[0])
    d, e = spectrum.distribution, spectrum.extremes
    assert isinstance(d, Quadrature)
    assert e is not None

    assert spectrum.shape == shape
    assert spectrum.null_dimension == abs(shape[0] - shape[1])
    assert (spectrum.n_inputs, spectrum.kind) == (1, "measured")
    assert spectrum.products == products > 0
    assert spectrum.provenance["dtype"] == str(dtype).removeprefix("torch.")
    assert spectrum.seconds > 0

    # Each top value: descending, a lower bound of the value of its rank, some true value within its residual.
    found = np.isfinite(e.top[0])
    top, residual = e.top[0][found], e.top_residual[0][found]
    assert found[0]
    assert np.all(np.diff(top) <= 0)
    assert np.all(top <= sigma[: top.size] + noise)
    assert np.all(np.abs(top[:, None] - sigma).min(axis=1) <= residual + noise)
    # The quantile comes back from ln s: that costs |ln s| units more, 70 for s = 1e-30.
    assert spectrum.s_max == top[0] >= spectrum.quantile(1.0) * (1 - 1e-13) - noise

    # The smallest value: an upper bound of s_min, some true value within its residual.
    assert spectrum.s_min_bound >= sigma[-1] - noise
    assert np.abs(e.bottom[0] - sigma).min() <= e.bottom_residual[0] + noise
    if not math.isnan(spectrum.s_min):
        assert spectrum.s_min == pytest.approx(sigma[-1], abs=spectrum.s_min_residual)
        assert spectrum.s_min > spectrum.floor
        assert spectrum.condition_number == pytest.approx(top[0] / spectrum.s_min)

    # Nothing is called resolved below the floor, and the floor is never below rounding.
    # It is relative to the s_max that was found, itself known to some units of rounding.
    assert spectrum.floor >= 8 * torch.finfo(dtype).eps * top[0] * (1 - 100 * torch.finfo(dtype).eps)
    assert spectrum.support[0] > spectrum.floor or spectrum.support == (0.0, 0.0)
    assert spectrum.zero_mass == pytest.approx(
        float(np.mean(np.sum(d.weights * (d.nodes <= spectrum.floor), -1)))
    )

    assert_the_mean_square_is_within_its_error(spectrum, truth, dtype)
    if estimator.startswith("exact") or "full rank" in estimator:
        assert spectrum.mean_square_stderr == 0


def assert_the_mean_square_is_within_its_error(spectrum: Spectrum, truth: Any, dtype: torch.dtype) -> None:
    # Squares of 1e-30 in units of the largest: neither side may leave the range of floats.
    scale = truth.s[0] or 1.0
    value, wanted = spectrum.scaled(1 / scale).mean_square, float(np.mean((truth.s / scale) ** 2))
    # Rounding, twice because of the square, and that of ln s for s = 1e-30.
    slack = 2 * rounding(dtype, 1.0) + 1e-13
    if math.isnan(spectrum.mean_square_stderr):
        # One probe has no spread. Its square is an average of squares.
        assert (truth.s[-1] / scale) ** 2 - slack <= value <= 1 + slack
        return
    # Level 0.9999 with 1 to 5 degrees of freedom.
    low, high = spectrum.scaled(1 / scale).mean_square_interval(0.9999)
    assert low - slack <= wanted <= high + slack


# Without a single Gauss node (its bounds are 0 and 1) and without unconverged leading triplets, which the bounds of
# `randomized` take for exact.
@pytest.mark.parametrize(
    "estimator", sorted(ESTIMATORS.keys() - {"one probe, one step", "randomized, a bare sketch"})
)
@pytest.mark.parametrize("matrix", ["spread", "rank deficient", "twelve decades", "tall", "wide", "isometry"])
def test_the_distribution_is_within_its_bounds(estimator: str, matrix: str, measured) -> None:
    """The true cdf lies between the truncation bounds, moved by the statistical error.

    Level: six standard errors of a cdf over the probes, 6 * sqrt(F (1 - F) / d / 2) / sqrt(probes) with Dirichlet
    weights of d = 40 components; the measured standard error of 2 to 6 probes is too rough for a band.
    """
    truth, spectrum, _ = measured(estimator, matrix, torch.float64)
    s = np.geomspace(max(spectrum.floor, 1e-14), 3.0, 97)
    # Not at the very values, where rounding decides.
    s = s[np.abs(s[:, None] / np.maximum(truth.s, 1e-300) - 1).min(axis=1) > 1e-9]
    cdf = np.mean(truth.s <= s[:, None], axis=1)
    lower, upper = spectrum.cdf_bounds(s)
    statistical = 6 * np.sqrt(cdf * (1 - cdf) * 2 / 40 / spectrum.n_probes)
    if spectrum.n_probes == 1 and spectrum.mean_square_stderr == 0:
        assert lower == pytest.approx(cdf, abs=1e-12)
        assert upper == pytest.approx(cdf, abs=1e-12)
    assert np.all(lower <= cdf + statistical + 1e-12)
    assert np.all(upper >= cdf - statistical - 1e-12)


@every_estimator
@every_dtype
@pytest.mark.parametrize("matrix", ["spread", "tall", "rank deficient"])
def test_doubling_the_matrix_doubles_every_number(estimator: str, dtype, matrix: str, measured) -> None:
    """A power of two scales without rounding: the very same bits, scaled."""
    truth, one, _ = measured(estimator, matrix, dtype)
    two = ESTIMATORS[estimator](MatrixOperator(4 * truth.a))
    assert np.array_equal(4 * one.distribution.nodes, two.distribution.nodes)
    assert np.array_equal(one.distribution.weights, two.distribution.weights)
    assert np.array_equal(4 * one.extremes.top, two.extremes.top, equal_nan=True)
    assert 4 * one.floor == two.floor
    assert one.isometry(0.5, 1.0) == two.isometry(2.0, 4.0)


@every_estimator
def test_a_matrix_and_its_transpose_have_one_spectrum(estimator: str, known) -> None:
    a = known(*MATRICES["tall"]).a
    tall, wide = (
        ESTIMATORS[estimator](MatrixOperator(a)),
        ESTIMATORS[estimator](MatrixOperator(a.T.contiguous())),
    )
    # The same probes on the same side. Rounding differs with the order of the sums: 1e-10 is a million units.
    assert tall.distribution.nodes == pytest.approx(wide.distribution.nodes, abs=1e-10)
    assert tall.mean_square == pytest.approx(wide.mean_square, rel=1e-12)


@every_estimator
def test_seeds_repeat_bit_for_bit_and_differ(estimator: str, measured) -> None:
    run = ESTIMATORS[estimator]
    truth, first, _ = measured(estimator, "spread", torch.float64)
    a = MatrixOperator(truth.a)
    again = run(a)
    assert np.array_equal(first.distribution.nodes, again.distribution.nodes)
    assert np.array_equal(first.distribution.weights, again.distribution.weights)
    if estimator.startswith("exact"):
        return
    assert np.array_equal(run(a, seed=0).distribution.nodes, first.distribution.nodes)
    other = run(a, seed=1)
    assert not np.array_equal(other.distribution.nodes, first.distribution.nodes)
    if first.mean_square_stderr != 0:
        assert other.mean_square != first.mean_square
    assert first.provenance["seed"] == 0
    with pytest.raises(InputError, match="non-negative integer; got -1"):
        run(a, seed=-1)


@every_estimator
@pytest.mark.parametrize("matrix", ["spread", "wide", "isometry"])
def test_each_of_a_batch_is_measured_as_if_alone(estimator: str, matrix: str, known) -> None:
    s, shape = MATRICES[matrix]
    run = ESTIMATORS[estimator]
    each = [known(s * (1 + k), shape, seed=k).a for k in range(3)]
    batch = run(MatrixOperator(torch.stack(each)))
    assert batch.n_inputs == 3
    options = [{} if estimator.startswith("exact") else {"first_input": k} for k in range(3)]
    alone = [run(MatrixOperator(each[k]), **options[k]) for k in range(3)]
    for k in range(3):
        mine = batch.input(k)
        p = [0.1, 0.3, 0.5, 0.7, 0.9]
        assert mine.quantile(p) == pytest.approx(alone[k].quantile(p), rel=1e-8)
        assert mine.mean_square == pytest.approx(alone[k].mean_square, rel=1e-10)
        assert mine.s_max == pytest.approx(alone[k].s_max, rel=1e-9)
        assert mine.floor == pytest.approx(alone[k].floor, rel=1e-9)
    assert batch.mean_square == pytest.approx(np.mean([one.mean_square for one in alone]), rel=1e-10)
    assert batch.s_max == pytest.approx(max(one.s_max for one in alone), rel=1e-9)
    assert batch.products == sum(one.products for one in alone)


@every_estimator
def test_progress_rises_to_its_total(estimator: str, known) -> None:
    seen: list[tuple[int, int]] = []
    operator = MatrixOperator(known(*MATRICES["spread"]).a)
    ESTIMATORS[estimator](operator, progress=lambda done, total: seen.append((done, total)))
    done, totals = zip(*seen, strict=True)
    assert len(set(totals)) == 1
    assert np.all(np.diff(done) >= 0)
    assert 0 < done[0] <= done[-1] == totals[0]


class Bare:
    """Shape and two products, and not one attribute more: a user's own operator."""

    def __init__(self, a: torch.Tensor) -> None:
        self._a, self.shape = a.float(), tuple(a.shape)

    def matmat(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors @ self._a.T

    def rmatmat(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors @ self._a


@every_estimator
def test_an_operator_needs_only_shape_and_products(estimator: str, known) -> None:
    a = known(*MATRICES["wide"], torch.float32).a
    mine, theirs = ESTIMATORS[estimator](Bare(a)), ESTIMATORS[estimator](MatrixOperator(a))
    # float32 products summed in another order.
    assert mine.mean_square == pytest.approx(theirs.mean_square, rel=1e-5)
    assert mine.s_max == pytest.approx(theirs.s_max, rel=1e-5)
    assert mine.provenance["dtype"] == "float32"


@every_estimator
def test_nan_and_wrong_shapes_from_an_operator_are_named(estimator: str, known) -> None:
    a = known(*MATRICES["wide"]).a.clone()
    a[3, 4] = torch.nan
    with pytest.raises(NonFiniteError, match="of the operator returned NaN or inf"):
        ESTIMATORS[estimator](MatrixOperator(a))

    class Transposed(Bare):
        def matmat(self, vectors: torch.Tensor) -> torch.Tensor:
            return super().matmat(vectors).T

        def rmatmat(self, vectors: torch.Tensor) -> torch.Tensor:
            return super().rmatmat(vectors).T

    with pytest.raises(InputError, match="of the operator returned shape"):
        ESTIMATORS[estimator](Transposed(torch.ones(9, 9)[:, :8]))


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: estimators on a GPU are not tested here"
)
@every_estimator
@every_dtype
def test_a_gpu_gives_the_same_spectrum(estimator: str, dtype: torch.dtype, known) -> None:
    a = known(*MATRICES["tall"], dtype).a
    here, there = ESTIMATORS[estimator](MatrixOperator(a)), ESTIMATORS[estimator](MatrixOperator(a.cuda()))
    assert there.provenance["device"].startswith("cuda")
    # The same probes; products rounded otherwise. TF32 would be off by 1e-3.
    bound = 100 * torch.finfo(dtype).eps
    assert there.mean_square == pytest.approx(here.mean_square, rel=bound)
    assert there.s_max == pytest.approx(here.s_max, rel=bound)
