"""The precision and the device in which a model is evaluated, and the inputs and models that cannot be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from isometry.errors import InputError, ModelError

from .failures import first_line
from .inputs import Inputs

_META = "on the meta device tensors hold no numbers; move the model and the input to a real device first"
_PRECISIONS = (torch.float32, torch.float64)


def working_dtype_and_device(
    parts: Sequence[nn.Module],
    tensors: Sequence[Tensor],
    inputs: Inputs,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> tuple[torch.dtype, torch.device]:
    """The dtype and device asked for, else the model's, else the first input's; half precision becomes float32.

    Parameters
    ----------
    parts, tensors :
        The modules of the model, and its :func:`parameters_and_buffers`.
    inputs : Inputs
    dtype, device : optional
        Those asked for.

    Raises
    ------
    InputError, ModelError
        Where the input, the model, the dtype or the device cannot be used.
    """
    given = inputs.tensors()
    _refuse_meta([*given.values(), *tensors])
    for path in inputs.wrt:
        _refuse_input(given[path], f"the input {path!r}" if len(given) > 1 else "the input")
    if not inputs.wrt and inputs.only_tensor is not None:
        _refuse_input(inputs.only_tensor, "the input", differentiated=False)
    _refuse_lazy(tensors)
    _refuse_distributed(parts, [*given.values(), *tensors])
    first = next((t for t in tensors if t.is_floating_point() or t.is_complex()), None)
    if dtype is None:
        dtype = (inputs.first if first is None else first).dtype
        dtype = dtype.to_real() if dtype.is_complex else dtype
        dtype = dtype if dtype in _PRECISIONS else torch.float32
    if dtype not in _PRECISIONS:
        raise InputError(
            f"dtype is torch.float32 or torch.float64; got {dtype} (too coarse for singular values)"
        )
    return dtype, _usable_device(device, default=(inputs.first if first is None else first).device)


def parameters_and_buffers(parts: Sequence[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters and the buffers of some modules, each once: in one pass, where a model's own methods take five."""

    def of(held: str) -> list[Tensor]:
        found = [t for part in parts for t in getattr(part, held).values() if t is not None]
        return list({id(t): t for t in found}.values())

    return of("_parameters"), of("_buffers")


def refuse_lazy_parameters(module: nn.Module) -> None:
    """Raise ModelError where a parameter or buffer has no shape yet."""
    _refuse_lazy([*module.parameters(), *module.buffers()])


def _refuse_distributed(parts: Sequence[nn.Module], tensors: Sequence[Tensor]) -> None:
    """Raise ModelError where a tensor, or a module's parameters, are split over processes."""
    kinds = {type(part) for part in parts}
    sharded = [kind.__name__ for kind in kinds if _descends_from(kind, "FullyShardedDataParallel")]
    distributed = {kind for kind in {type(t) for t in tensors} if _descends_from(kind, "DTensor")}
    split = next((t for t in tensors if type(t) in distributed), None)
    if split is None and not sharded:
        return
    how = f"by {sharded[0]}" if sharded else f"as DTensors, one of shape {tuple(split.shape)}"  # type: ignore[union-attr]
    raise ModelError(
        f"the model or its input is split over processes, {how} (FSDP, tensor parallelism): J needs all of it in one. "
        "Load its full state (torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True) "
        "into a plain copy of the model, and take full_tensor() of an input; shared=True distributes the products"
    )


def _descends_from(kind: type, name: str) -> bool:
    return any(base.__name__ == name for base in kind.__mro__)


def _refuse_lazy(tensors: Sequence[Tensor]) -> None:
    if any(map(nn.parameter.is_lazy, {type(tensor): tensor for tensor in tensors}.values())):
        raise ModelError(
            "the model has lazy parameters that are not yet made; call it once on an input first"
        )


def _refuse_input(x: Tensor, what: str, *, differentiated: bool = True) -> None:
    if x.numel() == 0:
        raise InputError(f"{what} is empty: shape {tuple(x.shape)}")
    if x.layout != torch.strided:
        raise InputError(f"{what} has layout {x.layout}; pass a dense tensor, x.to_dense()")
    if x.is_complex():
        raise InputError(
            f"{what} is complex, and so would be J; pass real and imaginary parts as one real tensor"
        )
    if not x.is_floating_point() and differentiated:
        raise InputError(
            f"{what} is of type {x.dtype}, which cannot be differentiated. For images convert with .float(); for "
            "token numbers measure from the embeddings, with source= naming the module they enter"
        )
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        raise InputError(f"{what} holds NaN or inf; J is taken at a finite point")


def _refuse_meta(tensors: Sequence[Tensor]) -> None:
    """Raise InputError where a tensor holds no numbers."""
    if any(tensor.is_meta for tensor in tensors):
        raise InputError(_META)


def _usable_device(device: torch.device | str | None, *, default: torch.device) -> torch.device:
    try:
        place = default if device is None else torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device={device!r} is no device: {first_line(error)}") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"device {str(place)!r} was asked for, but this PyTorch sees no CUDA device; leave device out, or install "
            "a CUDA build of torch on a machine with a GPU"
        )
    if place.type == "meta":
        raise InputError(_META)
    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device {str(place)!r} was asked for, but PyTorch cannot use it: {first_line(error)}"
        ) from error
    return place
