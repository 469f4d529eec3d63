"""From a model and an input to a pure function f of one tensor, whose Jacobian is J.

The model is called with detached copies of its parameters and buffers, so it keeps its own exactly as they
were. ``source`` and ``target`` cut a part out of it: f then leads from the tensor that enters one named
module to the tensor that leaves another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from isometry.errors import InputError, IsometryError, ModelError

Output = str | int | Callable[[Any], Tensor] | None


@dataclass(frozen=True)
class PointFunction:
    """A function of one tensor, and the point at which its Jacobian is wanted.

    Parameters
    ----------
    function : callable
        Pure: Tensor -> Tensor.
    point : Tensor
        Where J is taken.
    module : nn.Module or None
        The module behind the function, for messages.
    recurrent : bool
        Whether it holds fused recurrent layers.
    description : str
        What it is, for the record.
    """

    function: Callable[[Tensor], Tensor]
    point: Tensor
    module: nn.Module | None
    recurrent: bool
    description: str


class _TargetReached(Exception):
    def __init__(self, value: Any) -> None:
        self.value = value


def failed_call(error: Exception, x: Tensor) -> Exception:
    """What to raise where the model itself fails on the input: the error as it is if it is one of ours."""
    if isinstance(error, IsometryError):
        return error
    if is_out_of_memory(error):
        return IsometryError(
            "out of memory in one evaluation of the model. Take fewer inputs, or a device with more memory"
        )
    return InputError(
        f"the model fails on an input of shape {tuple(x.shape)} and type {x.dtype} on {x.device}: "
        f"{type(error).__name__}: {first_line(error)}. Pass the input exactly as the model takes it, a batch axis "
        "included; a function that holds tensors of its own needs dtype and device to agree with them"
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the host had no memory left."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
    )


def first_line(error: Exception | None) -> str:
    """The first line of PyTorch's message, which may have dozens."""
    return str(error).split("\n", 1)[0][:200]


def point_function(
    model: nn.Module | Callable[[Tensor], Any],
    x: Tensor,
    *,
    source: str | None = None,
    target: str | None = None,
    output: Output = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> PointFunction:
    """The function whose Jacobian is wanted, with its point.

    Parameters
    ----------
    model : nn.Module or callable
        What maps ``x`` to an output.
    x : Tensor
        The input, as the model takes it.
    source, target : str, optional
        Names of modules (``model.named_modules()``). J is then the Jacobian of what leaves ``target`` with respect
        to what enters ``source``; both belong to the part. A module called several times counts with its first
        call.
    output : str, int, callable, optional
        Which element of an output that is a tuple, list, dict or object with attributes.
    dtype, device : optional
        Where and in what precision to evaluate; those of the model if not given.
    """
    module = _module_behind(model)
    if (source or target) and module is None:
        raise InputError(
            "source= and target= name modules, but a plain function was passed; pass the nn.Module"
        )
    if not isinstance(x, Tensor):
        raise InputError(f"the input is a {type(x).__name__}; pass a torch.Tensor (torch.as_tensor converts)")
    dtype, device = _working_place(module, x, dtype, device, has_source=source is not None)
    # A clone: of memory of its own, also where x is an expanded view, and whatever happens to x later.
    x = x.detach().to(device).clone()
    if x.is_floating_point():
        x = x.to(dtype)
    call = _pure_call(model, module, dtype, device)
    modules = dict(module.named_modules()) if module is not None else {}
    for name in (source, target):
        if name is not None and name not in modules:
            near = get_close_matches(name, modules, n=3, cutoff=0.4)
            hint = f"did you mean {', '.join(near)}?" if near else "named_layers(model, x) lists them"
            raise InputError(f"the model has no module named {name!r}; {hint}")
    source_module = modules[source] if source is not None else None
    target_module = modules[target] if target is not None else None

    if source_module is None:
        point = x

        def function(z: Tensor) -> Tensor:
            # A clone, so that a model which works in place on its input does not change the point.
            return _select(_run_to(call, z.clone(), None, None, target_module, target), output)
    else:
        point = _tensor_entering(call, x, source_module, str(source))

        def function(z: Tensor) -> Tensor:
            return _select(_run_to(call, x, source_module, z, target_module, target), output)

    part = "" if source is None and target is None else f" [{source or 'input'} -> {target or 'output'}]"
    recurrent = module is not None and any(isinstance(part_, nn.RNNBase) for part_ in module.modules())
    return PointFunction(function, point, module, recurrent, _describe(model, module) + part)


def _module_behind(model: Any) -> nn.Module | None:
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
        raise InputError(
            f"the model is a {type(model).__name__}; pass an nn.Module or a function of one tensor"
        )
    return None


def _working_place(
    module: nn.Module | None,
    x: Tensor,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    *,
    has_source: bool,
) -> tuple[torch.dtype, torch.device]:
    """Precision and device: what was asked for, else the model's, else the input's; half precision is lifted."""
    if x.numel() == 0:
        raise InputError(f"the input is empty: shape {tuple(x.shape)}")
    if x.layout != torch.strided:
        raise InputError(f"the input has layout {x.layout}; pass a dense tensor, x.to_dense()")
    if x.is_complex():
        raise InputError(
            "the input is complex, and so would be J; pass real and imaginary parts as one real tensor"
        )
    if not x.is_floating_point() and not has_source:
        raise InputError(
            f"the input is of type {x.dtype}, which cannot be differentiated. For images convert with .float(); for "
            "token numbers measure from the embeddings, with source= naming the module they enter"
        )
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        raise InputError("the input holds NaN or inf; J is taken at a finite point")
    tensors: Sequence[Tensor] = [] if module is None else [*module.parameters(), *module.buffers()]
    for tensor in tensors:
        if nn.parameter.is_lazy(tensor):
            raise ModelError(
                "the model has lazy parameters that are not yet made; call it once on an input first"
            )
    first = next((t for t in tensors if t.is_floating_point()), None)
    if any(t.is_complex() for t in tensors):
        raise InputError("the model has complex parameters; complex Jacobians are not measured")
    if dtype is None:
        dtype = first.dtype if first is not None else (x.dtype if x.is_floating_point() else torch.float32)
        if dtype not in (torch.float32, torch.float64):
            dtype = torch.float32
    if dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"dtype is torch.float32 or torch.float64; got {dtype} (too coarse for singular values)"
        )
    try:
        wanted = None if device is None else torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device={device!r} is no device: {first_line(error)}") from error
    place = wanted or (first.device if first is not None else x.device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"device {str(place)!r} was asked for, but this PyTorch sees no CUDA device; leave device out, or install "
            "a CUDA build of torch on a machine with a GPU"
        )
    if place.type == "meta":
        raise InputError("on the meta device tensors hold no numbers; move the model to a real device first")
    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device {str(place)!r} was asked for, but PyTorch cannot use it: {first_line(error)}"
        ) from error
    return dtype, place


def _pure_call(
    model: Any, module: nn.Module | None, dtype: torch.dtype, device: torch.device
) -> Callable[[Tensor], Any]:
    """The model as a function of its input alone, on detached copies of its state."""
    if module is None:
        return model

    def place(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else tensor.dtype)

    parts = list(module.modules())
    # An embedding with max_norm rescales its weight in place whenever it is called.
    restless = {id(p) for part in parts if getattr(part, "max_norm", None) for p in part.parameters()}
    # Where each parameter and buffer stands and what to put there, worked out once: functional_call looks all of them
    # up by name at every call, which takes longer than the forward pass of a deep network of small layers.
    fixed: list[tuple[Any, str, Tensor]] = []
    changing: list[tuple[Any, str, Tensor]] = []
    placed: dict[int, Tensor] = {}
    for part in parts:
        for holder, buffers in ((part._parameters, False), (part._buffers, True)):
            for name, tensor in holder.items():
                if tensor is None:
                    continue
                changes = buffers or id(tensor) in restless
                # Tensors that are shared stay shared.
                if id(tensor) not in placed:
                    placed[id(tensor)] = place(tensor).clone() if changes else place(tensor)
                (changing if changes else fixed).append((holder, name, placed[id(tensor)]))

    def call(x: Tensor) -> Any:
        # Buffers are copied anew each time: whatever the model does to them stays inside the call.
        copies = {id(tensor): tensor.clone() for _, _, tensor in changing}
        state = [*fixed, *((holder, name, copies[id(tensor)]) for holder, name, tensor in changing)]
        with _tensor_attributes_kept(parts):
            own = [(holder, name, holder[name]) for holder, name, _ in state]
            try:
                _put(state)
                return module(x)
            finally:
                _put(own)

    return call


def _put(state: list[tuple[Any, str, Tensor]]) -> None:
    """Put tensors where the modules keep them."""
    for holder, name, tensor in state:
        holder[name] = tensor


@contextmanager
def _tensor_attributes_kept(parts: list[nn.Module]) -> Iterator[None]:
    """Put back what a forward pass stores in plain attributes: an attention map, a normalised weight.

    Inside a transform of torch.func such a tensor is a wrapper that is dead afterwards: left on the module it would
    make copying and saving the model fail.
    """
    before = [(part.__dict__, dict(part.__dict__)) for part in parts]
    try:
        yield
    finally:
        for now, kept in before:
            if (
                len(now) == len(kept)
                and all(map(is_, now, kept))
                and all(map(is_, now.values(), kept.values()))
            ):
                continue
            for name in [name for name, value in now.items() if kept.get(name) is not value]:
                if name not in kept and _holds_tensors(now[name]):
                    del now[name]
            for name, value in kept.items():
                if now.get(name) is not value and (_holds_tensors(value) or _holds_tensors(now.get(name))):
                    now[name] = value


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    return any(isinstance(item, Tensor) for item in (value if isinstance(value, list | tuple) else [value]))


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str | int, Tensor] | None:
    """Where the first floating tensor among a module's arguments stands."""
    for index, value in enumerate(args):
        if isinstance(value, Tensor) and value.is_floating_point():
            return index, value
    for key, value in kwargs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            return key, value
    return None


def _tensor_entering(call: Callable[[Tensor], Any], x: Tensor, module: nn.Module, name: str) -> Tensor:
    seen: list[Tensor] = []

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = _first_tensor(args, kwargs)
        if found is None:
            raise InputError(f"no real floating tensor enters module {name!r}; choose another source=")
        raise _TargetReached(found[1])

    handle = module.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with torch.no_grad():
            call(x)
    except _TargetReached as reached:
        seen.append(reached.value.detach().clone())
    except Exception as error:
        raise failed_call(error, x) from error
    finally:
        handle.remove()
    if not seen:
        raise InputError(
            f"module {name!r} is not called when the model runs on this input; choose another source="
        )
    return seen[0]


def _run_to(
    call: Callable[[Tensor], Any],
    x: Tensor,
    source: nn.Module | None,
    entering: Tensor | None,
    target: nn.Module | None,
    target_name: str | None,
) -> Any:
    """Run the model on x, putting ``entering`` into ``source``, and return what leaves ``target``."""
    handles = []
    entered = source is None
    if source is not None:

        def put(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            nonlocal entered
            found = _first_tensor(args, kwargs)
            if entered or found is None or entering is None:
                return None
            entered = True
            where = found[0]
            if isinstance(where, int):
                return (*args[:where], entering.clone(), *args[where + 1 :]), kwargs
            return args, {**kwargs, where: entering.clone()}

        handles.append(source.register_forward_pre_hook(put, with_kwargs=True))
    if target is not None:

        def take(_: nn.Module, args: Any, value: Any) -> None:
            if not entered:
                raise InputError(
                    f"module {target_name!r} (target) runs before the source; exchange them or choose others"
                )
            raise _TargetReached(value)

        handles.append(target.register_forward_hook(take))
    try:
        value = call(x)
    except _TargetReached as reached:
        return reached.value
    finally:
        for handle in handles:
            handle.remove()
    if target is not None:
        raise InputError(f"module {target_name!r} is not called on this input; choose another target=")
    return value


def _select(value: Any, output: Output) -> Tensor:
    if output is not None:
        if callable(output):
            value = output(value)
        else:
            try:
                # A dict first by its keys: "values" and "items" are names of its methods as well.
                named = not isinstance(output, int) and hasattr(value, output)
                by_key = not named or (isinstance(value, Mapping) and output in value)
                value = value[output] if by_key else getattr(value, str(output))
            except (KeyError, IndexError, TypeError) as error:
                raise InputError(
                    f"output={output!r} is not in what the model returned: {_choices(value)}"
                ) from error
    if not isinstance(value, Tensor):
        raise InputError(f"the model returned {_choices(value)}; choose a tensor with output=")
    if value.is_complex():
        raise InputError(
            "the model returned a complex tensor; pass output= with a real view, as torch.view_as_real"
        )
    if not value.is_floating_point():
        raise InputError(f"the model returned {value.dtype}, which cannot be differentiated")
    if value.numel() == 0:
        raise InputError(f"the model returned an empty tensor, shape {tuple(value.shape)}")
    return value


def _choices(value: Any) -> str:
    if isinstance(value, dict):
        return f"a {type(value).__name__} with keys {', '.join(map(repr, value))}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)} elements (0 to {len(value) - 1})"
    return f"a {type(value).__name__}"


def _describe(model: Any, module: nn.Module | None) -> str:
    if module is None:
        return getattr(model, "__qualname__", type(model).__name__)
    count = sum(p.numel() for p in module.parameters())
    return f"{type(module).__name__} ({count} parameters)"
