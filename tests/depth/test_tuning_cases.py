"""Five networks that do not train as PyTorch initialises them, at the size that people build them: before and after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import isometry

pytestmark = pytest.mark.slow


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.r = nn.Linear(32, 32), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.r(self.a(x))


def resnet() -> nn.Module:
    return nn.Sequential(*(Block() for _ in range(50)))


def tanh_cnn() -> nn.Module:
    sizes = [3] + [16] * 60
    layers = [m for a, b in pairwise(sizes) for m in (nn.Conv2d(a, b, 3, padding=1), nn.Tanh())]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 64, 10))


def gelu_mlp() -> nn.Module:
    sizes = [64] + [256] * 40
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.GELU())]
    return nn.Sequential(*layers, nn.Linear(256, 10))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 24, enable_nested_tensor=False).eval()


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    for width, before, count in ((8, 3, 2), (16, 8, 2), (32, 16, 3), (64, 32, 3)):
        for a, b in pairwise([before] + [width] * count):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    before: tuple[float, float]
    after: tuple[float, float]
    s_max: float


# Mean square before (of one draw) and after, and the largest value after. Branches may let it grow to e^(1/4) = 1.28;
# where a layer ends the network it is 1, to the tolerance of 1 %.
CASES = {
    "ResNet": Case(resnet, (32,), (1e6, 1e10), (1.0, 1.3), 5.0),
    "tanh CNN": Case(tanh_cnn, (1, 3, 8, 8), (1e-40, 1e-25), (0.98, 1.02), 3.0),
    "GELU MLP": Case(gelu_mlp, (64,), (1e-50, 1e-35), (0.98, 1.02), 4.0),
    "post-LN encoder": Case(encoder, (1, 8, 32), (1e-4, 0.8), (0.85, 1.15), 4.0),
    "VGG": Case(vgg, (1, 3, 32, 32), (1e-13, 1e-7), (0.98, 1.02), 2.5),
}


@pytest.mark.parametrize("name", CASES)
def test_a_network_that_does_not_train_comes_to_isometry(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(1)
    model, x = case.make(), torch.randn(case.shape)
    report = isometry.tune_(model, x, progress=False)
    after = isometry.measure(model, x, progress=False)
    assert case.before[0] < report.before.mean_square < case.before[1]
    assert case.after[0] < after.mean_square < case.after[1]
    assert after.s_max < case.s_max
    assert after.mean_square == report.after.mean_square
