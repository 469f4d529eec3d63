"""Models of the kinds that people bring, small: for what is computed from a recording."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """As in torchvision, writes in place included."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if stride != 1 or inputs != outputs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(3, 3), BasicBlock(3, 3))
        self.layer2 = nn.Sequential(BasicBlock(3, 4, 2), BasicBlock(4, 4))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.avgpool(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(x, 1))


class Lists(nn.Module):
    """A ModuleList, functional activations, residual sums, and one layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
        self.shared = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.shared(torch.tanh(self.shared(x)))


class Dense(nn.Module):
    """As in torchvision's DenseNet: each layer joins all features before it, so there is no cut among them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 3)
        self.layers = nn.ModuleList(nn.Linear(3 + 2 * k, 2) for k in range(3))
        self.head = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(torch.tanh(layer(torch.cat(features, -1))))
        return self.head(torch.cat(features, -1))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, 2, 3, padding=1)
        self.down = nn.Conv1d(2, 3, 2, stride=2)
        self.bottleneck = nn.Conv1d(3, 3, 3, padding=1)
        self.up = nn.ConvTranspose1d(3, 2, 2, stride=2)
        self.head = nn.Conv1d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.tanh(self.stem(x))
        low = torch.tanh(self.bottleneck(torch.tanh(self.down(first))))
        return self.head(torch.cat([self.up(low), first], -2))


def weights_shared(x: Tensor) -> Tensor:
    """Functional code without modules that uses one weight three times."""
    weight = torch.linspace(-1, 1, 16, dtype=x.dtype).reshape(4, 4)
    for _ in range(3):
        x = x + functional.gelu(x @ weight)
    return x.softmax(-1)


def encoder(*, norm_first: bool = False) -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 8, norm_first=norm_first, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def chain() -> nn.Module:
    return nn.Sequential(*(part for _ in range(40) for part in (nn.Linear(5, 5), nn.Tanh())))
