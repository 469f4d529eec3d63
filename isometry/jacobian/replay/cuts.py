"""Cuts of a graph of linear maps: the values through which all of J passes, and the segments between them.

A value is a cut where every path from the input to the output passes through it. Between successive cuts c_0 (the
input), ..., c_K (the output) lie graphs with matrices J_1, ..., J_K, and J = J_K ... J_1.

In a topological order a value is a cut where no edge passes over it: each value of the graph is on some path, so that
a path through a cut makes it an ancestor or a descendant of the cut, and an edge from an ancestor to a descendant would
be a path beside it. One pass in order, with the furthest end of the edges so far, finds all cuts in linear time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Size

from .fusion import fuse
from .graph import Edge, Graph, edges_between
from .maps import Identity
from .skips import skip_of
from .tape import Tape


@dataclass(frozen=True, eq=False)
class Segment:
    """The graph between two cuts, with the shapes of the values at its ends.

    Parameters
    ----------
    graph : Graph
        Not fused: programs are made of copies.
    input_shape, output_shape : Size
    """

    graph: Graph
    input_shape: Size
    output_shape: Size

    @property
    def is_identity(self) -> bool:
        """Whether the numbers stay as they are, perhaps in another shape."""
        edges = self.graph.edges
        return all(isinstance(edge.map, Identity) for edge in edges) and len(
            {e.result for e in edges}
        ) == len(edges)

    @property
    def modules(self) -> list[str]:
        """The modules of the maps that change numbers, and of sums, in the order in which they first ran."""
        ends: dict[int, int] = {}
        for edge in self.graph.edges:
            ends[edge.result] = ends.get(edge.result, 0) + 1
        kept = [e for e in self.graph.edges if not isinstance(e.map, Identity) or ends[e.result] > 1]
        return list(dict.fromkeys(edge.module for edge in kept or self.graph.edges))

    @property
    def operations(self) -> list[str]:
        """Names of the operations, in order, each once."""
        return list(dict.fromkeys(edge.operation for edge in self.graph.edges))

    def fused(self) -> Graph:
        """A fused copy of the graph."""
        graph = Graph([replace(edge) for edge in self.graph.edges], self.graph.input, self.graph.output)
        fuse(graph)
        return graph

    def branch(self) -> Graph | None:
        """The fused graph of f where the segment is a x + f(x) with a constant a, else None."""
        skip = skip_of(self.graph)
        if skip is None:
            return None
        rest = [replace(edge) for edge in self.graph.edges if edge is not skip]
        graph = Graph(
            edges_between(rest, self.graph.input, self.graph.output), self.graph.input, self.graph.output
        )
        fuse(graph)
        return graph


def value_shapes(tape: Tape) -> dict[int, Size]:
    """Number of a value -> shape of its tensor, for the real values of a tape whose operations are still there."""
    shapes: dict[int, Size] = {}
    for operation in tape.operations:
        outputs = operation.output if isinstance(operation.output, list | tuple) else (operation.output,)
        for position, value in operation.results.items():
            tensor = operation.args[0] if operation.function is None else outputs[position]
            # A complex value is two real ones in the graph, and no place to cut at.
            if not tensor.is_complex():
                shapes.setdefault(value, tensor.shape)
    if tape.result is not None:
        shapes[tape.result] = tape.output.shape
    return shapes


def cuts_of(graph: Graph) -> list[int]:
    """The values through which every path from the input to the output passes, both included, in order."""
    completed = {edge.result: number for number, edge in enumerate(graph.edges, start=1)}
    leaving: dict[int, int] = {}
    for edge in graph.edges:
        leaving[edge.source] = max(leaving.get(edge.source, 0), completed[edge.result])
    cuts, furthest = [graph.input], leaving.get(graph.input, 0)
    for number, edge in enumerate(graph.edges, start=1):
        if completed[edge.result] == number:
            if furthest == number:
                cuts.append(edge.result)
            furthest = max(furthest, leaving.get(edge.result, 0))
    return cuts


def segments_of(graph: Graph, input_shape: Size, shapes: Mapping[int, Size]) -> list[Segment]:
    """The segments between the cuts of a graph that is not fused.

    Parameters
    ----------
    graph : Graph
    input_shape : Size
    shapes : mapping
        Of the values of the tape. Values inside an operation, which have none, are not cut at.
    """
    cuts = cuts_of(graph)
    number_of_cut = {value: number for number, value in enumerate(cuts)}
    # The segment of an edge is that of its source: the last cut at or before it.
    segment: dict[int, int] = {graph.input: 0}
    current = 0
    completed = {edge.result: number for number, edge in enumerate(graph.edges)}
    for number, edge in enumerate(graph.edges):
        if completed[edge.result] == number:
            current = number_of_cut.get(edge.result, current)
            segment[edge.result] = current
    parts: list[list[Edge]] = [[] for _ in cuts[1:]]
    for edge in graph.edges:
        parts[segment[edge.source]].append(edge)
    found: list[Segment] = []
    start, shape, edges = graph.input, input_shape, []
    for value, part in zip(cuts[1:], parts, strict=True):
        edges += part
        if value in shapes:
            found.append(Segment(Graph(edges, start, value), shape, shapes[value]))
            start, shape, edges = value, shapes[value], []
    return found


def joined(segments: Sequence[Segment]) -> Segment:
    """Successive segments as one."""
    edges = [edge for segment in segments for edge in segment.graph.edges]
    first, last = segments[0], segments[-1]
    return Segment(Graph(edges, first.graph.input, last.graph.output), first.input_shape, last.output_shape)
