"""Layers of the reference networks, and the trunk that chains them.

One layer computes phi(W x + b), or x + a phi(W x + b) with a residual branch. A `Trunk` is a `torch.nn.Sequential`
of such layers, so every layer has a name (``trunk.17``), can be sliced, hooked and replaced; it adds activation
checkpointing, without which a network of 10,000 layers does not fit into memory when it trains.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from isometry.errors import InputError
from isometry.nn.kernels import centre_tap

_WRAP_INDICES: dict[tuple[int, int, int, torch.device], Tensor] = {}
_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}

# Bytes kept for the backward pass beyond which a trunk checkpoints by default.
CHECKPOINT_BYTES = 2**30


def wrap_index(size: int, before: int, after: int, device: torch.device) -> Tensor:
    """Positions of a circle of `size` read from `-before` to `size + after - 1`: (before + size + after,) int64."""
    key = (size, before, after, device)
    known = _WRAP_INDICES.get(key)
    if known is not None:
        return known
    # Outside inference mode, for an inference tensor can not be saved for a backward pass later on.
    with torch.inference_mode(False):
        index = torch.arange(-before, size + after, device=device) % size
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if type(index) is Tensor and not capturing and not torch.compiler.is_compiling():
        _WRAP_INDICES[key] = index
    return index


def circular_pad(x: Tensor, kernel_size: Sequence[int]) -> Tensor:
    """Map wrapped around by (k-1)//2 positions before and k//2 after, on each of its last len(k) axes.

    By index, not by ``torch.nn.functional.pad``: that refuses to go around a small map more than once, and costs half
    as much again in the backward pass. Forward mode, reverse mode and vmap all go through it.
    """
    dimensions = len(kernel_size)
    for axis, (k, centre) in enumerate(zip(kernel_size, centre_tap(kernel_size), strict=True)):
        if k > 1:
            position = axis - dimensions
            x = x.index_select(position, wrap_index(x.shape[position], centre, k - 1 - centre, x.device))
    return x


class _Layer(nn.Module):
    """phi(h), or x + a phi(h) with a residual branch, h = `pre_activation`(x)."""

    def __init__(
        self, weight: Tensor, bias: Tensor, *, activation: nn.Module, residual: float | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)
        self.activation = activation
        self.residual = residual

    def pre_activation(self, x: Tensor) -> Tensor:
        """h, affine in x."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """phi(h), or x + a phi(h)."""
        branch = self.activation(self.pre_activation(x))
        return branch if self.residual is None else x + self.residual * branch

    def extra_repr(self) -> str:
        """Shape of the weight and the residual branch, for the printed module."""
        outputs, inputs = self.weight.shape[:2]
        residual = "" if self.residual is None else f", residual={self.residual:.4g}"
        return f"{inputs} -> {outputs}{self._kernel_text()}{residual}"

    def _kernel_text(self) -> str:
        return ""


class ConvolutionLayer(_Layer):
    """phi(K * x + b) with circular padding and stride 1: a map of (c_in, *size) to one of (c_out, *size).

    Parameters
    ----------
    weight : Tensor
        Kernel K, (c_out, c_in, *k), one, two or three axes of taps.
    bias : Tensor
        (c_out,).
    activation : torch.nn.Module
        phi.
    residual : float, optional
        Strength a of the branch: the layer is then x + a phi(K * x + b).
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, *, activation: nn.Module, residual: float | None = None
    ) -> None:
        super().__init__(weight, bias, activation=activation, residual=residual)
        self.kernel_size = tuple(weight.shape[2:])
        self._convolve = _CONVOLUTIONS[len(self.kernel_size)]

    def pre_activation(self, x: Tensor) -> Tensor:
        """h = K * x + b, of (c_out, *size) or (B, c_out, *size) as x is."""
        return self._convolve(circular_pad(x, self.kernel_size), self.weight, self.bias)

    def _kernel_text(self) -> str:
        return f", {'x'.join(map(str, self.kernel_size))} circular"


class DenseLayer(_Layer):
    """phi(W x + b), or x + a phi(W x + b), on vectors (N_in,) or (B, N_in).

    Its weight W is (N_out, N_in) and its bias (N_out,); the parameters are those of `ConvolutionLayer`.
    """

    def pre_activation(self, x: Tensor) -> Tensor:
        """h = W x + b."""
        return functional.linear(x, self.weight, self.bias)


class Trunk(nn.Sequential):
    """A chain of layers, walkable like a list, that checkpoints its activations when there are many.

    Parameters
    ----------
    *layers : torch.nn.Module
        The layers, first one first (or one ordered dictionary of them, as `torch.nn.Sequential` takes).
    checkpoint_segments : int, optional
        Number of segments whose inner activations are recomputed in the backward pass. 0 keeps all activations. None
        decides by the input: about sqrt(depth) segments if more than `CHECKPOINT_BYTES` (1 GiB) would be kept, else 0.
        Recomputing takes about a third longer.

    Notes
    -----
    Under torch.func transforms (jvp, vjp, vmap, ...) nothing is checkpointed: they do not support saved-tensor hooks.
    """

    def __init__(self, *layers: Any, checkpoint_segments: int | None = None) -> None:
        super().__init__(*layers)
        if checkpoint_segments is not None and checkpoint_segments < 0:
            raise InputError(
                f"checkpoint_segments must be 0 (keep everything) or more, or None; got {checkpoint_segments}."
            )
        self.checkpoint_segments = checkpoint_segments

    def forward(self, x: Tensor) -> Tensor:
        """The layers one after another; same shape rules as the layers."""
        layers = list(self)
        segments = self._segments(x, len(layers))
        if segments == 0:
            return _run(layers, x)
        bounds = [round(i * len(layers) / segments) for i in range(segments + 1)]
        for first, last in itertools.pairwise(bounds):
            x = checkpoint(_run, layers[first:last], x, use_reentrant=False, preserve_rng_state=False)
        return x

    def __repr__(self) -> str:
        """Runs of equal layers in one line each."""
        lines: list[str] = []
        position = 0
        for text, run in itertools.groupby(" ".join(repr(layer).split()) for layer in self):
            count = sum(1 for _ in run)
            where = str(position) if count == 1 else f"{position}-{position + count - 1}"
            lines.append(f"\n  ({where}): {text}")
            position += count
        return f"{type(self).__name__}({''.join(lines)}\n)"

    def _segments(self, x: Tensor, depth: int) -> int:
        if not torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            return 0
        if self.checkpoint_segments is not None:
            return min(self.checkpoint_segments, depth)
        # Kept per layer: the padded input of the convolution and what the activation saves, 2-3 maps.
        kept = 3 * depth * x.numel() * x.element_size()
        return round(math.sqrt(depth)) if kept > CHECKPOINT_BYTES else 0


def _run(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x
