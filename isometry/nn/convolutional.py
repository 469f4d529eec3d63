"""How a convolutional reference network is put together: trunk, stem and head with their weights drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from isometry.errors import InputError
from isometry.nn import kernels as laws
from isometry.nn.layers import ConvolutionLayer, Trunk
from isometry.nn.network import (
    draw_kernels,
    feature_scale,
    first_variance,
    linear_head,
    named_activation,
    network_variances,
    require_positive,
    residual_feature_scale,
    trunk_ensemble,
)
from isometry.nn.variances import Variances

CONVOLUTION_INITS = ("delta_orthogonal", "orthogonal_conv", "gaussian", "mirrored")
HEADS = ("flatten", "pool")


def build_convolutional(
    depth: int,
    channels: int,
    activation: str | nn.Module,
    init: str,
    *,
    sigma_w: float | None,
    sigma_b: float | None,
    q_star: float | None,
    kernel_size: int,
    profile: Tensor | Sequence[float] | None,
    residual: float | None,
    in_channels: int | None,
    num_classes: int | None,
    stem_strides: Sequence[int],
    head: str,
    image_size: int | tuple[int, int] | None,
    checkpoint_segments: int | None,
    generator: torch.Generator | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> dict[str, Any]:
    """Arguments of `Network` for a convolutional network."""
    require_positive("depth", depth)
    require_positive("channels", channels)
    require_positive("kernel_size", kernel_size)
    if head not in HEADS:
        raise InputError(f"head must be one of {', '.join(HEADS)}, got {head!r}.")
    if profile is not None and init != "gaussian":
        raise InputError(f'a variance profile belongs to init="gaussian"; init is {init!r}.')
    factory, name = named_activation(activation)
    variances = network_variances(init, CONVOLUTION_INITS, name, sigma_w, sigma_b, q_star, depth)
    if init == "mirrored" and channels % 2:
        raise InputError(
            f"mirrored kernels come in pairs of channels: channels must be even, got {channels}."
        )
    options: dict[str, Any] = {"dtype": dtype or torch.get_default_dtype(), "device": device}
    taps = (kernel_size, kernel_size)
    layers: list[nn.Module] = []
    for part in laws.chunks(depth, channels * channels * kernel_size**2):
        kernels = draw_kernels(
            init, len(part), channels, channels, taps, profile=profile, generator=generator
        )
        kernels = kernels.mul_(variances.sigma_w).to(**options)
        biases = laws.normal((len(part), channels), generator=generator) * variances.sigma_b
        layers += [
            # A clone of its own for each layer: views of one block would all be saved with any one of them.
            ConvolutionLayer(kernel.clone(), bias.clone(), activation=factory(), residual=residual)
            for kernel, bias in zip(kernels.unbind(0), biases.to(**options).unbind(0), strict=True)
        ]
    q_first = first_variance(name, variances, depth)
    stem = None
    if in_channels is not None:
        require_positive("in_channels", in_channels)
        stem = _convolutional_stem(
            in_channels, channels, stem_strides, factory, q_first, variances, generator, options
        )
    readout = None
    if num_classes is not None:
        positions = 1
        if head == "flatten":
            height, width = _map_size(image_size, () if stem is None else stem_strides)
            positions = height * width
        readout = linear_head(channels * positions, num_classes, generator, options)
    return {
        "stem": stem,
        "trunk": Trunk(*layers, checkpoint_segments=checkpoint_segments),
        "head": readout,
        "ensemble": trunk_ensemble(name, init, depth, variances, residual, None),
        "variances": variances,
        "feature_scale": feature_scale(name, variances, q_first)
        if residual is None or num_classes is None
        else residual_feature_scale(factory(), variances, q_first, residual, depth),
        "head_kind": head,
        "feature_axes": 3,
    }


def _convolutional_stem(
    in_channels: int,
    channels: int,
    strides: Sequence[int],
    factory: Callable[[], nn.Module],
    q_first: float,
    variances: Variances,
    generator: torch.Generator | None,
    options: dict[str, Any],
) -> nn.Sequential:
    """3x3 zero-padded convolutions with the activation; pre-activations of variance q from the first on."""
    if not strides:
        raise InputError(
            "stem_strides is empty: give one stride per convolution of the stem, such as (1, 2, 2)."
        )
    modules: list[nn.Module] = []
    for number, stride in enumerate(strides):
        require_positive("a stem stride", stride)
        source = in_channels if number == 0 else channels
        sigma_w = math.sqrt(q_first) if number == 0 else variances.sigma_w
        sigma_b = 0.0 if number == 0 else variances.sigma_b
        convolution = nn.Conv2d(source, channels, 3, stride=stride, padding=1, device="meta")
        kernel = laws.gaussian_kernels(1, channels, source, (3, 3), generator=generator)[0] * sigma_w
        convolution.weight = nn.Parameter(kernel.to(**options))
        bias = laws.normal((channels,), generator=generator) * sigma_b
        convolution.bias = nn.Parameter(bias.to(**options))
        modules += [convolution, factory()]
    return nn.Sequential(*modules)


def _map_size(image_size: int | tuple[int, int] | None, strides: Sequence[int]) -> tuple[int, int]:
    if image_size is None:
        raise InputError(
            'a head that flattens needs to know the map: give image_size (height and width), or head="pool".'
        )
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    for stride in strides:
        height, width = -(-height // stride), -(-width // stride)
    require_positive("image_size", height)
    require_positive("image_size", width)
    return height, width
