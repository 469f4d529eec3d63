"""Initialisers and reference networks: how a network is brought to isometry.

Names are loaded when they are first used: `isometry.nn.options`, which the help of the command line reads, does without
torch. `isometry.nn.init` holds the initialisers, `isometry.nn.parametrize` what keeps a kernel orthogonal in training.

Names that are not in `__all__` are internal.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isometry.nn import init, parametrize
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

_MODULES = ("init", "parametrize")

__all__ = ["MLP", "ConvolutionLayer", "DenseLayer", "ResNet", "Trunk", "VanillaCNN", "init", "parametrize"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
