"""Activations by name: from a name to a torch module, and back from a module to the name the theory knows.

Names and modules are those of `isometry.theory.activations.TORCH_MODULES` (``"tanh"``, ``"relu"``, ...), so that one
string builds the network and predicts its spectrum.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from isometry.errors import InputError
from isometry.theory.activations import ALIASES, TORCH_MODULES

_CALL = re.compile(r"^(?P<name>\w+)\((?P<argument>[^()]*)\)$")


class Erf(nn.Module):
    """phi(h) = erf(scale h); scale = 1 is ``"erf"``, scale = sqrt(pi)/2 (unit slope at zero) ``"erf_scaled"``."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = float(scale)

    def forward(self, x: Tensor) -> Tensor:
        """erf(scale x), elementwise."""
        return torch.erf(x if self.scale == 1.0 else self.scale * x)

    def extra_repr(self) -> str:
        """The scale, for the printed module."""
        return f"scale={self.scale:.6g}"


_MODULES: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    name: (Erf if module == "Erf" else getattr(nn, module), arguments)
    for name, (module, arguments) in TORCH_MODULES.items()
}

ACTIVATION_NAMES = tuple(_MODULES)

# Elementwise modules without parameters. `critical_init_` refuses those that have no name above.
ACTIVATION_MODULES: tuple[type[nn.Module], ...] = (
    Erf,
    *(
        nn.ReLU, nn.LeakyReLU, nn.Hardtanh, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.Softplus,
        nn.ReLU6, nn.RReLU, nn.PReLU, nn.CELU, nn.Mish, nn.Softsign, nn.Hardsigmoid, nn.Hardswish, nn.LogSigmoid,
        nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.GLU,
    ),
)  # fmt: skip


def make_activation(activation: str | nn.Module) -> Callable[[], nn.Module]:
    """Factory of activation modules: each call gives a new one, so that every layer has its own to be named.

    Parameters
    ----------
    activation : str or torch.nn.Module
        A name of `ACTIVATION_NAMES`, ``"leaky_relu(slope)"``, or a module without parameters, which all layers
        then share.

    Raises
    ------
    InputError
        When the name is not known, or the slope is not a number.
    """
    if isinstance(activation, nn.Module):
        module = activation
        return lambda: module
    if not isinstance(activation, str):
        raise InputError(
            f"activation must be a name or a torch.nn.Module, got {type(activation).__name__}; "
            f"the names are {', '.join(ACTIVATION_NAMES)}."
        )
    called = _CALL.match(activation.replace(" ", ""))
    if called and called["name"] == "leaky_relu":
        try:
            slope = float(called["argument"])
        except ValueError:
            raise InputError(f"the slope in {activation!r} is not a number; write leaky_relu(0.2).") from None
        return lambda: nn.LeakyReLU(slope)
    activation = ALIASES.get(activation, activation)
    if activation not in _MODULES:
        raise InputError(
            f"unknown activation {activation!r}: the names are {', '.join(ACTIVATION_NAMES)} "
            "(and leaky_relu(slope)). For another function pass a torch.nn.Module, with sigma_w."
        )
    kind, arguments = _MODULES[activation]
    return lambda: kind(**arguments)


def activation_name(module: nn.Module) -> str | None:
    """Name of a module's function in `isometry.theory.activations`; None when the theory has no name for it."""
    if isinstance(module, nn.LeakyReLU):
        return f"leaky_relu({module.negative_slope!r})"
    for name, (kind, arguments) in _MODULES.items():
        if type(module) is kind and all(
            _same(getattr(module, key), value) for key, value in arguments.items()
        ):
            return name
    return None


def _same(value: object, wanted: object) -> bool:
    if isinstance(value, float) and isinstance(wanted, float):
        return math.isclose(value, wanted)
    return value == wanted
