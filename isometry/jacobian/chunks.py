"""Products of blocks of any size, a chunk of probes at a time; no product that holds NaN or inf passes."""

from __future__ import annotations

import torch
from torch import Tensor

from isometry.errors import FallbackWarning, NonFiniteError, warn_caller

from .backends import Products
from .evaluation import Evaluation
from .failures import is_out_of_memory, no_memory_for_one_probe
from .numerics import torch_warnings_silenced
from .replay import first_nonfinite

# Beyond this many probes at once a processor gains nothing more from batching.
_LARGEST_CHUNK = {"cpu": 64, "cuda": 1024}


def chunk_within(memory_limit: int, bytes_per_probe: int, device: torch.device) -> int:
    """The probes whose intermediates fit in ``memory_limit`` bytes, at least one, at most as many as pay."""
    fitting = memory_limit // max(bytes_per_probe, 1)
    return int(max(1, min(fitting, _LARGEST_CHUNK.get(device.type, 64))))


class ChunkedProducts:
    """Both products of a Jacobian on blocks of any number of probes.

    Attributes
    ----------
    products : Products
    chunk : int
        Probes at a time; halved for good where they do not fit in memory.
    """

    def __init__(self, evaluation: Evaluation, products: Products, chunk: int) -> None:
        self._evaluation = evaluation
        self.products = products
        self.chunk = chunk

    def matmat(self, block: Tensor) -> Tensor:
        """J v for a block."""
        return self._chunked(block, transposed=False)

    def rmatmat(self, block: Tensor) -> Tensor:
        """J^T u for a block."""
        return self._chunked(block, transposed=True)

    def _chunked(self, block: Tensor, *, transposed: bool) -> Tensor:
        product = self.products.rmatmat if transposed else self.products.matmat
        parts, start, count = [], 0, block.shape[0]
        with self._evaluation.numerics():
            while start < count:
                piece = block[start : start + self.chunk]
                try:
                    with torch_warnings_silenced():
                        part = product(piece)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    self._halve(piece.shape[0], error)
                    continue
                self.refuse_nonfinite(part, piece, transposed=transposed)
                parts.append(part)
                start += piece.shape[0]
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def refuse_nonfinite(self, out: Tensor, block: Tensor, *, transposed: bool) -> None:
        """Raise NonFiniteError where ``out``, the products of a block, holds NaN or inf, naming where it began."""
        if bool(torch.isfinite(out).all()):
            return
        first, at = "", self._evaluation
        if self.products.backend.startswith("replay") and bool(torch.isfinite(block).all()):
            with at.numerics(), torch_warnings_silenced():
                found = first_nonfinite(at.function, at.point, at.module, block, transposed=transposed)
            first = f"; the first that makes one is {found}" if found else ""
        raise NonFiniteError(
            f"a Jacobian product holds NaN or inf although the output is finite{first}: an intermediate left the range "
            f"of {at.point.dtype}, or a derivative is infinite at this input. Try dtype=torch.float64, or another input"
        )

    def _halve(self, tried: int, error: Exception) -> None:
        """Set the chunk to half of the probes that were tried, which may be fewer than a chunk."""
        if tried == 1:
            raise no_memory_for_one_probe() from error
        self.chunk = (tried + 1) // 2
        if self._evaluation.point.device.type == "cuda":
            torch.cuda.empty_cache()
        warn_caller(
            f"out of memory: going on with {self.chunk} probes at a time",
            FallbackWarning,
        )
