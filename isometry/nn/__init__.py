"""Initialisers and reference networks: how a network is brought to isometry.

Names are loaded when they are first used: `isometry.nn.options`, which the help of the command line reads, does without
torch. `isometry.nn.init` holds the initialisers.

Names that are not in `__all__` are internal.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isometry.nn import init
    from isometry.nn.layers import ConvolutionLayer, DenseLayer, Trunk
    from isometry.nn.mlp import MLP
    from isometry.nn.models import ResNet, VanillaCNN

_HOMES = {
    "MLP": "isometry.nn.mlp",
    "ConvolutionLayer": "isometry.nn.layers",
    "DenseLayer": "isometry.nn.layers",
    "ResNet": "isometry.nn.models",
    "Trunk": "isometry.nn.layers",
    "VanillaCNN": "isometry.nn.models",
}

__all__ = ["MLP", "ConvolutionLayer", "DenseLayer", "ResNet", "Trunk", "VanillaCNN", "init"]


def __getattr__(name: str) -> Any:
    if name == "init":
        return import_module("isometry.nn.init")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
