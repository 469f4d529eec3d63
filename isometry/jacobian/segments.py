"""The Jacobian of a recorded model as a product J = J_K ... J_1 of segments, each with products of its own.

The recording is cut wherever all dependence on the input passes through one tensor (:mod:`.replay.cuts`), whatever the
modules are called and however the forward pass is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isometry.errors import InputError, ModelError

from .backends import Products
from .chunks import ChunkedProducts, chunk_within
from .evaluation import Evaluation
from .inputs import Wrt
from .numerics import no_collection, torch_warnings_silenced
from .operator import DEFAULT_MEMORY_LIMIT, JacobianOperator
from .outputs import Output
from .perturbation import norm
from .product_checks import expected_rounding, linearity_error
from .replay import (
    Graph,
    ModuleCall,
    NoRule,
    RecordedSegments,
    Replay,
    Segment,
    joined,
    recorded_segments,
    replay_of,
)

# The product of segments and J may differ by so many times the rounding of J's products, or units for each segment.
_TIMES_ROUNDING, _UNITS_PER_SEGMENT = 32, 8


@dataclass(frozen=True, eq=False)
class JacobianSegment:
    """One factor J_k, between two successive cuts.

    Parameters
    ----------
    calls : tuple of ModuleCall
        The calls of modules that everything in the segment ran in, outermost first: the model itself, ..., the
        innermost.
    stacks : tuple of tuples of ModuleCall
        The calls that its operations ran in, outermost first, in order, each once; views are left out.
    operations : tuple of str
        Names of the operations in it.
    is_residual : bool
        Whether it is x + f(x).
    is_identity : bool
        Whether it leaves the numbers as they are, perhaps in another shape.
    """

    calls: tuple[ModuleCall, ...]
    stacks: tuple[tuple[ModuleCall, ...], ...]
    operations: tuple[str, ...]
    is_residual: bool
    is_identity: bool


class SegmentOperator:
    """A product of successive segments, or the branch of one, as a map on blocks of vectors.

    Attributes are those of :class:`JacobianOperator`: shape, input_shape, output_shape, batch, dtype, device, chunk,
    rounding, unit, products.
    """

    def __init__(
        self, evaluation: Evaluation, products: Products, memory_limit: int, *, casts: bool = False
    ) -> None:
        chunk = chunk_within(memory_limit, products.bytes_per_probe, evaluation.point.device)
        self._chunked = ChunkedProducts(evaluation, products, chunk)
        self.batch = evaluation.batch
        self.input_shape, self.output_shape = evaluation.input_shape, evaluation.output_shape
        self.shape = (self.output_shape.numel(), self.input_shape.numel())
        self.dtype, self.device = evaluation.point.dtype, evaluation.point.device
        self.point = evaluation.point
        self.products = 0
        found = linearity_error(self._chunked.matmat, self._chunked.rmatmat, evaluation)
        expected = expected_rounding(evaluation)
        self.rounding = max(expected.relative, 2 * found)
        self.unit = expected.unit * (self.rounding / expected.relative if casts else 1)

    @property
    def chunk(self) -> int:
        """Probes evaluated at once."""
        return self._chunked.chunk

    def matmat(self, vectors: Tensor) -> Tensor:
        """J v for a block: (k, *input_shape) -> (k, *output_shape); with a batch (k, B, ...) on both sides."""
        self.products += vectors.shape[0] * (self.batch or 1)
        return self._chunked.matmat(vectors)

    def rmatmat(self, vectors: Tensor) -> Tensor:
        """J^T u for a block: (k, *output_shape) -> (k, *input_shape); with a batch (k, B, ...) on both sides."""
        self.products += vectors.shape[0] * (self.batch or 1)
        return self._chunked.rmatmat(vectors)


class JacobianSegments:
    """J = J_K ... J_1 at one input, from one recorded run of the model.

    Parameters
    ----------
    model, x, args, kwargs, wrt, batched, source, target, output, dtype, device, memory_limit :
        As for :class:`JacobianOperator`. With a batch, segments begin and end only where the samples lie along the
        first axis, each by itself.

    Attributes
    ----------
    segments : tuple of JacobianSegment
        First one first.
    point, batch :
        As of the operator of the whole.

    Raises
    ------
    ModelError
        Where the model cannot be recorded, with the operation that prevents it; and all that
        :class:`JacobianOperator` raises.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    >>> chain = JacobianSegments(model, torch.zeros(3))
    >>> [segment.calls[-1].name for segment in chain.segments], chain.operator(0, 2).shape
    (['0', '1', '2'], (4, 3))
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        x: Any = None,
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        wrt: Wrt = None,
        batched: bool = False,
        source: str | None = None,
        target: str | None = None,
        output: Output = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        memory_limit: int = DEFAULT_MEMORY_LIMIT,
    ) -> None:
        self._split(
            JacobianOperator(
                model, x, args=args, kwargs=kwargs, wrt=wrt, batched=batched, source=source, target=target,
                output=output, dtype=dtype, device=device, memory_limit=memory_limit,
            )
        )  # fmt: skip

    @classmethod
    def of(cls, operator: JacobianOperator) -> JacobianSegments:
        """The segments of the Jacobian of a ready operator, with its options."""
        segments = cls.__new__(cls)
        segments._split(operator)
        return segments

    def _split(self, whole: JacobianOperator) -> None:
        self._evaluation, self._memory_limit = whole.evaluation, whole.memory_limit
        self._casts = whole.unit > whole.evaluation.unit
        self.point, self.batch = whole.point, whole.batch
        with no_collection():
            self._recorded = self._record()
            self._parts = self._with_samples_apart(self._without_views(self._recorded.segments))
            self._compare_with(whole)
            self.segments = tuple(self._described(part) for part in self._parts)

    def __len__(self) -> int:
        return len(self.segments)

    @property
    def widest(self) -> int:
        """Numbers of the largest tensor at the end of a segment, of one sample, the input included."""
        ends = [self._parts[0].input_shape, *(part.output_shape for part in self._parts)]
        return max(end.numel() for end in ends) // (self.batch or 1)

    def operator(self, start: int, stop: int) -> SegmentOperator:
        """The product J_stop ... J_{start + 1} of the segments with numbers start, ..., stop - 1 from 0."""
        if not 0 <= start < stop <= len(self._parts):
            raise InputError(
                f"segments are numbered 0 to {len(self._parts) - 1}; got start={start}, stop={stop}"
            )
        part = joined(self._parts[start:stop])
        return self._operator(part, part.fused())

    def branch(self, number: int) -> SegmentOperator | None:
        """The Jacobian of f where the segment of that number is x + f(x), else None."""
        part = self._parts[number]
        graph = part.branch()
        return None if graph is None else self._operator(part, graph)

    def times_called(self, name: str) -> int:
        """How often the module of that name was called."""
        return self._recorded.calls.count(name)

    # ---- from the recording ---------------------------------------------------------------------------

    def _record(self) -> RecordedSegments:
        at = self._evaluation
        try:
            with at.numerics(), torch_warnings_silenced():
                return recorded_segments(at.function, at.point, at.module)
        except NoRule as missing:
            raise ModelError(
                "this model cannot be split into a product of segments, for its run cannot be recorded: no linear map "
                f"for {missing}"
            ) from None

    def _described(self, part: Segment) -> JacobianSegment:
        stacks = self._stacks(part)
        residual = part.branch() is not None
        return JacobianSegment(_common(stacks), stacks, tuple(part.operations), residual, part.is_identity)

    def _stacks(self, part: Segment) -> tuple[tuple[ModuleCall, ...], ...]:
        return tuple(dict.fromkeys(self._recorded.calls.calls(label) for label in part.modules))

    def _without_views(self, parts: Sequence[Segment]) -> list[Segment]:
        """The segments, those that only give values another shape joined to a neighbour within the same call."""
        calls = [_common(self._stacks(part)) for part in parts]
        waiting: list[Segment] = []
        found: list[Segment] = []
        for number, part in enumerate(parts):
            inside = calls[number]
            if part.is_identity and number + 1 < len(parts) and calls[number + 1][: len(inside)] == inside:
                waiting.append(part)
            elif part.is_identity and number and not waiting and calls[number - 1][: len(inside)] == inside:
                found[-1] = joined([found[-1], part])
            else:
                found.append(joined([*waiting, part]))
                waiting = []
        return found

    def _operator(self, part: Segment, graph: Graph) -> SegmentOperator:
        at = self._evaluation
        # The points are not kept: the maps hold all that depends on them.
        ends = [at.point.new_zeros(()).expand(shape) for shape in (part.input_shape, part.output_shape)]
        here = Evaluation(at.function, ends[0], ends[1], at.batch, None, at.recurrent, at.tf32)
        replay = self._replay(part, graph)
        with at.numerics(), torch_warnings_silenced():
            peaks = [
                program.with_peak_bytes(torch.zeros_like(end)[None])[1]
                for program, end in ((replay.direct, ends[0]), (replay.transposed, ends[1]))
            ]
        products = Products(replay.matmat, replay.rmatmat, "segment", max(peaks))
        return SegmentOperator(here, products, self._memory_limit, casts=self._casts)

    def _replay(self, part: Segment, graph: Graph | None = None) -> Replay:
        graph = part.fused() if graph is None else graph
        parameters = self._recorded.parameters_of(part)
        return replay_of(graph, part.input_shape, part.output_shape, parameters)

    def _with_samples_apart(self, parts: Sequence[Segment]) -> list[Segment]:
        """The segments, joined where they do not meet at a tensor with the samples along its first axis."""
        size = self._evaluation.batch
        if size is None:
            return list(parts)
        number = torch.arange(size)
        # Any two samples differ in some binary digit of their numbers, so that one mask moves one and not the other.
        digits = [(number >> digit) & 1 == 1 for digit in range(max((size - 1).bit_length(), 1))]
        masks = torch.stack([side for chosen in digits for side in (chosen, ~chosen)]).to(
            self._evaluation.point.device
        )
        generator = torch.Generator().manual_seed(0)
        point = self._evaluation.point
        tangent = torch.randn(point.shape, generator=generator, dtype=torch.float64).to(point)
        block = tangent * masks.reshape(*masks.shape, *[1] * (point.dim() - 1))
        found: list[Segment] = []
        waiting: list[Segment] = []
        for position, part in enumerate(parts):
            waiting.append(part)
            with self._evaluation.numerics(), torch_warnings_silenced():
                block = self._replay(part).matmat(block)
            # Deep products leave the range of floats, and zero tells nothing.
            block = block / (float(block.abs().max()) or 1.0)
            apart = block.dim() > 1 and block.shape[1] == size and not bool((block[~masks] != 0).any())
            if apart or position == len(parts) - 1:
                found.append(joined(waiting))
                waiting = []
        return found

    def _compare_with(self, whole: JacobianOperator) -> None:
        """Raise ModelError where the product of the segments is not J, whose products may come from torch.func."""
        at = self._evaluation
        generator = torch.Generator().manual_seed(2)
        v, u = (
            torch.randn((1, *end.shape), generator=generator, dtype=torch.float64).to(end)
            for end in (at.point, at.value)
        )
        bound = _TIMES_ROUNDING * max(whole.rounding, _UNITS_PER_SEGMENT * len(self._parts) * at.unit)
        replays = [self._replay(part) for part in self._parts]
        for expected, found, products in (
            (whole.matmat(v), v, [replay.matmat for replay in replays]),
            (whole.rmatmat(u), u, [replay.rmatmat for replay in reversed(replays)]),
        ):
            with at.numerics(), torch_warnings_silenced():
                for product in products:
                    found = product(found)
            difference, size = norm(found - expected), norm(expected)
            if size < torch.finfo(expected.dtype).tiny / at.unit:
                # The product leaves the range of floats, and its segments do not.
                continue
            if not difference <= bound * size:
                raise ModelError(
                    f"the product of the {len(self._parts)} segments of this model differs from its Jacobian by "
                    f"{difference / size if size else float('inf'):.1e}, where rounding explains {bound:.1e}: the "
                    "recorded maps are wrong, or two runs of the model differ. Try dtype=torch.float64"
                )


def _common(stacks: Sequence[tuple[ModuleCall, ...]]) -> tuple[ModuleCall, ...]:
    """The calls with which all stacks begin."""
    common = stacks[0] if stacks else ()
    for stack in stacks[1:]:
        length = next((k for k, (a, b) in enumerate(zip(common, stack, strict=False)) if a != b), len(stack))
        common = common[:length]
    return common
