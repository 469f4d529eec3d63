"""Reference networks: the vanilla CNN of Xiao et al. 2018, its dense and its residual relatives.

Each is a trunk of `depth` equal layers x_l = phi(W_l x_{l-1} + b_l), without normalisation, optionally between a stem
that brings an image to a small map of c channels and a linear head. Without `in_channels` there is no stem and without
`num_classes` no head: the bare trunk, whose Jacobian J = D_L W_L ... D_1 W_1 is square. `ensemble` describes the trunk
to `isometry.theory`, so that the same object is measured and predicted.

All weights are drawn in float64, many layers at a time, in the order trunk, stem, head; a seed therefore gives the same
trunk whatever stands around it. Ten thousand layers of 16 channels take about two seconds to build.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from isometry.errors import InputError
from isometry.nn import kernels as laws
from isometry.nn.activations import activation_name, make_activation
from isometry.nn.critical import Variances, choose_variances, is_homogeneous
from isometry.nn.layers import ConvolutionLayer, DenseLayer, Trunk
from isometry.theory.ensemble import Ensemble

CONVOLUTION_INITS = ("delta_orthogonal", "orthogonal_conv", "gaussian", "mirrored")
DENSE_INITS = ("orthogonal", "gaussian", "mirrored")
HEADS = ("flatten", "pool")


class _Network(nn.Module):
    """Stem, trunk and head of a reference network; what `VanillaCNN`, `ResNet` and `MLP` share."""

    def __init__(
        self,
        stem: nn.Module | None,
        trunk: Trunk,
        head: nn.Module | None,
        *,
        ensemble: Ensemble | None,
        variances: Variances,
        feature_scale: float,
        head_kind: str,
        feature_axes: int,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.trunk = trunk
        self.head = head
        self.ensemble = ensemble
        self.sigma_w = variances.sigma_w
        self.sigma_b = variances.sigma_b
        self.q_star = variances.q_star
        self.feature_scale = feature_scale
        self.head_kind = head_kind
        self._feature_axes = feature_axes

    @property
    def depth(self) -> int:
        """Number of layers in the trunk."""
        return len(self.trunk)

    def features(self, x: Tensor) -> Tensor:
        """Output of the trunk, before the head."""
        if self.stem is not None:
            x = self.stem(x)
        return self.trunk(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (num_classes,) with a head, the trunk's output without; a batch axis in front passes through."""
        x = self.features(x)
        if self.head is None:
            return x
        x = x / self.feature_scale
        if self._feature_axes == 3:
            x = x.mean(dim=(-2, -1)) if self.head_kind == "pool" else x.flatten(start_dim=-3)
        return self.head(x)

    def extra_repr(self) -> str:
        """The variances, for the printed module."""
        q_star = "any" if self.q_star is None else f"{self.q_star:.4g}"
        return f"depth={self.depth}, sigma_w={self.sigma_w:.6g}, sigma_b={self.sigma_b:.4g}, q_star={q_star}"


class VanillaCNN(_Network):
    """Deep CNN without normalisation or skip connections (Xiao et al. 2018, arXiv 1806.05393).

    Parameters
    ----------
    depth : int
        Number L of circular convolutions in the trunk, each followed by the activation.
    channels : int
        Channels c of the trunk.
    activation : str or torch.nn.Module
        phi: a name (`isometry.nn.activations.ACTIVATION_NAMES`) or a module.
    init : {"delta_orthogonal", "orthogonal_conv", "gaussian", "mirrored"}
        Law of the trunk's kernels: Algorithm 2, Algorithm 1, independent Gaussian entries of variance
        sigma_w^2 / (c k^2), or looks-linear (for ReLU and leaky ReLU, c even).
    sigma_w, sigma_b : float, optional
        Standard deviations of weights and biases; an orthogonal kernel is multiplied by sigma_w. ``sigma_w`` without
        ``sigma_b`` has no biases. ``sigma_b`` alone, or neither, means the critical point, for neither at
        q* = ``q_star``. Mirrored kernels have no use for it: sigma_w is then 1/(1 + slope), sigma_b 0.
    q_star : float, optional
        Stationary variance of the pre-activations at which the network is critical; 1/depth when left out.
    kernel_size : int
        Taps k along each axis; for even k the centre is (k-1)//2.
    profile : sequence of float, optional
        Variance fractions over the taps of a Gaussian kernel, k of them (used along both axes) or k x k, summing to 1.
    in_channels : int, optional
        Channels of the image. Gives the network a stem: 3x3 zero-padded Gaussian convolutions with the activation,
        one per entry of ``stem_strides``. Its first layer turns images of mean square 1 into pre-activations of
        variance q*, so that the trunk is stationary from its first layer.
    num_classes : int, optional
        Gives the network a linear head on the features, which are first divided by their root mean square.
    stem_strides : sequence of int
        Strides of the stem; ``(1, 2, 2)`` is the stem of the paper's demonstration (28 x 28 to 7 x 7).
    head : {"flatten", "pool"}
        Whether the head reads all of the last map or its average over positions.
    image_size : int or (int, int), optional
        Height and width of the input; needed by a head that flattens.
    checkpoint_segments : int, optional
        Activation checkpointing of the trunk, see `isometry.nn.layers.Trunk`; None decides by the input.
    seed : int, optional
        Seed of the random draws; or give a ``generator``. With neither the global seed of torch is used.
    dtype, device : optional
        Of the parameters. Draws are float64 on the CPU (or the generator's device) in any case.

    Attributes
    ----------
    stem, trunk, head : torch.nn.Module or None
        ``trunk`` is a chain of `ConvolutionLayer` (``weight``, ``bias``, ``activation``), named ``trunk.0`` ....
    ensemble : Ensemble or None
        The trunk as the theory sees it; None for a law or an activation it has no name for.

    Raises
    ------
    InputError
        When an argument is out of range or unknown.
    TheoryError
        When the activation has no critical point where one is asked for.

    Examples
    --------
    >>> model = VanillaCNN(depth=50, channels=8, activation="tanh", sigma_w=1.02, seed=0)
    >>> model(torch.zeros(8, 6, 6)).shape
    torch.Size([8, 6, 6])
    """

    _residual_default: float | None = None

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
        super().__init__(
            **_build_convolutional(
                depth, channels, activation, init,
                sigma_w=sigma_w, sigma_b=sigma_b, q_star=q_star, kernel_size=kernel_size, profile=profile,
                residual=None, in_channels=in_channels, num_classes=num_classes, stem_strides=stem_strides,
                head=head, image_size=image_size, checkpoint_segments=checkpoint_segments,
                generator=_generator(generator, seed), dtype=dtype, device=device,
            )
        )  # fmt: skip

    @classmethod
    def from_ensemble(cls, ensemble: Ensemble, channels: int, **options: Any) -> VanillaCNN:
        """Network drawn from an `Ensemble`: its Gaussian or orthogonal law becomes that of the kernels.

        Parameters
        ----------
        ensemble : Ensemble
            Square (no widths), one weight law, no residual branch, no read-out.
        channels : int
            Channels of the trunk.
        **options
            Further arguments of the class; ``init`` may pick "orthogonal_conv" for an orthogonal law.

        Raises
        ------
        InputError
            When the ensemble is not one of a vanilla CNN.
        """
        if ensemble.residual is not None:
            raise InputError(
                "this ensemble has a residual branch: use ResNet.from_ensemble or MLP.from_ensemble."
            )
        return cls(
            **_ensemble_arguments(ensemble, {"orthogonal": "delta_orthogonal"}, options), channels=channels
        )


class ResNet(_Network):
    """Residual CNN without normalisation, x_l = x_{l-1} + a phi(K_l * x_{l-1} + b_l).

    The network of Tarnowski et al. 2019 (arXiv 1809.08848) with convolutions. Its spectrum depends at large depth on
    c = sum_l a^2 sigma_w^2 E phi'^2 alone; the default a = 1/sqrt(depth) keeps c at 1 for a critical sigma_w.

    Parameters
    ----------
    residual : float, optional
        Strength a of the branches; 1/sqrt(depth) when left out.
    depth, channels, activation, init, sigma_w, sigma_b, q_star, ... :
        As for `VanillaCNN`. The variance of the pre-activations grows along the trunk, so q* names only the point of
        the critical line from which sigma_w and sigma_b are taken, and the variance of the first pre-activation.

    Raises
    ------
    InputError, TheoryError
        As `VanillaCNN`; also when `residual` is not a finite number other than zero.
    """

    def __init__(
        self,
        depth: int,
        channels: int,
        activation: str | nn.Module = "relu",
        init: str = "delta_orthogonal",
        *,
        residual: float | None = None,
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
        super().__init__(
            **_build_convolutional(
                depth, channels, activation, init,
                sigma_w=sigma_w, sigma_b=sigma_b, q_star=q_star, kernel_size=kernel_size, profile=profile,
                residual=_residual_strength(residual, depth), in_channels=in_channels, num_classes=num_classes,
                stem_strides=stem_strides, head=head, image_size=image_size,
                checkpoint_segments=checkpoint_segments, generator=_generator(generator, seed),
                dtype=dtype, device=device,
            )
        )  # fmt: skip

    @classmethod
    def from_ensemble(cls, ensemble: Ensemble, channels: int, **options: Any) -> ResNet:
        """Network drawn from an `Ensemble` with a residual branch; see `VanillaCNN.from_ensemble`."""
        if ensemble.residual is None:
            raise InputError("this ensemble has no residual branch: use VanillaCNN.from_ensemble.")
        arguments = _ensemble_arguments(ensemble, {"orthogonal": "delta_orthogonal"}, options)
        return cls(**arguments, channels=channels, residual=ensemble.residual)


class MLP(_Network):
    """Dense network x_l = phi(W_l x_{l-1} + b_l), on vectors (N_0,) or (B, N_0).

    Parameters
    ----------
    depth : int
        Number L of layers in the trunk.
    width : int or sequence of int
        N, or N_0 .. N_L (depth + 1 numbers) for a network that changes its width.
    activation : str or torch.nn.Module
        phi.
    init : {"orthogonal", "gaussian", "mirrored"}
        Haar (W^T W = sigma_w^2, or W W^T where a layer shrinks), independent entries of variance sigma_w^2 / N_{l-1},
        or looks-linear (for ReLU and leaky ReLU, even widths).
    sigma_w, sigma_b, q_star : float, optional
        As for `VanillaCNN`.
    residual : float, optional
        Strength a of a residual branch x_l = x_{l-1} + a phi(h_l); None is no branch.
    in_features : int, optional
        Gives the network a stem: a Gaussian layer to N_0 with the activation, scaled to pre-activations of variance
        q* for inputs of mean square 1.
    num_classes : int, optional
        Gives the network a linear head.
    checkpoint_segments, generator, seed, dtype, device :
        As for `VanillaCNN`.

    Raises
    ------
    InputError, TheoryError
        As `VanillaCNN`.

    Examples
    --------
    >>> model = MLP(depth=3, width=(8, 16, 16, 4), activation="relu", init="gaussian", sigma_w=2**0.5, seed=0)
    >>> model(torch.zeros(5, 8)).shape
    torch.Size([5, 4])
    """

    def __init__(
        self,
        depth: int,
        width: int | Sequence[int],
        activation: str | nn.Module = "tanh",
        init: str = "orthogonal",
        *,
        sigma_w: float | None = None,
        sigma_b: float | None = None,
        q_star: float | None = None,
        residual: float | None = None,
        in_features: int | None = None,
        num_classes: int | None = None,
        checkpoint_segments: int | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        _require_positive("depth", depth)
        widths = _widths(width, depth)
        if residual is not None:
            residual = _residual_strength(residual, depth)
            if len(set(widths)) > 1:
                raise InputError(f"a residual network has one width only, got {widths}.")
        factory, name = _activation(activation)
        variances = _variances(init, DENSE_INITS, name, sigma_w, sigma_b, q_star, depth)
        generator = _generator(generator, seed)
        options: dict[str, Any] = {"dtype": dtype or torch.get_default_dtype(), "device": device}
        layers: list[nn.Module] = []
        for first, last in _equal_runs(widths):
            weights = _draw(init, last - first, widths[first + 1], widths[first], (), generator=generator)
            biases = laws.normal((last - first, widths[first + 1]), generator=generator) * variances.sigma_b
            weights = (weights * variances.sigma_w).to(**options)
            layers += [
                DenseLayer(weight.clone(), bias.clone(), activation=factory(), residual=residual)
                for weight, bias in zip(weights.unbind(0), biases.to(**options).unbind(0), strict=True)
            ]
        q_first = _first_variance(name, variances, depth)
        stem: nn.Module | None = None
        if in_features is not None:
            _require_positive("in_features", in_features)
            weight = (
                laws.gaussian_kernels(1, widths[0], in_features, (), generator=generator)[0] * q_first**0.5
            )
            stem = DenseLayer(
                weight.to(**options), torch.zeros(widths[0], **options), activation=factory(), residual=None
            )
        scale = _feature_scale(name, variances, q_first)
        super().__init__(
            stem,
            Trunk(*layers, checkpoint_segments=checkpoint_segments),
            None if num_classes is None else _linear_head(widths[-1], num_classes, generator, options),
            ensemble=_ensemble(
                name, init, depth, variances, residual, None if len(set(widths)) == 1 else widths
            ),
            variances=variances,
            feature_scale=scale,
            head_kind="flatten",
            feature_axes=1,
        )

    @classmethod
    def from_ensemble(cls, ensemble: Ensemble, width: int | None = None, **options: Any) -> MLP:
        """Network drawn from an `Ensemble`; `width` is needed where the ensemble does not say its widths."""
        if width is None and ensemble.widths is None:
            raise InputError("this ensemble is square of any width: give the width of the network to draw.")
        arguments = _ensemble_arguments(ensemble, {"orthogonal": "orthogonal"}, options, widths_allowed=True)
        chosen = ensemble.widths if ensemble.widths is not None else width
        return cls(**arguments, width=chosen, residual=ensemble.residual)  # type: ignore[arg-type]


def _build_convolutional(
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
    """Arguments of `_Network` for a convolutional network."""
    _require_positive("depth", depth)
    _require_positive("channels", channels)
    _require_positive("kernel_size", kernel_size)
    if head not in HEADS:
        raise InputError(f"head must be one of {', '.join(HEADS)}, got {head!r}.")
    if profile is not None and init != "gaussian":
        raise InputError(f'a variance profile belongs to init="gaussian"; init is {init!r}.')
    factory, name = _activation(activation)
    variances = _variances(init, CONVOLUTION_INITS, name, sigma_w, sigma_b, q_star, depth)
    if init == "mirrored" and channels % 2:
        raise InputError(
            f"mirrored kernels come in pairs of channels: channels must be even, got {channels}."
        )
    options: dict[str, Any] = {"dtype": dtype or torch.get_default_dtype(), "device": device}
    taps = (kernel_size, kernel_size)
    layers: list[nn.Module] = []
    for part in laws.chunks(depth, channels * channels * kernel_size**2):
        kernels = _draw(init, len(part), channels, channels, taps, profile=profile, generator=generator)
        kernels = kernels.mul_(variances.sigma_w).to(**options)
        biases = laws.normal((len(part), channels), generator=generator) * variances.sigma_b
        layers += [
            # A clone of its own for each layer: views of one block would all be saved with any one of them.
            ConvolutionLayer(kernel.clone(), bias.clone(), activation=factory(), residual=residual)
            for kernel, bias in zip(kernels.unbind(0), biases.to(**options).unbind(0), strict=True)
        ]
    q_first = _first_variance(name, variances, depth)
    stem = None
    if in_channels is not None:
        _require_positive("in_channels", in_channels)
        stem = _convolutional_stem(
            in_channels, channels, stem_strides, factory, q_first, variances, generator, options
        )
    linear_head = None
    if num_classes is not None:
        positions = 1
        if head == "flatten":
            height, width = _map_size(image_size, () if stem is None else stem_strides)
            positions = height * width
        linear_head = _linear_head(channels * positions, num_classes, generator, options)
    return {
        "stem": stem,
        "trunk": Trunk(*layers, checkpoint_segments=checkpoint_segments),
        "head": linear_head,
        "ensemble": _ensemble(name, init, depth, variances, residual, None),
        "variances": variances,
        "feature_scale": _feature_scale(name, variances, q_first),
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
        _require_positive("a stem stride", stride)
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


def _linear_head(
    features: int, num_classes: int, generator: torch.Generator | None, options: dict[str, Any]
) -> nn.Linear:
    """Linear layer of variance 1/fan_in and zero bias, as in the authors' demonstration of arXiv 1806.05393."""
    _require_positive("num_classes", num_classes)
    head = nn.Linear(features, num_classes, device="meta")
    weight = laws.gaussian_kernels(1, num_classes, features, (), generator=generator)[0]
    head.weight = nn.Parameter(weight.to(**options))
    head.bias = nn.Parameter(torch.zeros(num_classes, **options))
    return head


def _draw(
    init: str,
    count: int,
    outputs: int,
    inputs: int,
    taps: tuple[int, ...],
    *,
    profile: Tensor | Sequence[float] | None = None,
    generator: torch.Generator | None,
) -> Tensor:
    """(count, outputs, inputs, *taps) kernels of unit sigma_w, float64."""
    if init == "gaussian":
        return laws.gaussian_kernels(count, outputs, inputs, taps, profile=profile, generator=generator)
    law = {
        "orthogonal": laws.delta_orthogonal_kernels,
        "delta_orthogonal": laws.delta_orthogonal_kernels,
        "orthogonal_conv": laws.orthogonal_convolution_kernels,
        "mirrored": laws.mirrored_kernels,
    }[init]
    return law(count, outputs, inputs, taps, generator=generator)


def _variances(
    init: str,
    known: tuple[str, ...],
    name: str | None,
    sigma_w: float | None,
    sigma_b: float | None,
    q_star: float | None,
    depth: int,
) -> Variances:
    if init not in known:
        raise InputError(f"init must be one of {', '.join(known)}, got {init!r}.")
    if init != "mirrored":
        return choose_variances(name, sigma_w=sigma_w, sigma_b=sigma_b, q_star=q_star, depth=depth)
    if name is None or name.partition("(")[0] not in ("relu", "leaky_relu"):
        raise InputError(
            f"mirrored kernels make ReLU and leaky ReLU look linear; the activation is {name or 'unknown'!r}. "
            "Use delta_orthogonal (orthogonal for an MLP)."
        )
    if q_star is not None:
        raise InputError(
            "a mirrored network is linear at any variance, so q_star does not apply; leave it out."
        )
    if sigma_w is None:
        # phi(z) - phi(-z) = (1 + slope) z, and the next layer reads that difference.
        slope = make_activation(name)()
        sigma_w = 1.0 / (1.0 + float(getattr(slope, "negative_slope", 0.0)))
    return choose_variances(name, sigma_w=sigma_w, sigma_b=sigma_b, q_star=None, depth=depth)


def _activation(activation: str | nn.Module) -> tuple[Callable[[], nn.Module], str | None]:
    factory = make_activation(activation)
    return factory, activation_name(factory())


def _first_variance(name: str | None, variances: Variances, depth: int) -> float:
    """Variance that a stem gives to its pre-activations: q* where there is one."""
    if variances.q_star is not None:
        return variances.q_star
    return 1.0 if name is not None and is_homogeneous(name) else 1.0 / depth


def _feature_scale(name: str | None, variances: Variances, q: float) -> float:
    """Root mean square of phi(h), from the fixed point q = sigma_w^2 E phi^2 + sigma_b^2 where it holds."""
    stationary = variances.q_star is not None or (name is not None and is_homogeneous(name))
    signal = q - variances.sigma_b**2
    return math.sqrt(signal) / variances.sigma_w if stationary and signal > 0 else math.sqrt(q)


def _ensemble(
    name: str | None,
    init: str,
    depth: int,
    variances: Variances,
    residual: float | None,
    widths: tuple[int, ...] | None,
) -> Ensemble | None:
    if name is None or init == "mirrored" or variances.sigma_w == 0:
        return None
    return Ensemble(
        name,
        depth,
        weights="gaussian" if init == "gaussian" else "orthogonal",
        sigma_w=variances.sigma_w,
        sigma_b=variances.sigma_b,
        q_star=None if residual is not None else variances.q_star,
        residual=residual,
        widths=widths,
    )


def _ensemble_arguments(
    ensemble: Ensemble, names: dict[str, str], options: dict[str, Any], *, widths_allowed: bool = False
) -> dict[str, Any]:
    if not isinstance(ensemble.weights, str):
        raise InputError(
            "a reference network has one weight law for all layers; this ensemble names one per layer."
        )
    if ensemble.readout:
        raise InputError("a read-out is the head of a network: drop readout and give num_classes.")
    if ensemble.widths is not None and not widths_allowed:
        raise InputError(
            f"a convolutional trunk has one width, this ensemble has {ensemble.widths}; use MLP."
        )
    sigma_w, sigma_b, q_star = ensemble.sigma_w, ensemble.sigma_b, ensemble.q_star
    if q_star is not None and sigma_w is not None:
        if sigma_b is None:
            raise InputError(
                "this ensemble gives sigma_w and q_star, and leaves sigma_b to be solved for: give sigma_b too."
            )
        q_star = None
    init = options.pop("init", names.get(ensemble.weights, ensemble.weights))
    if (init == "gaussian") != (ensemble.weights == "gaussian"):
        raise InputError(f"init {init!r} does not draw the {ensemble.weights} law of this ensemble.")
    return {
        "depth": ensemble.depth, "activation": ensemble.activation_name, "init": init,
        "sigma_w": sigma_w, "sigma_b": sigma_b, "q_star": q_star, **options,
    }  # fmt: skip


def _residual_strength(residual: float | None, depth: int) -> float:
    if residual is None:
        _require_positive("depth", depth)
        return 1.0 / math.sqrt(depth)
    if not math.isfinite(residual) or residual == 0:
        raise InputError(f"residual must be a finite number other than zero, got {residual!r}.")
    return float(residual)


def _generator(generator: torch.Generator | None, seed: int | None) -> torch.Generator | None:
    if seed is None:
        return generator
    if generator is not None:
        raise InputError("give a seed or a generator, not both.")
    return torch.Generator().manual_seed(seed)


def _require_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a whole number of one or more, got {value!r}.")


def _widths(width: int | Sequence[int], depth: int) -> tuple[int, ...]:
    widths = (width,) * (depth + 1) if isinstance(width, int) else tuple(width)
    if len(widths) != depth + 1:
        raise InputError(f"width must be one number or depth + 1 = {depth + 1} numbers, got {len(widths)}.")
    for entry in widths:
        _require_positive("width", entry)
    return widths


def _equal_runs(widths: tuple[int, ...]) -> list[tuple[int, int]]:
    """(first, last) layer ranges of equal shape, split so that one batch of matrices stays within memory."""
    runs: list[tuple[int, int]] = []
    start = 0
    for layer in range(1, len(widths)):
        if layer == len(widths) - 1 or widths[layer : layer + 2] != widths[start : start + 2]:
            parts = laws.chunks(layer - start, widths[start] * widths[start + 1])
            runs += [(start + part.start, start + part.stop) for part in parts]
            start = layer
    return runs


def _map_size(image_size: int | tuple[int, int] | None, strides: Sequence[int]) -> tuple[int, int]:
    if image_size is None:
        raise InputError(
            'a head that flattens needs to know the map: give image_size (height and width), or head="pool".'
        )
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    for stride in strides:
        height, width = -(-height // stride), -(-width // stride)
    _require_positive("image_size", height)
    _require_positive("image_size", width)
    return height, width
