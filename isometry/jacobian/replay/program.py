"""A graph of linear maps as two straight lists of steps: one for J v, one for J^T u.

What the steps may write over is worked out once: memory that no other step will read, and that is not the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .graph import Edge, Graph
from .maps import Identity


@dataclass(frozen=True)
class Step:
    """values[result] (+)= apply(values[source])."""

    apply: Callable[[Tensor, bool], Tensor]
    source: int
    result: int
    in_place: bool
    # Whether the sum so far is memory of its own (True), someone else's (False), or empty (None).
    onto: bool | None
    last_use: bool
    edge: Edge


class Program:
    """One direction of a graph.

    Parameters
    ----------
    graph : Graph
    shape : sequence of int
        Of one vector of the result.
    transposed : bool
        J^T u in place of J v.
    """

    def __init__(self, graph: Graph, shape: Sequence[int], *, transposed: bool) -> None:
        self._shape = tuple(shape)
        self._input, self._output = (graph.output, graph.input) if transposed else (graph.input, graph.output)
        self._slots, self.steps, self._clone = _schedule(graph, self._input, self._output, transposed)

    def __call__(self, block: Tensor) -> Tensor:
        """The products of a block of vectors (k, ...)."""
        out = self._run(block, None)
        return out.reshape(block.shape[0], *self._shape)

    def watch(self, block: Tensor, look: Callable[[Step, Tensor], None]) -> Tensor:
        """The same, calling ``look`` with each step and what it made."""
        return self._run(block, look).reshape(block.shape[0], *self._shape)

    def measured(self, block: Tensor) -> tuple[Tensor, int]:
        """The products, and the most bytes that values took at once for each vector, with room to work."""
        live: dict[int, int] = {0: block.nbytes}
        total = most = block.nbytes

        def look(step: Step, made: Tensor) -> None:
            nonlocal total, most
            size = made.nbytes
            # A convolution pads, and may lay out its input and its output anew.
            work = 0 if isinstance(step.edge.map, Identity) else 2 * max(size, live.get(step.source, 0))
            most = max(most, total + size + work)
            if step.last_use:
                total -= live.pop(step.source, 0)
            total += size - live.get(step.result, 0)
            live[step.result] = size

        return self.watch(block, look), most // block.shape[0]

    def _run(self, block: Tensor, look: Callable[[Step, Tensor], None] | None) -> Tensor:
        values: list[Tensor | None] = [None] * self._slots
        values[0] = block
        for step in self.steps:
            source = values[step.source]
            assert source is not None
            made = step.apply(source, step.in_place)
            if look is not None:
                look(step, made)
            if step.last_use:
                values[step.source] = source = None
            if step.onto is None:
                values[step.result] = made
            else:
                total = values[step.result]
                assert total is not None
                made = made.reshape(total.shape)
                values[step.result] = total.add_(made) if step.onto else total + made
        out = values[-1]
        if out is None:
            # Nothing leads from one end to the other: J is zero.
            return block.new_zeros((block.shape[0], *self._shape))
        return out.clone() if self._clone else out


def _schedule(graph: Graph, start: int, end: int, transposed: bool) -> tuple[int, list[Step], bool]:
    edges = graph.edges[::-1] if transposed else graph.edges
    ends = [(edge.result, edge.source) if transposed else (edge.source, edge.result) for edge in edges]
    uses: dict[int, list[int]] = {}
    arrivals: dict[int, int] = {}
    for position, (source, result) in enumerate(ends):
        uses.setdefault(source, []).append(position)
        arrivals[result] = arrivals.get(result, 0) + 1
    numbers = {start: 0}
    for _, result in ends:
        if result != end:
            numbers.setdefault(result, len(numbers))
    if end != start:
        numbers[end] = len(numbers)
    own: dict[int, bool] = {start: False}
    steps = []
    for position, (edge, (source, result)) in enumerate(zip(edges, ends, strict=True)):
        readers = uses[source]
        last = readers[-1] == position
        alone = len(readers) == 1 or not any(edges[reader].map.aliases for reader in readers)
        onto = own.get(result)
        steps.append(
            Step(
                edge.map.pull if transposed else edge.map.push,
                numbers[source],
                numbers[result],
                own[source] and last and alone,
                onto,
                last and source != end,
                edge,
            )
        )
        own[result] = True if onto is not None else not edge.map.aliases
    return len(numbers), steps, not own.get(end, False)
