"""Golub-Kahan bidiagonalisation of a block of probes, with full re-orthogonalisation.

A V = U B and A^T U = V B^T + beta v e^T, with B upper bidiagonal (Golub & Kahan 1965, SIAM J. Numer. Anal. 2,
205; Paige & Saunders 1982, ACM TOMS 8, 43). Working on A and not on A^T A keeps singular values down to rounding
of s_max instead of its square root.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isometry.errors import InputError

from .blocks import SVD_COPIES, ShortSide

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Bidiagonals:
    """The bidiagonal matrix of each probe of each input, padded with zeros after it is finished.

    Parameters
    ----------
    alpha : (k, B, steps) array
        Diagonals.
    beta : (k, B, steps) array
        ``beta[..., j]`` stands above the diagonal in column j + 1; the last one of a run is its remainder.
    steps : (k, B) int array
        Steps each probe took.
    finished : (k, B) bool array
        Whether the recurrence broke down: its Krylov space is invariant, its nodes and weights are exact.
    breakdown_residual : (k, B) array
        The alpha or beta that was taken as zero at the breakdown; 0 where the basis filled the whole space.
    right : (k, B, steps, short) tensor
        V, the orthonormal vectors of each probe on the short side; zero after it finished. Of width 0 where they
        were not asked for.
    """

    alpha: Array
    beta: Array
    steps: NDArray[np.int64]
    finished: NDArray[np.bool_]
    breakdown_residual: Array
    right: Tensor

    def matrices(self) -> Array:
        """(k, B, steps, steps) upper bidiagonal matrices."""
        size = self.alpha.shape[-1]
        out = np.zeros((*self.alpha.shape, size))
        diagonal = np.arange(size)
        out[..., diagonal, diagonal] = self.alpha
        out[..., diagonal[:-1], diagonal[1:]] = self.beta[..., :-1]
        return out

    def remainder(self) -> Array:
        """(k, B) last beta of each probe: the norm by which A^T U = V B^T fails; 0 where it finished."""
        last = np.take_along_axis(self.beta, np.maximum(self.steps - 1, 0)[..., None], axis=-1)[..., 0]
        return np.where(self.finished, 0.0, last)


# A node this many breakdown residuals above zero is known to one part in eight, and better above.
_BREAKDOWN_FACTOR = 8


def breakdown_floor(breakdown_residual: Array) -> Array:
    """(B,) the largest value that is not told from zero after breakdowns at ``breakdown_residual``, a (B, k) array.

    The entry that was taken as zero couples the nodes to a part of J that no step has seen. It may move
    them by as much as itself, and the singular values of that part may be twice as large again (those of a square
    Gaussian matrix reach twice its beta).
    """
    return _BREAKDOWN_FACTOR * breakdown_residual.max(axis=1)


def breakdown_tolerance(side: ShortSide) -> float:
    """The size, relative to the largest entry seen, up to which an alpha or beta is rounding: a breakdown."""
    return 10 * side.eps * math.sqrt(side.short)


# The C library takes larger blocks from the system and gives them back (glibc's DEFAULT_MMAP_THRESHOLD_MAX).
_LARGEST_HEAP_BLOCK = 32 * 2**20


def recurrence_bytes(
    shape: tuple[int, int], vectors: int, steps: int, dtype: torch.dtype, device: torch.device
) -> int:
    """Bytes at the peak of so many steps from so many vectors and of their Gauss rules, products not counted.

    Beside both bases a step holds v and u, and an orthogonalisation the vector, its correction and a mask. On a
    processor a step may leave a hole in the heap for each of its two vectors: the next one, being aligned, does not fit
    into it, and what a step keeps stands behind it (glibc before 2.38, bug 14581).
    """
    steps, block = min(steps, *shape), vectors * dtype.itemsize
    bases = steps * block * sum(shape)
    held = block * (sum(shape) + 3 * max(shape))
    holes = sum(block * d for d in shape if block * d < _LARGEST_HEAP_BLOCK) if device.type == "cpu" else 0
    return bases + held + steps * holes + (vectors + SVD_COPIES) * 8 * steps**2


def golub_kahan(
    side: ShortSide,
    start: Tensor,
    steps: int,
    *,
    projector: Callable[[Tensor], Tensor] | None = None,
    dimension: int | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Bidiagonals:
    """Bidiagonalise A from each start vector at once.

    Parameters
    ----------
    side : ShortSide
        A.
    start : (k, B, short) tensor
        Unit start vectors.
    steps : int
        Most steps to take; ``dimension`` at most are taken.
    projector : callable, optional
        An orthogonal projection P on the short side (deflation): A P is bidiagonalised. The start lies in its range.
    dimension : int, optional
        Dimension of the range of ``projector``; the short side without it.
    on_step : callable, optional
        Called with the number of steps done.

    Notes
    -----
    A probe whose next vector vanishes (beta or alpha below 10 sqrt(short) units of rounding of the largest one seen)
    has found an invariant space: that is a success. Its later entries are zero, and when every probe is there the
    iteration stops. An isometry finishes in one step.
    """
    recurrence = Recurrence(side, start, projector=projector, dimension=dimension)
    recurrence.advance(side, steps, on_step=on_step)
    return recurrence.bidiagonals()


@dataclass(frozen=True)
class _Breakdown:
    """Which probes have broken down, (k, B) each: the largest entry so far, and the entry taken as zero."""

    tolerance: float
    finished: NDArray[np.bool_]
    largest: Array
    residual: Array

    def after(self, entries: Array) -> tuple[Array, _Breakdown]:
        """The next alphas or betas, zero where a probe is finished or they are rounding, which is a breakdown."""
        entries = np.where(self.finished, 0.0, entries)
        largest = np.maximum(self.largest, entries)
        broken = ~self.finished & (entries <= self.tolerance * largest)
        return np.where(broken, 0.0, entries), _Breakdown(
            self.tolerance, self.finished | broken, largest, np.where(broken, entries, self.residual)
        )


@dataclass(frozen=True)
class _State:
    """What a step hands to the next one. It is replaced as a whole, so that an interrupted step leaves no trace."""

    steps: int
    v: Tensor
    alpha: tuple[Array, ...]
    beta: tuple[Array, ...]
    taken: NDArray[np.int64]
    breakdown: _Breakdown


class Recurrence:
    """The recurrence of :func:`golub_kahan`, which can be continued: steps are added without doing any twice.

    Parameters
    ----------
    side, start, projector, dimension :
        As for :func:`golub_kahan`.
    offload : bool
        Keep the bases in pinned host memory and bring them to the device in panels. The numbers are the same.
    """

    def __init__(
        self,
        side: ShortSide,
        start: Tensor,
        *,
        projector: Callable[[Tensor], Tensor] | None = None,
        dimension: int | None = None,
        offload: bool = False,
    ) -> None:
        self.dimension = side.short if dimension is None else dimension
        self._projector = projector
        self._left, self._right = (Basis(start, size, offload=offload) for size in (side.long, side.short))
        shape = tuple(start.shape[:2])
        self._state = _State(
            0, start, (), (), np.zeros(shape, np.int64),
            _Breakdown(breakdown_tolerance(side), np.zeros(shape, bool), np.zeros(shape), np.zeros(shape)),
        )  # fmt: skip

    @property
    def steps(self) -> int:
        """Whole steps done."""
        return self._state.steps

    @property
    def finished(self) -> bool:
        """Whether the recurrence of every probe broke down: there are no more steps to take."""
        return bool(self._state.breakdown.finished.all())

    def advance(self, side: ShortSide, steps: int, *, on_step: Callable[[int], None] | None = None) -> None:
        """Go on until ``steps`` are done in all, or every probe has finished.

        ``side`` is the A of the start, perhaps made anew. An exception in a step leaves the steps before it intact.
        """
        if steps < 1:
            raise InputError(f"at least one step is needed; got {steps}")
        steps = min(steps, self.dimension)
        self._left.reserve(steps)
        self._right.reserve(steps)
        while self.steps < steps and not self.finished:
            self._state = self._next(side)
            if on_step is not None:
                on_step(self.steps)

    def _next(self, side: ShortSide) -> _State:
        state, j, projector = self._state, self._state.steps, self._projector
        self._right.put(j, state.v)
        u, length = _orthogonal_unit(side.apply(state.v), self._left, j)
        taken = state.taken + ~state.breakdown.finished
        # Where A v lies in the span already built, B gets a zero on its diagonal and the space is complete.
        alpha, breakdown = state.breakdown.after(length)
        u = _zero_finished(u, breakdown)
        self._left.put(j, u)
        if j + 1 == self.dimension:
            breakdown = replace(breakdown, finished=np.ones_like(breakdown.finished))
        v, beta = state.v, np.zeros_like(alpha)
        if not breakdown.finished.all():
            w = side.adjoint(u)
            if projector is not None:
                w = projector(w)
            v, length = _orthogonal_unit(w, self._right, j + 1)
            if projector is not None:
                # Normalising a short remainder magnifies what rounding left of it outside the range of the projector.
                v = projector(v)
                v = v / torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp_min(0.5)
            beta, breakdown = breakdown.after(length)
            v = _zero_finished(v, breakdown)
        return _State(j + 1, v, (*state.alpha, alpha), (*state.beta, beta), taken, breakdown)

    def bidiagonals(self, *, vectors: bool = True) -> Bidiagonals:
        """What the steps so far have found; without ``vectors`` their ``right`` has width 0."""
        state = self._state
        right = self._right.whole(state.steps) if vectors else state.v.new_empty(*state.v.shape[:2], 0, 0)
        return Bidiagonals(
            np.stack(state.alpha, axis=-1), np.stack(state.beta, axis=-1), state.taken,
            state.breakdown.finished, state.breakdown.residual, right,
        )  # fmt: skip


# Steps whose vectors come back to the device together where the basis lies in host memory.
_PANEL = 16


class Basis:
    """Orthonormal vectors (k, B, steps, size) that grow by steps, in panels: adding to it copies nothing."""

    def __init__(self, like: Tensor, size: int, *, offload: bool = False) -> None:
        self._like, self._size, self._offload = like, size, offload
        self._panels: list[Tensor] = []
        self._firsts: list[int] = []
        self._room = 0

    def reserve(self, steps: int) -> None:
        """Make room for the vectors of so many steps in all."""
        while self._room < steps:
            more = min(steps - self._room, _PANEL) if self._offload else steps - self._room
            shape = (*self._like.shape[:2], more, self._size)
            if self._offload:
                panel = torch.zeros(shape, dtype=self._like.dtype, pin_memory=self._like.is_cuda)
            else:
                panel = self._like.new_zeros(shape)
            self._panels.append(panel)
            self._firsts.append(self._room)
            self._room += more

    def put(self, step: int, vector: Tensor) -> None:
        """Keep the (k, B, size) vectors of one step."""
        index = max(i for i, first in enumerate(self._firsts) if first <= step)
        self._panels[index][:, :, step - self._firsts[index]] = vector

    def panels(self, steps: int) -> Iterator[Tensor]:
        """The vectors of the first ``steps`` steps, (k, B, some, size) at a time, where the products are made."""
        for first, panel in zip(self._firsts, self._panels, strict=True):
            if first < steps:
                yield panel[:, :, : steps - first].to(self._like.device, non_blocking=True)

    def whole(self, steps: int) -> Tensor:
        """The vectors of the first ``steps`` steps as one tensor; no copy where they lie in one panel."""
        panels = list(self.panels(steps))
        return panels[0] if len(panels) == 1 else torch.cat(panels, dim=2)


def _orthogonal_unit(vector: Tensor, basis: Basis, steps: int) -> tuple[Tensor, Array]:
    """``vector`` made orthogonal to the first ``steps`` of a basis (twice is enough), as a unit vector; its length."""
    # The size of a deep product may be 1e-30: its square must not underflow.
    scale = vector.abs().amax(dim=-1, keepdim=True)
    vector = vector / torch.where(scale > 0, scale, torch.ones_like(scale))
    for _ in range(2):
        for panel in basis.panels(steps):
            overlap = torch.einsum("kbjd,kbd->kbj", panel, vector)
            vector -= torch.einsum("kbjd,kbj->kbd", panel, overlap)
    length = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    unit = vector.div_(torch.where(length > 0, length, torch.ones_like(length)))
    # Twice: a short remainder still leans on the basis by rounding over its length.
    full = (length.double() * scale.double())[..., 0].cpu().numpy()
    return unit, full


def _zero_finished(vector: Tensor, breakdown: _Breakdown) -> Tensor:
    """The vectors with those of finished probes set to zero: normalised rounding must not enter products."""
    if not breakdown.finished.any():
        return vector
    return vector * torch.from_numpy(~breakdown.finished).to(vector.device)[..., None]
