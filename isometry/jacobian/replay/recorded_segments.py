"""One recorded run, whole or as segments between cuts, with the calls of modules that each operation ran in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Size, Tensor, nn

from .cuts import Segment, segments_of, value_shapes
from .graph import Graph, graph_of
from .module_calls import ModuleCalls
from .recording import record
from .replayed import parameters_of
from .tape import Operation, Tape, flat_tensors


@dataclass(frozen=True, eq=False)
class RecordedSegments:
    """Segments, first one first, and the calls that their labels of modules stand for.

    ``parameters`` are the tensors with versions that the maps arriving at a value hold, by the number of the value.
    """

    segments: list[Segment]
    calls: ModuleCalls
    parameters: dict[int, list[tuple[Tensor, int]]]

    def parameters_of(self, segment: Segment) -> list[tuple[Tensor, int]]:
        """The tensors that the maps of a segment hold, with the versions that they hold."""
        found: dict[int, tuple[Tensor, int]] = {}
        for value in {edge.result for edge in segment.graph.edges}:
            found.update((id(held[0]), held) for held in self.parameters.get(value, ()))
        return list(found.values())


@dataclass(frozen=True, eq=False)
class RecordedGraph:
    """The graph of one run, not fused, with the shapes of its values; ``calls`` and ``parameters`` as above.

    ``squares`` are the sums of squares of the values that enter an operation, where they were asked for.
    """

    graph: Graph
    shapes: dict[int, Size]
    calls: ModuleCalls
    parameters: dict[int, list[tuple[Tensor, int]]]
    squares: dict[int, float]


def recorded_segments(
    function: Callable[[Tensor], Tensor], point: Tensor, module: nn.Module | None
) -> RecordedSegments:
    """The segments of the Jacobian of ``function`` at ``point``; arguments and errors as for `recorded_graph`."""
    whole = recorded_graph(function, point, module)
    segments = segments_of(whole.graph, point.shape, whole.shapes)
    return RecordedSegments(segments, whole.calls, whole.parameters)


def recorded_graph(
    function: Callable[[Tensor], Tensor], point: Tensor, module: nn.Module | None, *, squares: bool = False
) -> RecordedGraph:
    """The graph of the Jacobian of ``function`` at ``point``.

    Parameters
    ----------
    function : callable
    point : Tensor
    module : nn.Module or None
        The module behind the function, whose calls are noted.
    squares : bool
        Whether to take the sums of squares of the values.

    Raises
    ------
    NoRule
        Naming the first operation that has no linear map.
    """
    calls = ModuleCalls()
    with calls.watching(module):
        tape = record(function, point, current_module=calls.label)
    shapes = value_shapes(tape)
    parameters: dict[int, list[tuple[Tensor, int]]] = {}
    for operation in tape.operations:
        held = parameters_of([operation])
        for value in operation.results.values() if held else ():
            parameters.setdefault(value, []).extend(held)
    of_values = _squares(tape) if squares else {}
    return RecordedGraph(graph_of(tape), shapes, calls, parameters, of_values)


def _squares(tape: Tape) -> dict[int, float]:
    """Of the arguments, which are as they were: a result may have been written over."""
    found: dict[int, float] = {}
    for operation in tape.operations:
        tensors = list(flat_tensors(operation.args, operation.kwargs)) if operation.function else []
        for position, value in operation.sources.items():
            if value not in found and position < len(tensors):
                length = torch.linalg.vector_norm(tensors[position].detach(), dtype=torch.float64)
                found[value] = float(length) ** 2
    return found


def recorded_operations(
    function: Callable[[Tensor], Tensor], point: Tensor, module: nn.Module | None
) -> tuple[list[Operation], int | None, ModuleCalls]:
    """The operations of one run, the number of the value of its output, and the calls of modules that it made.

    Raises
    ------
    NoRule
        Where dependence on the input cannot be followed.
    """
    calls = ModuleCalls()
    with calls.watching(module):
        tape = record(function, point, current_module=calls.label)
    return tape.operations, tape.result, calls
