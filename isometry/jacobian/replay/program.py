"""A graph of linear maps as a list of steps, for J v or for J^T u.

Which memory a step may write over is decided once: memory that no other step will read, and that is not the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from .graph import Edge, Graph
from .maps import Identity


class Step(NamedTuple):
    """values[result] (+)= product(values[source])."""

    product: Callable[[Tensor, bool], Tensor]
    source: int
    result: int
    overwrite: bool
    # Whether the sum so far is memory of its own (True), shared (False), or empty (None).
    sum_is_owned: bool | None
    last_use: bool
    edge: Edge


class Program:
    """One product of a graph, J v or J^T u.

    Parameters
    ----------
    graph : Graph
    shape : sequence of int
        Of one vector of the result.
    transposed : bool
        Whether it is J^T u.
    """

    def __init__(self, graph: Graph, shape: Sequence[int], *, transposed: bool) -> None:
        self._shape = tuple(shape)
        self._input, self._output = (graph.output, graph.input) if transposed else (graph.input, graph.output)
        self._slots, self.steps, self._clone = _schedule(graph, self._input, self._output, transposed)

    def __call__(self, block: Tensor) -> Tensor:
        """The products of a block of vectors (k, ...)."""
        out = self._run(block, None)
        return out.reshape(block.shape[0], *self._shape)

    def observed(self, block: Tensor, observe: Callable[[Step, Tensor], None]) -> Tensor:
        """The same products; calls ``observe`` with each step and its result."""
        return self._run(block, observe).reshape(block.shape[0], *self._shape)

    def with_peak_bytes(self, block: Tensor) -> tuple[Tensor, int]:
        """The products, and the peak of bytes that values take for each vector, with room for a step to work in."""
        live: dict[int, int] = {0: block.nbytes}
        total = peak = block.nbytes

        def observe(step: Step, made: Tensor) -> None:
            nonlocal total, peak
            size = made.nbytes
            # A convolution pads, and may lay out its input and its output anew.
            work = 0 if isinstance(step.edge.map, Identity) else 2 * max(size, live.get(step.source, 0))
            peak = max(peak, total + size + work)
            if step.last_use:
                total -= live.pop(step.source, 0)
            total += size - live.get(step.result, 0)
            live[step.result] = size

        return self.observed(block, observe), peak // block.shape[0]

    def _run(self, block: Tensor, observe: Callable[[Step, Tensor], None] | None) -> Tensor:
        values: list[Tensor | None] = [None] * self._slots
        values[0] = block
        for step in self.steps:
            source = values[step.source]
            assert source is not None
            made = step.product(source, step.overwrite)
            if observe is not None:
                observe(step, made)
            if step.last_use:
                values[step.source] = source = None
            if step.sum_is_owned is None:
                values[step.result] = made
            else:
                total = values[step.result]
                assert total is not None
                made = made.reshape(total.shape)
                values[step.result] = total.add_(made) if step.sum_is_owned else total + made
        out = values[-1]
        if out is None:
            # Nothing leads from one end to the other: J is zero.
            return block.new_zeros((block.shape[0], *self._shape))
        return out.clone() if self._clone else out


def _schedule(graph: Graph, start: int, end: int, transposed: bool) -> tuple[int, list[Step], bool]:
    """The number of slots for values, the steps, and whether the result has to be copied before it is returned."""
    edges = graph.edges[::-1] if transposed else graph.edges
    ends = [(edge.result, edge.source) if transposed else (edge.source, edge.result) for edge in edges]
    readers: dict[int, list[int]] = {}
    for position, (source, _) in enumerate(ends):
        readers.setdefault(source, []).append(position)
    slots = {start: 0}
    for _, result in ends:
        if result != end:
            slots.setdefault(result, len(slots))
    if end != start:
        slots[end] = len(slots)
    owned: dict[int, bool] = {start: False}
    steps = []
    for position, (edge, (source, result)) in enumerate(zip(edges, ends, strict=True)):
        last = readers[source][-1] == position
        unshared = len(readers[source]) == 1 or not any(edges[r].map.aliases for r in readers[source])
        sum_is_owned = owned.get(result)
        steps.append(
            Step(
                edge.map.rmatmat if transposed else edge.map.matmat,
                slots[source],
                slots[result],
                owned[source] and last and unshared,
                sum_is_owned,
                last and source != end,
                edge,
            )
        )
        owned[result] = True if sum_is_owned is not None else not edge.map.aliases
    return len(slots), steps, not owned.get(end, False)
