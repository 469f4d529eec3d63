"""From a tape to a small graph of linear maps: values as nodes, maps as edges; whatever can be joined is joined.

J v is the sum over all paths from the input to the output of the products of maps along them; J^T u runs the same
graph backwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .convolution import Convolution
from .maps import Diagonal, Gather, Identity, LinearMap, gather
from .recording import NoRule, Operation, Tape
from .rules import Link, links


@dataclass(eq=False)
class Edge:
    """A map from one value to another, and the operation and module that it comes from."""

    source: int
    result: int
    map: LinearMap
    operation: str
    module: str


@dataclass(eq=False)
class Graph:
    """Edges in the order in which their results arise; ``input`` and ``output`` are numbers of values."""

    edges: list[Edge]
    input: int
    output: int


def build(tape: Tape, *, join: bool = True, one_tap: bool = True, fourier: bool = True) -> Graph:
    """The graph of a tape.

    Parameters
    ----------
    tape : Tape
        Its operations are used up, so that their memory is free again as soon as it can be.
    join : bool
        Whether maps are joined; without, every operation is an edge of its own.
    one_tap : bool
        Whether kernels with a single tap that is not zero are multiplied as matrices over channels.
    fourier : bool
        Whether circular convolutions of small maps are multiplied frequency by frequency.

    Raises
    ------
    NoRule
        Naming the first operation that has no linear map here.
    """
    if tape.result is None:
        raise NoRule("no recorded operation leads from the input to the output")
    needed = _needed(tape)
    edges: list[Edge] = []
    values = tape.values
    known: dict[Any, tuple[list[Link], Operation]] = {}
    for number, operation in enumerate(tape.operations):
        operation.used = [p for p, value in operation.results.items() if value in needed]
        if not operation.used:
            continue
        for link in links(operation, known):
            value = operation.sources[link.source]
            result = operation.results[link.result]
            if result not in needed:
                continue
            for step in link.maps[:-1]:
                edges.append(Edge(value, values, step, operation.name, operation.module))
                value, values = values, values + 1
            edges.append(Edge(value, result, link.maps[-1], operation.name, operation.module))
        tape.operations[number] = None  # type: ignore[call-overload]
    graph = Graph(_reachable(edges, 0, tape.result), 0, tape.result)
    if not graph.edges and tape.result != 0:
        raise NoRule("no recorded operation leads from the input to the output")
    if join:
        _Joining(graph).run()
        if one_tap:
            _thin(graph)
        if fourier:
            _by_frequencies(graph)
    return graph


def _needed(tape: Tape) -> set[int]:
    """Values that the output depends on."""
    needed = {tape.result}
    for operation in reversed(tape.operations):
        if any(value in needed for value in operation.results.values()):
            needed.update(operation.sources.values())
    return needed  # type: ignore[return-value]


def _reachable(edges: list[Edge], start: int, end: int) -> list[Edge]:
    """Edges on a way from ``start`` to ``end``."""
    reached = {start}
    forward = []
    for edge in edges:
        if edge.source in reached:
            reached.add(edge.result)
            forward.append(edge)
    leading = {end}
    kept = []
    for edge in reversed(forward):
        if edge.result in leading:
            leading.add(edge.source)
            kept.append(edge)
    return kept[::-1]


class _Joining:
    """Edges being joined, with those that arrive at and leave each value."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._into: dict[int, list[Edge]] = {}
        self._out_of: dict[int, list[Edge]] = {}
        self._gone: set[int] = set()
        # Products of gathers, with these themselves, so that the identities in the key stay theirs.
        self._known: dict[tuple[int, int], tuple[LinearMap | None, LinearMap, LinearMap]] = {}
        for edge in graph.edges:
            self._into.setdefault(edge.result, []).append(edge)
            self._out_of.setdefault(edge.source, []).append(edge)

    def run(self) -> None:
        """One pass in order: what arrives at an edge is as short as it gets before the edge itself is joined."""
        seen: set[int] = set()
        for edge in self._graph.edges:
            while self._with_the_one_before(edge):
                pass
            self._with_those_beside(edge, seen)
            if isinstance(edge.map, Identity):
                self._as_one_value(edge)
            seen.add(id(edge))
        self._graph.edges = [edge for edge in self._graph.edges if id(edge) not in self._gone]

    def _drop(self, edge: Edge) -> None:
        self._gone.add(id(edge))
        self._out_of[edge.source].remove(edge)
        self._into[edge.result].remove(edge)

    def _with_the_one_before(self, edge: Edge) -> bool:
        node = edge.source
        before = self._into.get(node, [])
        if node in (self._graph.input, self._graph.output) or len(before) != 1:
            return False
        first = before[0]
        # A gather of a gather costs what a gather costs, so that it may be done for each reader.
        both_move = isinstance(first.map, Gather) and isinstance(edge.map, Gather)
        if len(self._out_of[node]) != 1 and not both_move:
            return False
        joined = self._moved(first.map, edge.map) if both_move else _product(first.map, edge.map)
        if joined is None:
            return False
        if joined is first.map:
            edge.operation, edge.module = first.operation, first.module
        self._out_of[node].remove(edge)
        edge.source, edge.map = first.source, joined
        self._out_of[edge.source].append(edge)
        if not self._out_of[node]:
            self._drop(first)
        return True

    def _moved(self, first: LinearMap, second: LinearMap) -> LinearMap | None:
        key = (id(first), id(second))
        if key not in self._known:
            self._known[key] = (_product(first, second), first, second)
        return self._known[key][0]

    def _with_those_beside(self, edge: Edge, seen: set[int]) -> None:
        for other in list(self._into[edge.result]):
            if id(other) in seen and other.source == edge.source:
                total = _sum(other.map, edge.map)
                if total is not None:
                    edge.map = total
                    self._drop(other)

    def _as_one_value(self, edge: Edge) -> None:
        """Two values that are the same numbers become one where nothing else arrives at the second."""
        a, b = edge.source, edge.result
        if len(self._into[b]) != 1 or (b == self._graph.output and a == self._graph.input):
            return
        self._drop(edge)
        for later in self._out_of.pop(b, []):
            later.source = a
            self._out_of[a].append(later)
        if b == self._graph.output:
            self._graph.output = a


def _product(first: LinearMap, second: LinearMap) -> LinearMap | None:
    """``second`` after ``first`` as one map, where that is cheaper than two."""
    if isinstance(second, Identity):
        return first
    if isinstance(first, Gather) and isinstance(second, Convolution):
        return second.after_gather(first)
    return first.then(second)


def _sum(first: LinearMap, second: LinearMap) -> LinearMap | None:
    """The sum of two maps between the same values as one map, where that is cheaper than two."""
    if isinstance(first, Diagonal) and isinstance(second, Diagonal) and first.shape == second.shape:
        return Diagonal(first.diagonal + second.diagonal, first.shape)
    if isinstance(first, Gather) and isinstance(second, Gather):
        if bool(((first.index >= 0) & (second.index >= 0)).any()):
            return None
        return gather(torch.maximum(first.index, second.index), first.size)
    return None


def _thin(graph: Graph) -> None:
    edges: list[Edge] = []
    fresh = -1
    moves: dict[Any, LinearMap] = {}
    for edge in graph.edges:
        parts = edge.map.at_one_tap(moves) if isinstance(edge.map, Convolution) else None
        if parts is None:
            edges.append(edge)
            continue
        moved, thin = parts
        if isinstance(moved, Identity):
            edge.map = thin
        else:
            edges.append(Edge(edge.source, fresh, moved, edge.operation, edge.module))
            edge.source, edge.map, fresh = fresh, thin, fresh - 1
        edges.append(edge)
    graph.edges = edges


# The blocks of one frequency each take more memory than the taps: as many layers as fit are multiplied that way.
_FOURIER_BYTES = 2**28


def _by_frequencies(graph: Graph) -> None:
    left = _FOURIER_BYTES
    for edge in graph.edges:
        if left > 0 and isinstance(edge.map, Convolution):
            made = edge.map.in_fourier_space()
            if made is not None:
                edge.map = made
                left -= made.nbytes
