"""`ConvolutionalNetwork`: what `VanillaCNN` and `ResNet` share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from isometry.errors import InputError
from isometry.nn import kernels as laws
from isometry.nn.layers import ConvolutionLayer
from isometry.nn.network import Design, Network, require_positive
from isometry.nn.options import CONVOLUTION_INITS, HEADS


class ConvolutionalNetwork(Network):
    """A trunk of circular convolutions, optionally between a stem and a head.

    The parameters are those of `isometry.nn.VanillaCNN`.
    """

    def __init__(
        self,
        depth: int,
        channels: int,
        activation: str | nn.Module = "tanh",
        init: str = "delta_orthogonal",
        *,
        sigma_w: float | None = None,
        sigma_b: float | None = None,
        q_star: float | None = None,
        kernel_size: int = 3,
        profile: Tensor | Sequence[float] | None = None,
        in_channels: int | None = None,
        num_classes: int | None = None,
        stem_strides: Sequence[int] = (1,),
        head: str = "flatten",
        image_size: int | tuple[int, int] | None = None,
        checkpoint_segments: int | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        for what, number in (("depth", depth), ("channels", channels), ("kernel_size", kernel_size)):
            require_positive(what, number)
        if head not in HEADS:
            raise InputError(f"head must be one of {', '.join(HEADS)}, got {head!r}.")
        if profile is not None and init != "gaussian":
            raise InputError(f'a variance profile belongs to init="gaussian"; init is {init!r}.')
        design = Design.of(
            depth, activation, init, CONVOLUTION_INITS, sigma_w=sigma_w, sigma_b=sigma_b, q_star=q_star,
            generator=generator, seed=seed, dtype=dtype, device=device,
        )  # fmt: skip
        if init == "mirrored" and channels % 2:
            raise InputError(
                f"mirrored kernels come in pairs of channels: channels must be even, got {channels}."
            )
        taps = (kernel_size, kernel_size)
        layers = design.layers(ConvolutionLayer, depth, channels, channels, taps, profile=profile)
        kernel = _kernel(init, taps, profile)
        stem = None if in_channels is None else _stem(design, in_channels, channels, stem_strides)
        readout = None
        if num_classes is not None:
            positions = 1
            if head == "flatten":
                positions = math.prod(_map_size(image_size, () if stem is None else stem_strides))
            readout = design.head(channels * positions, num_classes)
        super().__init__(
            design, stem, layers, readout, head_kind=head, feature_axes=3, checkpoint_segments=checkpoint_segments
        )  # fmt: skip
        self.kernel = kernel


def _kernel(init: str, taps: tuple[int, int], profile: Tensor | Sequence[float] | None) -> dict[str, object]:
    """The law of a kernel in space, for the record: which it is, and the variance share of its taps."""
    if init != "gaussian":
        return {"law": init}
    shares = (
        torch.full(taps, 1.0 / math.prod(taps)) if profile is None else laws.variance_profile(profile, taps)
    )
    return {"law": init, "profile": shares.double().tolist()}


def _stem(design: Design, in_channels: int, channels: int, strides: Sequence[int]) -> nn.Sequential:
    """3x3 zero-padded convolutions with the activation; pre-activations of variance q from the first on."""
    require_positive("in_channels", in_channels)
    if not strides:
        raise InputError(
            "stem_strides is empty: give one stride per convolution of the stem, such as (1, 2, 2)."
        )
    modules: list[nn.Module] = []
    for number, stride in enumerate(strides):
        require_positive("a stem stride", stride)
        source = in_channels if number == 0 else channels
        sigma_w = math.sqrt(design.first_variance) if number == 0 else design.variances.sigma_w
        sigma_b = 0.0 if number == 0 else design.variances.sigma_b
        convolution = nn.Conv2d(source, channels, 3, stride=stride, padding=1, device="meta")
        convolution.weight = nn.Parameter(design.gaussian_weight(channels, source, (3, 3), sigma_w))
        bias = laws.normal((channels,), generator=design.generator) * sigma_b
        convolution.bias = nn.Parameter(bias.to(**design.placed))
        modules += [convolution, design.activation()]
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
