"""The trunk that the training figures evaluate as one function, against the layers one by one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from isometry.errors import InputError
from isometry.nn.models import ResNet, VanillaCNN

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "figures"))
from fused_trunk import fuse


def network(depth: int = 4) -> VanillaCNN:
    return VanillaCNN(
        depth, 6, "tanh", "gaussian", sigma_w=1.3, sigma_b=0.2, in_channels=2, num_classes=3, image_size=(5, 7),
        seed=0, dtype=torch.float64,
    )  # fmt: skip


def test_values_and_gradients_are_those_of_the_layers() -> None:
    plain, fused = network(), fuse(network())
    images = torch.randn(3, 2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for model in (plain, fused):
        x = images.clone().requires_grad_()
        logits = model(x)
        logits.square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append((logits.detach(), x.grad, gradients))
    (first, first_x, first_all), (second, second_x, second_all) = results
    # Sums of some hundred float64 products, in another order.
    torch.testing.assert_close(second, first, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(second_x, first_x, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(second_all, first_all, rtol=1e-11, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(fused(images), first, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "model",
    [ResNet(2, 4), VanillaCNN(2, 4, "relu"), VanillaCNN(2, 4, kernel_size=5)],
    ids=["residual", "relu", "5x5"],
)
def test_other_trunks_are_refused(model: VanillaCNN) -> None:
    with pytest.raises(InputError, match="can be fused"):
        fuse(model)
