"""The tape: the operations of one run whose result depends on the input, and the numbered values between them.

A *value* is the content of a tensor at one moment, numbered in the order in which values arise; value 0 is the input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor


class NoRule(Exception):
    """An operation, or a use of one, that has no linear map here. The text names it."""


_T = TypeVar("_T")


def cached_by_identity(of: Callable[[Any], _T]) -> Callable[[Any], _T]:
    """A cache of a function of an aten operation: PyTorch computes the hash of one in Python."""
    known: dict[int, tuple[_T, Any]] = {}

    def cached(function: Any) -> _T:
        found = known.get(id(function))
        if found is None:
            # With the operation, so that no identity is used twice.
            found = known[id(function)] = of(function), function
        return found[0]

    return cached


@dataclass(eq=False, slots=True)
class Operation:
    """One aten operation with arguments of which some depend on the input.

    Parameters
    ----------
    function : OpOverload or None
        None for a read of memory that was written in place: a gather of the one source, whose ``args`` are its index
        and the number of entries of the source.
    args, kwargs :
        As they were when it ran, also where they were overwritten later.
    tensors : list of Tensor
        Those among ``args`` and ``kwargs``, as :func:`flat_tensors` finds them.
    output : Tensor or tuple
        The result.
    sources : dict
        Position among the flat tensors of ``args`` and ``kwargs`` -> number of the value.
    results : dict
        Position among the outputs -> number of the value.
    module : str
        Name of the innermost module it ran in, where names were asked for.
    used : list of int
        Positions in ``results`` that the output of the run depends on; filled when the graph is built.
    by_torch_func : bool
        Whether its maps are derivatives by torch.func, for want of a rule.
    """

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: list[Tensor]
    output: Any
    sources: dict[int, int]
    results: dict[int, int] = field(default_factory=dict)
    module: str = ""
    used: list[int] = field(default_factory=list)
    by_torch_func: bool = False

    @property
    def name(self) -> str:
        """Name of the operation, without its overload and the underscore of writing in place."""
        return "memory" if self.function is None else operation_name(self.function)

    def functional(self) -> Callable[..., Any]:
        """The same operation in the form that writes to none of its arguments."""
        if self.function is None or not self.function._schema.is_mutable:
            return self.function
        found = _functional_form(self.function)
        if found is None:
            raise NoRule(f"{self.function} (written in place, and there is no other form of it)")
        return found


@dataclass(frozen=True, eq=False)
class Tape:
    """One run of a function.

    Parameters
    ----------
    operations : list of Operation
        In order.
    values : int
        How many there are.
    result : int or None
        The number of the output's value; None where it does not depend on the input.
    output : Tensor
    reached : list of Tensor
        Arguments of operations that were asked for.
    """

    operations: list[Operation]
    values: int
    result: int | None
    output: Tensor
    reached: list[Tensor] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class HeldValue:
    """A tensor and the value that it holds, as of a version of its storage."""

    tensor: Tensor
    value: int | None
    version: int = 0


class TapeWriter:
    """A tape while it is written.

    Attributes
    ----------
    operations : list of Operation
    values : int
        How many values there are.
    held : dict
        id(tensor) -> the value that the tensor holds.
    """

    def __init__(self, current_module: Callable[[], str]) -> None:
        self.operations: list[Operation] = []
        self.values = 0
        self.held: dict[int, HeldValue] = {}
        self.current_module = current_module

    def new_value(self) -> int:
        """The number of a new value."""
        self.values += 1
        return self.values - 1

    def add_gather(self, source: int, index: Tensor, size: int, result: int | None = None) -> int:
        """The number of the value w_j = v_{index[j]} (0 for index -1) of a source v with ``size`` entries.

        With ``result`` the gather is added to that value; else it is a new one.
        """
        result = self.new_value() if result is None else result
        self.operations.append(
            Operation(None, (index, size), {}, [index], None, {0: source}, {0: result}, self.current_module())
        )
        return result


@cached_by_identity
def operation_name(function: Any) -> str:
    """The name of an aten operation without its overload and the underscore of writing in place."""
    schema = function._schema
    name = schema.name.split("::", 1)[1]
    return name.rstrip("_") if schema.is_mutable else name


@cached_by_identity
def _functional_form(function: Any) -> Any:
    """The overload with the same arguments that writes to none of them; its own name may differ (transpose_)."""
    packet = getattr(torch.ops.aten, operation_name(function), None)
    same = getattr(packet, function._overloadname, None)
    if same is not None or packet is None:
        return same

    def types(overload: Any) -> list[str]:
        return [str(argument.type) for argument in overload._schema.arguments]

    overloads = (getattr(packet, name) for name in packet.overloads())
    return next((o for o in overloads if types(o) == types(function) and not o._schema.is_mutable), None)


def flat_tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors among arguments and inside lists of them, in order."""
    found = []
    for argument in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(argument, Tensor):
            found.append(argument)
        elif isinstance(argument, list | tuple):
            found += [item for item in argument if isinstance(item, Tensor)]
    return found


def map_tensors(
    args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[int, Tensor], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with each tensor replaced by ``change(position, tensor)``, in the order of flat_tensors."""
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
