"""A trunk of equal circular 3 x 3 tanh layers as one function: half the time of a training step on a processor.

PyTorch takes some ten calls for a layer and its gradient, each on a map of a few thousand numbers. Here a map lies with
the batch last, so that a convolution is nine copies of long runs and one matrix product, in either direction, into
memory that all layers share; the whole trunk is one node of the graph. Same numbers up to rounding (see the tests).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from isometry.errors import InputError
from isometry.nn.layers import ConvolutionLayer, Trunk
from isometry.nn.models import VanillaCNN


def fuse(model: VanillaCNN) -> VanillaCNN:
    """The model, its trunk evaluated as one function; InputError where it is of another kind."""
    for layer in model.trunk:
        if not (
            isinstance(layer, ConvolutionLayer)
            and layer.kernel_size == (3, 3)
            and layer.residual is None
            and isinstance(layer.activation, nn.Tanh)
            and layer.weight.shape[0] == layer.weight.shape[1]
        ):
            raise InputError(f"only square 3x3 tanh layers without a branch can be fused, not {layer!r}.")
    model.trunk = FusedTrunk(*model.trunk)
    return model


class FusedTrunk(Trunk):
    """A `Trunk` of such layers; first derivatives in reverse mode only."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, channels, height, width) to maps of the same shape."""
        layers = [layer for layer in self if isinstance(layer, ConvolutionLayer)]
        return _Chain.apply(
            x, torch.is_grad_enabled(), *(one.weight for one in layers), *(one.bias for one in layers)
        )


class _Windows:
    """(9 c, positions) matrix of what the taps of a circular 3 x 3 kernel see of a map (c, height, width, B)."""

    def __init__(self, like: Tensor) -> None:
        channels, height, width, batch = like.shape
        self.shape = like.shape
        self.padded = like.new_empty(channels, height + 2, width + 2, batch)
        self.taps = like.new_empty(channels, 3, 3, height, width * batch)
        row = (width + 2) * batch
        self.view = self.padded.as_strided(self.taps.shape, ((height + 2) * row, row, batch, row, 1))

    def of(self, x: Tensor) -> Tensor:
        x, padded = x.view(self.shape), self.padded
        padded[:, 1:-1, 1:-1] = x
        padded[:, 0, 1:-1], padded[:, -1, 1:-1] = x[:, -1], x[:, 0]
        padded[:, :, 0], padded[:, :, -1] = padded[:, :, -2], padded[:, :, 1]
        self.taps.copy_(self.view)
        return self.taps.view(9 * self.shape[0], -1)


class _Chain(torch.autograd.Function):
    """x_l = tanh(K_l * x_{l-1} + b_l) for all layers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keeps: bool, *parameters: Tensor) -> Tensor:
        depth = len(parameters) // 2
        maps = x.permute(1, 2, 3, 0).contiguous()
        windows, channels = _Windows(maps), len(maps)
        weights = torch.stack(parameters[:depth])
        biases = torch.stack(parameters[depth:]).unsqueeze(-1)
        signal = maps.view(channels, -1)
        signals = [signal]
        for weight, bias in zip(weights.flatten(start_dim=2), biases, strict=True):
            signal = torch.addmm(bias, weight, windows.of(signal)).tanh_()
            if keeps:
                signals.append(signal)
        ctx.signals, ctx.weights, ctx.windows = signals, weights, windows
        return signal.view(maps.shape).permute(3, 0, 1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        signals, windows = ctx.signals, ctx.windows
        depth, channels = len(ctx.weights), ctx.weights.shape[1]
        # The transposed convolution: in and out exchanged, taps reversed.
        transposed = ctx.weights.flip(-2, -1).transpose(1, 2).flatten(start_dim=2).contiguous()
        of_weights = gradient.new_empty(depth, 9 * channels, channels)
        of_biases = gradient.new_empty(depth, channels)
        flow = gradient.permute(1, 2, 3, 0).reshape(channels, -1)
        for layer in reversed(range(depth)):
            flow = torch.ops.aten.tanh_backward(flow, signals[layer + 1])
            torch.sum(flow, dim=1, out=of_biases[layer])
            seen = windows.of(flow)
            torch.mm(seen, signals[layer].t(), out=of_weights[layer])
            flow = transposed[layer] @ seen
        of_weights = of_weights.view(depth, channels, 3, 3, channels).flip(2, 3).permute(0, 1, 4, 2, 3)
        of_input = flow.view(windows.shape).permute(3, 0, 1, 2).contiguous()
        return of_input, None, *of_weights.contiguous().unbind(0), *of_biases.unbind(0)
