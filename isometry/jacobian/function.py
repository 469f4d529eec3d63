"""From a model and an input to a pure function f of one tensor, whose Jacobian is J.

``source`` and ``target`` cut a part out of the model: f then leads from the tensor that enters one named module to the
tensor that leaves another.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isometry.errors import InputError

from .inputs import Inputs
from .numerics import default_device
from .outputs import Output, select_output
from .placement import parameters_and_buffers, working_dtype_and_device
from .private_module import PrivateModule
from .submodel import named_module, run_between, tensor_entering


@dataclass(frozen=True)
class PointFunction:
    """A function of one tensor, and the point at which its Jacobian is wanted.

    Parameters
    ----------
    function : callable
        Pure: Tensor -> Tensor.
    point : Tensor
        Where J is taken.
    inputs : Inputs
        Everything that the model is called with.
    private : PrivateModule or None
        The copy with its state, which another function of the same model may share.
    recurrent : bool
        Whether it holds fused recurrent layers.
    description : str
        Type and size of the model, for the record.
    """

    function: Callable[[Tensor], Tensor]
    point: Tensor
    inputs: Inputs
    private: PrivateModule | None
    recurrent: bool
    description: str

    @property
    def module(self) -> nn.Module | None:
        """The copy of the model's module, for messages."""
        return None if self.private is None else self.private.module


def point_function(
    model: nn.Module | Callable[..., Any],
    inputs: Inputs,
    *,
    source: str | None = None,
    target: str | None = None,
    output: Output = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    private: PrivateModule | None = None,
    factories_are_placed: bool = False,
    borrow: bool = False,
) -> PointFunction:
    """The function whose Jacobian is wanted, with its point.

    Parameters
    ----------
    model : nn.Module or callable
        Maps the inputs to an output.
    inputs : Inputs
        What it is called with, and with respect to which of it.
    source, target : str, optional
        Names of modules (``model.named_modules()``). J is then the Jacobian of what leaves ``target`` with respect
        to what enters ``source``; both belong to the part. A module called several times counts with its first
        call.
    output : str, int, callable, optional
        The element of an output that is a tuple, list, dict or object with attributes.
    dtype, device : optional
        Where and in what precision to evaluate; those of the model if not given.
    private : PrivateModule, optional
        The copy of the model made for another input.
    factories_are_placed : bool
        Whether the caller has set a device on which new tensors are made: those of the model are then made on its own.
    borrow : bool
        As :class:`PrivateModule` has it, where it is made here.
    """
    model = uncompiled(model)
    module = module_behind(model)
    if (source or target) and module is None:
        raise InputError(
            "source= and target= name modules, but a plain function was passed; pass the nn.Module"
        )
    parts = [] if module is None else list(module.modules())
    parameters, buffers = parameters_and_buffers(parts)
    dtype, device = working_dtype_and_device(parts, [*parameters, *buffers], inputs, dtype, device)
    inputs = inputs.placed(dtype, device)
    source_module, target_module = named_module(module, source), named_module(module, target)
    if module is None:
        call: Callable[..., Any] = model
        lock: AbstractContextManager[Any] = nullcontext()
    else:
        private = private or PrivateModule(module, dtype, device, borrow=borrow)
        call, lock = private, private.lock
        source_module, target_module = (
            None if named is None else private.counterpart(named) for named in (source_module, target_module)
        )

    factories = device if factories_are_placed else torch.device("cpu")

    def called_with(z: Tensor | None) -> Callable[[], Any]:
        args, kwargs = inputs.at(z)
        return lambda: call(*args, **kwargs)

    if source_module is None:
        point = inputs.point

        def function(z: Tensor) -> Tensor:
            with lock, default_device(factories):
                return select_output(run_between(called_with(z), None, None, target_module, target), output)
    else:
        with lock, default_device(factories):
            point = tensor_entering(called_with(None), source_module, str(source), inputs.in_words)

        def function(z: Tensor) -> Tensor:
            with lock, default_device(factories):
                run = called_with(None)
                return select_output(run_between(run, source_module, z, target_module, target), output)

    part = "" if source is None and target is None else f" [{source or 'input'} -> {target or 'output'}]"
    recurrent = any(isinstance(each, nn.RNNBase) for each in parts)
    described = (
        getattr(model, "__qualname__", type(model).__name__)
        if module is None
        else _describe(module, parameters)
    )
    return PointFunction(function, point, inputs, private, recurrent, described + part)


def uncompiled(model: Any) -> Any:
    """The module that torch.compile or torch.export was given, with its names of modules; anything else as it is."""
    kind = type(model).__name__
    if kind == "ExportedProgram":
        return model.module()
    inner = getattr(model, "_orig_mod", None) if kind == "OptimizedModule" else None
    return model if inner is None else inner


def private_copy(model: nn.Module) -> nn.Module:
    """A copy of a module and its tensors, which are plain ones: a trial of other weights, and no module to train."""
    return PrivateModule(uncompiled(model)).module


def module_behind(model: Any) -> nn.Module | None:
    """The model where it is a module, None where it is another function of one tensor."""
    if isinstance(model, torch.jit.ScriptModule):
        return None
    if isinstance(model, nn.Module):
        return model
    owner = getattr(model, "__self__", None)
    if isinstance(owner, nn.Module):
        raise InputError(
            f"a method of {type(owner).__name__} was passed; pass the module itself, or a function that calls it"
        )
    if not callable(model):
        raise InputError(f"the model is a {type(model).__name__}; pass an nn.Module or a function of tensors")
    return None


def _describe(module: nn.Module, parameters: list[Tensor]) -> str:
    return f"{type(module).__name__} ({sum([p.numel() for p in parameters])} parameters)"
