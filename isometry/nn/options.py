"""Settings of the reference networks: one table for MODEL strings, grid keys, command-line options and constructors.

A constructor names its parameters in its signature. All else that is said of a setting (type, range, choices, help, the
default where a text names the network) stands in `NETWORKS` alone. Nothing here imports torch: the help of the command
line reads this table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

DENSE_INITS = ("orthogonal", "gaussian", "mirrored")
CONVOLUTION_INITS = ("delta_orthogonal", "orthogonal_conv", "gaussian", "mirrored")
HEADS = ("flatten", "pool")


@dataclass(frozen=True)
class Option:
    """One setting.

    Parameters
    ----------
    name : str
    type : type
        int, float, bool or str.
    help : str
        One sentence for the command line.
    metavar : str
        Its value in the help.
    least : float, optional
        Smallest value, excluded if ``above``.
    choices : tuple of str
        All values of a text, where they are few.
    in_theory : bool
        Whether it changes the law of an infinitely wide network.
    """

    name: str
    type: type
    help: str = ""
    metavar: str = ""
    least: float | None = None
    above: bool = False
    choices: tuple[str, ...] = ()
    in_theory: bool = False

    def read(self, text: str) -> Any:
        """The value that a text stands for; ValueError where it is none of the type."""
        return self.type(text)

    @property
    def type_in_words(self) -> str:
        """The type as an error message names it."""
        return {int: "a whole number", float: "a number", bool: "true or false"}.get(self.type, "text")


@dataclass(frozen=True)
class ReferenceNetwork:
    """A network that a text can name: its class in `isometry.nn`, its settings, and their defaults in a text."""

    class_name: str
    options: Mapping[str, Option]
    defaults: Mapping[str, Any]

    @property
    def help(self) -> str:
        """The settings as the user writes them, with their defaults."""
        return ",".join(
            f"{key}={self.defaults[key]}" if key in self.defaults else key for key in self.options
        )


def either(words: Iterable[str]) -> str:
    """The words as a list in prose: "a, b or c"."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


_DEPTH = Option("depth", int, "Layers of the trunk.", "L", least=1, in_theory=True)
_ACTIVATION = Option(
    "activation", str, "tanh, relu, leaky_relu(0.2), hard_tanh, erf, gelu, ...", "NAME", in_theory=True
)
_VARIANCES = (
    Option(
        "sigma_w", float, "Standard deviation of the weights, times sqrt(fan_in).", "SIGMA",
        least=0, above=True, in_theory=True,
    ),
    Option("sigma_b", float, "Standard deviation of the biases.", "SIGMA", least=0, in_theory=True),
    Option(
        "q_star", float, "Stationary variance of the pre-activations: the critical point that has it.", "Q",
        least=0, above=True, in_theory=True,
    ),
)  # fmt: skip
_CLASSES = Option("num_classes", int, "Classes of a linear head; without it there is none.", "N", least=1)
_RESIDUAL = Option(
    "residual", float, "Strength of a residual branch, x + A phi(W x + b).", "A", in_theory=True
)
_SEED = Option("seed", int, "Seed of the weights.", "N", least=0)


def _init(choices: tuple[str, ...]) -> Option:
    return Option("init", str, f"{either(choices)}.", "LAW", choices=choices, in_theory=True)


def _table(*options: Option) -> Mapping[str, Option]:
    return {option.name: option for option in options}


# The order is that of the settings in the names of a sweep's points: a new setting goes to the end.
_CONVOLUTION = (
    _DEPTH,
    Option("channels", int, "Channels of the trunk.", "C", least=1),
    Option("size", int, "Height and width of the input map.", "N", least=1),
    _ACTIVATION,
    _init(CONVOLUTION_INITS),
    *_VARIANCES,
    Option("kernel_size", int, "Taps of a kernel along each axis.", "K", least=1),
    Option("in_channels", int, "Channels of the image; without it there is no stem.", "N", least=1),
    _CLASSES,
    Option("head", str, f"{either(HEADS)}: what the head reads of the last map.", "KIND", choices=HEADS),
    _SEED,
)

NETWORKS: Mapping[str, ReferenceNetwork] = {
    "vanilla-cnn": ReferenceNetwork(
        "VanillaCNN",
        _table(*_CONVOLUTION),
        {"depth": 32, "channels": 16, "size": 8, "activation": "tanh", "init": "delta_orthogonal", "seed": 0},
    ),
    "mlp": ReferenceNetwork(
        "MLP",
        _table(
            _DEPTH,
            Option("width", int, "Units of a layer.", "N", least=1),
            _ACTIVATION,
            _init(DENSE_INITS),
            *_VARIANCES,
            _RESIDUAL,
            Option("in_features", int, "Numbers of an input; without it there is no stem.", "N", least=1),
            _CLASSES,
            _SEED,
        ),
        {"depth": 32, "width": 128, "activation": "tanh", "init": "orthogonal", "seed": 0},
    ),
    "resnet": ReferenceNetwork(
        "ResNet",
        _table(*_CONVOLUTION, _RESIDUAL),
        {"depth": 32, "channels": 16, "size": 8, "activation": "relu", "init": "delta_orthogonal", "seed": 0},
    ),
}
