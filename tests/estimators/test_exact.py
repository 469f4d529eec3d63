"""The dense estimator: each singular value to its stated error, whichever way it is computed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from isometry.estimators import exact
from isometry.jacobian.matrix import MatrixOperator


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(120, 120), (80, 200), (200, 80)])
def test_every_value_to_its_stated_error(known: Callable, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Ten decades: float64 sees all of them, float32 those above its floor of 8 units of rounding of s_max."""
    matrix = known(np.logspace(2, -8, min(shape)), shape, dtype)
    spectrum = exact(MatrixOperator(matrix.a))
    assert spectrum.extremes is not None
    top, error = spectrum.extremes.top[0], spectrum.extremes.top_residual[0]
    assert np.all(np.diff(top) <= 0)
    assert np.all(np.abs(top - matrix.s) <= error)
    floor = 8 * float(torch.finfo(dtype).eps) * top[0]
    assert spectrum.floor == pytest.approx(floor)
    assert np.array_equal(matrix.s > 1.01 * floor, top > 1.01 * floor)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_neither_underflow_nor_overflow(known: Callable, scale: float) -> None:
    """In float32 the Gram matrix of J itself would be 1e-60 or 1e60, and its square again as far."""
    matrix = known(scale * np.linspace(0.1, 1, 30), dtype=torch.float32)
    values = exact(MatrixOperator(matrix.a)).extremes.top[0]
    np.testing.assert_allclose(values, matrix.s, rtol=1e-12)


def test_an_isometry_stays_one_to_rounding_of_the_products() -> None:
    q = torch.linalg.qr(torch.randn(300, 300, generator=torch.Generator().manual_seed(0)))[0]
    values = exact(MatrixOperator(q)).extremes.top[0]
    assert np.abs(values - 1).max() < 1e-6


def test_zeros_stay_below_the_floor() -> None:
    """Rank one: what the square leaves of the zeros is 1e-8 of s_max at most, far below the floor of float32."""
    a = torch.outer(torch.linspace(1, 2, 40), torch.linspace(-1, 1, 60))
    spectrum = exact(MatrixOperator(a))
    assert spectrum.below_floor == pytest.approx(39 / 40)
    assert spectrum.extremes.top[0][1] < 1e-7 * spectrum.s_max
