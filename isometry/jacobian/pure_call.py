"""A model as a pure function of its input: it is called with detached copies of its parameters and buffers.

Parameters, buffers and plain attributes of the modules are afterwards exactly what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

_Place = tuple[dict[str, Any], str, Tensor]
"""A dict of a module, a name in it, and the tensor to put there."""


def pure_call(
    model: Callable[[Tensor], Any], module: nn.Module | None, dtype: torch.dtype, device: torch.device
) -> Callable[[Tensor], Any]:
    """``model`` as a function of its input alone, evaluated in ``dtype`` on ``device``.

    Parameters
    ----------
    model : callable
    module : nn.Module or None
        The model where it is a module. A plain function is returned as it is.
    """
    if module is None:
        return model
    parts = list(module.modules())
    fixed, changing = _working_state(parts, dtype, device)

    def call(x: Tensor) -> Any:
        # Buffers are copied anew each time: whatever the model does to them stays inside the call.
        copies = {id(tensor): tensor.clone() for _, _, tensor in changing}
        state = [*fixed, *((holder, name, copies[id(tensor)]) for holder, name, tensor in changing)]
        with _tensor_attributes_restored(parts):
            own = [(holder, name, holder[name]) for holder, name, _ in state]
            try:
                _put(state)
                return module(x)
            finally:
                _put(own)

    return call


def _working_state(
    parts: list[nn.Module], dtype: torch.dtype, device: torch.device
) -> tuple[list[_Place], list[_Place]]:
    """The parameters that a call leaves as they are, and the tensors that it may change, where the modules keep them.

    Worked out once: functional_call looks all of them up by name at every call, which takes longer than the forward
    pass of a deep network of small layers.
    """

    def convert(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else tensor.dtype)

    # An embedding with max_norm rescales its weight in place whenever it is called.
    rescaled = {id(p) for part in parts if getattr(part, "max_norm", None) for p in part.parameters()}
    fixed: list[_Place] = []
    changing: list[_Place] = []
    converted: dict[int, Tensor] = {}
    for part in parts:
        for holder, buffers in ((part._parameters, False), (part._buffers, True)):
            for name, tensor in holder.items():
                if tensor is None:
                    continue
                changes = buffers or id(tensor) in rescaled
                # Tensors that are shared stay shared.
                if id(tensor) not in converted:
                    converted[id(tensor)] = convert(tensor).clone() if changes else convert(tensor)
                (changing if changes else fixed).append((holder, name, converted[id(tensor)]))
    return fixed, changing


def _put(state: list[_Place]) -> None:
    for holder, name, tensor in state:
        holder[name] = tensor


@contextmanager
def _tensor_attributes_restored(parts: list[nn.Module]) -> Iterator[None]:
    """Restore the plain attributes in which a forward pass stores tensors: an attention map, a normalised weight.

    Inside a transform of torch.func such a tensor is a wrapper that is dead afterwards: left on the module it would
    make copying and saving the model fail.
    """
    before = [(part.__dict__, dict(part.__dict__)) for part in parts]
    try:
        yield
    finally:
        for attributes, old in before:
            _restore_tensors(attributes, old)


def _restore_tensors(attributes: dict[str, Any], old: dict[str, Any]) -> None:
    if (
        len(attributes) == len(old)
        and all(map(is_, attributes, old))
        and all(map(is_, attributes.values(), old.values()))
    ):
        return
    for name in [name for name in attributes if name not in old]:
        if _holds_tensors(attributes[name]):
            del attributes[name]
    for name, value in old.items():
        now = attributes.get(name)
        if now is not value and (_holds_tensors(value) or _holds_tensors(now)):
            attributes[name] = value


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    return any(isinstance(item, Tensor) for item in (value if isinstance(value, list | tuple) else [value]))
