"""`Network`: stem, trunk and head of a reference network. `Design`: how its weights are drawn. Internal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isometry.errors import InputError
from isometry.nn import kernels as laws
from isometry.nn.activations import activation_name, make_activation
from isometry.nn.layers import ConvolutionLayer, DenseLayer, Trunk
from isometry.nn.variances import Variances, choose_variances, is_homogeneous, mirrored_gain
from isometry.theory.ensemble import Ensemble


@dataclass(frozen=True)
class Design:
    """What the layers of a reference network have in common, and how their weights are drawn.

    ``activation`` makes the activation modules and ``name`` is what the theory calls them, None where it does not know
    them. ``placed`` is the dtype and the device of the parameters; draws are float64 before they are converted.
    """

    depth: int
    init: str
    activation: Callable[[], nn.Module]
    name: str | None
    variances: Variances
    generator: torch.Generator | None
    placed: dict[str, Any]

    @classmethod
    def of(
        cls,
        depth: int,
        activation: str | nn.Module,
        init: str,
        known_inits: tuple[str, ...],
        *,
        sigma_w: float | None,
        sigma_b: float | None,
        q_star: float | None,
        generator: torch.Generator | None,
        seed: int | None,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
    ) -> Design:
        """The design that these arguments of a constructor ask for; InputError where they contradict each other."""
        factory = make_activation(activation)
        name = activation_name(factory())
        variances = network_variances(init, known_inits, name, sigma_w, sigma_b, q_star, depth)
        placed = {"dtype": dtype or torch.get_default_dtype(), "device": device}
        return cls(depth, init, factory, name, variances, seeded_generator(generator, seed), placed)

    @property
    def first_variance(self) -> float:
        """Variance that a stem gives to its pre-activations: q* where there is one."""
        if self.variances.q_star is not None:
            return self.variances.q_star
        return 1.0 if self._is_homogeneous else 1.0 / self.depth

    @property
    def feature_scale(self) -> float:
        """Root mean square of phi(h), from the fixed point q = sigma_w^2 E phi^2 + sigma_b^2 where it holds."""
        q = self.first_variance
        signal = q - self.variances.sigma_b**2
        stationary = self.variances.q_star is not None or self._is_homogeneous
        return math.sqrt(signal) / self.variances.sigma_w if stationary and signal > 0 else math.sqrt(q)

    @property
    def _is_homogeneous(self) -> bool:
        return self.name is not None and is_homogeneous(self.name)

    def layers(
        self,
        kind: Callable[..., nn.Module],
        count: int,
        outputs: int,
        inputs: int,
        taps: tuple[int, ...] = (),
        *,
        profile: Tensor | Sequence[float] | None = None,
    ) -> list[nn.Module]:
        """`count` layers of one shape, of the class `kind`, their weights drawn many at a time."""
        found: list[nn.Module] = []
        for part in laws.chunks(count, outputs * inputs * math.prod(taps)):
            kernels = self._kernels(len(part), outputs, inputs, taps, profile)
            kernels = kernels.mul_(self.variances.sigma_w).to(**self.placed)
            biases = laws.normal((len(part), outputs), generator=self.generator) * self.variances.sigma_b
            found += [
                # A clone of its own for each layer: views of one block would all be saved with any one of them.
                kind(kernel.clone(), bias.clone(), activation=self.activation())
                for kernel, bias in zip(kernels.unbind(0), biases.to(**self.placed).unbind(0), strict=True)
            ]
        return found

    def _kernels(
        self,
        count: int,
        outputs: int,
        inputs: int,
        taps: tuple[int, ...],
        profile: Tensor | Sequence[float] | None,
    ) -> Tensor:
        """(count, outputs, inputs, *taps) kernels of unit sigma_w, float64."""
        if self.init == "gaussian":
            return laws.gaussian_kernels(
                count, outputs, inputs, taps, profile=profile, generator=self.generator
            )
        law = {
            "orthogonal": laws.delta_orthogonal_kernels,
            "delta_orthogonal": laws.delta_orthogonal_kernels,
            "orthogonal_conv": laws.orthogonal_convolution_kernels,
            "mirrored": laws.mirrored_kernels,
        }[self.init]
        return law(count, outputs, inputs, taps, generator=self.generator)

    def gaussian_weight(self, outputs: int, inputs: int, taps: tuple[int, ...], sigma_w: float) -> Tensor:
        """One Gaussian weight of a stem or a head."""
        weight = laws.gaussian_kernels(1, outputs, inputs, taps, generator=self.generator)[0] * sigma_w
        return weight.to(**self.placed)

    def head(self, features: int, num_classes: int) -> nn.Linear:
        """Linear layer of variance 1/fan_in and zero bias, as in the authors' demonstration of arXiv 1806.05393."""
        require_positive("num_classes", num_classes)
        head = nn.Linear(features, num_classes, device="meta")
        head.weight = nn.Parameter(self.gaussian_weight(num_classes, features, (), 1.0))
        head.bias = nn.Parameter(torch.zeros(num_classes, **self.placed))
        return head


class Network(nn.Module):
    """Stem, trunk and head of a reference network."""

    def __init__(
        self,
        design: Design,
        stem: nn.Module | None,
        layers: Sequence[nn.Module],
        head: nn.Module | None,
        *,
        head_kind: str = "flatten",
        feature_axes: int,
        widths: tuple[int, ...] | None = None,
        checkpoint_segments: int | None = None,
    ) -> None:
        super().__init__()
        variances = design.variances
        self.stem = stem
        self.trunk = Trunk(*layers, checkpoint_segments=checkpoint_segments)
        self.head = head
        self.ensemble = trunk_ensemble(design.name, design.init, design.depth, variances, None, widths)
        self.sigma_w = variances.sigma_w
        self.sigma_b = variances.sigma_b
        self.q_star = variances.q_star
        self.feature_scale = design.feature_scale
        self.head_kind = head_kind
        self._first_variance = design.first_variance
        self._feature_axes = feature_axes

    def _add_branches(self, residual: float) -> None:
        """Turn every layer phi(h) into x + a phi(h); the weights stay."""
        for layer in self.trunk:
            assert isinstance(layer, ConvolutionLayer | DenseLayer)
            layer.residual = residual
        if self.ensemble is not None:
            self.ensemble = replace(self.ensemble, q_star=None, residual=residual)
        if self.head is not None:
            self.feature_scale = self._residual_feature_scale(residual)

    def _residual_feature_scale(self, residual: float) -> float:
        """Root mean square of x_L in a residual trunk whose input is phi(h), h of the first layer's variance.

        E x_l^2 = E x_{l-1}^2 + 2 a E x_{l-1} E phi(h_l) + a^2 E phi(h_l)^2, Var h_l = sigma_w^2 E x_{l-1}^2 + sigma_b^2
        (Yang and Schoenholz 2017, arXiv 1712.08969). A phi with a mean, such as ReLU, adds it up coherently: the signal
        then grows like exp(const sqrt(depth)) even for a = 1/sqrt(depth).
        """
        nodes, weights = np.polynomial.hermite_e.hermegauss(64)
        z, mass = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
        first = self.trunk[0]
        assert isinstance(first, ConvolutionLayer | DenseLayer)

        def moments(variance: float) -> tuple[float, float]:
            values = first.activation(math.sqrt(variance) * z).double()
            return float(mass @ values), float(mass @ values**2)

        with torch.no_grad():
            mean, square = moments(self._first_variance)
            for _ in range(self.depth):
                branch, branch_square = moments(self.sigma_w**2 * square + self.sigma_b**2)
                square += 2 * residual * mean * branch + residual**2 * branch_square
                mean += residual * branch
                if not 0 < square < 1e70:  # float32 holds numbers up to 3e38
                    raise InputError(
                        f"the signal of this residual network grows to a mean square of {square:.3g}: take a smaller "
                        f"residual than {residual:.3g}, such as 1/sqrt(depth), or an odd activation such as tanh."
                    )
        return math.sqrt(square)

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


def network_variances(
    init: str,
    known: tuple[str, ...],
    name: str | None,
    sigma_w: float | None,
    sigma_b: float | None,
    q_star: float | None,
    depth: int,
) -> Variances:
    """Variances of a network by its law: mirrored layers have a gain of their own, others their critical point."""
    if init not in known:
        raise InputError(f"init must be one of {', '.join(known)}, got {init!r}.")
    if init != "mirrored":
        return choose_variances(name, sigma_w=sigma_w, sigma_b=sigma_b, q_star=q_star, depth=depth)
    if q_star is not None:
        raise InputError(
            "a mirrored network is linear at any variance, so q_star does not apply; leave it out."
        )
    if name is None:
        raise InputError("mirrored kernels are for ReLU and leaky ReLU; this activation has no name.")
    gain = mirrored_gain(name)  # raises for other activations, whatever sigma_w is
    sigma_w = gain if sigma_w is None else sigma_w
    return choose_variances(name, sigma_w=sigma_w, sigma_b=sigma_b, q_star=None, depth=depth)


def trunk_ensemble(
    name: str | None,
    init: str,
    depth: int,
    variances: Variances,
    residual: float | None,
    widths: tuple[int, ...] | None,
) -> Ensemble | None:
    """The trunk as an `Ensemble`; None where the theory does not know the law or the activation."""
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


def arguments_of_ensemble(
    ensemble: Ensemble, names: dict[str, str], options: dict[str, Any], *, widths_allowed: bool = False
) -> dict[str, Any]:
    """Constructor arguments that draw a network from an ensemble; `names` translates its weight laws."""
    if not ensemble.is_uniform or not isinstance(ensemble.weights, str):
        raise InputError(
            "a reference network has one activation, weight law, sigma_w and sigma_b for all layers; this ensemble "
            "names some per layer."
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


def residual_strength(residual: float | None, depth: int) -> float:
    """The given strength, or 1/sqrt(depth)."""
    if residual is None:
        require_positive("depth", depth)
        return 1.0 / math.sqrt(depth)
    if not math.isfinite(residual) or residual == 0:
        raise InputError(f"residual must be a finite number other than zero, got {residual!r}.")
    return float(residual)


def seeded_generator(generator: torch.Generator | None, seed: int | None) -> torch.Generator | None:
    """The given generator, or a new CPU one with the given seed."""
    if seed is None:
        return generator
    if generator is not None:
        raise InputError("give a seed or a generator, not both.")
    # PyTorch's generators take 64 bits, and read a negative number as 2^64 less.
    if not 0 <= seed < 2**64:
        raise InputError(f"the seed of a network is a whole number of at least 0 and below 2^64; got {seed}.")
    return torch.Generator().manual_seed(seed)


def require_positive(name: str, value: object) -> None:
    """Raise InputError unless `value` is a whole number of one or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a whole number of one or more, got {value!r}.")
