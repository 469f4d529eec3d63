"""One recorded run as segments between cuts, with the calls of modules that each operation ran in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from .cuts import Segment, segments_of, value_shapes
from .graph import graph_of
from .module_calls import ModuleCalls
from .recording import record
from .replayed import parameters_of


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


def recorded_segments(
    function: Callable[[Tensor], Tensor], point: Tensor, module: nn.Module | None
) -> RecordedSegments:
    """The segments of the Jacobian of ``function`` at ``point``.

    Parameters
    ----------
    function : callable
    point : Tensor
    module : nn.Module or None
        The module behind the function, whose calls are noted.

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
    graph = graph_of(tape)
    return RecordedSegments(segments_of(graph, point.shape, shapes), calls, parameters)
