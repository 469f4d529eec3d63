"""Why a Jacobian is zero: a layer of zeros, units that are all cut off, or operations without a derivative."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad as forward_mode
from torch.utils._python_dispatch import TorchDispatchMode

from .evaluation import Evaluation
from .numerics import torch_warnings_silenced
from .reference import reference_matmat
from .replay import module_names

# Operations whose derivative is zero wherever they have one.
_STEPS = frozenset({"round", "floor", "ceil", "trunc", "sign", "heaviside", "argmax", "argmin", "bucketize"})


def cause_of_zero(evaluation: Evaluation, v: Tensor) -> str:
    """The cause where J v is zero for a generic v, as a clause; "" where none is found."""
    at = evaluation
    with torch.no_grad(), at.numerics(), torch_warnings_silenced():
        with _last_module(at.module) as last, module_names(at.module) as current, _Steps(current) as steps:
            value = at.function(at.point)
        # Forward mode takes many times as long, and is not needed where the last layer is nothing but zeros.
        for name, layer, made in last:
            zeros = _zero_weights(layer)
            if made is value and zeros:
                return f"layer {name}.{zeros[0]} is zero" if name else f"{zeros[0]} is zero"
        with _last_that_stops(at.module) as stopped:
            reference_matmat(at.function, at.point, v)
    name, part, size = stopped[-1] if stopped else ("", None, 0.0)
    # Entries this small have not been cut off but have left the range of the type.
    underflows = size < torch.finfo(at.point.dtype).tiny ** 0.5
    zeros = [] if part is None else _zero_weights(part)
    if zeros:
        return f"layer {name}.{zeros[0]} is zero" if name else f"{zeros[0]} is zero"
    if steps.found:
        where = f" in module {steps.found[0][1]!r}" if steps.found[0][1] else ""
        return f"the output is cut off from the input by {steps.found[0][0]}{where}, which has no derivative but zero"
    if part is not None and not underflows:
        return f"module {name!r} ({type(part).__name__}) cuts off all its units"
    return ""


def _zero_weights(part: nn.Module) -> list[str]:
    return [key for key, p in _weights(part) if not bool((p != 0).any())]


@contextmanager
def _last_module(module: nn.Module | None) -> Iterator[list[tuple[str, nn.Module, object]]]:
    """The innermost linear layer that ends last while the model runs, with its name and its output."""
    last: list[tuple[str, nn.Module, object]] = []
    handles = []
    for name, part in module.named_modules() if module is not None else ():
        if not isinstance(part, nn.Linear | nn.modules.conv._ConvNd):
            continue

        def watch(part: nn.Module, _: object, out: object, name: str = name) -> None:
            last[:] = [(name, part, out)]

        handles.append(part.register_forward_hook(watch))
    try:
        yield last
    finally:
        for handle in handles:
            handle.remove()


def _weights(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of the module itself that multiply."""
    for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
        if "bias" not in name and tensor.is_floating_point() and tensor.numel():
            yield name, tensor


@contextmanager
def _last_that_stops(module: nn.Module | None) -> Iterator[list[tuple[str, nn.Module, float]]]:
    """The innermost modules, in order, that a tangent enters and none leaves, with its largest entry."""
    stopped: list[tuple[str, nn.Module, float]] = []
    handles = []
    for name, part in module.named_modules() if module is not None else ():
        if next(part.children(), None) is not None:
            continue

        def watch(part: nn.Module, args: object, out: object, name: str = name) -> None:
            size = _largest(args)
            if size > 0 and _largest(out) == 0:
                stopped.append((name, part, size))

        handles.append(part.register_forward_hook(watch))
    try:
        yield stopped
    finally:
        for handle in handles:
            handle.remove()


def _largest(value: object) -> float:
    """The largest entry, by size, of the tangents of the tensors in a value; 0 where there are none."""
    if isinstance(value, list | tuple):
        return max((_largest(item) for item in value), default=0.0)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return 0.0
    tangent = forward_mode.unpack_dual(value).tangent
    return 0.0 if tangent is None or not tangent.numel() else float(tangent.abs().max())


class _Steps(TorchDispatchMode):
    """Watches the operations inside it for those without a derivative but zero, and the modules that they run in."""

    def __init__(self, current_module: Callable[[], str]) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self._current_module = current_module

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; PyTorch's guard against it costs several microseconds for each operation."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = args[0] if args and isinstance(args[0], Tensor) else None
        if given is not None and given.is_floating_point():
            space, name = func._schema.name.split("::", 1)
            to_integers = name == "_to_copy" and not (out.is_floating_point() or out.is_complex())
            # quantized::linear and its like have no derivative at all.
            if name.rstrip("_") in _STEPS or to_integers or "quantized" in space or given.is_quantized:
                self.found.append(
                    (f"{space}.{name}" + (f" to {out.dtype}" if to_integers else ""), self._current_module())
                )
        return out
