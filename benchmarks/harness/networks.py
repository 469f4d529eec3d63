"""The networks of the benchmarks, from a few words that cross process borders, and the ResNets of He et al. 2015.

The ResNets (arXiv 1512.03385, table 1) are written here because torchvision is not a dependency. They are untrained;
their batch-norms hold the statistics of one batch of random images, as those of a network at the start of training do.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from isometry.nn import VanillaCNN


def circular_cnn(
    *, depth: int, channels: int, size: int, init: str, dtype: str = "float32", seed: int = 0
) -> tuple[nn.Module, Tensor]:
    """(model, x): a critical tanh CNN and an input as large as its own signals; J has side channels * size^2."""
    model = VanillaCNN(depth=depth, channels=channels, activation="tanh", init=init, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(channels, size, size, generator=generator) * math.sqrt(model.q_star)
    kind = getattr(torch, dtype)
    return model.to(kind).eval(), x.to(kind)


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or the bottleneck 1x1, 3x3, 1x1 with fourfold channels at its end."""

    def __init__(self, channels_in: int, channels: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        out = 4 * channels if bottleneck else channels
        if bottleneck:
            layers = [(channels_in, channels, 1, 1), (channels, channels, 3, stride), (channels, out, 1, 1)]
        else:
            layers = [(channels_in, channels, 3, stride), (channels, out, 3, 1)]
        parts: list[nn.Module] = []
        for fan_in, fan_out, taps, step in layers:
            parts += [_convolution(fan_in, fan_out, taps, step), nn.BatchNorm2d(fan_out), nn.ReLU()]
        self.branch = nn.Sequential(*parts[:-1])
        same = stride == 1 and channels_in == out
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(_convolution(channels_in, out, 1, stride), nn.BatchNorm2d(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + self.shortcut(x))


class ResidualNetwork(nn.Sequential):
    """A ResNet for images: 7x7 stem, four stages, average over positions, a linear head."""

    def __init__(
        self, blocks: tuple[int, int, int, int], *, bottleneck: bool, classes: int, width: int = 64
    ) -> None:
        stages: list[nn.Module] = []
        channels_in = width
        for stage, count in enumerate(blocks):
            channels = width * 2**stage
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                stages.append(Block(channels_in, channels, stride, bottleneck=bottleneck))
                channels_in = 4 * channels if bottleneck else channels
        stem = [_convolution(3, width, 7, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        super().__init__(
            *stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels_in, classes)
        )


def _convolution(channels_in: int, channels: int, taps: int, stride: int) -> nn.Conv2d:
    convolution = nn.Conv2d(channels_in, channels, taps, stride=stride, padding=taps // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


_RESNETS: dict[str, tuple[tuple[int, int, int, int], bool]] = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet50": ((3, 4, 6, 3), True),
}


def resnet(
    *, kind: str, size: int, classes: int = 1000, width: int = 64, dtype: str = "float32", seed: int = 0
) -> tuple[nn.Module, Tensor]:
    """(model, x): a ResNet-18 or ResNet-50 in evaluation mode and one image (1, 3, size, size)."""
    blocks, bottleneck = _RESNETS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResidualNetwork(blocks, bottleneck=bottleneck, classes=classes, width=width)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # a plain average over the batches seen
        with torch.no_grad():
            model.train()(torch.randn(16, 3, size, size))
        x = torch.randn(1, 3, size, size)
    numbers = getattr(torch, dtype)
    return model.to(numbers).eval().requires_grad_(False), x.to(numbers)


FAMILIES = {"circular_cnn": circular_cnn, "resnet": resnet}


def build(network: dict[str, Any], dtype: str | None = None) -> tuple[nn.Module, Tensor]:
    """(model, x) of ``{"family": ..., **arguments}``; the same weights whatever ``dtype``."""
    arguments = {key: value for key, value in network.items() if key != "family"}
    if dtype is not None:
        arguments["dtype"] = dtype
    return FAMILIES[network["family"]](**arguments)
