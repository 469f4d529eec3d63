"""The blocks of a model with the operators of their Jacobians, in order: from a chain of layers, or from a recording.

A chain is walked block by block, each block recorded at the tensor that reaches it. Every other model is recorded once
and split where all dependence on the input passes through one tensor. Internal.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from isometry.depth.chain import Step, applied
from isometry.depth.recorded_blocks import RecordedBlock, recorded_blocks
from isometry.depth.sequential_blocks import Block, block_pattern, blocks_of
from isometry.errors import IsometryError, ModelError
from isometry.estimators import exact, lanczos
from isometry.jacobian import JacobianOperator, JacobianSegments, SegmentOperator, strict_numerics
from isometry.measurement import measure
from isometry.spectrum import Spectrum

BlockOperator = JacobianOperator | SegmentOperator


@dataclass(frozen=True)
class ResidualSum:
    """A sum x + f(x) within a block: its name, the operators of x -> x + f(x) (None: the block's own) and of f."""

    name: str
    stream: SegmentOperator | None
    branch: SegmentOperator


@dataclass(frozen=True)
class WalkedBlock:
    """One block at the tensor that reaches it."""

    name: str
    operator: BlockOperator
    residual_sums: list[ResidualSum]


class Walk(Protocol):
    """Blocks in order, first one first."""

    @property
    def blocks(self) -> Sequence[Block | RecordedBlock]: ...

    def walked(self) -> Iterator[WalkedBlock]:
        """The blocks one after another; memory of one is free when the next comes."""
        ...

    def depth_of_product(self, depth: int) -> int | None:
        """The least depth from this one on, less than the whole, at which :meth:`product` is known; None if none is."""
        ...

    def product(
        self, depth: int, *, probes: int, steps: int, seed: int, name: str, provenance: dict[str, Any]
    ) -> Spectrum:
        """The spectrum of the product of the first blocks."""
        ...


def walk_of(
    model: nn.Module | Callable[[Tensor], Any],
    point: Tensor,
    pattern: str | None,
    *,
    batched: bool,
    memory_limit: int,
) -> Walk:
    """The blocks of a model: of its chain of layers where it is one, else of its recording.

    Raises
    ------
    ModelError
        Where it is no chain and cannot be recorded.
    InputError
        Where the pattern is no regular expression or matches no module.
    """
    # Before anything is computed.
    block_pattern(model, pattern)
    try:
        if isinstance(model, nn.Module):
            chain = blocks_of(model, pattern)
            if _reproduces(chain, model, point):
                return ChainWalk(model, point, chain, batched, memory_limit)
    except ModelError:
        # No chain whose order is known.
        pass
    return recorded_walk(model, point, pattern, batched=batched, memory_limit=memory_limit)


def recorded_walk(
    model: nn.Module | Callable[..., Any], x: Any, pattern: str | None, *, memory_limit: int, **options: Any
) -> RecordedWalk:
    """The blocks of a recording of the model; the options are those of :class:`JacobianSegments`."""
    matches = block_pattern(model, pattern)
    segments = JacobianSegments(model, x, memory_limit=memory_limit, **options)
    return RecordedWalk(segments, recorded_blocks(segments, matches), memory_limit)


def _reproduces(chain: Sequence[Block], model: nn.Module, point: Tensor) -> bool:
    """Whether the blocks, one after another, give the output of the model: hooks or an order of its own may not."""
    end = point
    with strict_numerics(point.device), torch.no_grad():
        try:
            for block in chain:
                end = applied(Step(block.name, block.function, None), end)
        except ModelError:
            # The walk names the block that fails.
            return True
        value = model(point.clone())
    # The same operations in the same order; another order is off by its whole size.
    same = isinstance(value, Tensor) and value.shape == end.shape
    return same and float((value - end).norm()) <= 1e-3 * float(value.norm())


@dataclass(frozen=True)
class ChainWalk:
    """The blocks of a chain of layers."""

    model: nn.Module
    point: Tensor
    blocks: list[Block]
    batched: bool
    memory_limit: int

    def walked(self) -> Iterator[WalkedBlock]:
        """See :class:`Walk`."""
        point = self.point
        for number, block in enumerate(self.blocks):
            try:
                with warnings.catch_warnings():
                    # A warning about one block (slower products) would repeat for hundreds.
                    warnings.simplefilter("ignore" if number else "default")
                    operator = JacobianOperator(
                        block.function, point, batched=self.batched, memory_limit=self.memory_limit
                    )
            except IsometryError as error:
                raise type(error)(f"block {block.name!r}: {error}") from error
            yield WalkedBlock(block.name, operator, self._residual_sums(block, point))
            with strict_numerics(point.device), torch.no_grad():
                point = applied(Step(block.name, block.function, None), point)

    def _residual_sums(self, block: Block, point: Tensor) -> list[ResidualSum]:
        module = block.function if isinstance(block.function, nn.Module) else None
        if module is None or not any(True for _ in module.children()):
            return []
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                segments = JacobianSegments(
                    module, point, batched=self.batched, memory_limit=self.memory_limit
                )
        except ModelError:
            return []
        return residual_sums(segments, block.name, 0, len(segments), prefix=f"{block.name}.")

    def depth_of_product(self, depth: int) -> int | None:
        """See :class:`Walk`: layers between two blocks are no module that a measurement could end at."""
        whole = range(depth, len(self.blocks))
        return next((d for d in whole if self.blocks[d - 1].module is not None), None)

    def product(
        self, depth: int, *, probes: int, steps: int, seed: int, name: str, provenance: dict[str, Any]
    ) -> Spectrum:
        """See :class:`Walk`."""
        return measure(
            self.model, self.point, target=self.blocks[depth - 1].module, batched=self.batched, probes=probes,
            steps=steps, seed=seed, memory_limit=self.memory_limit, progress=False, on_interrupt="raise", name=name,
            provenance=provenance,
        )  # fmt: skip


@dataclass(frozen=True)
class RecordedWalk:
    """The blocks of a recorded model."""

    segments: JacobianSegments
    blocks: list[RecordedBlock]
    memory_limit: int

    def walked(self) -> Iterator[WalkedBlock]:
        """See :class:`Walk`."""
        for block in self.blocks:
            operator = self.segments.operator(block.start, block.stop)
            yield WalkedBlock(
                block.name, operator, residual_sums(self.segments, block.name, block.start, block.stop)
            )

    def depth_of_product(self, depth: int) -> int | None:
        """See :class:`Walk`."""
        return depth if depth < len(self.blocks) else None

    def product(
        self, depth: int, *, probes: int, steps: int, seed: int, name: str, provenance: dict[str, Any]
    ) -> Spectrum:
        """See :class:`Walk`."""
        operator = self.segments.operator(0, self.blocks[depth - 1].stop)
        spectrum = own_spectrum(operator, probes, steps, seed, self.memory_limit)
        return replace(spectrum, name=name, provenance={**spectrum.provenance, **provenance})


def residual_sums(
    segments: JacobianSegments, name: str, start: int, stop: int, prefix: str = ""
) -> list[ResidualSum]:
    """The sums x + f(x) among the segments of a block of this name."""
    found = []
    for number in range(start, stop):
        branch = segments.branch(number) if segments.segments[number].is_residual else None
        if branch is None:
            continue
        inside = segments.segments[number].calls
        own = f"{prefix}{inside[-1].name}" if inside and inside[-1].name else name
        stream = None if stop - start == 1 else segments.operator(number, number + 1)
        found.append(ResidualSum(own, stream, branch))
    return found


def own_spectrum(operator: BlockOperator, probes: int, steps: int, seed: int, memory_limit: int) -> Spectrum:
    """The spectrum of one block's own Jacobian: exact where that takes no more than 2 * probes * steps products."""
    m, n = operator.shape
    if min(m, n) <= 2 * probes * steps and 3 * 8 * m * n <= memory_limit:
        return exact(operator, block=max(operator.chunk, 1))
    return lanczos(operator, seed=seed, probes=probes, steps=steps, memory_limit=memory_limit)


def block_seed(*stream: int) -> int:
    """The seed of one block's own probes."""
    return int(np.random.SeedSequence(stream).generate_state(1)[0])
