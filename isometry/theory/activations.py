"""Activation functions phi: function, derivative, kinks, slopes where linear by pieces, and the torch module.

A new named activation needs an entry in `_NAMED` and one in `TORCH_MODULES`, where torch has a module. The named
functions and their derivatives neither overflow nor cancel where their values are floats. Any other function of arrays
can be used through `get_activation`, with its derivative or without.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isometry.errors import InputError, TheoryError
from isometry.theory.derivatives import checked_values, derivative_disagrees, numerical_derivative
from isometry.theory.kinks import find_kinks, linear_slopes, vertical_tangent

__all__ = ["ACTIVATION_NAMES", "ALIASES", "TORCH_MODULES", "Activation", "get_activation", "leaky_relu"]

Array = NDArray[np.float64]
ArrayFunction = Callable[[Array], Array]

SELU_SCALE = 1.0507009873554804934193349852946
SELU_ALPHA = 1.6732632423543772848170429916717
DEFAULT_LEAK = 0.01


@dataclass(frozen=True)
class Activation:
    """An elementwise function phi with its derivative, kinks and slopes.

    Parameters
    ----------
    name : str
        Name in messages, files and figures.
    function, derivative : callable
        phi and phi', each from an (n,) float64 array to an (n,) float64 array.
    kinks : tuple of float
        Points, increasing, where phi' or a higher derivative jumps (0 for ELU, whose phi'' does).
    slopes : tuple of float or None
        For activations linear by pieces only: the slope on each of the ``len(kinks) + 1`` pieces, so that
        D^2 = phi'^2 takes finitely many values. None otherwise.
    """

    name: str
    function: ArrayFunction
    derivative: ArrayFunction
    kinks: tuple[float, ...] = ()
    slopes: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinks", tuple(float(kink) for kink in self.kinks))
        if any(not math.isfinite(kink) for kink in self.kinks) or list(self.kinks) != sorted(set(self.kinks)):
            raise InputError(f"kinks must be finite and increasing; got {self.kinks}.")
        if self.slopes is not None:
            object.__setattr__(self, "slopes", tuple(float(slope) for slope in self.slopes))
            if len(self.slopes) != len(self.kinks) + 1:
                raise InputError(
                    f"slopes holds one number per piece, {len(self.kinks) + 1} for {len(self.kinks)} kinks; "
                    f"got {len(self.slopes)}."
                )

    @property
    def is_homogeneous(self) -> bool:
        """Whether phi(a h) = a phi(h) for a > 0 (linear, ReLU, leaky ReLU): then no variance is distinguished."""
        if self.slopes is None or self.kinks not in ((), (0.0,)):
            return False
        return float(self.function(np.zeros(1))[0]) == 0.0


def without_rounding(activation: Activation) -> ArrayFunction:
    """phi, built from phi(0), slopes and kinks where it is linear by pieces, so that small values keep their digits.

    A function such as F(h) - F(0) is rounding where it vanishes, and averages over a flat piece are made of it.
    """
    if activation.slopes is None:
        return activation.function
    slopes, kinks = np.array(activation.slopes), np.array(activation.kinks)
    start = float(activation.function(np.zeros(1))[0])
    middle = int(np.searchsorted(kinks, 0.0))
    # Each piece has its value at its end next to zero.
    places, values = np.zeros(slopes.size), np.full(slopes.size, start)
    for piece in range(middle + 1, slopes.size):
        places[piece] = kinks[piece - 1]
        values[piece] = values[piece - 1] + slopes[piece - 1] * (places[piece] - places[piece - 1])
    for piece in range(middle - 1, -1, -1):
        places[piece] = kinks[piece]
        values[piece] = values[piece + 1] + slopes[piece + 1] * (places[piece] - places[piece + 1])

    def function(h: Array) -> Array:
        piece = np.searchsorted(kinks, h)
        return np.asarray(values[piece] + slopes[piece] * (h - places[piece]))

    return function


def _special(name: str, h: Array) -> Array:
    # Late: building a network looks names up here and needs no scipy.
    from scipy import special

    return getattr(special, name)(h)


_erf, _normal_cdf, _logistic = (partial(_special, name) for name in ("erf", "ndtr", "expit"))


def _tanh_derivative(h: Array) -> Array:
    # 1 - tanh^2 has no digits left at |h| = 18; this one has all of them until it underflows.
    decay = np.exp(-2.0 * np.abs(h))
    return 4.0 * decay / (1.0 + decay) ** 2


def _erf_derivative(h: Array) -> Array:
    return 2.0 / math.sqrt(math.pi) * np.exp(-h * h)


def _scaled_erf(h: Array) -> Array:
    return _erf(math.sqrt(math.pi) / 2.0 * h)


def _scaled_erf_derivative(h: Array) -> Array:
    return np.exp(-math.pi / 4.0 * h * h)


def _sigmoid_derivative(h: Array) -> Array:
    return _logistic(h) * _logistic(-h)


def _gelu(h: Array) -> Array:
    return h * _normal_cdf(h)


def _gelu_derivative(h: Array) -> Array:
    return _normal_cdf(h) + h * np.exp(-0.5 * h * h) / math.sqrt(2.0 * math.pi)


def _silu(h: Array) -> Array:
    return h * _logistic(h)


def _silu_derivative(h: Array) -> Array:
    return _logistic(h) * (1.0 + h * _logistic(-h))


def _elu(h: Array) -> Array:
    return np.where(h > 0, h, np.expm1(np.minimum(h, 0.0)))


def _elu_derivative(h: Array) -> Array:
    return np.where(h > 0, 1.0, np.exp(np.minimum(h, 0.0)))


def _selu(h: Array) -> Array:
    return SELU_SCALE * np.where(h > 0, h, SELU_ALPHA * np.expm1(np.minimum(h, 0.0)))


def _selu_derivative(h: Array) -> Array:
    return SELU_SCALE * np.where(h > 0, 1.0, SELU_ALPHA * np.exp(np.minimum(h, 0.0)))


def _softplus(h: Array) -> Array:
    return np.logaddexp(0.0, h)


def _mish(h: Array) -> Array:
    return h * np.tanh(_softplus(h))


def _mish_derivative(h: Array) -> Array:
    softplus = _softplus(h)
    return np.tanh(softplus) + h * _tanh_derivative(softplus) * _logistic(h)


def _softsign(h: Array) -> Array:
    return h / (1.0 + np.abs(h))


def _softsign_derivative(h: Array) -> Array:
    return 1.0 / (1.0 + np.abs(h)) ** 2


def _hard_swish(h: Array) -> Array:
    return h * _hard_sigmoid(h)


def _hard_swish_derivative(h: Array) -> Array:
    return np.where(np.abs(h) < 3.0, h / 3.0 + 0.5, np.where(h > 0, 1.0, 0.0))


def _hard_sigmoid(h: Array) -> Array:
    return np.clip(h, -3.0, 3.0) / 6.0 + 0.5


def _squared_relu(h: Array) -> Array:
    return np.maximum(h, 0.0) ** 2


def _squared_relu_derivative(h: Array) -> Array:
    return 2.0 * np.maximum(h, 0.0)


def _snake(h: Array) -> Array:
    return h + np.sin(h) ** 2


def _snake_derivative(h: Array) -> Array:
    return 1.0 + np.sin(2.0 * h)


def _linear(h: Array) -> Array:
    return np.array(h, dtype=np.float64)


def _relu(h: Array) -> Array:
    return np.maximum(h, 0.0)


def _plateau(h: Array, *, low: float, high: float, slope: float = 1.0) -> Array:
    return np.where((h > low) & (h < high), slope, 0.0)


def _leaky(h: Array, *, slope: float) -> Array:
    return np.where(h > 0, h, slope * h)


def _step(h: Array, *, below: float) -> Array:
    return np.where(h > 0, 1.0, below)


@lru_cache(maxsize=128)
def leaky_relu(slope: float = DEFAULT_LEAK) -> Activation:
    """Leaky ReLU with the given slope on negative h.

    Parameters
    ----------
    slope : float
        phi' for h < 0; any finite number (0 is ReLU, 1 linear, -1 the absolute value).

    Raises
    ------
    InputError
        When the slope is not finite.
    """
    if not math.isfinite(slope):
        raise InputError(f"the slope of a leaky ReLU must be finite; got {slope!r}.")
    value = float(slope)
    return Activation(
        f"leaky_relu({value!r})",
        partial(_leaky, slope=value),
        partial(_step, below=value),
        kinks=(0.0,),
        slopes=(value, 1.0),
    )


_NAMED: dict[str, Activation] = {
    activation.name: activation
    for activation in (
        Activation("linear", _linear, np.ones_like, slopes=(1.0,)),
        Activation("relu", _relu, partial(_step, below=0.0), kinks=(0.0,), slopes=(0.0, 1.0)),
        Activation(
            "relu6", partial(np.clip, a_min=0.0, a_max=6.0), partial(_plateau, low=0.0, high=6.0),
            kinks=(0.0, 6.0), slopes=(0.0, 1.0, 0.0),
        ),
        Activation(
            "hard_tanh", partial(np.clip, a_min=-1.0, a_max=1.0), partial(_plateau, low=-1.0, high=1.0),
            kinks=(-1.0, 1.0), slopes=(0.0, 1.0, 0.0),
        ),
        Activation(
            "hard_sigmoid", _hard_sigmoid, partial(_plateau, low=-3.0, high=3.0, slope=1.0 / 6.0),
            kinks=(-3.0, 3.0), slopes=(0.0, 1.0 / 6.0, 0.0),
        ),
        Activation("tanh", np.tanh, _tanh_derivative),
        Activation("erf", _erf, _erf_derivative),
        Activation("erf_scaled", _scaled_erf, _scaled_erf_derivative),
        Activation("sigmoid", _logistic, _sigmoid_derivative),
        Activation("gelu", _gelu, _gelu_derivative),
        Activation("silu", _silu, _silu_derivative),
        Activation("elu", _elu, _elu_derivative, kinks=(0.0,)),
        Activation("selu", _selu, _selu_derivative, kinks=(0.0,)),
        Activation("celu", _elu, _elu_derivative, kinks=(0.0,)),
        Activation("softplus", _softplus, _logistic),
        Activation("mish", _mish, _mish_derivative),
        Activation("hard_swish", _hard_swish, _hard_swish_derivative, kinks=(-3.0, 3.0)),
        Activation("softsign", _softsign, _softsign_derivative, kinks=(0.0,)),
        Activation("squared_relu", _squared_relu, _squared_relu_derivative, kinks=(0.0,)),
        Activation("sin", np.sin, np.cos),
        Activation("snake", _snake, _snake_derivative),
    )
}  # fmt: skip
# Other names in use; their activations carry the name above.
ALIASES = {"swish": "silu", "relu_squared": "squared_relu", "identity": "linear", "hardtanh": "hard_tanh"}
ACTIVATION_NAMES: tuple[str, ...] = (*_NAMED, "leaky_relu")

# The module of `torch.nn` (or `isometry.nn.activations.Erf`) that each name stands for, and its arguments.
TORCH_MODULES: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("Identity", {}),
    "relu": ("ReLU", {}),
    "leaky_relu": ("LeakyReLU", {"negative_slope": DEFAULT_LEAK}),
    "relu6": ("ReLU6", {}),
    "hard_tanh": ("Hardtanh", {"min_val": -1.0, "max_val": 1.0}),
    "hard_sigmoid": ("Hardsigmoid", {}),
    "tanh": ("Tanh", {}),
    "erf": ("Erf", {"scale": 1.0}),
    "erf_scaled": ("Erf", {"scale": math.sqrt(math.pi) / 2.0}),
    "sigmoid": ("Sigmoid", {}),
    "gelu": ("GELU", {"approximate": "none"}),
    "silu": ("SiLU", {}),
    "elu": ("ELU", {"alpha": 1.0}),
    "selu": ("SELU", {}),
    "celu": ("CELU", {"alpha": 1.0}),
    "softplus": ("Softplus", {"beta": 1.0}),
    "mish": ("Mish", {}),
    "hard_swish": ("Hardswish", {}),
    "softsign": ("Softsign", {}),
}

_LEAKY_PATTERN = re.compile(r"leaky_relu(?:\(\s*(?:slope\s*=\s*)?([^()\s]+)\s*\))?")


def get_activation(
    activation: str | Activation | Callable[..., object],
    *,
    derivative: ArrayFunction | None = None,
    kinks: Sequence[float] | None = None,
) -> Activation:
    """The activation of a name, or of a function of arrays.

    Parameters
    ----------
    activation : str, Activation or callable
        One of `ACTIVATION_NAMES`: ``linear, relu, relu6, leaky_relu`` or ``leaky_relu(0.2)`` (slope 0.01 unless given),
        ``hard_tanh, hard_sigmoid, tanh, sigmoid, gelu`` (exact, with the error function), ``silu`` (or ``swish``),
        ``elu, celu`` (alpha = 1), ``selu, softplus, mish, hard_swish, softsign, sin``, ``snake``, which is
        phi(h) = h + sin(h)^2, ``squared_relu`` (or ``relu_squared``), ``erf``, which is phi(h) = erf(h) with slope
        2/sqrt(pi) at 0, and ``erf_scaled``, which is phi(h) = erf(sqrt(pi) h / 2) with slope 1 at 0 (the convention of
        Pennington, Schoenholz, Ganguli 2018, arXiv 1802.09979). Or a function from (n,) float64 arrays to (n,) arrays.
        An `Activation` comes back as it is.
    derivative : callable, optional
        phi' of a function. Without it phi' is taken numerically: by the complex step, exact to rounding, where
        the function takes complex arrays and agrees there with its differences; otherwise by ninth-order
        differences, with an error near 1e-12 max|phi| for functions that vary on the scale of one.
    kinks : sequence of float, optional
        Where phi' (or a higher derivative) of a function jumps. Unless given, jumps of phi' and phi'' of more than 1e-3
        are looked for in |h| < 64, and a function that is linear between them is treated as exactly linear.

    Raises
    ------
    TheoryError
        When no activation has this name.
    InputError
        When the function does not map arrays elementwise to finite real numbers, when ``derivative`` is not its
        derivative, or when it is left out and unbounded next to a kink.
    """
    if isinstance(activation, str):
        if derivative is not None or kinks is not None:
            raise InputError(
                f"the named activation {activation!r} brings its own derivative and kinks; leave them out."
            )
        return _by_name(activation)
    if isinstance(activation, Activation):
        if derivative is not None or kinks is not None:
            raise InputError("an Activation brings its own derivative and kinks; leave them out.")
        return activation
    if not callable(activation):
        raise InputError(
            f"an activation is a name, an Activation or a function of arrays; got {type(activation).__name__}."
        )
    function = _as_float(activation)
    checked_values(function)
    points = find_kinks(function) if kinks is None else tuple(sorted({float(kink) for kink in kinks}))
    slopes = linear_slopes(function, points)
    if derivative is None:
        steep = vertical_tangent(function, points)
        if steep is not None:
            raise InputError(
                f"the derivative of the function is unbounded next to h = {steep[0]:.6g}, where the function runs like "
                f"|h - {steep[0]:.6g}|^{steep[1]:.3g}: it cannot be taken numerically"
                + (" and its mean square diverges." if steep[1] <= 0.5 else ". Give the exact derivative.")
            )
        slope = _as_float(numerical_derivative(activation, kinks=points))
    else:
        slope = _as_float(derivative)
        checked_values(slope, points)
        worst = derivative_disagrees(function, slope, points)
        if worst is not None:
            raise InputError(
                f"derivative is not the derivative of the function: at h = {worst[0]:.4g} it gives {worst[1]:.6g}, "
                f"differences of the function give {worst[2]:.6g}. Correct it, or leave it out to have it taken "
                "numerically."
            )
    name = getattr(activation, "__name__", type(activation).__name__)
    return Activation(name, function, slope, kinks=points, slopes=slopes)


@lru_cache(maxsize=128)
def has_unbounded_slope(activation: Activation) -> bool:
    """Whether |phi'| keeps growing far out (squared ReLU, powers, exp), as seen up to |h| = 1e8."""
    if activation.slopes is not None:
        return False
    near = np.concatenate([np.linspace(0.0, 64.0, 10_001), np.geomspace(64.0, 1e4, 4001)])
    far = np.geomspace(1e5, 1e8, 4001)
    with np.errstate(all="ignore"):
        largest, beyond = (
            float(np.nanmax(np.abs(activation.derivative(np.concatenate([-h, h]))), initial=0.0))
            for h in (near, far)
        )
    return not beyond <= 1.01 * largest < math.inf


def _as_float(function: Callable[..., object]) -> ArrayFunction:
    """The function with its values converted to float64 arrays."""

    def evaluate(h: Array) -> Array:
        # exp often overflows on the way to a finite value; values that are not finite are refused later.
        with np.errstate(all="ignore"):
            return np.asarray(function(h), dtype=np.float64)

    return evaluate


def _by_name(name: str) -> Activation:
    key = name.strip().lower()
    key = ALIASES.get(key, key)
    if key in _NAMED:
        return _NAMED[key]
    match = _LEAKY_PATTERN.fullmatch(key)
    if match:
        try:
            return leaky_relu(DEFAULT_LEAK if match[1] is None else float(match[1]))
        except ValueError:
            raise TheoryError(
                f"the slope in {name!r} is not a finite number; write for instance leaky_relu(0.2)."
            ) from None
    raise TheoryError(
        f"there is no activation named {name!r}. The names are {', '.join(ACTIVATION_NAMES)} "
        "(leaky_relu(0.2) sets the slope); any function of numpy arrays can be passed instead of a name."
    )
