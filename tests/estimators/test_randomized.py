"""randomized: leading triplets with computed residuals, and a quadrature of what they leave over."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from isometry.errors import InputError
from isometry.estimators import lanczos, randomized
from isometry.jacobian import MatrixOperator

DECAYING = np.concatenate([[50.0, 20.0, 10.0, 10.0, 5.0], np.linspace(0.1, 1.0, 55)])


@pytest.mark.parametrize("shape", [(60, 60), (60, 80), (80, 60)], ids=str)
def test_leading_values_with_their_multiplicities(shape: tuple[int, int], known) -> None:
    truth = known(DECAYING, shape)
    spectrum = randomized(MatrixOperator(truth.a), rank=5)
    # A gap of 5 between the wanted and the rest, and eleven steps of blocks: Chebyshev of degree 10.
    assert spectrum.extremes.top[0, :5] == pytest.approx(truth.s[:5], rel=1e-12)
    assert np.all(spectrum.extremes.top_residual[0, :5] < 1e-6)
    assert spectrum.provenance["rank"] == 5 <= spectrum.provenance["taken_out"]


def test_the_error_of_the_mean_square_is_that_of_the_rest_alone(known) -> None:
    """Few values dominate: at as many probes the error is a hundredth of that of lanczos, and as true."""
    truth = known(DECAYING)
    operator = MatrixOperator(truth.a)
    plain, deflated = lanczos(operator, probes=8, steps=5), randomized(operator, rank=5, probes=8, steps=5)
    wanted = float(np.mean(DECAYING**2))
    assert deflated.mean_square_stderr < 0.01 * plain.mean_square_stderr
    assert abs(deflated.mean_square - wanted) < 5 * deflated.mean_square_stderr


def test_a_slowly_decaying_spectrum_keeps_its_largest_value(known) -> None:
    """A search cut short leaves s_max some percent short; Golub-Kahan on the rest may find more, in J itself."""
    truth = known(np.concatenate([np.linspace(2.0, 1.0, 149), [0.3]]))
    for options in ({}, {"products": 2 * 8 * 30 + 24}):
        spectrum = randomized(MatrixOperator(truth.a), rank=10, **options)
        top, residual = spectrum.extremes.top[0], spectrum.extremes.top_residual[0]
        assert spectrum.s_max >= spectrum.quantile(1.0) * (1 - 1e-12)
        assert np.all(np.diff(top) <= 0)
        assert np.all(top <= truth.s[: top.size] + 1e-12)
        assert np.all(np.abs(top[:, None] - truth.s).min(axis=1) <= residual)
        # The isolated smallest value is found to 1e-4, its residual says how well, and it is not overstated.
        distance = abs(spectrum.s_min_bound - 0.3)
        if not options:
            assert distance < 1e-3
        assert distance <= spectrum.extremes.bottom_residual[0]
    assert residual[0] < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_rest_that_fills_its_space_is_exact(dtype: torch.dtype, known) -> None:
    """rank + steps >= min(m, n): the rest is complete, so the floor is rounding and s_min is known."""
    truth = known(
        np.concatenate([[40.0, 30.0, 20.0, 15.0, 12.0, 9.0], np.linspace(0.5, 1.0, 18)]), dtype=dtype
    )
    spectrum = randomized(MatrixOperator(truth.a), rank=6, steps=30, products=2 * 8 * 24 + 4 + 40)
    eps = torch.finfo(dtype).eps
    assert spectrum.provenance["steps"] == 24 - spectrum.provenance["taken_out"] <= 18
    assert spectrum.floor == pytest.approx(8 * eps * spectrum.s_max)
    assert spectrum.s_min_bound == pytest.approx(truth.s[-1], abs=spectrum.extremes.bottom_residual[0])
    # The residual is in J: it holds what v leans on the leading triplets by, whose own is 1e-2 of them at most.
    assert spectrum.extremes.bottom_residual[0] < 0.1


def test_what_has_converged_beyond_the_wanted_is_taken_out_too(known) -> None:
    """And the trace stays exact: ||A||_F^2 = ||A V||_F^2 + ||A P||_F^2 for any V, converged or not."""
    truth = known(np.exp(-0.15 * np.arange(200.0)))
    operator = MatrixOperator(truth.a)
    few = randomized(operator, rank=2, products=400, probes=4, steps=10)
    assert few.products <= 400
    # 316 products, 158 vectors: all but those in the last decades, which rounding of the probes does not see.
    assert few.provenance["taken_out"] > 60
    assert few.extremes.top.shape == (1, few.provenance["taken_out"])
    assert np.all(few.extremes.top_residual[0] <= 1.0001e-2 * few.extremes.top[0])
    wanted = float(np.mean(truth.s**2))
    assert few.mean_square == pytest.approx(wanted, rel=1e-6)
    assert few.mean_square_stderr < 1e-6 * wanted


def test_a_small_memory_changes_the_way_and_not_the_answer(known) -> None:
    """Room for 60 vectors on either side: the search restarts, the probes go in groups of two."""
    truth = known(np.concatenate([np.exp(2.5 - 0.2 * np.arange(30)), np.linspace(0.1, 0.5, 170)]))
    operator = MatrixOperator(truth.a)
    limit = 60 * (200 + 200) * 8
    tight, roomy = (randomized(operator, rank=12, steps=20, memory_limit=m) for m in (limit, None))
    wanted = float(np.mean(truth.s**2))
    for spectrum in (tight, roomy):
        assert spectrum.extremes.top[0, :12] == pytest.approx(truth.s[:12], rel=1e-6)
        assert abs(spectrum.mean_square - wanted) < 5 * spectrum.mean_square_stderr
        assert spectrum.mean_square_stderr < 2e-3 * wanted
    with pytest.raises(InputError, match="a space for 12 leading triplets takes"):
        randomized(operator, rank=12, memory_limit=10 * 400 * 8)


def test_inputs_with_different_numbers_of_converged_triplets(known) -> None:
    """One heavy-tailed and one flat: each is deflated as far as it goes, and measured as if alone."""
    each = [
        known(s, seed=k).a for k, s in enumerate((np.exp(-0.2 * np.arange(90.0)), np.linspace(0.9, 1.0, 90)))
    ]
    batch = randomized(MatrixOperator(torch.stack(each)), rank=3, probes=5, steps=6)
    for k in range(2):
        alone = randomized(MatrixOperator(each[k]), rank=3, probes=5, steps=6, first_input=k)
        assert batch.input(k).mean_square == pytest.approx(alone.mean_square, rel=1e-12)
        assert batch.input(k).quantile(0.9) == pytest.approx(alone.quantile(0.9), rel=1e-9)
        assert batch.input(k).mean_square == pytest.approx(
            float(each[k].square().sum()) / 90, abs=6 * alone.mean_square_stderr
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is at least 1"),
        ({"tol": 0.0}, "tol positive"),
        ({"products": 60}, "products=60 leaves 0 for the leading triplets beside 8 probes of 30 steps"),
        ({"probes": 0}, "probes and steps are at least 1"),
        ({"steps": 0}, "probes and steps are at least 1"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, int], message: str, known) -> None:
    with pytest.raises(InputError, match=message):
        randomized(MatrixOperator(known(np.ones(4)).a), **options)
