"""Built-in MODEL specs: `vanilla-cnn:depth=32,channels=16,...`, `mlp:depth=...,width=...`, `resnet:...`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from isometry.errors import InputError, SpecError
from isometry.nn.options import NETWORKS

if TYPE_CHECKING:
    from torch import nn


def parse_settings(kind: str, text: str) -> dict[str, Any]:
    """The settings after the colon, over the defaults of that kind."""
    return {**NETWORKS[kind].defaults, **given_settings(kind, text)}


def given_settings(kind: str, text: str) -> dict[str, Any]:
    """The settings after the colon alone.

    Raises
    ------
    SpecError
        An unknown key, a key given twice, or a value that is not of the key's type.
    """
    network = NETWORKS[kind]
    given: dict[str, Any] = {}
    for part in (piece.strip() for piece in text.split(",")):
        if not part:
            continue
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals:
            raise SpecError(f"{kind}: {part!r} is not a setting; write key=value. Keys: {network.help}")
        if key not in network.options:
            raise SpecError(f"{kind} has no setting {key!r}. Its keys: {', '.join(network.options)}")
        if key in given:
            raise SpecError(f"{kind}: {key} is given twice")
        try:
            given[key] = network.options[key].read(value.strip())
        except ValueError:
            wanted = network.options[key].type_in_words
            raise SpecError(f"{kind}: {key} is {wanted}; got {value.strip()!r}") from None
    return given


def settings_text(settings: Mapping[str, Any]) -> str:
    """The settings as the text that `given_settings` reads."""
    return ",".join(f"{key}={value}" for key, value in settings.items())


def build(kind: str, settings: Mapping[str, Any]) -> tuple[nn.Module, tuple[int, ...]]:
    """The network, and the shape of one of its inputs.

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
        model: nn.Module = getattr(networks, NETWORKS[kind].class_name)(**arguments)
    except InputError as error:
        raise SpecError(f"{kind}: {error}") from error
    if size is None:
        return model, (settings.get("in_features") or settings["width"],)
    return model, (settings.get("in_channels") or settings["channels"], size, size)
