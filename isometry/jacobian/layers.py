"""The named modules of a model, from which source= and target= choose, with the shapes that enter and leave them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isometry.errors import InputError

from .function import uncompiled
from .numerics import keeps_torch_state
from .placement import refuse_lazy_parameters
from .private_module import PrivateModule


@dataclass(frozen=True)
class LayerInfo:
    """One named module as it was called: shapes are None where no single tensor enters or leaves."""

    name: str
    kind: str
    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None
    parameters: int


@keeps_torch_state
def named_layers(
    model: nn.Module, x: Any = None, *, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
) -> list[LayerInfo]:
    """Every named module that runs on ``x``, in the order of first call, containers before what they hold.

    Parameters
    ----------
    model : nn.Module
    x, args, kwargs :
        The inputs as the model takes them, as for :class:`JacobianOperator`.
    """
    model = uncompiled(model)
    if not isinstance(model, nn.Module):
        raise InputError(f"layers are listed for an nn.Module; got {type(model).__name__}")
    refuse_lazy_parameters(model)
    inputs: dict[str, tuple[int, ...] | None] = {}
    outputs: dict[str, tuple[int, ...] | None] = {}

    def note_input(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
            inputs.setdefault(name, tuple(tensors[0].shape) if tensors else None)

        return hook

    def note_output(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, value: Any) -> None:
            outputs.setdefault(name, tuple(value.shape) if isinstance(value, Tensor) else None)

        return hook

    modules = {name: module for name, module in model.named_modules() if name}
    private = PrivateModule(model)
    for name, module in modules.items():
        part = private.counterpart(module)
        part.register_forward_pre_hook(note_input(name), with_kwargs=True)
        part.register_forward_hook(note_output(name))
    positional = (*(() if x is None else (x,)), *args)
    with torch.no_grad():
        private(*positional, **(kwargs or {}))
    return [
        LayerInfo(
            name,
            type(modules[name]).__name__,
            inputs[name],
            outputs.get(name),
            sum(p.numel() for p in modules[name].parameters()),
        )
        for name in inputs
    ]
