"""Built-in MODEL specs: `vanilla-cnn:depth=32,channels=16,...`, `mlp:depth=...,width=...`, `resnet:...`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from isometry.errors import InputError, SpecError

if TYPE_CHECKING:
    from torch import nn


def _integer(text: str) -> int:
    return int(text)


def _strides(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("x"))


Reader = Callable[[str], Any]
_WORDS: Mapping[type, str] = {int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class BuiltIn:
    """A reference network: its class in isometry.nn, its keys with their types, and the values they have unsaid."""

    class_name: str
    keys: Mapping[str, type]
    defaults: Mapping[str, Any]

    @property
    def help(self) -> str:
        """The keys as the user writes them, with their defaults."""
        return ",".join(f"{key}={self.defaults[key]}" if key in self.defaults else key for key in self.keys)


_VARIANCES: Mapping[str, type] = {"sigma_w": float, "sigma_b": float, "q_star": float}
_CONVOLUTION: Mapping[str, type] = {
    "depth": int, "channels": int, "size": int, "activation": str, "init": str, **_VARIANCES,
    "kernel_size": int, "in_channels": int, "num_classes": int, "head": str, "seed": int,
}  # fmt: skip

BUILT_IN: Mapping[str, BuiltIn] = {
    "vanilla-cnn": BuiltIn(
        "VanillaCNN",
        _CONVOLUTION,
        {"depth": 32, "channels": 16, "size": 8, "activation": "tanh", "init": "delta_orthogonal", "seed": 0},
    ),
    "mlp": BuiltIn(
        "MLP",
        {
            "depth": int, "width": int, "activation": str, "init": str, **_VARIANCES,
            "residual": float, "in_features": int, "num_classes": int, "seed": int,
        },
        {"depth": 32, "width": 128, "activation": "tanh", "init": "orthogonal", "seed": 0},
    ),
    "resnet": BuiltIn(
        "ResNet",
        {**_CONVOLUTION, "residual": float},
        {"depth": 32, "channels": 16, "size": 8, "activation": "relu", "init": "delta_orthogonal", "seed": 0},
    ),
}  # fmt: skip


def parse_settings(kind: str, text: str) -> dict[str, Any]:
    """The settings after the colon, over the defaults of that kind."""
    return {**BUILT_IN[kind].defaults, **given_settings(kind, text)}


def given_settings(kind: str, text: str) -> dict[str, Any]:
    """The settings after the colon alone.

    Raises
    ------
    SpecError
        An unknown key, a key given twice, or a value that is not of the key's type.
    """
    built_in = BUILT_IN[kind]
    given: dict[str, Any] = {}
    for part in (piece.strip() for piece in text.split(",")):
        if not part:
            continue
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals:
            raise SpecError(f"{kind}: {part!r} is not a setting; write key=value. Keys: {built_in.help}")
        if key not in built_in.keys:
            raise SpecError(f"{kind} has no setting {key!r}. Its keys: {', '.join(built_in.keys)}")
        if key in given:
            raise SpecError(f"{kind}: {key} is given twice")
        try:
            given[key] = built_in.keys[key](value.strip())
        except ValueError:
            wanted = _WORDS.get(built_in.keys[key], "text")
            raise SpecError(f"{kind}: {key} is {wanted}; got {value.strip()!r}") from None
    return given


def settings_text(settings: Mapping[str, Any]) -> str:
    """The text that `given_settings` reads back."""
    return ",".join(f"{key}={value}" for key, value in settings.items())


def build(kind: str, settings: Mapping[str, Any]) -> tuple[nn.Module, tuple[int, ...]]:
    """(the network, the shape of one of its inputs).

    Raises
    ------
    SpecError
        Where the network's class refuses the settings.
    """
    from isometry import nn as networks

    arguments = dict(settings)
    size = arguments.pop("size", None)
    if size is not None and size < 1:
        raise SpecError(f"{kind}: size is at least 1; got {size}")
    if arguments.get("num_classes") is not None and size is not None:
        arguments["image_size"] = size
    try:
        model: nn.Module = getattr(networks, BUILT_IN[kind].class_name)(**arguments)
    except InputError as error:
        raise SpecError(f"{kind}: {error}") from error
    if size is None:
        return model, (settings.get("in_features") or settings["width"],)
    return model, (settings.get("in_channels") or settings["channels"], size, size)
