"""The operations of one run of a model as a graph of values: what feeds what, in which module, with which parameters.

:class:`JacobianSegments` gives the linear maps of a run. This gives its operations by name, and is for those who ask
how a model is built: where its sums, products, activations and normalisations stand between its layers.
"""

from __future__ import annotations

import numbers
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from isometry.errors import ModelError

from .evaluation import Evaluation
from .numerics import no_collection, torch_warnings_silenced
from .operator import JacobianOperator
from .replay import ModuleCall, NoRule, Operation, flat_tensors, recorded_operations


@dataclass(frozen=True)
class ParameterUse:
    """A parameter among the arguments of an operation.

    Parameters
    ----------
    name : str
        Its first name in ``model.named_parameters()``.
    position : int
        Among the tensors of the operation.
    offset : int
        Bytes from the start of the parameter: 0 but for a view of a part of it.
    shape : tuple of int
        Of the argument, which may be a view.
    is_whole, is_transposed : bool
        Whether it is all of the parameter, and whether it is a matrix with the axes of the parameter exchanged.
    root_mean_square : float
    """

    name: str
    position: int
    offset: int
    shape: tuple[int, ...]
    is_whole: bool
    is_transposed: bool
    root_mean_square: float


@dataclass(frozen=True, eq=False)
class DataflowOperation:
    """One operation whose result depends on the input.

    Parameters
    ----------
    name : str
        Of the aten operation, without overload and without the underscore of writing in place.
    calls : tuple of ModuleCall
        The calls of modules that it ran in, outermost first.
    sources : dict
        Position among its tensors -> number of the value; 0 is the input.
    results : tuple of int
        Values that it makes.
    parameters : tuple of ParameterUse
    settings : tuple
        Its other arguments that are numbers, texts or None, positional first.
    factors : dict
        Position among its tensors -> the number a (root mean square of several) by which a sum or a product with
        constants multiplies that source.
    """

    name: str
    calls: tuple[ModuleCall, ...]
    sources: Mapping[int, int]
    results: tuple[int, ...]
    parameters: tuple[ParameterUse, ...]
    settings: tuple[Any, ...]
    factors: Mapping[int, float]


@dataclass(frozen=True, eq=False)
class Dataflow:
    """The operations of one run that its output depends on, in order, and the value of the output.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh())
    >>> flow = Dataflow.of(JacobianOperator(model, torch.zeros(3)))
    >>> [(operation.name, [use.name for use in operation.parameters]) for operation in flow.operations[2:]]
    [('addmm', ['0.bias', '0.weight']), ('view', []), ('tanh', [])]
    """

    operations: tuple[DataflowOperation, ...]
    output: int

    @classmethod
    def of(cls, operator: JacobianOperator) -> Dataflow:
        """The run of the model at the point of an operator, whose copy of the model is run once more.

        Raises
        ------
        ModelError
            Where the run cannot be recorded: under torch.no_grad, in a custom autograd function or a tensor subclass.
        """
        at = operator.evaluation
        try:
            with at.numerics(), torch_warnings_silenced(), no_collection():
                operations, output, calls = recorded_operations(at.function, at.point, at.module)
        except NoRule as missing:
            raise ModelError(
                f"the structure of this model cannot be seen, for its run cannot be recorded: {missing}"
            ) from None
        if output is None:
            raise ModelError("no recorded operation leads from the input to the output of this model")
        named = _Parameters(at)
        needed, kept = {output}, []
        for operation in reversed(operations):
            if needed.isdisjoint(operation.results.values()):
                continue
            needed.update(operation.sources.values())
            kept.append(named.described(operation, calls.calls(operation.module)))
        return cls(tuple(kept[::-1]), output)


class _Parameters:
    """Parameters by the memory that they take."""

    def __init__(self, at: Evaluation) -> None:
        module = at.module if at.module is not None else nn.Module()
        named = {parameter.data_ptr(): (name, parameter) for name, parameter in module.named_parameters()}
        self._starts = sorted(named)
        self._named = [named[start] for start in self._starts]

    def described(self, operation: Operation, calls: tuple[ModuleCall, ...]) -> DataflowOperation:
        arguments = (*operation.args, *operation.kwargs.values())
        uses = [
            self._use(tensor, position)
            for position, tensor in enumerate(flat_tensors(operation.args, operation.kwargs))
            if position not in operation.sources
        ]
        return DataflowOperation(
            operation.name,
            calls,
            dict(operation.sources),
            tuple(operation.results.values()),
            tuple(use for use in uses if use is not None),
            tuple(a for a in arguments if a is None or isinstance(a, str | numbers.Number)),
            dict(_factors(operation)),
        )

    def _use(self, tensor: Tensor, position: int) -> ParameterUse | None:
        # An argument of the recording holds its memory, so that no other tensor has taken that of a parameter.
        start = tensor.data_ptr()
        before = bisect_right(self._starts, start) - 1
        if before < 0:
            return None
        name, parameter = self._named[before]
        offset = start - self._starts[before]
        if offset >= parameter.numel() * parameter.element_size():
            return None
        return ParameterUse(
            name, position, offset, tuple(tensor.shape), tensor.numel() == parameter.numel(),
            _is_transposed(tensor, parameter), root_mean_square(tensor),
        )  # fmt: skip


def _is_transposed(tensor: Tensor, parameter: Tensor) -> bool:
    if tensor.dim() != 2 or parameter.dim() != 2 or tensor.shape != parameter.shape[::-1]:
        return False
    return tensor.shape[0] != tensor.shape[1] or tensor.stride() != parameter.stride()


def root_mean_square(tensor: Tensor) -> float:
    """The root of the mean square of the entries, in float64."""
    return float(tensor.detach().double().square().mean().sqrt()) if tensor.numel() else 0.0


def _factors(operation: Operation) -> Iterator[tuple[int, float]]:
    """The numbers by which a sum, or a product with constants, multiplies its sources."""
    name, args, kwargs = operation.name, operation.args, operation.kwargs
    if name in ("add", "sub") and len(args) >= 2:
        # x + alpha y.
        second = 1 if isinstance(args[0], Tensor) else 0
        if second in operation.sources and isinstance(args[1], Tensor):
            yield second, float(kwargs.get("alpha", args[2] if len(args) > 2 else 1))
    elif name == "lerp" and len(args) == 3 and isinstance(args[2], int | float):
        yield from ((0, 1.0 - args[2]), (1, float(args[2])))
    elif name in ("mul", "div") and len(operation.sources) == 1 and len(args) == 2:
        (position,) = operation.sources
        constant = args[1] if args[0] is _tensor_at(operation, position) else args[0]
        if isinstance(constant, Tensor):
            size = root_mean_square(constant)
        elif isinstance(constant, int | float):
            size = abs(float(constant))
        else:
            return
        if name == "mul":
            yield position, size
        elif constant is args[1] and size > 0:
            yield position, 1.0 / size


def _tensor_at(operation: Operation, position: int) -> Tensor:
    return list(flat_tensors(operation.args, operation.kwargs))[position]
