"""What an operator costs before its first product, in forward passes of the same model on the same input.

Work: `JacobianOperator(model, x)`, with its copy of the model, its recording and all checks, for networks built as
torchvision builds them (random weights) and for circular tanh chains. Process time of one thread, the set-up and some
forward passes in turn; the ratio is the median over the rounds. The goal is 8 forward passes for the models, 12 for
deep Gaussian chains, and 4 s at depth 10,000.

    python benchmarks/set_up.py           # a minute
    python benchmarks/set_up.py --full    # with depth 10,000
"""

from __future__ import annotations

import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from harness.record_file import parser, write_record
from products import resnet18
from torch import Tensor, nn

import isometry
from isometry.nn import VanillaCNN

GOALS = {"model": 8.0, "chain": 12.0}
DEEPEST = 10_000


def convolution(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> list[nn.Module]:
    padding = (kernel - 1) // 2
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
    ]


class InvertedResidual(nn.Module):
    """Sandler et al. 2018 (arXiv 1801.04381), figure 4d."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        first = convolution(inputs, hidden, 1, 1, 1) if expansion > 1 else []
        last = [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.branch = nn.Sequential(*first, *convolution(hidden, hidden, 3, stride, hidden), *last)
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.skips else self.branch(x)


def mobilenet_v2() -> nn.Module:
    """Table 2 of the same paper."""
    layers, inputs = convolution(3, 32, 3, 2, 1), 32
    rows = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    for expansion, outputs, count, stride in rows:
        for number in range(count):
            layers.append(InvertedResidual(inputs, outputs, stride if number == 0 else 1, expansion))
            inputs = outputs
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)]
    return nn.Sequential(*layers, *convolution(inputs, 1280, 1, 1, 1), *head)


class Attention(nn.Module):
    """A layer of an encoder, normalised first (Dosovitskiy et al. 2021, arXiv 2010.11929)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Of size B at patches of 16: 12 layers of 768."""

    def __init__(
        self, size: int, patch: int = 16, width: int = 768, depth: int = 12, heads: int = 12
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + (size // patch) ** 2, width))
        self.layers = nn.Sequential(*(Attention(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], 1) + self.positions
        return self.head(self.norm(self.layers(tokens))[:, 0])


class ChannelsLast(nn.Module):
    """Layer normalisation over the channels of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Liu et al. 2022 (arXiv 2201.03545), figure 4."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return x + self.scale * y


def convnext_tiny() -> nn.Module:
    widths = [96, 192, 384, 768]
    layers: list[nn.Module] = [nn.Conv2d(3, 96, 4, 4), ChannelsLast(96)]
    for number, (width, depth) in enumerate(zip(widths, (3, 3, 9, 3), strict=True)):
        if number:
            layers += [ChannelsLast(widths[number - 1]), nn.Conv2d(widths[number - 1], width, 2, 2)]
        layers += [ConvNeXtBlock(width) for _ in range(depth)]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), ChannelsLast(768), nn.Flatten(), nn.Linear(768, 1000)
    )


def chain(depth: int, init: str) -> nn.Module:
    """A circular CNN, 16 channels on 8 x 8."""
    return VanillaCNN(depth=depth, channels=16, init=init, seed=0)


def measured(model: nn.Module, x: Tensor, rounds: int) -> dict[str, Any]:
    """The set-up against the mean of as many forward passes as take about a third of it."""

    def seconds(run: Callable[[], object], times: int) -> float:
        began = time.process_time()
        for _ in range(times):
            run()
        return (time.process_time() - began) / times

    def forward() -> None:
        with torch.no_grad():
            model(x)

    def set_up() -> None:
        isometry.JacobianOperator(model, x)

    if rounds > 1:
        # The first call of a process makes plans for its shapes.
        forward(), set_up()
    pairs = [(seconds(set_up, 1), seconds(forward, 4)) for _ in range(rounds)]
    ratios = [a / b for a, b in pairs]
    return {
        "seconds": statistics.median(a for a, _ in pairs), "forward_seconds": statistics.median(b for _, b in pairs),
        "forwards": statistics.median(ratios), "ratios": ratios,
    }  # fmt: skip


def cases(full: bool) -> list[tuple[str, str, Callable[[], nn.Module], Tensor, int]]:
    """Name, kind, model, input and number of rounds of each row."""
    photo, image = torch.randn(1, 3, 64, 64), torch.randn(16, 8, 8)
    models: dict[str, Callable[[], nn.Module]] = {
        "MobileNetV2": mobilenet_v2, "ResNet-18": resnet18, "ViT-B/16": lambda: ViT(64), "ConvNeXt-T": convnext_tiny,
    }  # fmt: skip
    found = [(name, "model", make, photo, 9) for name, make in models.items()]
    for init, depth in itertools.product(("gaussian", "delta_orthogonal"), (100, 1000, DEEPEST)):
        # Gaussian kernels in float32 only as deep as their Jacobian stays in its range.
        if depth < DEEPEST or (full and init == "delta_orthogonal"):
            name = f"{init} chain of depth {depth}"
            make = lambda depth=depth, init=init: chain(depth, init)  # noqa: E731
            found.append((name, "chain", make, image, 7 if depth < DEEPEST else 3))
    return found


def main() -> None:
    options = parser(__doc__, "set_up")
    options.add_argument("--full", action="store_true", help="with depth 10,000")
    options.add_argument("--only", default="", help="the rows whose name holds this")
    given = options.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    record: dict[str, Any] = {
        "python": platform.python_version(), "processor": platform.machine(), "threads": 1, "load": os.getloadavg()[0],
        "torch": torch.__version__, "goals": {**GOALS, "seconds at depth 10,000": 4.0}, "rows": [],
    }  # fmt: skip
    isometry.JacobianOperator(chain(2, "gaussian"), torch.randn(16, 8, 8))
    for name, kind, make, x, rounds in cases(given.full):
        if given.only not in name:
            continue
        model = make().eval().requires_grad_(False)
        row = {"model": name, "kind": kind, "input": list(x.shape), **measured(model, x, rounds)}
        record["rows"].append(row)
        print(f"{name}: {row['forwards']:.1f} forward passes, {row['seconds']:.3f} s", flush=True)
    write_record(given.out, record)


if __name__ == "__main__":
    main()
