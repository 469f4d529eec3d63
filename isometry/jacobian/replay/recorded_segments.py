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
    """Segments, first one first; the calls that their labels of modules stand for; the parameters with versions."""

    segments: list[Segment]
    calls: ModuleCalls
    parameters: list[tuple[Tensor, int]]


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
    shapes, parameters = value_shapes(tape), parameters_of(tape)
    graph = graph_of(tape)
    return RecordedSegments(segments_of(graph, point.shape, shapes), calls, parameters)
