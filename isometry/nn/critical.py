"""`critical_init_`: bring the convolutions and dense layers of any model to the critical point of its activation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from isometry.errors import InputError, IsometryWarning, warn_caller
from isometry.nn import kernels as laws
from isometry.nn.activations import ACTIVATION_MODULES, ACTIVATION_NAMES, activation_name
from isometry.nn.initialisers import (
    delta_orthogonal_,
    gaussian_,
    orthogonal_,
    orthogonal_conv_,
)
from isometry.nn.layers import ConvolutionLayer, DenseLayer
from isometry.nn.mirrored import mirrored_
from isometry.nn.options import CONVOLUTION_INITS
from isometry.nn.variances import Variances, choose_variances, mirrored_gain

if TYPE_CHECKING:
    from isometry.theory.activations import Activation

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMALISATIONS = (
    nn.modules.batchnorm._BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.instancenorm._InstanceNorm,
)

Layer = (
    nn.Linear
    | nn.Conv1d
    | nn.Conv2d
    | nn.Conv3d
    | nn.ConvTranspose1d
    | nn.ConvTranspose2d
    | nn.ConvTranspose3d
    | ConvolutionLayer
    | DenseLayer
)


def critical_init_(
    model: nn.Module,
    activation: str | Activation | None = None,
    *,
    q_star: float | None = None,
    sigma_w: float | None = None,
    sigma_b: float | None = None,
    weights: str = "delta_orthogonal",
    input_mean_square: float | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Fill the weights and biases of every convolution and dense layer so that a signal of variance q* keeps it.

    At the critical point chi_1 = sigma_w^2 E phi'(sqrt(q*) z)^2 = 1 gradients keep their size as well. Layers are
    filled in the order in which the model registers them.

    Parameters
    ----------
    model : torch.nn.Module
        Any model; its ``nn.Linear``, ``nn.Conv*``, ``nn.ConvTranspose*`` and the layers of `isometry.nn`.
    activation : str or Activation, optional
        phi; None reads it off the activation modules of the model, which must then all be the same.
    q_star : float, optional
        Stationary variance of the pre-activations, the point of the critical line; 1/(number of layers) if nothing
        is given.
    sigma_w, sigma_b : float, optional
        Instead of q_star: sigma_b alone picks the critical point with these biases, sigma_w (with sigma_b, else 0) is
        taken as it is, critical or not.
    weights : {"delta_orthogonal", "orthogonal_conv", "gaussian", "mirrored"}
        Law of the convolutions. Dense layers are Haar orthogonal with the first two, Gaussian, or mirrored. Mirrored
        layers (ReLU and leaky ReLU only) are "first", "middle", ..., "last" in their order, of gain 1/(1 + slope) and
        without biases.
    input_mean_square : float, optional
        Mean square of the entries of the model's input. The first layer is then scaled to pre-activations of variance
        q*, so that the variance is stationary from the first layer on.
    generator : torch.Generator, optional
        Source of randomness, else the global CPU seed of torch.

    Returns
    -------
    torch.nn.Module
        `model`.

    Raises
    ------
    InputError
        When the activation is not found, mixed or unknown, or a layer cannot be filled (it is lazy, parametrised or of
        channels or padding that the law cannot have).
    TheoryError
        When the activation has no critical point there.

    Notes
    -----
    The *rows* of a layer have norm sigma_w (in mean square), which is what keeps the variance. A square layer or one
    that shrinks is then sigma_w times an isometry or co-isometry; one that widens from N to M is sigma_w sqrt(M/N)
    times an isometry. A strided convolution uses a patch of as many taps as it has (`delta_orthogonal_`).
    Normalisation layers rescale the signal; a model that has them is initialised with a warning.

    References
    ----------
    Poole et al. 2016, arXiv 1606.05340; Schoenholz et al. 2017, arXiv 1611.01232; Xiao et al. 2018, arXiv 1806.05393.
    """
    _check_arguments(weights, input_mean_square)
    layers = list(_layers(model))
    if not layers:
        raise InputError("this model has no convolution and no dense layer to initialise.")
    for name, layer in layers:
        _check_fillable(name, layer)
    phi = _detect_activation(model) if activation is None else activation
    if any(isinstance(module, _NORMALISATIONS) for module in model.modules()):
        warn_caller(
            "this model normalises its activations, so its variance and its gradients follow the normalisation and not "
            "the critical point; critical_init_ fills the weights all the same.",
            IsometryWarning,
        )
    if weights == "mirrored":
        variances = _mirrored_variances(phi, q_star, sigma_w, sigma_b)
    else:
        variances = choose_variances(phi, sigma_w=sigma_w, sigma_b=sigma_b, q_star=q_star, depth=len(layers))
    # Drawn into copies first: an error in the last layer leaves the model as it was.
    filled = []
    for number, (name, layer) in enumerate(layers):
        gain, bias_sigma = variances.sigma_w, variances.sigma_b
        if number == 0 and input_mean_square is not None:
            signal = (variances.q_star if variances.q_star is not None else 1.0) - bias_sigma**2
            gain = math.sqrt(max(signal, 0.0) / input_mean_square)
        position = "first" if number == 0 else "last" if number == len(layers) - 1 else "middle"
        weight = torch.empty(layer.weight.shape, dtype=torch.float64)
        try:
            _fill_layer(weight, layer, gain, weights, position, generator)
        except InputError as error:
            raise InputError(f"layer {name!r}: {error}") from error
        bias = None
        if layer.bias is not None:
            bias = laws.normal(layer.bias.shape, generator=generator) * bias_sigma
        filled.append((layer, weight, bias))
    with torch.no_grad():
        for layer, weight, bias in filled:
            layer.weight.copy_(weight)
            if bias is not None and layer.bias is not None:
                layer.bias.copy_(bias)
    return model


def _check_arguments(weights: str, input_mean_square: float | None) -> None:
    if weights not in CONVOLUTION_INITS:
        raise InputError(f"weights must be one of {', '.join(CONVOLUTION_INITS)}, got {weights!r}.")
    if input_mean_square is not None and not (math.isfinite(input_mean_square) and input_mean_square > 0):
        raise InputError(f"input_mean_square must be a finite number above zero, got {input_mean_square!r}.")


def _layers(model: nn.Module) -> Iterator[tuple[str, Layer]]:
    """The layers to fill, by name; shared weights once."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED, ConvolutionLayer, DenseLayer)):
            if id(module.weight) in seen:
                continue
            seen.add(id(module.weight))
            yield name or type(module).__name__, module


def _check_fillable(name: str, layer: Layer) -> None:
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin) and layer.has_uninitialized_params():
        raise InputError(f"layer {name!r} is lazy and has no shape yet: run the model once before.")
    if parametrize.is_parametrized(layer, "weight") or not isinstance(layer.weight, nn.Parameter):
        raise InputError(
            f"the weight of layer {name!r} is computed by a parametrisation (weight_norm, spectral_norm, ...), which "
            "would undo an initialisation: remove it first."
        )


def _detect_activation(model: nn.Module) -> str:
    """Name of the one activation of a model."""
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, (ConvolutionLayer, DenseLayer)):
            name, module = f"{name}.activation", module.activation
        elif not isinstance(module, ACTIVATION_MODULES):
            continue
        known = activation_name(module)
        if known is None:
            raise InputError(
                f"module {name!r} is {module}, whose critical point the theory does not know (it knows "
                f"{', '.join(ACTIVATION_NAMES)}). Pass activation= (a name, or an Activation made by "
                "isometry.theory.activations.get_activation from your function)."
            )
        found.setdefault(known, name)
    if not found:
        raise InputError(
            "this model has no activation modules to read the activation off (it may call a function in its forward): "
            'pass activation="tanh" or whichever it is.'
        )
    if len(found) > 1:
        where = ", ".join(f"{known} at {name!r}" for known, name in found.items())
        raise InputError(
            f"this model mixes activations ({where}), and each has a critical point of its own: call critical_init_ on "
            "the parts of the model, or pass the activation= that all layers should be set for."
        )
    return next(iter(found))


def _mirrored_variances(
    phi: str | Activation, q_star: float | None, sigma_w: float | None, sigma_b: float | None
) -> Variances:
    if q_star is not None or sigma_w is not None or sigma_b is not None:
        raise InputError(
            "mirrored layers are linear at any variance: q_star, sigma_w and sigma_b do not apply."
        )
    return Variances(mirrored_gain(phi if isinstance(phi, str) else phi.name), 0.0, None)


def _fill_layer(
    weight: Tensor,
    layer: Layer,
    gain: float,
    weights: str,
    position: str,
    generator: torch.Generator | None,
) -> None:
    """Fill a float64 copy of a layer's weight with rows of norm `gain` (in mean square, if Gaussian)."""
    transposed = isinstance(layer, _TRANSPOSED)
    groups = int(getattr(layer, "groups", 1))
    kernel_size = tuple(weight.shape[2:])
    strides = tuple(getattr(layer, "stride", (1,) * len(kernel_size)))
    inputs, outputs = weight.shape[1], weight.shape[0] // groups
    if weights == "mirrored":
        if any(s > 1 for s in strides):
            raise InputError("mirrored kernels are for stride 1.")
        mirrored_(
            weight,
            gain,
            position=position,
            groups=groups,
            transposed=transposed,
            co_isometry=True,
            generator=generator,
        )
        return
    if weights == "gaussian":
        # Of a strided transposed convolution only one tap in s^d reaches each output.
        reached = math.prod(min(s, k) for s, k in zip(strides, kernel_size, strict=True)) if transposed else 1
        gaussian_(
            weight, gain * math.sqrt(reached), groups=groups, transposed=transposed, generator=generator
        )
        return
    if weight.ndim == 2:
        orthogonal_(weight, gain * math.sqrt(max(1.0, outputs / inputs)), generator=generator)
        return
    # A stride beyond the kernel skips positions; all taps of the kernel are then in use.
    patch = tuple(min(s, k) for s, k in zip(strides, kernel_size, strict=True))
    read, written = inputs * math.prod(patch), outputs
    if transposed:
        read, written = written, read
    gain *= math.sqrt(max(1.0, written / read))
    if weights == "delta_orthogonal":
        delta_orthogonal_(
            weight,
            gain,
            groups=groups,
            stride=patch,
            transposed=transposed,
            co_isometry=True,
            generator=generator,
        )
    else:
        orthogonal_conv_(
            weight, gain, groups=groups, stride=patch, transposed=transposed, co_isometry=True,
            padding_mode=str(getattr(layer, "padding_mode", "circular")), generator=generator,
        )  # fmt: skip
