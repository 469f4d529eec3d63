"""Any operator as a map on flat blocks (k, B, d), from the shorter side of J to the longer.

The distribution sought is that of min(m, n) singular values, so vectors start on the shorter side: A is J
where n <= m and J^T otherwise, and the |m - n| forced zeros never enter.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from isometry.errors import InputError, NonFiniteError


class Operator(Protocol):
    """What an estimator asks of an operator: ``JacobianOperator``, ``MatrixOperator``, or a user's own.

    Optional attributes: ``input_shape``, ``output_shape`` (flat if missing), ``batch`` (None if missing),
    ``dtype`` and ``device`` (float32 on the CPU if missing), ``rounding`` (relative error of a product by rounding; 8
    units if missing), ``products``.
    """

    @property
    def shape(self) -> tuple[int, int]: ...

    def matmat(self, vectors: Tensor) -> Tensor: ...

    def rmatmat(self, vectors: Tensor) -> Tensor: ...


class ShortSide:
    """A = J or J^T, whichever takes vectors of length d = min(m, n), on blocks (k, B, d).

    Attributes
    ----------
    short, long : int
        min(m, n) and max(m, n).
    batch : int
        B; 1 for an operator without a batch.
    products : int
        Products applied through this view, one for each vector of each sample.
    """

    def __init__(self, operator: Operator) -> None:
        m, n = operator.shape
        if m < 1 or n < 1:
            raise InputError(f"an operator of shape {m} x {n} has no singular values")
        self.shape = (m, n)
        self.transposed = m < n
        self.short, self.long = min(m, n), max(m, n)
        batch = getattr(operator, "batch", None)
        self.batch: int = batch or 1
        lead = () if batch is None else (batch,)
        self._input = lead + tuple(getattr(operator, "input_shape", (n,)))
        self._output = lead + tuple(getattr(operator, "output_shape", (m,)))
        self.dtype: torch.dtype = getattr(operator, "dtype", torch.float32)
        self.device: torch.device = torch.device(getattr(operator, "device", "cpu"))
        self._operator = operator
        self.products = 0

    @property
    def eps(self) -> float:
        """Unit of rounding of the operator's precision."""
        return float(torch.finfo(self.dtype).eps)

    def _forward(self, block: Tensor) -> Tensor:
        k = block.shape[0]
        return self._flat(self._operator.matmat(block.reshape(k, *self._input)), (k, *self._output), "matmat")

    def _reverse(self, block: Tensor) -> Tensor:
        k = block.shape[0]
        return self._flat(
            self._operator.rmatmat(block.reshape(k, *self._output)), (k, *self._input), "rmatmat"
        )

    def _flat(self, out: Tensor, expected: tuple[int, ...], name: str) -> Tensor:
        if tuple(out.shape) != expected:
            raise InputError(f"{name} of the operator returned shape {tuple(out.shape)}, not {expected}")
        if not bool(torch.isfinite(out).all()):
            raise NonFiniteError(
                f"{name} of the operator returned NaN or inf: no singular values follow from that"
            )
        return out.reshape(expected[0], self.batch, -1)

    def apply(self, block: Tensor) -> Tensor:
        """A v: (k, B, short) -> (k, B, long)."""
        self.products += block.shape[0] * self.batch
        return self._reverse(block) if self.transposed else self._forward(block)

    def adjoint(self, block: Tensor) -> Tensor:
        """A^T u: (k, B, long) -> (k, B, short)."""
        self.products += block.shape[0] * self.batch
        return self._forward(block) if self.transposed else self._reverse(block)

    def noise_floor(self, s_max: np.ndarray) -> np.ndarray:
        """Below it a singular value is rounding: 8 units of rounding of s_max, whatever computed it."""
        return 8 * self.eps * s_max

    def rounding_error(self, values: np.ndarray, s_max: np.ndarray) -> np.ndarray:
        """What rounding of the products may add to the residual of singular values.

        8 units of s_max, or the operator's own relative error of each value: in a deep network the rounding of every
        layer passes through the layers after it, so that it falls on the directions that grow.
        """
        return np.maximum(self.noise_floor(s_max), float(getattr(self._operator, "rounding", 0.0)) * values)


def random_block(count: int, side: ShortSide, seed: int, *, first_input: int = 0, stream: int = 0) -> Tensor:
    """Random vectors uniform on the unit sphere, (count, B, short).

    Each vector has a seed of its own, made of (seed, stream, input, probe): it depends neither on how many are
    drawn at once nor on how the inputs are split.
    """
    if seed < 0:
        raise InputError(f"a seed is a non-negative integer; got {seed}")
    block = torch.empty(count, side.batch, side.short, dtype=torch.float64)
    for probe in range(count):
        for index in range(side.batch):
            entropy = np.random.SeedSequence([seed, stream, first_input + index, probe])
            draw = np.random.Generator(np.random.PCG64(entropy)).standard_normal(side.short)
            block[probe, index] = torch.from_numpy(draw / math.sqrt(float(draw @ draw)))
    return block.to(dtype=side.dtype, device=side.device)
