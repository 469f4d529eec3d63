"""A product as one CUDA graph for each shape of block: thousands of small kernels are then launched at once.

A graph reads and writes fixed memory: a block is copied into it, and its result out of it. It is captured on a side
stream after the same product has run there, so that libraries have chosen their algorithms and lazily made tensors
exist (PyTorch, "CUDA semantics", section "CUDA Graphs").
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isometry.errors import FallbackWarning, warn_caller

# Each graph keeps memory for its intermediates. Whole chunks, the last one, and single vectors come again.
_MOST_SHAPES = 4
# A shape that comes only once is not worth a capture, which takes several products.
_USES_BEFORE = 2
# PyTorch's advice for the libraries behind it: some choose only at the second or third call.
_WARM_UP = 3
# Units of rounding by which a replay may differ from the product that it was captured from.
_UNITS = 1000

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Captured:
    """A graph with the memory that it reads and writes."""

    block: Tensor
    result: Tensor
    replay: Callable[[], None]

    def __call__(self, block: Tensor) -> Tensor:
        """The product of another block of the same shape, in memory of its own."""
        self.block.copy_(block)
        self.replay()
        return self.result.clone()


Capture = Callable[[Product, Tensor], Captured]


def capture_on_one_pool() -> Capture:
    """A function that captures graphs which share their memory for intermediates.

    They may share it: they never run at the same time, each writes whatever it reads but its block, and results are
    copied out at once.
    """
    pool: Any = torch.cuda.graph_pool_handle()

    def capture(product: Product, block: Tensor) -> Captured:
        with torch.cuda.device(block.device):
            fixed = block.clone()
            stream: Any = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    product(fixed)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                result = product(fixed)
        return Captured(fixed, result, graph.replay)

    return capture


class Graphed:
    """A product that is captured for the shapes of block that come again; the latest used graphs are kept.

    Parameters
    ----------
    product : callable
        (k, ...) -> (k, ...). It must do the same to every block of one shape, and read no number on the host.
    capture : callable
        Makes the graph, as :func:`capture_on_one_pool` gives it.
    most : int
        Graphs kept at once.

    Notes
    -----
    The settings of precision that are in force at the capture stay in the graph.
    """

    def __init__(self, product: Product, capture: Capture, most: int = _MOST_SHAPES) -> None:
        self._product, self._capture, self._most = product, capture, most
        self._graphs: OrderedDict[tuple[Any, ...], Captured] = OrderedDict()
        self._uses: dict[tuple[Any, ...], int] = {}
        self._works = True

    def __call__(self, block: Tensor) -> Tensor:
        """The products of a block."""
        if not self._works:
            return self._product(block)
        key = (block.shape, block.dtype, block.device)
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key](block)
        self._uses[key] = self._uses.get(key, 0) + 1
        if self._uses[key] <= _USES_BEFORE:
            return self._product(block)
        expected = self._product(block)
        try:
            made = self._capture(self._product, block)
            wrong = _differ(made(block), expected)
        except RuntimeError as error:
            # Out of memory, or an operation that cannot be captured: the product itself needs neither.
            reason = str(error).split("\n", 1)[0][:120]
            self._give_up(f"{type(error).__name__}: {reason}")
            return expected
        if wrong:
            self._give_up("the graph gives other numbers")
            return expected
        while len(self._graphs) >= self._most:
            self._graphs.popitem(last=False)
        self._graphs[key] = made
        return expected

    def _give_up(self, reason: str) -> None:
        self._works = False
        self._graphs.clear()
        warn_caller(
            f"products are not captured as a CUDA graph ({reason}): they are made one operation at a time, "
            "which is slower where kernels are small",
            FallbackWarning,
        )


def _differ(found: Tensor, expected: Tensor) -> bool:
    """Whether two results of the same kernels differ by more than the order in which they may add up."""
    bound = _UNITS * torch.finfo(expected.dtype).eps * expected.double().norm()
    # Products that hold NaN or inf are refused elsewhere.
    return bool(torch.isfinite(bound) & ~((found - expected).double().norm() <= bound))
