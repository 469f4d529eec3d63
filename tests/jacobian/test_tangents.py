"""Tangents pushed through a recorded run: the Jacobian of every value, against the same Jacobian by torch.func."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isometry.jacobian import JacobianOperator, push_tangents


class TwoPaths(nn.Module):
    """x + f(x) over tokens, then a sum over them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.b(torch.tanh(self.a(x)))).sum(-2)


def log_square(function: object, x: Tensor) -> float:
    return math.log(torch.func.jacrev(function)(x).square().sum().item())


def test_every_value_has_the_frobenius_norm_of_its_jacobian() -> None:
    torch.manual_seed(0)
    model, x = TwoPaths().double(), torch.randn(4, 3, dtype=torch.float64)
    found = push_tangents(JacobianOperator(model, x), 32, 0)
    assert found.exact
    sums = [value for value in found.order if len(found.arrivals.get(value, ())) > 1]
    (whole,) = sums
    stream, branch = sorted(found.arrivals[whole], key=lambda a: a.source != found.order[0])

    def f(z: Tensor) -> Tensor:
        return model.b(torch.tanh(model.a(z)))

    # The unit vectors give it to the rounding of float64.
    assert found.log_frobenius(found.order[-1]) == pytest.approx(log_square(model, x), abs=1e-12)
    assert found.log_frobenius(whole) == pytest.approx(log_square(lambda z: z + f(z), x), abs=1e-12)
    assert found.log_mean(branch.log_square) == pytest.approx(log_square(f, x), abs=1e-12)
    assert found.log_mean(stream.log_others) == pytest.approx(log_square(f, x), abs=1e-12)
    assert found.log_mean(stream.log_square) == pytest.approx(math.log(12), abs=1e-12)
    assert found.sizes[whole] == 12
    assert found.sizes[found.order[-1]] == 3
    assert found.signals[whole] == pytest.approx(float((x + f(x)).square().sum()))


def test_a_batch_is_the_mean_over_its_samples() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double(), torch.randn(4, 3).double()
    found = push_tangents(JacobianOperator(model, x, batched=True), 8, 0)
    squares = [torch.func.jacrev(model)(one).square().sum().item() for one in x]
    assert found.log_frobenius(found.order[-1]) == pytest.approx(math.log(np.mean(squares)), abs=1e-12)
    assert found.sizes[found.order[-1]] == 2


def test_random_tangents_cover_the_exact_value_by_their_error() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(80, 80).double(), torch.randn(80).double()
    exact = log_square(model, x)
    off = []
    for seed in range(40):
        found = push_tangents(JacobianOperator(model, x), 16, seed)
        assert not found.exact
        last = found.order[-1]
        off.append((found.log_frobenius(last) - exact) / found.stderr(found.log_squares[last]))
    # Student's t of 15 degrees has the standard deviation 1.07; of 40 draws it is known to 11 %.
    assert np.std(off) == pytest.approx(1.07, rel=0.4)


def test_deep_products_stay_in_the_range_of_floats() -> None:
    """Three hundred layers of gain 1e-3: the square of the product is 1e-1800."""
    layer = nn.Linear(4, 4, bias=False)
    nn.init.eye_(layer.weight)
    layer.weight.data *= 1e-3
    found = push_tangents(JacobianOperator(nn.Sequential(*[layer] * 300), torch.ones(4)), 4, 0)
    expected = math.log(4) - 600 * math.log(1e3)
    assert found.log_frobenius(found.order[-1]) == pytest.approx(expected, rel=1e-6)
