"""Any operator as a map on flat blocks (k, B, d), from the shorter side of J to the longer.

The distribution sought is that of min(m, n) singular values, so vectors start on the shorter side: A is J
where n <= m and J^T otherwise, and the |m - n| forced zeros never enter.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from isometry.errors import InputError, NonFiniteError
from isometry.jacobian import keeps_torch_state, strict_numerics
from isometry.spectrum.error_model import NO_PROBES, PROBES, ErrorModel

Result = TypeVar("Result")
# Square matrices at the peak of numpy's SVD of one: both factors, a copy, and LAPACK's work space of up to four.
SVD_COPIES = 7


class Operator(Protocol):
    """What an estimator asks of an operator: ``JacobianOperator``, ``MatrixOperator``, or a user's own.

    Optional attributes: ``input_shape``, ``output_shape`` (flat if missing), ``batch`` (None if missing),
    ``dtype`` and ``device`` (float32 on the CPU if missing), ``rounding`` (relative error of a product by rounding; 8
    units if missing), ``unit`` (of rounding; that of ``dtype`` if missing), ``products``, ``reverse_only`` (whether
    ``matmat`` raises; False if missing).
    """

    @property
    def shape(self) -> tuple[int, int]: ...

    def matmat(self, vectors: Tensor) -> Tensor: ...

    def rmatmat(self, vectors: Tensor) -> Tensor: ...


def strictly(estimator: Callable[..., Result]) -> Callable[..., Result]:
    """The estimator, or method of one, under strict numerics: what it does with products is as precise as these are.

    Under TF32, bfloat16 products or autocast, as the caller may have set them, a re-orthogonalisation or a residual
    would be rounded to three digits.
    """

    @keeps_torch_state
    @functools.wraps(estimator)
    def strict(*args: Any, **kwargs: Any) -> Result:
        operator = next((a for a in (*args, *kwargs.values()) if hasattr(a, "matmat")), None)
        with strict_numerics(torch.device(getattr(operator, "device", "cpu"))):
            return estimator(*args, **kwargs)

    return strict


@dataclass(frozen=True)
class Precision:
    """What rounding does to the products of an operator.

    Parameters
    ----------
    eps : float
        Unit of rounding of the operator's precision.
    rounding : float
        The operator's own relative error of a product.
    """

    eps: float
    rounding: float

    def error_model(self, dimension: int, probe: str = NO_PROBES) -> ErrorModel:
        """That of a measurement of so many singular values by probes of this kind."""
        group = orthogonal_group(dimension) if probe == "orthogonal" else 1
        return ErrorModel(probe, group, self.eps, self.rounding, dimension)

    def noise_floor(self, s_max: np.ndarray, vectors: int = 1) -> np.ndarray:
        """Below it a singular value is rounding: 8 units of rounding of s_max, sqrt(k) in a space of k > 64 vectors.

        Rounding of the products and the loss of orthogonality of two bases of k vectors move a singular value by up to
        0.3 sqrt(k) units (measured on orthogonal matrices, where it is largest): they add as random numbers do.
        """
        return max(8.0, math.sqrt(vectors)) * self.eps * s_max

    def rounding_error(self, values: np.ndarray, s_max: np.ndarray, vectors: int = 1) -> np.ndarray:
        """What rounding of the products may add to the residual of singular values.

        :meth:`noise_floor`, or the operator's own relative error of each value: in a deep network the rounding of every
        layer passes through the layers after it, so that it falls on the directions that grow.
        """
        return np.maximum(self.noise_floor(s_max, vectors), self.rounding * values)


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
    calls : int
        Times the operator was called, each with a block.

    Where products leave the range whose squares are floats, A is that of J times a power of two, another for each
    sample: everything that is computed from products is then of order one, and results are multiplied by ``scale``.

    Parameters
    ----------
    operator : Operator
    like : ShortSide, optional
        One of the same Jacobians made before, whose powers of two go on.
    """

    def __init__(self, operator: Operator, *, like: ShortSide | None = None) -> None:
        m, n = operator.shape
        if m < 1 or n < 1:
            raise InputError(f"an operator of shape {m} x {n} has no singular values")
        self.shape = (m, n)
        self.transposed = m < n
        # J^T u alone makes rows: all of them, also where they are the longer side.
        self.rows_alone = bool(getattr(operator, "reverse_only", False))
        self.short, self.long = min(m, n), max(m, n)
        batch = getattr(operator, "batch", None)
        self.batch: int = batch or 1
        lead = () if batch is None else (batch,)
        self._input = lead + tuple(getattr(operator, "input_shape", (n,)))
        self._output = lead + tuple(getattr(operator, "output_shape", (m,)))
        self.dtype: torch.dtype = getattr(operator, "dtype", torch.float32)
        self.device: torch.device = torch.device(getattr(operator, "device", "cpu"))
        self._operator = operator
        self.products = self.calls = 0
        self._powers: _Powers = _Powers(self.batch, self.dtype) if like is None else like._powers

    @property
    def eps(self) -> float:
        """Unit of rounding of the operator's precision."""
        return float(getattr(self._operator, "unit", torch.finfo(self.dtype).eps))

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
        return self._powers.divided(out.reshape(expected[0], self.batch, -1))

    @property
    def scale(self) -> np.ndarray:
        """(B,) what singular values of A are multiplied by to be those of J: powers of two."""
        return self._powers.values

    def apply(self, block: Tensor) -> Tensor:
        """A v: (k, B, short) -> (k, B, long)."""
        self.products += block.shape[0] * self.batch
        self.calls += 1
        return self._reverse(block) if self.transposed else self._forward(block)

    def matrix(self, block: int, progress: Callable[[int, int], None] | None = None) -> Tensor:
        """(B, short, long) in float64: A^T, a block of rows at a time, or A where there are rows of J alone."""
        by_rows = self.transposed or self.rows_alone
        (count, length), product = (
            (self.shape, self._reverse) if by_rows else (self.shape[::-1], self._forward)
        )
        dense = torch.empty(self.batch, count, length, dtype=torch.float64, device=self.device)
        for start in range(0, count, block):
            stop = min(start + block, count)
            unit = torch.zeros(stop - start, self.batch, count, dtype=self.dtype, device=self.device)
            rows = torch.arange(stop - start, device=self.device)
            unit[rows, :, start + rows] = 1
            self.products += (stop - start) * self.batch
            self.calls += 1
            dense[:, start:stop] = product(unit).transpose(0, 1).to(torch.float64)
            if progress is not None:
                progress(stop, count)
        return dense if count <= length else dense.mT

    def adjoint(self, block: Tensor) -> Tensor:
        """A^T u: (k, B, long) -> (k, B, short)."""
        self.products += block.shape[0] * self.batch
        self.calls += 1
        return self._forward(block) if self.transposed else self._reverse(block)

    @property
    def precision(self) -> Precision:
        """What rounding does to the products."""
        return Precision(self.eps, float(getattr(self._operator, "rounding", 0.0)))

    def pair(self, long: Tensor, short: Tensor) -> tuple[Tensor, Tensor]:
        """(k, B, long) and (k, B, short) as outputs (k, [B,] *output_shape) and inputs of J."""
        output, input_ = (short, long) if self.transposed else (long, short)
        return output.reshape(-1, *self._output), input_.reshape(-1, *self._input)

    def noise_floor(self, s_max: np.ndarray, vectors: int = 1) -> np.ndarray:
        """As :meth:`Precision.noise_floor`."""
        return self.precision.noise_floor(s_max, vectors)

    def rounding_error(self, values: np.ndarray, s_max: np.ndarray, vectors: int = 1) -> np.ndarray:
        """As :meth:`Precision.rounding_error`."""
        return self.precision.rounding_error(values, s_max, vectors)


class _Powers:
    """A power of two for each sample, fixed by the first product that is not zero: 1 where squares are floats."""

    def __init__(self, batch: int, dtype: torch.dtype) -> None:
        self._exponents = np.zeros(batch, np.int64)
        self._open = np.ones(batch, bool)
        # Sums of squares and their rounding stay within a quarter of the range of exponents.
        self._harmless = int(np.frexp(torch.finfo(dtype).max)[1]) // 4

    @property
    def values(self) -> np.ndarray:
        return np.ldexp(1.0, self._exponents)

    def divided(self, block: Tensor) -> Tensor:
        """A (k, B, d) block over the powers; exact, as long as neither leaves the range of floats."""
        if self._open.any():
            largest = block.abs().amax(dim=(0, 2)).double().cpu().numpy()
            exponents = np.frexp(largest)[1]
            found = self._open & (largest > 0)
            extreme = found & (np.abs(exponents) > self._harmless)
            self._exponents = np.where(extreme, exponents, self._exponents)
            self._open &= ~found
        if not self._exponents.any():
            return block
        # In two steps, for 2^-e alone may not be a float.
        for part in (self._exponents // 2, self._exponents - self._exponents // 2):
            block = block * torch.from_numpy(np.ldexp(1.0, -part)).to(block)[:, None]
        return block


# Orthogonal probes come in fixed groups of this many, so that each depends on its number alone.
ORTHOGONAL_GROUP = 16


def orthogonal_group(short: int) -> int:
    """How many probes of kind "orthogonal" are orthogonal to one another: 16, or as many as there are dimensions."""
    return min(ORTHOGONAL_GROUP, short)


def random_block(
    count: int,
    side: ShortSide,
    seed: int,
    *,
    first_input: int = 0,
    first_probe: int = 0,
    stream: int = 0,
    probe: str = "gaussian",
    length: int | None = None,
) -> Tensor:
    """Random unit vectors, (count, B, short), or of another ``length``.

    Parameters
    ----------
    count : int
        The probes ``first_probe`` up to, not including, ``first_probe + count``.
    seed, stream, first_input, first_probe : int
        Each vector has a seed of its own, made of (seed, stream, input, probe): it depends neither on how many are
        drawn at once nor on how the inputs are split.
    probe : {"gaussian", "rademacher", "orthogonal"}
        "gaussian": uniform on the sphere, by normalising independent normals. "rademacher": entries +-1 / sqrt(short)
        with random signs. "orthogonal": uniform on the sphere each, and orthogonal within the fixed groups of 16
        (probes 16 g to 16 g + 15), by QR of their normals.
    """
    if seed < 0:
        raise InputError(f"a seed is a non-negative integer; got {seed}")
    if probe not in PROBES:
        raise InputError(f"probe is one of {', '.join(PROBES)}; got {probe!r}")
    length = side.short if length is None else length
    block = torch.empty(count, side.batch, length, dtype=torch.float64)
    together = orthogonal_group(side.short) if probe == "orthogonal" else 1
    for index in range(side.batch):
        entropy = (seed, stream, first_input + index)
        for group in range(first_probe // together, -(-(first_probe + count) // together)):
            numbers = range(together * group, together * (group + 1))
            vectors = _unit_vectors(np.stack([_normals((*entropy, n), length) for n in numbers]), probe)
            for number, vector in zip(numbers, vectors, strict=True):
                if first_probe <= number < first_probe + count:
                    block[number - first_probe, index] = torch.from_numpy(vector)
    return block.to(dtype=side.dtype, device=side.device)


def random_bytes(short: int, vectors: int, dtype: torch.dtype, probe: str = "gaussian") -> int:
    """Bytes at the peak of :func:`random_block`: the vectors in float64 and in ``dtype``, and what one group takes."""
    # Normals of a group, transposed, as QR has them and its Q, and the result.
    group = 5 * orthogonal_group(short) if probe == "orthogonal" else 3
    return short * (vectors * (8 + dtype.itemsize) + group * 8)


def _normals(entropy: tuple[int, ...], size: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy))).standard_normal(size)


def _unit_vectors(normals: np.ndarray, probe: str) -> np.ndarray:
    """(g, d) independent normals as unit vectors of that kind."""
    if probe == "rademacher":
        return np.where(normals < 0, -1.0, 1.0) / math.sqrt(normals.shape[1])
    if probe == "orthogonal":
        q, r = np.linalg.qr(normals.T)
        # With the signs of R the frame is uniform (Mezzadri 2007, arXiv math-ph/0609050).
        return np.ascontiguousarray((q * np.where(np.diag(r) < 0, -1.0, 1.0)).T)
    return np.stack([draw / math.sqrt(float(draw @ draw)) for draw in normals])
