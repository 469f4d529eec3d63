"""Golub-Kahan bidiagonalisation of a block of probes, with full re-orthogonalisation.

A V = U B and A^T U = V B^T + beta v e^T, with B upper bidiagonal (Golub & Kahan 1965, SIAM J. Numer. Anal. 2,
205; Paige & Saunders 1982, ACM TOMS 8, 43). Working on A and not on A^T A keeps singular values down to rounding
of s_max instead of its square root.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isometry.errors import InputError

from .blocks import ShortSide

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
        Whether its Krylov space closed: its nodes and masses are then exact, not quadrature.
    closing : (k, B) array
        The alpha or beta at which a space closed, taken as zero; 0 where it filled the whole space.
    right : (k, B, steps, short) tensor
        V, the orthonormal vectors of each probe on the short side; zero after it finished.
    """

    alpha: Array
    beta: Array
    steps: NDArray[np.int64]
    finished: NDArray[np.bool_]
    closing: Array
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


def joined(parts: Sequence[Bidiagonals]) -> Bidiagonals:
    """The bidiagonal matrices of groups of probes as one, probes in order; ``right`` is left out (of width 0)."""
    if len(parts) == 1:
        return parts[0]
    size = max(part.alpha.shape[-1] for part in parts)

    def wide(array: Array) -> Array:
        return np.pad(array, [(0, 0), (0, 0), (0, size - array.shape[-1])])

    return Bidiagonals(
        np.concatenate([wide(part.alpha) for part in parts]), np.concatenate([wide(part.beta) for part in parts]),
        np.concatenate([part.steps for part in parts]), np.concatenate([part.finished for part in parts]),
        np.concatenate([part.closing for part in parts]), parts[0].right[:0],
    )  # fmt: skip


# A node this many closing entries above zero is known to one part in eight, and better above.
_CLOSINGS_UNSEEN = 8


def unseen_below(bidiagonals: Bidiagonals) -> Array:
    """(B,) what a space that closed early cannot tell from zero.

    What was taken as zero at the closing couples the nodes to a part of J that no step has seen. It may move
    them by as much as itself, and the singular values of that part may be twice as large again (those of a square
    Gaussian matrix reach twice its beta).
    """
    return _CLOSINGS_UNSEEN * bidiagonals.closing.max(axis=0)


def closing_tolerance(side: ShortSide) -> float:
    """How small, beside the largest entry seen, an alpha or beta closes a Krylov space: it is rounding."""
    return 10 * side.eps * math.sqrt(side.short)


def golub_kahan(
    side: ShortSide,
    start: Tensor,
    steps: int,
    *,
    within: Callable[[Tensor], Tensor] | None = None,
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
    within : callable, optional
        An orthogonal projection on the short side to stay inside of (deflation); the start lies inside it.
    dimension : int, optional
        Dimension of the space that ``within`` leaves; the short side without it.
    on_step : callable, optional
        Called with the number of steps done.

    Notes
    -----
    A probe whose next vector vanishes (beta or alpha below 10 sqrt(short) units of rounding of the largest one seen)
    has found an invariant space: that is a success. Its later entries are zero, and when every probe is there the
    iteration stops. An isometry finishes in one step.
    """
    if steps < 1:
        raise InputError(f"at least one step is needed; got {steps}")
    dimension = side.short if dimension is None else dimension
    steps = min(steps, dimension)
    k, batch, _ = start.shape
    left = start.new_zeros(k, batch, steps, side.long)
    right = start.new_zeros(k, batch, steps, side.short)
    alpha, beta = np.zeros((k, batch, steps)), np.zeros((k, batch, steps))
    taken = np.zeros((k, batch), dtype=np.int64)
    finished = np.zeros((k, batch), dtype=bool)
    largest = np.zeros((k, batch))
    closing = np.zeros((k, batch))
    tolerance = closing_tolerance(side)
    v = start
    for j in range(steps):
        right[:, :, j] = v
        u = side.apply(v)
        u, length = _orthogonal_unit(u, left[:, :, :j])
        alpha[..., j] = np.where(finished, 0.0, length)
        taken += ~finished
        largest = np.maximum(largest, alpha[..., j])
        # A v inside the span already built: B gets a zero on its diagonal and the space is complete.
        closed = ~finished & (alpha[..., j] <= tolerance * largest)
        closing[closed] = alpha[..., j][closed]
        alpha[..., j][closed] = 0.0
        finished |= closed
        u = _keep(u, ~finished)
        left[:, :, j] = u
        if j + 1 == dimension:
            finished[:] = True
        if not finished.all():
            w = side.adjoint(u)
            if within is not None:
                w = within(w)
            v, length = _orthogonal_unit(w, right[:, :, : j + 1])
            if within is not None:
                # A short remainder, made a unit vector, leans on what was deflated by rounding over its length.
                v = within(v)
                v = v / torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp_min(0.5)
            beta[..., j] = np.where(finished, 0.0, length)
            largest = np.maximum(largest, beta[..., j])
            closed = ~finished & (beta[..., j] <= tolerance * largest)
            closing[closed] = beta[..., j][closed]
            beta[..., j][closed] = 0.0
            finished |= closed
            v = _keep(v, ~finished)
        if on_step is not None:
            on_step(j + 1)
        if finished.all():
            alpha, beta, right = alpha[..., : j + 1], beta[..., : j + 1], right[:, :, : j + 1]
            break
    return Bidiagonals(alpha, beta, taken, finished, closing, right)


def _orthogonal_unit(vector: Tensor, basis: Tensor) -> tuple[Tensor, Array]:
    """``vector`` made orthogonal to the (k, B, j, d) ``basis`` (twice is enough), as a unit vector, and its length."""
    # The size of a deep product may be 1e-30: its square must not underflow.
    scale = vector.abs().amax(dim=-1, keepdim=True)
    vector = vector / torch.where(scale > 0, scale, torch.ones_like(scale))
    if basis.shape[2]:
        for _ in range(2):
            overlap = torch.einsum("kbjd,kbd->kbj", basis, vector)
            vector = vector - torch.einsum("kbjd,kbj->kbd", basis, overlap)
    length = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    unit = vector / torch.where(length > 0, length, torch.ones_like(length))
    # Twice: a short remainder still leans on the basis by rounding over its length.
    full = (length.double() * scale.double())[..., 0].cpu().numpy()
    return unit, full


def _keep(vector: Tensor, running: NDArray[np.bool_]) -> Tensor:
    """Zero the vectors of finished probes, so that what is left of them is rounding no more."""
    return vector * torch.from_numpy(running).to(vector.device)[..., None]
