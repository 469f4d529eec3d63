"""All singular values of a product J = J_L ... J_1 over any number of decades, each with a relative error.

The factors act on an orthonormal block one after another, and the product so far is kept as P = Q diag(e^g) T: Q with
orthonormal columns, scales as logarithms g, T well-conditioned (Stewart 1995; Bai, Lee, Li & Xu 2011; with the columns
sorted before an unpivoted QR, Tomas, Chang, Scalettar & Bai 2012). At the end the singular values of diag(e^g) T are
those of J (`.graded_svd`). No scale is ever added to one that is far from it, so that each value is known to a
relative error although they may span thousands of decades.

**Error.** All rounding of the sweep equals a small perturbation of each factor, as the rounding of the factors
themselves is. How far the singular values move under such perturbations is measured: further sweeps perturb every
factor at random, in proportion to its rows, by more than all rounding together.

**Zeros.** A product has no more singular values that are not zero than any of its factors has rows (columns) that are
not zero: those zeros are proved by the pattern. A factor that is singular to rounding, as a layer norm is, makes
zeros to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isometry.errors import InputError, NonFiniteError
from isometry.progress import StepProgress

from .graded_svd import log_singular_values
from .wide_scales import Scales

Array = NDArray[np.float64]

EPS = float(torch.finfo(torch.float64).eps)
# Vectors that a product of factors makes this dependent (length over the part orthogonal to those before) are
# orthogonalised: 1e2 for 128 values or fewer, up to 1e9 for 1,024. Each digit saves QRs, which take most of the time of
# many values, and costs the smallest values one. Where it is exceeded by so many times, it is done again with fewer
# factors.
_LEAST_DEPENDENCE, _MOST_DEPENDENCE, _EXCESS = 1e2, 1e9, 100.0
_MOST_FACTORS = 64
# Rows of T that are updated together, and the ratio of scales below which they have nothing to do with one another.
_ROWS, _LN_NEGLIGIBLE = 128, -48.0
# A perturbation of a factor, in units of rounding times the square root of the length of its sums, and times its own
# rounding.
_UNITS, _TIMES_ROUNDING = 2.0, 2.0
# Pivots below so many units per square root of the length are zero to rounding.
_ZERO_UNITS = 16.0
# The error of a value is so many times the root mean square of at least so many movements: its own in all perturbed
# sweeps, and those of its neighbours.
_TIMES_MOVED, _MOVEMENTS = 4.0, 8
# Perturbed sweeps move so many values together at least, but are no more than the second number.
_MOVED_VALUES, _MOST_PERTURBED = 200, 8
# Copies of the vectors and of the square matrices at the peak; measured.
_VECTORS, _SQUARES = 10, 24


class ChainFactor(Protocol):
    """A factor J_l as a map on blocks, one vector a row."""

    @property
    def shape(self) -> tuple[int, int]:
        """(m_l, n_l)."""
        ...

    @property
    def rounding(self) -> float:
        """Relative rounding of the factor and of its products."""
        ...

    def forward(self, block: Tensor) -> Tensor:
        """J_l v: (k, n_l) -> (k, m_l)."""
        ...

    def adjoint(self, block: Tensor) -> Tensor:
        """J_l^T u: (k, m_l) -> (k, n_l)."""
        ...


@dataclass(frozen=True, eq=False)
class MatrixFactor:
    """A factor given as a matrix.

    Parameters
    ----------
    matrix : (m, n) Tensor
    rounding : float
        Relative error of its entries.
    """

    matrix: Tensor
    rounding: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.matrix.shape
        return m, n

    def forward(self, block: Tensor) -> Tensor:
        return block @ self.matrix.T

    def adjoint(self, block: Tensor) -> Tensor:
        return block @ self.matrix


@dataclass(frozen=True, eq=False)
class ChainValues:
    """The singular values of a product, largest first.

    Parameters
    ----------
    log_values : (min(m, n),) array
        ln s; -inf for a zero.
    log_error : (min(m, n),) array
        Bound of the error of ln s, that is of the relative error of s; 0 for a zero, inf where nothing is known.
    proved_zeros : int
        Zeros that the pattern of zero rows and columns proves; the others are zero to the rounding of a factor.
    condition : float
        Condition number of T with rows of length 1.
    decompositions : int
        QRs of one sweep.
    sweeps : int
    vectors : int
        Vectors that a sweep sends through the first factor.
    """

    log_values: Array
    log_error: Array
    proved_zeros: int
    condition: float
    decompositions: int
    sweeps: int
    vectors: int


def chain_singular_values(
    factors: Sequence[ChainFactor],
    *,
    seed: tuple[int, ...] = (0,),
    device: torch.device | str = "cpu",
    progress: StepProgress | None = None,
) -> ChainValues:
    """The min(m, n) singular values of J = J_L ... J_1, m by n.

    Parameters
    ----------
    factors : sequence of ChainFactor
        The first one acts first.
    seed : tuple of int
        Of the perturbations.
    device : optional
        Where blocks of vectors lie.
    progress : callable, optional
        Called with (done, total) factors.

    Raises
    ------
    InputError
        Without a factor, or where two shapes do not meet.
    NonFiniteError
        Where a factor has NaN or inf.
    """
    _refuse_gaps(factors)
    m, n = factors[-1].shape[0], factors[0].shape[1]
    short, device = min(m, n), torch.device(device)
    # Blocks start at the end of fewer dimensions.
    steps = [_Step(factor, transposed=m < n) for factor in (reversed(factors) if m < n else factors)]
    masks = [*(_live_inputs(step, device) for step in steps[1:]), None]
    sweeps = chain_sweeps(short)

    def listener(sweep: int) -> StepProgress | None:
        if progress is None:
            return None
        return lambda done, total: progress(sweep * total + done, sweeps * total)

    plan, state = _sweep(steps, masks, short, device, listener(0))
    logs = _padded(log_singular_values(state.scales, state.rows), short)
    moved = np.zeros((sweeps - 1, short))
    for sweep in range(1, sweeps):
        perturbation = _Perturbation((*seed, sweep), device)
        found = _repeated(steps, masks, plan, short, perturbation, device, listener(sweep))
        other = _padded(log_singular_values(found.scales, found.rows), short)
        with np.errstate(invalid="ignore"):
            moved[sweep - 1] = np.where(logs == other, 0.0, np.abs(logs - other))
    return ChainValues(
        log_values=logs,
        log_error=_error(logs, moved),
        proved_zeros=short - plan.most_rank,
        condition=_condition(state.rows),
        decompositions=len(plan.stops),
        sweeps=sweeps,
        vectors=short,
    )


def chain_sweeps(short: int) -> int:
    """Sweeps for so many singular values: one for the values, and further ones for their errors."""
    return 1 + min(-(-_MOVED_VALUES // short), _MOST_PERTURBED)


def chain_bytes(short: int, widest: int, dtype: torch.dtype) -> int:
    """Bytes at the peak of :func:`chain_singular_values`, beside the factors and their products.

    Parameters
    ----------
    short : int
        min(m, n).
    widest : int
        Numbers of the largest vector between two factors.
    """
    # Vectors before and after a factor, sorted, and their QR; T, its update and ratios of scales.
    return short * (widest * (_VECTORS * 8 + 2 * dtype.itemsize) + _SQUARES * 8 * short)


def _refuse_gaps(factors: Sequence[ChainFactor]) -> None:
    if not factors:
        raise InputError("a chain needs at least one factor")
    for number, (one, after) in enumerate(pairwise(factors), start=1):
        if one.shape[0] != after.shape[1]:
            raise InputError(
                f"factor {number + 1} of the chain takes {after.shape[1]} numbers, and factor {number} gives "
                f"{one.shape[0]}"
            )


# ---- factors in the direction of the sweep -------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Step:
    """A factor, or its transpose."""

    factor: ChainFactor
    transposed: bool

    @property
    def error(self) -> float:
        """Relative error of a product: that of its sums, or the factor's own rounding."""
        return max(EPS * math.sqrt(max(self.factor.shape)), self.factor.rounding)

    def apply(self, block: Tensor) -> Tensor:
        return self.factor.adjoint(block) if self.transposed else self.factor.forward(block)


def _live_inputs(step: _Step, device: torch.device) -> Tensor | None:
    """1 for the entries of a vector that the factor depends on, 0 for its columns of zeros; None without any."""
    m, n = step.factor.shape
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(1, n if step.transposed else m, generator=generator, dtype=torch.float64).to(device)
    live = (step.factor.forward if step.transposed else step.factor.adjoint)(random)[0] != 0
    return None if bool(live.all()) else live.double()


class _Perturbation:
    """Random relative changes of factors, larger than all their rounding."""

    def __init__(self, entropy: tuple[int, ...], device: torch.device) -> None:
        self._generator = np.random.default_rng(entropy)
        self._device = device
        self._pool = torch.empty(0, 0)

    def __call__(self, block: Tensor, sizes: Tensor, error: float) -> Tensor:
        """The block, (k, m), with entries off by a multiple of ``error`` times the root mean square of their column."""
        k, m = block.shape
        if self._pool.shape[0] < k or self._pool.shape[1] < 2 * m:
            self._pool = torch.from_numpy(self._generator.standard_normal((k, 2 * m))).to(self._device)
        # Another part of the pool with other signs is as good as other numbers, and made in a tenth of the time.
        first = int(self._generator.integers(self._pool.shape[1] - m + 1))
        signs = [
            torch.from_numpy(self._generator.choice((-1.0, 1.0), size)).to(self._device) for size in (k, m)
        ]
        change = self._pool[:k, first : first + m] * signs[0][:, None]
        return block + change * (error / math.sqrt(k) * sizes * signs[1])


# ---- one sweep -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _State:
    """The product so far, basis^T diag(scales) rows, with an orthonormal basis of row vectors, (r, length)."""

    basis: Tensor
    scales: Scales
    rows: Tensor

    @classmethod
    def identity(cls, size: int, device: torch.device) -> _State:
        eye = torch.eye(size, dtype=torch.float64, device=device)
        return cls(eye, Scales.ones(size, device), eye)


@dataclass(frozen=True)
class _Stop:
    """A QR: after how many factors, and the number of directions that it left."""

    factors: int
    rank: int


@dataclass(eq=False)
class _Plan:
    """Where the first sweep stopped for QRs; the other sweeps stop there too, with the same ranks.

    ``most_rank`` is a bound of the rank by the pattern of zeros.
    """

    stops: list[_Stop]
    most_rank: int


class _Block:
    """The vectors of a basis with factors applied, each of length one, and their scales.

    Attributes
    ----------
    sizes : (length,) Tensor
        Lengths of the rows of the last factor, as the vectors see them.
    lengths : (k,) Tensor
        What the last factor did to the length of each vector.
    shrunk : float
        The least of these, over what the sizes of the rows let expect; below rounding a vector is noise.
    """

    def __init__(self, state: _State) -> None:
        self.vectors, self.scales, self.rows = state.basis, state.scales, state.rows
        self.shrunk, self.applied, self.error = 1.0, 0, 0.0

    def apply(self, step: _Step, mask: Tensor | None, perturbation: _Perturbation | None) -> None:
        """Apply a factor, and drop the entries that the next one does not depend on."""
        vectors = step.apply(self.vectors)
        self.sizes = _lengths(vectors, dim=0)
        if perturbation is not None:
            error = max(
                _UNITS * EPS * math.sqrt(max(step.factor.shape)), _TIMES_ROUNDING * step.factor.rounding
            )
            vectors = perturbation(vectors, self.sizes, error)
        if mask is not None:
            vectors, self.sizes = vectors * mask, self.sizes * mask
        self.lengths = _lengths(vectors, dim=1)
        if not bool(torch.isfinite(self.lengths).all()):
            raise NonFiniteError("a factor of the chain gives NaN or inf, or overflows")
        divisor = torch.where(self.lengths > 0, self.lengths, 1.0)
        self.scales, self.vectors = self.scales.times(divisor), vectors / divisor[:, None]
        if self.lengths.numel() and float(self.lengths.min()) < 1e-6 * float(self.lengths.max()):
            expected = _lengths(self.vectors * self.sizes, dim=1)
            self.shrunk = min(
                self.shrunk, float((self.lengths / torch.where(expected > 0, expected, 1.0)).min())
            )
        self.applied += 1
        self.error = max(self.error, step.error)

    @property
    def live(self) -> int:
        """Entries that are not zero in all vectors."""
        return int((self.sizes > 0).sum())


def _sweep(
    steps: Sequence[_Step],
    masks: Sequence[Tensor | None],
    short: int,
    device: torch.device,
    progress: StepProgress | None,
) -> tuple[_Plan, _State]:
    """The whole product, with a QR wherever the vectors have become dependent."""
    state, plan = _State.identity(short, device), _Plan([], short)
    start, ahead = 0, 1
    allowed = min(_LEAST_DEPENDENCE * max(short / 128, 1.0) ** 7.75, _MOST_DEPENDENCE)
    while start < len(steps) and state.scales.size:
        block, stop = _Block(state), start
        while stop < min(start + ahead, len(steps)):
            block.apply(steps[stop], masks[stop], None)
            stop += 1
            # Zeros of the pattern are counted before they meet others.
            if block.live < state.scales.size:
                break
        found, dependence = _orthogonalised(block, None)
        if block.applied > 1 and max(dependence, 1 / block.shrunk) > _EXCESS * allowed:
            ahead = block.applied // 2
            continue
        plan.most_rank = min(plan.most_rank, block.live)
        plan.stops.append(_Stop(stop, found.scales.size))
        growth = math.log(max(dependence, 2.0)) / block.applied
        ahead = max(1, min(int(math.log(allowed) / growth), 2 * block.applied, _MOST_FACTORS))
        state, start = found, stop
        if progress is not None:
            progress(stop, len(steps))
    return plan, state


def _repeated(
    steps: Sequence[_Step],
    masks: Sequence[Tensor | None],
    plan: _Plan,
    short: int,
    perturbation: _Perturbation,
    device: torch.device,
    progress: StepProgress | None,
) -> _State:
    """The product of perturbed factors, with the QRs of the plan."""
    state, start = _State.identity(short, device), 0
    for stop in plan.stops:
        block = _Block(state)
        for number in range(start, stop.factors):
            block.apply(steps[number], masks[number], perturbation)
        state, _ = _orthogonalised(block, stop.rank)
        start = stop.factors
        if progress is not None:
            progress(start, len(steps))
    return state


def _orthogonalised(block: _Block, rank: int | None) -> tuple[_State, float]:
    """The product with an orthonormal basis again, and how dependent the vectors were: 1 for orthogonal ones.

    Vectors go in the order of their scales, and entries in that of their sizes, which makes the QR stable row by row
    (Cox & Higham 1998, Math. Comp. 67, 335). With ``rank``, so many directions are left; without, all that are not
    rounding.
    """
    kept = torch.nonzero(block.lengths > 0).flatten()
    kept = kept[block.scales[kept].descending]
    entries = torch.argsort(block.sizes, descending=True, stable=True)[: block.live]
    columns, scales = block.vectors[kept][:, entries].T, block.scales[kept]
    chosen, basis, upper = _independent(block, columns, block.sizes[entries], block.lengths[kept], rank)
    count = basis.shape[1]
    # The others are combinations of those chosen before them.
    others = torch.ones(kept.numel(), dtype=torch.bool, device=kept.device)
    others[chosen] = False
    coefficients = columns.new_zeros(count, kept.numel())
    coefficients[:, chosen] = upper[:, : chosen.numel()]
    if bool(others.any()):
        before = torch.cumsum(~others, 0)[others]
        inside = torch.arange(count, device=kept.device)[:, None] < before
        coefficients[:, others] = (basis.T @ columns[:, others]) * inside
    pivots = upper.diagonal().abs()
    rows = _updated(coefficients / pivots[:, None], scales[chosen[:count]], scales, block.rows[kept])
    vectors = columns.new_zeros(count, block.vectors.shape[1])
    vectors[:, entries] = basis.T
    dependence = 1 / float(pivots.min()) if count else 1.0
    return _State(vectors, scales[chosen[:count]].times(pivots), rows), dependence


def _updated(upper: Tensor, mine: Scales, scales: Scales, rows: Tensor) -> Tensor:
    """diag(1 / mine) upper diag(scales) rows, without what lies too many decades apart to matter."""
    found = rows.new_empty(mine.size, rows.shape[1])
    logs = scales.log
    for start in range(0, mine.size, _ROWS):
        part = slice(start, start + _ROWS)
        near = torch.nonzero(logs >= mine[part].log.min() + _LN_NEGLIGIBLE)
        stop = int(near[-1]) + 1
        # Columns before the first row are zero; ratios above 1 belong to entries that are zero.
        ratios = scales[start:stop].over(mine[part]).T.clamp(max=1.0)
        found[part] = (upper[part, start:stop] * ratios) @ rows[start:stop]
    return found


def _independent(
    block: _Block, columns: Tensor, sizes: Tensor, lengths: Tensor, rank: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(chosen, Q, R): numbers of columns that are independent of those before them, and their QR."""
    chosen = torch.arange(columns.shape[1], device=columns.device)
    while True:
        basis, upper = torch.linalg.qr(columns[:, chosen])
        count = basis.shape[1]
        pivots = upper.diagonal().abs()
        if rank is None:
            # Rounding is in proportion to the rows.
            noise = _ZERO_UNITS * block.error * _lengths(basis * sizes[:, None], dim=0)
            small = pivots * lengths[chosen[:count]] <= noise
        else:
            small = torch.zeros(count, dtype=torch.bool, device=columns.device)
            small[torch.argsort(pivots)[: count - rank]] = True
        if not bool(small.any()):
            return chosen, basis, upper
        first = int(torch.nonzero(small)[0])
        rest = upper[first:, first:].abs() * lengths[chosen[first:]]
        if bool(small[first:].all()) and (rank is not None or bool((rest <= noise[first:, None]).all())):
            return chosen[:first], basis[:, :first], upper[:first, :first]
        # What lies along a direction of noise may be real in the columns after it.
        chosen = torch.cat([chosen[:first], chosen[first + 1 :]])


# ---- results -------------------------------------------------------------------------------------------


def _lengths(matrix: Tensor, *, dim: int) -> Tensor:
    """Euclidean lengths, whose squares may leave the range of floats."""
    lengths = torch.linalg.vector_norm(matrix, dim=dim)
    if not lengths.numel() or 1e-150 < float(lengths.min()) <= float(lengths.max()) < 1e150:
        return lengths
    largest = (
        matrix.abs().amax(dim=dim, keepdim=True) if matrix.numel() else matrix.sum(dim=dim, keepdim=True)
    )
    unit = torch.where(largest > 0, largest, 1.0)
    return torch.linalg.vector_norm(matrix / unit, dim=dim) * unit.squeeze(dim)


def _padded(logs: Array, count: int) -> Array:
    """With the zeros at the end."""
    return np.concatenate([logs, np.full(count - logs.size, -np.inf)])


def _error(logs: Array, moved: Array) -> Array:
    """Bound of the error of each ln s from the (sweeps, values) movements."""
    found = np.isfinite(logs)
    error = np.zeros(logs.size)
    if not found.any():
        return error
    squares = np.square(moved[:, found]).sum(axis=0)
    reach = (_MOVEMENTS - 1) // (2 * len(moved)) + (len(moved) < _MOVEMENTS)
    window, inside = np.ones(2 * reach + 1), slice(reach, reach + squares.size)
    local = np.convolve(squares, window)[inside] / np.convolve(np.ones(squares.size), window)[inside]
    # The logarithm of a number of 1000 decades is itself rounded.
    rounding = EPS * (4 + np.abs(logs[found]))
    error[found] = _TIMES_MOVED * np.sqrt(local / len(moved)) + rounding
    return error


def _condition(rows: Tensor) -> float:
    """Condition number in the 1-norm of the triangle of rows of length one."""
    if rows.shape[0] == 0:
        return 1.0
    upper = torch.linalg.qr((rows / _lengths(rows, dim=1)[:, None]).T, mode="r").R
    inverse = torch.linalg.solve_triangular(upper, torch.eye(upper.shape[0]).to(upper), upper=True)
    return float(torch.linalg.matrix_norm(upper, 1) * torch.linalg.matrix_norm(inverse, 1))
