"""Where paths split and meet among the values of a recorded run. Internal.

A value d dominates u where every path from the input to u passes through d. The immediate dominators form a tree
(Lowry and Medlock 1969); in a graph without cycles one pass in order finds it, the immediate dominator of a value
being the deepest common ancestor of those it depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from isometry.jacobian import Arrival


@dataclass(frozen=True, eq=False)
class ValueGraph:
    """The values of a run in order, and the edges that arrive at each."""

    order: Sequence[int]
    arrivals: Mapping[int, Sequence[Arrival]]

    @cached_property
    def position(self) -> dict[int, int]:
        """Value -> its place in the order."""
        return {value: place for place, value in enumerate(self.order)}

    @cached_property
    def dominator(self) -> dict[int, int]:
        """Value -> its immediate dominator; the input's is the input."""
        found = {self.order[0]: self.order[0]}
        position = self.position
        for value in self.order[1:]:
            common = self.arrivals[value][0].source
            for arrival in self.arrivals[value][1:]:
                other = arrival.source
                while common != other:
                    if position[common] > position[other]:
                        common = found[common]
                    else:
                        other = found[other]
            found[value] = common
        return found

    def dominators(self, value: int) -> list[int]:
        """All that dominate it, the nearest first; the input last."""
        found = []
        while value != self.order[0]:
            value = self.dominator[value]
            found.append(value)
        return found

    @cached_property
    def leaving(self) -> dict[int, list[tuple[int, Arrival]]]:
        """Value -> the values that depend on it directly, each with the edge to it."""
        found: dict[int, list[tuple[int, Arrival]]] = {value: [] for value in self.order}
        for value in self.order[1:]:
            for arrival in self.arrivals[value]:
                found[arrival.source].append((value, arrival))
        return found

    def before(
        self,
        arrival: Arrival,
        start: int,
        value: int,
        *,
        ends: Callable[[int, Arrival], bool],
        stops: Callable[[int, Arrival], bool],
    ) -> Ends:
        """The search backwards from an edge that arrives at ``value``, up to ``start``.

        Parameters
        ----------
        arrival : Arrival
        start : int
            A dominator of the value.
        value : int
        ends : callable
            Whether a path, followed backwards, ends with this edge at this value.
        stops : callable
            Whether a path is given up there.
        """
        found: list[tuple[int, Arrival]] = []
        inside: set[int] = set()
        free = False
        waiting = [(value, arrival)]
        while waiting:
            at, edge = waiting.pop()
            if ends(at, edge):
                found.append((at, edge))
            elif stops(at, edge):
                continue
            elif edge.source == start:
                free = True
            elif edge.source not in inside:
                inside.add(edge.source)
                waiting += [(edge.source, before) for before in self.arrivals[edge.source]]
        return Ends(found, free)

    def between(self, arrival: Arrival, start: int) -> set[int]:
        """The values on paths from ``start`` to the source of an edge, without ``start``."""
        found: set[int] = set()
        waiting = [arrival.source]
        while waiting:
            value = waiting.pop()
            if value != start and value not in found:
                found.add(value)
                waiting += [before.source for before in self.arrivals.get(value, ())]
        return found


@dataclass(frozen=True)
class Ends:
    """Where the paths of a search end, each with its edge, and whether one reaches the start without an end."""

    found: list[tuple[int, Arrival]]
    free: bool
