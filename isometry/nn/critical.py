"""`critical_init_`: bring the convolutions and dense layers of a chain to the critical point of its activation.

What else stands between the layers of a model is not seen from its modules: `isometry.critical_init_` sees it in a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
from isometry.nn.layers import ConvolutionLayer, DenseLayer, Trunk
from isometry.nn.mirrored import mirrored_
from isometry.nn.network import Network
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

LAYER_TYPES = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED, ConvolutionLayer, DenseLayer)
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
    """Fill the weights and biases of every layer of a chain so that a signal of variance q* keeps it.

    At the critical point chi_1 = sigma_w^2 E phi'(sqrt(q*) z)^2 = 1 gradients keep their size as well. Layers are
    filled in the order in which the model registers them.

    Parameters
    ----------
    model : torch.nn.Module
        ``torch.nn.Sequential`` of modules without children, nested as well, one such module, or a network of
        `isometry.nn`. Filled are ``nn.Linear``, ``nn.Conv*``, ``nn.ConvTranspose*`` and the layers of `isometry.nn`.
        Any other model: `isometry.critical_init_`, which sees sums, attention and normalisations in a run of it.
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
        When the model is no chain, the activation is not found, mixed or unknown, or a layer cannot be filled (it is
        lazy, parametrised, frozen, or of channels or padding that the law cannot have).
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
    check_arguments(weights, input_mean_square)
    layers = fillable_layers(model)
    holder = _holder_without_order(model)
    if holder is not None:
        name, kind = holder
        raise InputError(
            f"{f'module {name!r}' if name else 'this model'} ({kind}) calls the modules that it holds in an order of "
            "its own: sums, products or attention may lie between the layers, and gains of a chain make it worse. Call "
            "isometry.critical_init_(model, x) with one of its inputs, which sees them."
        )
    phi = detected_activation(model) if activation is None else activation
    if any(isinstance(module, _NORMALISATIONS) for module in model.modules()):
        warn_caller(
            "this model normalises its activations, so its variance and its gradients follow the normalisation and not "
            "the critical point; critical_init_ fills the weights all the same.",
            IsometryWarning,
        )
    filled, _ = chain_weights(
        layers, phi, q_star=q_star, sigma_w=sigma_w, sigma_b=sigma_b, weights=weights,
        input_mean_square=input_mean_square, generator=generator,
    )  # fmt: skip
    with torch.no_grad():
        for parameter, values in filled:
            parameter.copy_(values)
    return model


def chain_weights(
    layers: list[tuple[str, Layer]],
    phi: str | Activation,
    *,
    q_star: float | None,
    sigma_w: float | None,
    sigma_b: float | None,
    weights: str,
    input_mean_square: float | None,
    generator: torch.Generator | None,
) -> tuple[list[tuple[Tensor, Tensor]], list[float]]:
    """Parameters of the layers of a chain with their new values, in float64, and the gains of the layers.

    Arguments as for `critical_init_`.
    """
    if weights == "mirrored":
        variances = _mirrored_variances(phi, q_star, sigma_w, sigma_b)
    else:
        variances = choose_variances(phi, sigma_w=sigma_w, sigma_b=sigma_b, q_star=q_star, depth=len(layers))
    # Drawn into copies first: an error in the last layer leaves the model as it was.
    filled: list[tuple[Tensor, Tensor]] = []
    gains: list[float] = []
    for number, (name, layer) in enumerate(layers):
        gain, bias_sigma = variances.sigma_w, variances.sigma_b
        if number == 0 and input_mean_square is not None:
            signal = (variances.q_star if variances.q_star is not None else 1.0) - bias_sigma**2
            gain = math.sqrt(max(signal, 0.0) / input_mean_square)
        position = "first" if number == 0 else "last" if number == len(layers) - 1 else "middle"
        weight = torch.empty(layer.weight.shape, dtype=torch.float64)
        fill_weight(weight, layer, gain, weights, position=position, name=name, generator=generator)
        filled.append((layer.weight, weight))
        gains.append(gain)
        if layer.bias is not None:
            filled.append((layer.bias, laws.normal(layer.bias.shape, generator=generator) * bias_sigma))
    return filled, gains


def check_arguments(weights: str, input_mean_square: float | None) -> None:
    """Raise InputError where an argument is out of its range."""
    if weights not in CONVOLUTION_INITS:
        raise InputError(f"weights must be one of {', '.join(CONVOLUTION_INITS)}, got {weights!r}.")
    if input_mean_square is not None and not (math.isfinite(input_mean_square) and input_mean_square > 0):
        raise InputError(f"input_mean_square must be a finite number above zero, got {input_mean_square!r}.")


def fillable_layers(
    model: nn.Module, is_left: Callable[[str], bool] = lambda _: False
) -> list[tuple[str, Layer]]:
    """The layers to fill, by name, in the order in which the model registers them; shared weights once.

    With ``is_left``, layers of which it is true are among them, and may be such as cannot be filled.

    Raises
    ------
    InputError
        When there is none, or one of them cannot be filled.
    """
    found: list[tuple[str, Layer]] = []
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, LAYER_TYPES) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            found.append((name or type(module).__name__, module))
    if not found:
        raise InputError("this model has no convolution and no dense layer to initialise.")
    for name, layer in found:
        if not is_left(name):
            _check_fillable(name, layer)
    return found


def _check_fillable(name: str, layer: Layer) -> None:
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin) and layer.has_uninitialized_params():
        raise InputError(f"layer {name!r} is lazy and has no shape yet: run the model once before.")
    check_own_weight(name, layer)
    check_parameter(f"{name}.weight", layer.weight)
    if layer.bias is not None:
        check_parameter(f"{name}.bias", layer.bias)


def check_own_weight(name: str, layer: Layer) -> None:
    """Raise InputError where the weight of a layer is computed from other parameters."""
    if parametrize.is_parametrized(layer, "weight") or not isinstance(layer.weight, nn.Parameter):
        raise InputError(
            f"the weight of layer {name!r} is computed by a parametrisation (weight_norm, spectral_norm, ...) or "
            "quantised, which would undo an initialisation: remove it first."
        )


def check_parameter(name: str, parameter: Tensor) -> None:
    """Raise InputError where a parameter is not to be filled: frozen, or not of floating-point numbers."""
    if not parameter.is_floating_point():
        raise InputError(
            f"parameter {name!r} is of type {parameter.dtype}: quantised weights cannot be initialised. Initialise the "
            "model before it is quantised."
        )
    if not parameter.requires_grad:
        raise InputError(
            f"parameter {name!r} is frozen (requires_grad is False), and an initialisation would overwrite it: call "
            "requires_grad_(True) on what may be initialised anew, or keep it by leave= of isometry.critical_init_."
        )


def _holder_without_order(model: nn.Module, name: str = "") -> tuple[str, str] | None:
    """Name and class of the first module that holds others and is no chain of them; None where there is none."""
    if isinstance(model, Network | ConvolutionLayer | DenseLayer) or not any(True for _ in model.children()):
        return None
    chaining = (nn.Sequential.forward, Trunk.forward)
    if (
        not isinstance(model, nn.Sequential)
        or type(model).forward not in chaining
        or "forward" in vars(model)
    ):
        return name, type(model).__name__
    inside = (
        _holder_without_order(child, f"{name}.{own}" if name else own)
        for own, child in model.named_children()
    )
    return next((found for found in inside if found is not None), None)


def detected_activation(model: nn.Module) -> str:
    """Name of the one activation of a model, from its modules.

    Raises
    ------
    InputError
        Where there are several or none, or one that the theory does not know.
    """
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
            'pass activation="tanh" or whichever it is, or call isometry.critical_init_(model, x) with an input.'
        )
    if len(found) > 1:
        where = ", ".join(f"{known} at {name!r}" for known, name in found.items())
        raise InputError(
            f"this model mixes activations ({where}), and each has a critical point of its own: call "
            "isometry.critical_init_(model, x) with an input, which sees where each of them stands, or pass the "
            "activation= that all layers should be set for."
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


def fill_weight(
    weight: Tensor,
    layer: nn.Module,
    gain: float,
    weights: str,
    *,
    name: str,
    position: str = "middle",
    generator: torch.Generator | None = None,
) -> None:
    """Fill a float64 copy of a layer's weight with rows of norm `gain` (in mean square, if Gaussian).

    Raises
    ------
    InputError
        Where the law of that name in `critical_init_` has no such weight; the message begins with the layer's name.
    """
    try:
        _fill(weight, layer, gain, weights, position, generator)
    except InputError as error:
        raise InputError(f"layer {name!r}: {error}") from error


def _fill(
    weight: Tensor,
    layer: nn.Module,
    gain: float,
    weights: str,
    position: str,
    generator: torch.Generator | None,
) -> None:
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
