"""Random tangents pushed through every value of one recorded run: their mean squares, and where weights act.

The graph of linear maps of a run has a node for each value and an edge for each map. A tangent v at the input becomes
J_u v at the value u, and E ||J_u v||^2 = ||J_u||_F^2 for standard normal v (Hutchinson 1990, Commun. Stat. Simul.
Comput. 19, 433); the n unit vectors give it exactly. One run shows so the Jacobian of every value at once, whatever
the modules are called: of layers one after another, of branches, of paths that are joined again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isometry.errors import ModelError

from .evaluation import Evaluation
from .numerics import no_collection, torch_warnings_silenced
from .operator import JacobianOperator
from .replay import Edge, ModuleCall, NoRule, recorded_graph

Array = NDArray[np.float64]
_STREAM = 11
# exp of half of it and its inverse are floats.
_LARGEST = 1300.0


@dataclass(frozen=True, eq=False)
class Arrival:
    """One edge of the graph.

    Parameters
    ----------
    source : int
        The value that it comes from.
    operation : str
        Name of the operation.
    calls : tuple of ModuleCall
        The calls of modules that it ran in, outermost first.
    log_square : (k,) array
        ln of the squared length of each probe's tangent behind this edge.
    log_others : (k,) array
        The same of the sum of all other edges that arrive at the same value; -inf where there are none.
    """

    source: int
    operation: str
    calls: tuple[ModuleCall, ...]
    log_square: Array
    log_others: Array


@dataclass(frozen=True, eq=False)
class RecordedTangents:
    """The values of a recorded run and the tangents at them.

    Parameters
    ----------
    order : tuple of int
        The values between input and output, both included, each behind those that it depends on.
    sizes : dict
        Value -> how many numbers it has for each sample.
    log_squares : dict
        Value -> (k,) array: ln ||J_u v||^2 of each probe, summed over the samples; -inf where it is zero.
    arrivals : dict
        Value -> the edges that arrive at it.
    held : dict
        Value -> the tensors that do not depend on the input among the arguments of the operation that makes it.
    signals : dict
        Value -> the sum of squares of its entries, of those that enter an operation.
    samples : int
        Jacobians that the squares are summed over.
    exact : bool
        Whether the probes are the n unit vectors.
    """

    order: tuple[int, ...]
    sizes: dict[int, int]
    log_squares: dict[int, Array]
    arrivals: dict[int, list[Arrival]]
    held: dict[int, list[Tensor]]
    signals: dict[int, float]
    samples: int
    exact: bool

    def log_frobenius(self, value: int) -> float:
        """ln ||J_u||_F^2 of a value, in the mean over the samples; -inf where nothing reaches it."""
        return self.log_mean(self.log_squares[value]) - math.log(self.samples)

    def log_mean(self, log_squares: Array) -> float:
        """ln of the square, in expectation over standard normal probes."""
        top = float(log_squares.max())
        if not math.isfinite(top):
            return top
        count = 1 if self.exact else log_squares.size
        return top + math.log(float(np.exp(log_squares - top).sum()) / count)

    def stderr(self, log_squares: Array, reference: Array | None = None) -> float:
        """Standard error over probes of ln of a mean square, or of its ratio to another (delta method)."""
        if self.exact or not math.isfinite(self.log_mean(log_squares)):
            return 0.0
        rows = np.exp(log_squares - self.log_mean(log_squares))
        if reference is not None:
            rows = rows - np.exp(reference - self.log_mean(reference))
        return float(rows.std(ddof=1) / math.sqrt(rows.size))


def push_tangents(operator: JacobianOperator, probes: int, seed: int) -> RecordedTangents:
    """Record the model of an operator, as it is now, and push tangents through it.

    Parameters
    ----------
    operator : JacobianOperator
        Its copy of the model is run; whoever writes to the weights of that copy finds them here.
    probes : int
        Standard normal tangents; up to twice as many inputs are taken one by one, which is exact.
    seed : int

    Raises
    ------
    ModelError
        Where the run cannot be recorded, with the operation that prevents it.
    """
    at = operator.evaluation
    try:
        with no_collection(), at.numerics(), torch_warnings_silenced():
            recorded = recorded_graph(at.function, at.point, at.module, squares=True)
            pushed = _Pushed(recorded.graph.edges, recorded.graph.input, at.batch or 1)
            size = at.input_shape.numel()
            exact = size <= 2 * probes
            count = size if exact else probes
            step = max(1, min(operator.chunk, count))
            for start in range(0, count, step):
                numbers = range(start, min(start + step, count))
                pushed.add(_units(at, numbers) if exact else _normal(at, numbers, seed))
    except NoRule as missing:
        raise ModelError(
            f"the run of this model cannot be recorded, so its blocks are not known: no linear map for {missing}"
        ) from None
    squares = {value: np.concatenate(rows) for value, rows in pushed.squares.items()}
    arrivals: dict[int, list[Arrival]] = {}
    for number, edge in enumerate(recorded.graph.edges):
        others = pushed.others.get(number)
        own = np.concatenate(pushed.through[number]) if number in pushed.through else squares[edge.result]
        arrivals.setdefault(edge.result, []).append(
            Arrival(
                edge.source, edge.operation, recorded.calls.calls(edge.module), own,
                np.full(own.shape, -np.inf) if others is None else np.concatenate(others),
            )
        )  # fmt: skip
    held = {value: [tensor for tensor, _ in recorded.parameters.get(value, ())] for value in pushed.order}
    return RecordedTangents(
        tuple(pushed.order), pushed.sizes, squares, arrivals, held, recorded.squares, at.batch or 1, exact
    )


def _normal(at: Evaluation, numbers: Sequence[int], seed: int) -> Tensor:
    """Standard normal tangents, each probe by a stream of its own."""
    draws = []
    for number in numbers:
        stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, _STREAM, number])))
        draws.append(stream.standard_normal(at.point.numel()))
    return torch.from_numpy(np.array(draws)).to(at.point).reshape(-1, *at.point.shape)


def _units(at: Evaluation, numbers: Sequence[int]) -> Tensor:
    """Unit vectors, the same for each sample."""
    size = at.input_shape.numel()
    block = torch.zeros((len(numbers), size), dtype=torch.float64)
    block[torch.arange(len(numbers)), torch.tensor(numbers)] = 1.0
    whole = block[:, None, :].expand(-1, at.batch or 1, -1)
    return whole.reshape(len(numbers), *at.point.shape).to(at.point)


@dataclass
class _Pushed:
    """Tangents pushed along the edges, in chunks of probes; what is kept of them."""

    edges: Sequence[Edge]
    start: int
    samples: int
    order: list[int] = field(default_factory=list)
    sizes: dict[int, int] = field(default_factory=dict)
    squares: dict[int, list[Array]] = field(default_factory=dict)
    through: dict[int, list[Array]] = field(default_factory=dict)
    others: dict[int, list[Array]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._arriving = Counter(edge.result for edge in self.edges)
        self._last_use = {edge.source: number for number, edge in enumerate(self.edges)}

    def add(self, block: Tensor) -> None:
        """Push a block of tangents (k, ...)."""
        offset, count = np.zeros(1), block.shape[0]
        values: dict[int, Tensor] = {self.start: block}
        waiting: dict[int, list[tuple[int, Tensor]]] = {}
        self._note(self.start, block, count, offset)
        for number, edge in enumerate(self.edges):
            made = edge.map.matmat(values[edge.source], False)
            if self._last_use[edge.source] == number:
                del values[edge.source]
            parts = waiting.setdefault(edge.result, [])
            parts.append((number, made if not parts else made.reshape(parts[0][1].shape)))
            if len(parts) < self._arriving[edge.result]:
                continue
            total = parts[0][1]
            for _, part in parts[1:]:
                total = total + part
            if len(parts) > 1:
                for place, part in parts:
                    self.through.setdefault(place, []).append(_log_square(part, count) + offset)
                    self.others.setdefault(place, []).append(_log_square(total - part, count) + offset)
            del waiting[edge.result]
            squares = self._note(edge.result, total, count, offset)
            if not values and not waiting and len(squares) and math.isfinite(top := float(squares.max())):
                # Everything passes here: a common factor keeps deep products in the range of floats.
                relative = min(max(top - float(offset[0]), -_LARGEST), _LARGEST)
                total = total * math.exp(-0.5 * relative)
                offset = offset + relative
            values[edge.result] = total

    def _note(self, value: int, tangents: Tensor, count: int, offset: Array) -> Array:
        if value not in self.sizes:
            self.order.append(value)
            self.sizes[value] = tangents.numel() // (count * self.samples)
        squares = _log_square(tangents, count) + offset
        self.squares.setdefault(value, []).append(squares)
        return squares


def _log_square(tangents: Tensor, count: int) -> Array:
    """ln of the squared length of each of the tangents of a block, which is kept in any shape; -inf of zero."""
    flat = tangents.reshape(count, -1)
    scale = flat.abs().amax(dim=1).double()
    safe = torch.where((scale > 0) & scale.isfinite(), scale, 1.0)
    # float32 keeps it to 1e-7 where the largest entry is 1.
    length = torch.linalg.vector_norm(flat / safe.to(flat)[:, None], dim=1).double() * safe
    with np.errstate(divide="ignore"):
        logs: Array = 2 * np.log(length.cpu().numpy())
    return logs
