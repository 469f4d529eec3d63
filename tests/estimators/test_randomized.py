"""randomized: leading triplets with computed residuals, and a quadrature of what they leave over."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from isometry.errors import InputError
from isometry.estimators import lanczos, randomized
from isometry.jacobian import MatrixOperator

DECAYING = np.concatenate([[50.0, 20.0, 10.0, 10.0, 5.0], np.linspace(0.1, 1.0, 55)])


@pytest.mark.parametrize("krylov", [False, True])
@pytest.mark.parametrize("shape", [(60, 60), (60, 80), (80, 60)], ids=str)
def test_leading_values_with_their_multiplicities(shape: tuple[int, int], krylov: bool, known) -> None:
    truth = known(DECAYING, shape)
    spectrum = randomized(MatrixOperator(truth.a), rank=5, krylov=krylov)
    # A gap of 5 between the wanted and the rest and three iterations: (1 / 5)^12 = 4e-9 of s^2, and a double 10.
    assert spectrum.extremes.top[0] == pytest.approx(truth.s[:5], rel=1e-6)
    assert np.all(spectrum.extremes.top_residual[0] < 0.05)
    assert spectrum.provenance["rank"] == 5


def test_the_error_of_the_mean_square_is_that_of_the_rest_alone(known) -> None:
    """Few values dominate: at as many probes the error is a hundredth of that of lanczos, and as true."""
    truth = known(DECAYING)
    operator = MatrixOperator(truth.a)
    plain, deflated = lanczos(operator, probes=8, steps=5), randomized(operator, rank=5, probes=8, steps=5)
    wanted = float(np.mean(DECAYING**2))
    assert deflated.mean_square_stderr < 0.01 * plain.mean_square_stderr
    assert abs(deflated.mean_square - wanted) < 5 * deflated.mean_square_stderr


def test_a_slowly_decaying_spectrum_keeps_its_largest_value(known) -> None:
    """Power iterations leave s_max 5 % short here; Golub-Kahan on the rest finds it, with a residual in J itself."""
    truth = known(np.concatenate([np.linspace(2.0, 1.0, 149), [0.3]]))
    for options in ({}, {"iterations": 0, "oversample": 0}):
        spectrum = randomized(MatrixOperator(truth.a), rank=10, **options)
        top, residual = spectrum.extremes.top[0], spectrum.extremes.top_residual[0]
        assert spectrum.s_max >= spectrum.quantile(1.0) * (1 - 1e-12)
        assert np.all(np.diff(top) <= 0)
        assert np.all(top <= truth.s[:10] + 1e-12)
        assert np.all(np.abs(top[:, None] - truth.s).min(axis=1) <= residual)
        # The isolated smallest value is found to 1e-4, its residual says how well, and it is not overstated.
        distance = abs(spectrum.s_min_bound - 0.3)
        assert distance < 1e-3
        assert distance <= spectrum.extremes.bottom_residual[0]
    assert residual[0] < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_rest_that_fills_its_space_is_exact(dtype: torch.dtype, known) -> None:
    """rank + steps >= min(m, n): the rest is complete, so the floor is rounding and s_min is known."""
    truth = known(np.linspace(0.5, 2.0, 24), dtype=dtype)
    spectrum = randomized(MatrixOperator(truth.a), rank=6, steps=30)
    eps = torch.finfo(dtype).eps
    assert spectrum.provenance["steps"] == 18
    assert spectrum.floor == pytest.approx(8 * eps * spectrum.s_max)
    assert spectrum.s_min == pytest.approx(truth.s[-1], abs=spectrum.s_min_residual)
    assert spectrum.s_min_residual < 1e-2 * 0.5


def test_block_krylov_beats_power_iterations_at_equal_products(known) -> None:
    truth = known(np.linspace(2.0, 0.1, 200))
    errors = {}
    for krylov in (False, True):
        spectrum = randomized(MatrixOperator(truth.a), rank=5, krylov=krylov, probes=1, steps=1)
        errors[krylov] = float(np.max(truth.s[1:5] - spectrum.extremes.top[0, 1:5]))
    # Musco & Musco 2015: the error falls as 1 / q^2 instead of 1 / q.
    assert 0 < errors[True] < 0.6 * errors[False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is at least 1"),
        ({"oversample": -1}, "oversample and iterations at least 0"),
        ({"iterations": -1}, "at least 0"),
        ({"probes": 0}, "probes and steps are at least 1"),
        ({"steps": 0}, "probes and steps are at least 1"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, int], message: str, known) -> None:
    with pytest.raises(InputError, match=message):
        randomized(MatrixOperator(known(np.ones(4)).a), **options)
