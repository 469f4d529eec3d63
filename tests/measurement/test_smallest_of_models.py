"""smallest_singular_value(model, x): the way to solves that fits the model."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import isometry
from isometry.errors import InputError


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(torch.tanh(self.first(x)))


def perceptron(*widths: int, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n, m in pairwise(widths):
        layers += [nn.Linear(n, m), activation()]
    return nn.Sequential(*layers)


def models() -> dict[str, tuple[nn.Module, torch.Tensor, str]]:
    torch.manual_seed(0)
    return {
        "perceptron": (perceptron(*[70] * 5), torch.randn(70), "factors"),
        "residual": (nn.Sequential(*(Residual(70) for _ in range(4))), torch.randn(70), "factors"),
        "shrinking": (perceptron(90, 80, 76, 70), torch.randn(90), "factors"),
        "growing": (perceptron(66, 70, 80), torch.randn(66), "factors"),
        "one linear layer": (nn.Linear(80, 70), torch.randn(80), "matrix"),
        "one convolution": (nn.Conv2d(3, 2, 3, padding=1), torch.randn(3, 6, 6), "matrix"),
    }


@pytest.mark.parametrize("name", models())
def test_models_have_the_s_min_of_their_dense_jacobian(name):
    model, x, by = models()[name]
    found = isometry.smallest_singular_value(model.double(), x.double())
    dense = isometry.measure(model, x.double(), "exact").singular_values
    # The dense values are off by some units of s_max.
    noise = 16 * 2.0**-52 * dense[0]
    assert found.lower[0] - noise <= dense[-1] <= found.upper[0] + noise
    assert found.converged[0]
    # Wide matrices of 72 rows may be exhausted by products.
    assert found.solved[0] in (by, "products")
    if name == "perceptron":
        assert found.solved == ("factors",)
        assert dense[0] / dense[-1] > 1e5


def test_dead_units_are_zeros_and_each_input_is_for_itself():
    torch.manual_seed(1)
    model = perceptron(12, 12, 12, activation=nn.ReLU).double()
    x = torch.randn(3, 12, dtype=torch.float64)
    found = isometry.smallest_singular_value(model, x, batched=True)
    for index in range(3):
        jacobian = torch.autograd.functional.jacobian(model, x[index])
        narrow = min(int((model[:stop](x[index]) > 0).sum()) for stop in (2, 4))
        assert found.zeros[index] == 12 - narrow > 0
        assert torch.linalg.vector_norm(jacobian @ found.right[index]) < 1e-14
    assert found.upper.tolist() == [0.0] * 3
    assert found.right.shape == (3, 12)


def test_an_orthogonal_network_needs_no_solves():
    layer = nn.Linear(80, 80)
    nn.init.orthogonal_(layer.weight)
    found = isometry.smallest_singular_value(isometry.JacobianOperator(layer, torch.randn(80)))
    assert (found.solved, found.products) == (("products",), 4)
    assert np.allclose(found.upper, 1.0, atol=1e-5)


def test_a_singular_layer_is_named_and_reverse_products_are_refused():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(70, 70), nn.LayerNorm(70), nn.Linear(70, 70)).double()
    found = isometry.smallest_singular_value(model, torch.randn(70, dtype=torch.float64))
    assert found.zero[0]
    assert "factor 2 of 3 is singular" in str(found)
    with pytest.raises(InputError, match="method='exact'"):
        isometry.smallest_singular_value(model, torch.randn(70, dtype=torch.float64), products="reverse")
