"""One run of a function at a point, written down operation by operation: which values depend on the input, and how.

A dispatch mode sees every aten operation after PyTorch has taken its composite functions apart. A *value* is the
content of a tensor at one moment, numbered in the order in which values arise; value 0 is the input. Operations none of
whose arguments depend on the input are constants and are not kept.

Writing in place is followed through memory: once a storage has been written to, its content is a value of its own (the
flat memory), and whatever is read from it afterwards, through whatever view, is a gather from that value. Values that
operations were recorded with are copied before the memory that holds them is overwritten.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that read nothing but the shape and type of their argument.
_SHAPE_ONLY = frozenset(
    f"aten::{name}"
    for name in (
        "new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided", "empty_like", "zeros_like", "ones_like",
        "full_like", "rand_like", "randn_like", "sym_size", "is_same_size",
    )
)  # fmt: skip


class NoRule(Exception):
    """What has no linear map here: an operation, or a way of using it. The text says which."""


@dataclass(eq=False)
class Operation:
    """One aten operation with arguments of which some depend on the input.

    Parameters
    ----------
    function : OpOverload or None
        None for what memory itself does: a gather of the one source, ``args`` its index and the entries of the source.
    args, kwargs :
        As they were when it ran, also where something was written over them later.
    output : Tensor or tuple
        What came out.
    sources : dict
        Position among the flat tensors of ``args`` and ``kwargs`` -> number of the value.
    results : dict
        Position among the outputs -> number of the value.
    used : list of int
        Those of ``results`` that the output depends on; known when the tape is read.
    module : str
        Name of the innermost module it ran in, where names were asked for.
    """

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    sources: dict[int, int]
    results: dict[int, int] = field(default_factory=dict)
    module: str = ""
    used: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the operation, without its overload and the underscore of writing in place."""
        return "memory" if self.function is None else operation_name(self.function)

    @property
    def writes(self) -> bool:
        """Whether it writes to one of its arguments."""
        return self.function is not None and self.function._schema.is_mutable

    def functional(self) -> Callable[..., Any]:
        """The operation as one that writes nowhere."""
        if not self.writes:
            return self.function
        packet = getattr(torch.ops.aten, self.name, None)
        overload = getattr(packet, self.function._overloadname, None)
        if overload is None:
            raise NoRule(f"{self.function} (written in place, and there is no other form of it)")
        return overload


@dataclass(eq=False)
class _Seen:
    """A tensor with the value that it holds, good until its storage is written to."""

    tensor: Tensor
    value: int | None
    version: int = 0


@dataclass(eq=False)
class _Memory:
    """A storage that has been written to: its content as one flat value (None where nothing in it depends)."""

    value: int | None
    size: int
    version: int
    # Keeps the address from being used for another storage.
    tensor: Tensor


@dataclass(eq=False)
class Tape:
    """What was recorded: operations in order, the number of values, the value of the output."""

    operations: list[Operation]
    values: int
    result: int | None
    output: Tensor


@cache
def operation_name(function: Any) -> str:
    """Name of an aten operation without its overload; in-place operations have the name of the others."""
    schema = function._schema
    name = schema.name.split("::", 1)[1]
    return name.rstrip("_") if schema.is_mutable else name


def flat_tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors among arguments, lists of them taken apart, in order."""
    for argument in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            for item in argument:
                if isinstance(item, Tensor):
                    yield item


def with_tensors(
    args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[int, Tensor], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with every tensor put through ``change(position, tensor)``, in the order of flat_tensors."""
    position = -1

    def changed(argument: Any) -> Any:
        nonlocal position
        if isinstance(argument, Tensor):
            position += 1
            return change(position, argument)
        if isinstance(argument, list | tuple):
            return [changed(item) for item in argument]
        return argument

    return tuple(changed(a) for a in args), {key: changed(a) for key, a in kwargs.items()}


def record(
    function: Callable[[Tensor], Tensor], point: Tensor, *, module_now: Callable[[], str] = lambda: ""
) -> Tape:
    """Run ``function`` once at ``point`` and write down what depends on it.

    Raises
    ------
    NoRule
        Where dependence cannot be followed: under torch.no_grad, in a custom autograd function, in a tensor subclass.
    """
    # Without gradients of its own nothing is kept by autograd; the mode of gradients tells what the model cuts off.
    with torch.inference_mode(False), torch.enable_grad():
        start = point.detach().clone()
        recorder = _Recorder(start, module_now)
        with recorder:
            output = function(start)
    # Reading the output may itself be a gather from memory, which is a value more.
    result = recorder.value_of(output)
    return Tape(recorder.operations, recorder.values, result, output)


class _Recorder(TorchDispatchMode):
    def __init__(self, point: Tensor, module_now: Callable[[], str]) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.values = 0
        self._module_now = module_now
        self._seen: dict[int, _Seen] = {}
        self._origin: dict[int, _Seen] = {}
        self._looked_at = 0
        self._memory: dict[int, _Memory] = {}
        # Operations by the storages they hold; made when something is first written to, for most networks never do it.
        self._holders: dict[int, list[Operation]] | None = None
        self._follow(point)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; PyTorch's guard against it costs several microseconds for each operation."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written = _written(func)
        if written is None:
            return func(*args, **kwargs)
        tensors = list(flat_tensors(args, kwargs))
        sources = {}
        for position, tensor in enumerate(tensors):
            value = self.value_of(tensor)
            if value is not None:
                sources[position] = value
        if written:
            return self._run_in_place(func, args, kwargs, tensors, sources, written)
        out = func(*args, **kwargs)
        if sources:
            self._keep(func, args, kwargs, out, sources, tensors)
        return out

    def value_of(self, tensor: Tensor) -> int | None:
        """Number of the value a tensor holds now; None where it does not depend on the input."""
        seen = self._seen.get(id(tensor))
        if not self._memory:
            return None if seen is None else seen.value
        memory = self._memory.get(_storage(tensor))
        if memory is None:
            return None if seen is None else seen.value
        if seen is None or seen.version != memory.version:
            seen = _Seen(tensor, self._read(memory, tensor), memory.version)
            self._seen[id(tensor)] = seen
        return seen.value

    # ---- values that arise -------------------------------------------------------------------------

    def _keep(
        self, func: Any, args: Any, kwargs: Any, out: Any, sources: dict[int, int], tensors: list[Tensor]
    ) -> None:
        operation = Operation(func, args, kwargs, out, sources, module=self._module_now())
        for position, made in enumerate(out if isinstance(out, list | tuple) else (out,)):
            if not isinstance(made, Tensor):
                continue
            if made.is_complex():
                raise NoRule(f"{func} (complex numbers)")
            if made.is_floating_point():
                operation.results[position] = self._follow(made)
        if operation.results:
            self._add(operation, tensors)

    def _add(self, operation: Operation, tensors: list[Tensor]) -> None:
        if not torch.is_grad_enabled():
            raise NoRule(f"{operation.function} (under torch.no_grad, or in a custom autograd function)")
        if any(type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in tensors):
            raise NoRule(f"{operation.function} (on a subclass of torch.Tensor)")
        self.operations.append(operation)
        if self._holders is not None:
            self._hold(self._holders, operation)

    def _hold(self, holders: dict[int, list[Operation]], operation: Operation) -> None:
        for tensor in flat_tensors((*operation.args, operation.output), operation.kwargs):
            holders.setdefault(_storage(tensor), []).append(operation)

    def _new_value(self) -> int:
        self.values += 1
        return self.values - 1

    def _follow(self, tensor: Tensor, value: int | None = None) -> int:
        value = self._new_value() if value is None else value
        memory = self._memory.get(_storage(tensor)) if self._memory else None
        self._seen[id(tensor)] = _Seen(tensor, value, memory.version if memory else 0)
        return value

    # ---- memory ------------------------------------------------------------------------------------

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
        for target in targets:
            self._copy_for_holders(target)
        if not sources:
            return func(*args, **kwargs)
        if len(targets) != 1 or isinstance(written[0], str) or not targets[0].is_floating_point():
            raise NoRule(f"{func} (writes to an argument other than its first)")
        target = targets[0]
        before = target.clone()
        kept_args, kept_kwargs = with_tensors(
            args, kwargs, lambda _, tensor: before if tensor is target else tensor
        )
        out = func(*args, **kwargs)
        operation = Operation(
            func, kept_args, kept_kwargs, target.clone(), sources, module=self._module_now()
        )
        value = self._new_value()
        operation.results[0] = value
        self._add(operation, [tensor for tensor in tensors if tensor is not target])
        self._write(target, value)
        return out

    def _copy_for_holders(self, target: Tensor) -> None:
        """Operations that were recorded with this memory as it is keep a copy of it."""
        storage = _storage(target)
        if self._holders is None:
            self._holders = {}
            for operation in self.operations:
                self._hold(self._holders, operation)
        for operation in self._holders.pop(storage, []):
            copies: dict[int, Tensor] = {}

            def kept(_: int, tensor: Tensor, copies: dict[int, Tensor] = copies) -> Tensor:
                if _storage(tensor) != storage:
                    return tensor
                return copies.setdefault(id(tensor), tensor.clone())

            operation.args, operation.kwargs = with_tensors(operation.args, operation.kwargs, kept)
            operation.output = with_tensors((operation.output,), {}, kept)[0][0]

    def _write(self, target: Tensor, value: int) -> None:
        storage = _storage(target)
        memory = self._memory.get(storage)
        if memory is None:
            memory = self._first_memory(target)
        places = _places(target, memory.size)
        whole = places.numel() == memory.size
        if whole and bool((places == torch.arange(memory.size)).all()):
            now: int = value
        else:
            arrived = torch.full((memory.size,), -1)
            arrived[places] = torch.arange(places.numel())
            now = self._new_value()
            self._gather(value, now, arrived, places.numel())
            if memory.value is not None and not whole:
                kept = torch.arange(memory.size)
                kept[places] = -1
                self._gather(memory.value, now, kept, memory.size)
        self._memory[storage] = _Memory(now, memory.size, memory.version + 1, target)
        self._seen[id(target)] = _Seen(target, value, memory.version + 1)

    def _first_memory(self, target: Tensor) -> _Memory:
        size = target.untyped_storage().nbytes() // target.element_size()
        # The first tensor that was followed in a storage is the one it was made for; later ones are views.
        storage = _storage(target)
        origin = self._origins().get(storage)
        if origin is None:
            return _Memory(None, size, 0, target)
        if origin.tensor.dtype != target.dtype:
            raise NoRule("memory seen as two types of number")
        places = _places(origin.tensor, size)
        if places.numel() == size and bool((places == torch.arange(size)).all()):
            return _Memory(origin.value, size, 0, target)
        index = torch.full((size,), -1)
        index[places] = torch.arange(places.numel())
        now = self._new_value()
        assert origin.value is not None
        self._gather(origin.value, now, index, places.numel())
        return _Memory(now, size, 0, target)

    def _origins(self) -> dict[int, _Seen]:
        """The first tensor followed in each storage; looked through from where the last look ended."""
        for seen in itertools.islice(self._seen.values(), self._looked_at, None):
            self._origin.setdefault(_storage(seen.tensor), seen)
        self._looked_at = len(self._seen)
        return self._origin

    def _read(self, memory: _Memory, tensor: Tensor) -> int | None:
        if memory.value is None or not tensor.is_floating_point():
            return None
        if tensor.dtype != memory.tensor.dtype:
            raise NoRule("memory seen as two types of number")
        now = self._new_value()
        self._gather(memory.value, now, _places(tensor, memory.size), memory.size)
        return now

    def _gather(self, source: int, result: int, index: Tensor, size: int) -> None:
        operation = Operation(None, (index, size), {}, None, {0: source}, {0: result}, self._module_now())
        self.operations.append(operation)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _places(tensor: Tensor, size: int) -> Tensor:
    """Where in its storage, counted in elements, the elements of a tensor lie, in row-major order."""
    with torch.utils._python_dispatch._disable_current_modes():
        return (
            torch.arange(size)
            .as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
            .reshape(-1)
            .clone()
        )


@cache
def _written(func: Any) -> tuple[str | int, ...] | None:
    """Which arguments an operation writes to: positions, or names of those passed by keyword only.

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
