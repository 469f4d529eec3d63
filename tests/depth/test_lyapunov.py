"""Lyapunov exponents against published values, closed forms and determinants."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import digamma
from torch import nn

from isometry.depth import lyapunov_exponents
from isometry.errors import InputError


def henon(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([1 - 1.4 * x[:, 0] ** 2 + x[:, 1], 0.3 * x[:, 0]], dim=1)


DT = 0.02


def lorenz(x: torch.Tensor, dt: float = DT) -> torch.Tensor:
    """A Runge-Kutta step of the flow with sigma = 10, rho = 28, beta = 8/3."""

    def flow(x: torch.Tensor) -> torch.Tensor:
        a, b, c = x.unbind(1)
        return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], dim=1)

    one = flow(x)
    two = flow(x + dt / 2 * one)
    three = flow(x + dt / 2 * two)
    return x + dt / 6 * (one + 2 * two + 2 * three + flow(x + dt * three))


def starts(count: int, size: int) -> torch.Tensor:
    return 0.1 * torch.randn(count, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_henon_map_has_its_published_exponents():
    """0.4192 and -1.6229 (Sprott 2003, Chaos and Time-Series Analysis, appendix A); their sum is ln 0.3."""
    found = lyapunov_exponents(henon, starts(400, 2), 2, 150, warmup=50)
    assert np.all(np.abs(found.values - [0.4192, -1.6229]) < 4 * found.error + 1e-4)
    assert found.error.max() < 0.005
    assert found.values.sum() == pytest.approx(math.log(0.3), abs=1e-12)


@pytest.mark.slow
def test_the_lorenz_system_has_its_published_exponents():
    """0.9056, 0, -14.5723 for each unit of time (Sprott 2003); their sum is -(10 + 1 + 8/3)."""
    # Far apart, so that the states have become independent before the average begins.
    states = 100 * starts(100, 3) + torch.tensor([0.0, 0.0, 25.0])
    found = lyapunov_exponents(lorenz, states, 3, 800, warmup=800)
    # Beside chance the error of the Runge-Kutta steps.
    assert np.all(np.abs(found.values / DT - [0.9056, 0.0, -14.5723]) < 4 * found.error / DT + 5e-3)
    assert found.values.sum() / DT == pytest.approx(-(11 + 8 / 3), abs=5e-3)


def test_products_of_ginibre_matrices_have_their_closed_form():
    """(ln(2 / N) + psi((N - i + 1) / 2)) / 2 for entries N(0, 1 / N): Newman 1986, Commun. Math. Phys. 103, 121."""
    size, steps = 5, 120
    generator = torch.Generator().manual_seed(1)
    matrices = torch.randn(steps, 200, size, size, generator=generator, dtype=torch.float64) / size**0.5

    def step(matrix: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        # Linear in the states, which would shrink to nothing.
        return torch.einsum("bij,bj->bi", matrix, states - states.detach()) + states.detach()

    found = lyapunov_exponents(step, starts(200, size), 3, steps - 20, warmup=20, inputs=matrices)
    expected = [(math.log(2 / size) + digamma((size - i) / 2)) / 2 for i in range(3)]
    assert np.all(np.abs(found.values - expected) < 4 * found.error)
    assert found.error.max() < 0.01


def test_all_exponents_of_a_gru_sum_to_its_determinants():
    torch.manual_seed(0)
    cell = nn.GRUCell(2, 4).double()
    driven = torch.randn(12, 1, 2, dtype=torch.float64)
    found = lyapunov_exponents(cell, torch.zeros(1, 4, dtype=torch.float64), 4, 12, inputs=driven)
    state, expected = torch.zeros(1, 4, dtype=torch.float64), 0.0
    for value in driven:
        jacobian = torch.autograd.functional.jacobian(lambda h, v=value: cell(v, h), state).reshape(4, 4)
        expected += float(torch.linalg.slogdet(jacobian).logabsdet) / 12
        state = cell(value, state).detach()
    assert found.values.sum() == pytest.approx(expected, rel=1e-10)
    assert math.isnan(found.error[0])


def test_what_is_no_step_is_refused():
    with pytest.raises(InputError, match="from 1 to 2"):
        lyapunov_exponents(henon, starts(2, 2), 3, 5)
    with pytest.raises(InputError, match="takes states of shape"):
        lyapunov_exponents(lambda x: x[:, :1], starts(2, 2), 1, 5)
    with pytest.raises(InputError, match="fewer than warmup"):
        lyapunov_exponents(henon, starts(2, 2), 1, 5, inputs=torch.ones(3))
