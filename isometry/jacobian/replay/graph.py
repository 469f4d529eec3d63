"""From a tape to a graph of linear maps: values are nodes, maps are edges.

J v is the sum over all paths from the input to the output of the products of maps along them; J^T u runs the same
graph backwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .maps import LinearMap
from .rules import Link, links
from .tape import NoRule, Operation, Tape


@dataclass(eq=False, slots=True)
class Edge:
    """A map from one value to another, and the operation and module that it comes from."""

    source: int
    result: int
    map: LinearMap
    operation: str
    module: str


@dataclass(eq=False)
class Graph:
    """Edges in the order in which their results arise; ``input`` and ``output`` are numbers of values.

    ``by_torch_func`` names the operations whose maps are derivatives by torch.func.
    """

    edges: list[Edge]
    input: int
    output: int
    by_torch_func: tuple[str, ...] = ()


def graph_of(tape: Tape) -> Graph:
    """The graph of a tape, with an edge for each map of each operation.

    Parameters
    ----------
    tape : Tape
        Its operations are consumed, so that their memory is free again as soon as it can be.

    Raises
    ------
    NoRule
        Naming the first operation that has no linear map here.
    """
    if tape.result is None:
        raise NoRule("no recorded operation leads from the input to the output")
    needed = _needed_values(tape, tape.result)
    edges: list[Edge] = []
    values, slow = tape.values, dict[str, None]()
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
        if operation.by_torch_func:
            slow.setdefault(operation.name)
        tape.operations[number] = None  # type: ignore[call-overload]
    graph = Graph(edges_between(edges, 0, tape.result), 0, tape.result, tuple(slow))
    if not graph.edges and tape.result != 0:
        raise NoRule("no recorded operation leads from the input to the output")
    return graph


def _needed_values(tape: Tape, result: int) -> set[int]:
    """The values that the output depends on."""
    needed = {result}
    for operation in reversed(tape.operations):
        for value in operation.results.values():
            if value in needed:
                needed.update(operation.sources.values())
                break
    return needed


def edges_between(edges: list[Edge], start: int, end: int) -> list[Edge]:
    """The edges on paths from ``start`` to ``end``."""
    reached = {start}
    forward = []
    for edge in edges:
        if edge.source in reached:
            reached.add(edge.result)
            forward.append(edge)
    leading = {end}
    found = []
    for edge in reversed(forward):
        if edge.result in leading:
            leading.add(edge.source)
            found.append(edge)
    return found[::-1]
