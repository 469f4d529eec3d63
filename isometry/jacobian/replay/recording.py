"""One run of a function at a point, recorded operation by operation on a tape.

A dispatch mode sees every aten operation after PyTorch has decomposed its composite functions. Operations none of
whose arguments depend on the input are constants and are not recorded. Writes in place are followed through memory
(:mod:`.memory`).
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .memory import WrittenMemory
from .tape import (
    HeldValue,
    NoRule,
    Operation,
    Tape,
    TapeWriter,
    cached_by_identity,
    flat_tensors,
    map_tensors,
)

# Operations that read nothing but the shape and type of their argument.
_SHAPE_ONLY = frozenset(
    f"aten::{name}"
    for name in (
        "new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided", "empty_like", "zeros_like", "ones_like",
        "full_like", "rand_like", "randn_like", "sym_size", "is_same_size",
    )
)  # fmt: skip


def record(
    function: Callable[[Tensor], Tensor],
    point: Tensor,
    *,
    current_module: Callable[[], str] = lambda: "",
    asked_for: Container[int] = (),
) -> Tape:
    """The tape of one run of ``function`` at ``point``, with those arguments of operations whose identity is asked for.

    Raises
    ------
    NoRule
        Where dependence cannot be followed: under torch.no_grad, in a custom autograd function, in a tensor subclass.
    """
    # Without gradients of its own nothing is kept by autograd; the mode of gradients tells what the model cuts off.
    with torch.inference_mode(False), torch.enable_grad():
        start = point.detach().clone()
        recorder = _Recorder(start, current_module, asked_for)
        with recorder:
            output = function(start)
    # Reading the output may itself be a gather from memory, which is one more value.
    result = recorder.value_of(output)
    return Tape(recorder.tape.operations, recorder.tape.values, result, output, recorder.reached)


class _Recorder(TorchDispatchMode):
    def __init__(self, point: Tensor, current_module: Callable[[], str], asked_for: Container[int]) -> None:
        super().__init__()
        self.reached: list[Tensor] = []
        self._asked_for = asked_for
        self.tape = TapeWriter(current_module)
        self._memory = WrittenMemory(self.tape)
        self._hold_new_value(point)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; PyTorch's guard against it costs several microseconds for each operation."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written = _written_arguments(func)
        if written is None:
            return func(*args, **kwargs)
        tensors = flat_tensors(args, kwargs)
        sources = {}
        # Most networks write nothing in place, and of ten thousand layers this runs for each tensor of each operation.
        held, in_memory = self.tape.held, bool(self._memory.contents)
        for position, tensor in enumerate(tensors):
            if in_memory or id(tensor) in held:
                value = self.value_of(tensor)
                if value is not None:
                    sources[position] = value
                    continue
            if id(tensor) in self._asked_for:
                self.reached.append(tensor)
        if written:
            return self._run_in_place(func, args, kwargs, tensors, sources, written)
        out = func(*args, **kwargs)
        if sources:
            self._record(func, args, kwargs, out, sources, tensors)
        return out

    def value_of(self, tensor: Tensor) -> int | None:
        """The number of the value that a tensor holds now; None where it does not depend on the input."""
        if self._memory.contents:
            return self._memory.value_of(tensor)
        held = self.tape.held.get(id(tensor))
        return None if held is None else held.value

    def _record(
        self, func: Any, args: Any, kwargs: Any, out: Any, sources: dict[int, int], tensors: list[Tensor]
    ) -> None:
        results = {}
        if isinstance(out, Tensor):
            if out.is_floating_point() or out.is_complex():
                results[0] = self._hold_new_value(out)
        else:
            for position, made in enumerate(out if isinstance(out, list | tuple) else ()):
                if isinstance(made, Tensor) and (made.is_floating_point() or made.is_complex()):
                    results[position] = self._hold_new_value(made)
        if results:
            module = self.tape.current_module()
            self._add(Operation(func, args, kwargs, tensors, out, sources, results, module))

    def _run_in_place(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        tensors: list[Tensor],
        sources: dict[int, int],
        written: tuple[str | int, ...],
    ) -> Any:
        targets = [args[w] if isinstance(w, int) else kwargs[w] for w in written if _present(w, args, kwargs)]
        if any(not isinstance(target, Tensor) for target in targets):
            if sources:
                raise NoRule(f"{func} (writes to a list of tensors)")
            return func(*args, **kwargs)
        copied = None
        for target in targets:
            copied = self._memory.copy_for_users(target)
        if not sources:
            return func(*args, **kwargs)
        if len(targets) != 1 or isinstance(written[0], str):
            raise NoRule(f"{func} (writes to an argument other than its first)")
        target = targets[0]
        if not (target.is_floating_point() or target.is_complex()) or target.is_conj() or target.is_neg():
            raise NoRule(f"{func} (writes to {target.dtype}, or to a conjugate)")
        before = target.clone() if copied is None else copied
        args_before, kwargs_before = map_tensors(
            args, kwargs, lambda _, tensor: before if tensor is target else tensor
        )
        tensors_before = flat_tensors(args_before, kwargs_before)
        out = func(*args, **kwargs)
        value = self.tape.new_value()
        module = self.tape.current_module()
        # The next write to it gives the operation a copy.
        self._add(
            Operation(func, args_before, kwargs_before, tensors_before, target, sources, {0: value}, module)
        )
        self._memory.write(target, value)
        return out

    def _add(self, operation: Operation) -> None:
        if not torch.is_grad_enabled():
            raise NoRule(f"{operation.function} (under torch.no_grad, or in a custom autograd function)")
        for tensor in operation.tensors:
            if type(tensor) is not Tensor and type(tensor) is not torch.nn.Parameter:
                raise NoRule(f"{operation.function} (on a subclass of torch.Tensor)")
        self.tape.operations.append(operation)
        self._memory.note_user(operation)

    def _hold_new_value(self, tensor: Tensor) -> int:
        value = self.tape.new_value()
        version = self._memory.version_of(tensor) if self._memory.contents else 0
        self.tape.held[id(tensor)] = HeldValue(tensor, value, version)
        return value


@cached_by_identity
def _written_arguments(func: Any) -> tuple[str | int, ...] | None:
    """The arguments that an operation writes to: positions, or names of those passed by keyword only.

    None where it reads nothing but shape and type.
    """
    schema = func._schema
    written = tuple(
        argument.name if argument.kwarg_only else position
        for position, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    return None if schema.name in _SHAPE_ONLY and not written else written


def _present(which: str | int, args: Any, kwargs: Any) -> bool:
    return which < len(args) if isinstance(which, int) else which in kwargs
