"""Fusing the edges of a graph: two maps become one where that one is cheaper."""

from __future__ import annotations

import torch

from .graph import Edge, Graph
from .maps import Convolution, Diagonal, Gather, Identity, LinearMap, gather


def fuse(graph: Graph) -> None:
    """Fuse the maps of a graph in place, in one pass in order.

    What arrives at an edge is fused before the edge itself. Successive maps become their product, parallel maps their
    sum, and values that are the same numbers one value.
    """
    _Fusion(graph).run()


class _Fusion:
    """The edges of a graph, by the values that they arrive at and leave."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._into: dict[int, list[Edge]] = {}
        self._out_of: dict[int, list[Edge]] = {}
        self._dropped: set[int] = set()
        # Products of gathers, with these themselves, so that the identities in the key stay theirs.
        self._known: dict[tuple[int, int], tuple[LinearMap | None, LinearMap, LinearMap]] = {}
        for edge in graph.edges:
            self._into.setdefault(edge.result, []).append(edge)
            self._out_of.setdefault(edge.source, []).append(edge)

    def run(self) -> None:
        done: set[int] = set()
        for edge in self._graph.edges:
            while self._fuse_with_predecessor(edge):
                pass
            self._fuse_with_parallel(edge, done)
            if isinstance(edge.map, Identity):
                self._merge_values(edge)
            done.add(id(edge))
        self._graph.edges = [edge for edge in self._graph.edges if id(edge) not in self._dropped]

    def _drop(self, edge: Edge) -> None:
        self._dropped.add(id(edge))
        self._out_of[edge.source].remove(edge)
        self._into[edge.result].remove(edge)

    def _fuse_with_predecessor(self, edge: Edge) -> bool:
        node = edge.source
        before = self._into.get(node, [])
        if node in (self._graph.input, self._graph.output) or len(before) != 1:
            return False
        first = before[0]
        # A gather of a gather costs what a gather costs, so that it may be done for each reader.
        both_gather = isinstance(first.map, Gather) and isinstance(edge.map, Gather)
        if len(self._out_of[node]) != 1 and not both_gather:
            return False
        fused = self._known_product(first.map, edge.map) if both_gather else _product(first.map, edge.map)
        if fused is None:
            return False
        if fused is first.map:
            edge.operation, edge.module = first.operation, first.module
        self._out_of[node].remove(edge)
        edge.source, edge.map = first.source, fused
        self._out_of[edge.source].append(edge)
        if not self._out_of[node]:
            self._drop(first)
        return True

    def _known_product(self, first: LinearMap, second: LinearMap) -> LinearMap | None:
        key = (id(first), id(second))
        if key not in self._known:
            self._known[key] = (_product(first, second), first, second)
        return self._known[key][0]

    def _fuse_with_parallel(self, edge: Edge, done: set[int]) -> None:
        for other in list(self._into[edge.result]):
            if id(other) in done and other.source == edge.source:
                total = _sum(other.map, edge.map)
                if total is not None:
                    edge.map = total
                    self._drop(other)

    def _merge_values(self, edge: Edge) -> None:
        """Make the two values of an identity one, where nothing else arrives at the second."""
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
    """``second`` after ``first`` as one map where that is cheaper than two, else None."""
    if isinstance(second, Identity):
        return first
    if isinstance(first, Gather) and isinstance(second, Convolution):
        return second.after_gather(first)
    return first.then(second)


def _sum(first: LinearMap, second: LinearMap) -> LinearMap | None:
    """The sum of two maps between the same values as one map where that is cheaper than two, else None."""
    if isinstance(first, Diagonal) and isinstance(second, Diagonal) and first.shape == second.shape:
        return Diagonal(first.diagonal + second.diagonal, first.shape)
    if isinstance(first, Gather) and isinstance(second, Gather):
        if bool(((first.index >= 0) & (second.index >= 0)).any()):
            return None
        return gather(torch.maximum(first.index, second.index), first.size)
    return None
