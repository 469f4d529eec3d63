"""The leading singular triplets of J, each with its residual, and the probability that none is missing.

Block Golub-Kahan with thick restart (:mod:`.block_krylov`) finds them in a space of a few times their number. That
they are the *leading* ones no residual can say: a start may have missed a direction. So a fresh random block is then
sent through what is left of A outside the space, A P, and :mod:`.exclusion` turns what comes back into a bound M with
||A P|| <= M at a stated confidence. With the Ritz values S and the coupling C = G X of the *whole* space,

    A^T A  <=  [ S^2   S C^T ]   on V and F,   M^2 elsewhere,
               [ C S   M^2 I ]

(as quadratic forms), so that the ordered singular values of A lie between those of S and the roots of the eigenvalues
on the right: s_i <= sigma_i <= upper_i. Where s_i is above M and its residual r small, upper_i - s_i is of order
r^2 / gap (Kato 1949 and Temple 1928 for one value; Li & Li 2005, Linear Algebra Appl. 395, 183 for blocks).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isometry.errors import InputError
from isometry.progress import StepProgress
from isometry.spectrum import Extremes

from . import exclusion
from .block_krylov import BlockKrylov, RitzTriplets
from .blocks import Operator, ShortSide, random_block, strictly

Array = NDArray[np.float64]

DEFAULT_BLOCK = 4
# Vectors of the space beyond the wanted ones: as many blocks, or as many times the wanted ones. Fewer cost products
# (by a quarter at half of it on deep Gaussian and delta-orthogonal networks) and leave ranks contested.
_SPARE_BLOCKS, _SPARE_SHARE = 10, 2
# A wider block than that of the search: 1 / sqrt(q) falls from 3.3 to 1.1 times the root of the dimension.
_CHECK_BLOCK, _CHECK_STEPS = 8, 6
_START, _CHECK = 2, 3


@dataclass(frozen=True, eq=False)
class LeadingTriplets:
    """The largest singular values of B Jacobians, with vectors and what is known of their errors.

    Parameters
    ----------
    values : (B, r) array
        s, descending; each is at most the singular value of its rank.
    residuals : (B, r) array
        max(||J v - s u||, ||J^T u - s v||), rounding of the products included: some singular value lies within it.
    upper : (B, r) array
        With probability ``confidence``, for all ranks of an input at once: no singular value of the rank is larger.
    confidence : float
        1 where the space was exhausted; 0 (and ``upper`` inf) where the budget left nothing for the check.
    converged : (B, r) bool array
        Whether the residual is at most tol * s, or rounding of s_max.
    certified : (B, r) bool array
        Converged, and ``upper`` no further above: with probability ``confidence`` of the very rank it stands at.
    left, right : (r, [B,] *output_shape) and (r, [B,] *input_shape) tensors
        u and v, unit vectors, in the operator's dtype.
    lowest, lowest_residual : (B,) arrays
        The smallest Ritz value met, an upper bound of s_min, and its residual.
    products, blocks : int
        Products spent, and calls of the operator.
    seconds : float
        Wall time.
    """

    values: Array
    residuals: Array
    upper: Array
    confidence: float
    converged: NDArray[np.bool_]
    certified: NDArray[np.bool_]
    left: Tensor
    right: Tensor
    lowest: Array
    lowest_residual: Array
    products: int
    blocks: int
    seconds: float

    @property
    def uncertified(self) -> NDArray[np.int64]:
        """(B,) how many of the ranks may be those of other values: larger ones, or copies, may be missing."""
        return (~self.certified).sum(axis=1)

    def extremes(self) -> Extremes:
        """The same as the extremes of a :class:`isometry.Spectrum`; the smallest value is not resolved."""
        resolved = np.zeros(self.lowest.shape, bool)
        return Extremes(self.values, self.residuals, self.lowest, self.lowest_residual, resolved)


@strictly
def leading_triplets(
    operator: Operator,
    rank: int = 6,
    *,
    tol: float = 1e-6,
    delta: float = 1e-3,
    block: int | None = None,
    basis: int | None = None,
    max_products: int | None = None,
    seed: int = 0,
    first_input: int = 0,
    progress: StepProgress | None = None,
) -> LeadingTriplets:
    """The ``rank`` largest singular values and vectors, and the probability that none is missing.

    Parameters
    ----------
    operator : Operator
        Anything with ``shape``, ``matmat`` and ``rmatmat``; with a batch, each sample has its own matrix.
    rank : int
        Triplets wanted; min(m, n) at most are found.
    tol : float
        Largest residual of each, relative to its own value; rounding of s_max is always allowed.
    delta : float
        Probability with which the certificate may fail, for each input: ``confidence`` is 1 - delta.
    block : int, optional
        Vectors of a product; 4. Fewer need fewer products, in more calls: a product on one vector costs two to five
        times its share of a block. A block below the multiplicity of a value finds the copies one after another.
    basis : int, optional
        Vectors that the space may hold, on either side of J: ``basis * (m + n)`` numbers for each input. By default
        ``rank`` and 10 blocks or twice ``rank``, whichever is more.
    max_products : int, optional
        Products of each input at most, the certificate included. Without it, 100 restarts' worth.
    seed, first_input : int
        As for :func:`isometry.estimators.lanczos`.
    progress : callable, optional
        Called with (converged, wanted) triplets; the total stands for the check as well.

    Returns
    -------
    LeadingTriplets

    Examples
    --------
    >>> from isometry.jacobian import MatrixOperator
    >>> matrix = torch.diag(torch.tensor([3.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    >>> found = leading_triplets(MatrixOperator(matrix), 3)
    >>> found.values.round(9).tolist(), bool(found.certified.all())
    ([[3.0, 2.0, 2.0]], True)
    """
    if rank < 1:
        raise InputError(f"rank is at least 1; got {rank}")
    if not tol > 0:
        raise InputError(f"tol is a positive relative residual; got {tol}")
    if not 0 < delta < 1:
        raise InputError(f"delta is a probability between 0 and 1; got {delta}")
    if block is not None and block < 1:
        raise InputError(f"block is at least 1; got {block}")
    began = time.perf_counter()
    side = ShortSide(operator)
    rank = min(rank, side.short)
    width = min(block or DEFAULT_BLOCK, side.short)
    capacity = basis or rank + max(_SPARE_BLOCKS * width, _SPARE_SHARE * rank)
    if capacity < rank + 2 * width:
        raise InputError(
            f"basis={capacity} is too small for rank {rank} and blocks of {width}: {rank + 2 * width} at least"
        )
    budget = max_products or 200 * capacity
    start = random_block(width, side, seed, first_input=first_input, stream=_START)
    space = BlockKrylov(side, start, capacity, seed=seed, first_input=first_input)
    rest, confidence, attempt = _Rest.unknown(side), 0.0, 0
    while True:
        done = _converge(space, rank, tol, budget - 2 * _CHECK_BLOCK * _CHECK_STEPS, progress)
        triplets = space.ritz()
        if space.complete:
            rest, confidence = _Rest.nothing(side), 1.0
            break
        if side.products // side.batch + 2 * _CHECK_BLOCK > budget:
            break
        attempt += 1
        # Whichever check is the last one, the events behind all of them hold: delta together.
        check = BlockKrylov(
            side, random_block(_CHECK_BLOCK, side, seed, first_input=first_input, stream=_CHECK + attempt),
            _CHECK_BLOCK * _CHECK_STEPS, seed=seed + 1, first_input=first_input, deflation_basis=space.right,
        )  # fmt: skip
        rest = _check(check, triplets, rank, tol, delta / (attempt * (attempt + 1)), budget)
        confidence = 1 - delta
        kept = space.capacity - space.width - rest.missed.shape[1]
        if not done or rest.missed.shape[1] == 0 or kept < rank + space.width:
            break
        space.restart(triplets, min(space.size, kept))
        space.augment(rest.missed)
        space.expand()
    if progress is not None:
        progress(rank, rank)
    return _result(space, triplets, rank, tol, rest, confidence, began)


@dataclass(frozen=True)
class _Rest:
    """What a check says of A outside the space: ``norm`` (B,) bounds it; ``missed`` (B, k, short) directions."""

    norm: Array
    rounding: float
    missed: Tensor

    @classmethod
    def unknown(cls, side: ShortSide) -> _Rest:
        return cls(np.full(side.batch, math.inf), 0.0, torch.empty(side.batch, 0, side.short))

    @classmethod
    def nothing(cls, side: ShortSide) -> _Rest:
        return cls(np.zeros(side.batch), 0.0, torch.empty(side.batch, 0, side.short))


def _converge(space: BlockKrylov, rank: int, tol: float, budget: int, progress: StepProgress | None) -> bool:
    """Expand and restart until the first ``rank`` triplets of every input converge or the products are spent."""
    side = space.side
    reached = False
    while True:
        if space.size >= rank or space.complete:
            triplets = space.ritz()
            done = _converged(side, triplets, rank, tol)
            if progress is not None:
                progress(min(int(done.sum(axis=1).min()), rank - 1), rank)
            reached = bool(done.all())
            full = space.size + space.width > space.capacity
            # A value whose rank is contested by others not yet known: the rest of the space is for those.
            if space.complete or (reached and (full or not _contested(triplets, rank))):
                return True
            if side.products // side.batch + 2 * space.width > budget:
                return reached
            if full:
                keep = rank + (space.capacity - rank) // 2
                space.restart(triplets, min(keep, space.capacity - space.width))
        space.expand()


def _contested(triplets: RitzTriplets, rank: int) -> bool:
    """Whether a triplet beyond the wanted ones may, by its residual, be one of them."""
    s, residuals, last = triplets.values, triplets.residuals, triplets.values[:, rank - 1 : rank]
    return bool(np.any((s + residuals > last)[:, rank:] & (residuals > last - s)[:, rank:]))


def _converged(side: ShortSide, triplets: RitzTriplets, rank: int, tol: float) -> NDArray[np.bool_]:
    s, residuals = triplets.values[:, :rank], triplets.residuals[:, :rank]
    return residuals <= np.maximum(tol * s, side.noise_floor(s[:, :1]))


def _check(
    check: BlockKrylov, triplets: RitzTriplets, rank: int, tol: float, delta: float, budget: int
) -> _Rest:
    """Send a random block through what the space leaves over until nothing, or something, is seen to be missing."""
    side = check.side
    wanted = triplets.values[:, rank - 1]
    known = wanted + triplets.residuals[:, rank - 1] + side.noise_floor(triplets.values[:, 0])
    noise = exclusion.rounding(check, delta)
    while True:
        check.expand()
        seen = check.ritz()
        missing = int((seen.values > known[:, None]).sum(axis=1).max())
        rest = _Rest(exclusion.above(check, seen, delta), noise, check.vectors(seen, missing)[1])
        if missing or check.complete or check.size + check.width > check.capacity:
            return rest
        if side.products // side.batch + 2 * check.width > budget:
            return rest
        if _ranked(side, triplets, rank, tol, rest).all():
            return rest


def _rounding(side: ShortSide, triplets: RitzTriplets) -> Array:
    """(B, j): every block of products and every restart adds its own rounding to the relations."""
    s = triplets.values
    return side.rounding_error(s, s[:, :1]) * math.sqrt(max(1.0, side.calls / 2))


def _ranked(side: ShortSide, triplets: RitzTriplets, rank: int, tol: float, rest: _Rest) -> NDArray[np.bool_]:
    """(B, rank): whether the upper bound of a rank is no further from its value than ``tol`` or rounding."""
    s = triplets.values
    allowed = np.maximum(tol * s, _rounding(side, triplets) + rest.rounding * s[:, :1])
    return (_upper(triplets, rest.norm) - s <= allowed)[:, :rank]


def _upper(triplets: RitzTriplets, norm: Array) -> Array:
    """(B, j) upper bounds of the ordered singular values; see the module."""
    upper = np.empty(triplets.values.shape)
    for index, (s, coupling, most) in enumerate(zip(triplets.values, triplets.coupling, norm, strict=True)):
        if not math.isfinite(most) or coupling.shape[0] == 0:
            upper[index] = np.maximum(s, most)
            continue
        scale = s[0] or 1.0
        turn, sizes, _ = np.linalg.svd(coupling / scale, full_matrices=True)
        # A factor of the matrix and not its square, which would lose values below sqrt(eps) s_max.
        rest = np.full(turn.shape[0], (most / scale) ** 2)
        rest[: sizes.size] -= np.minimum(sizes**2, rest[: sizes.size])
        factor = np.block(
            [
                [np.diag(s / scale), coupling.T / scale],
                [np.zeros((turn.shape[0], s.size)), np.sqrt(rest)[:, None] * turn.T],
            ]
        )
        bounds = scale * np.linalg.svd(factor, compute_uv=False)[: s.size]
        upper[index] = np.maximum(np.maximum(bounds, most), s)
    return upper


def _result(
    space: BlockKrylov,
    triplets: RitzTriplets,
    rank: int,
    tol: float,
    rest: _Rest,
    confidence: float,
    began: float,
) -> LeadingTriplets:
    side, scale = space.side, space.side.scale[:, None]
    s, rounding = triplets.values, _rounding(side, triplets)
    residuals = triplets.residuals + rounding
    converged = _converged(side, triplets, rank, tol)
    long, short = (part.transpose(0, 1) for part in space.vectors(triplets, rank))
    left, right = side.pair(long, short)
    return LeadingTriplets(
        values=scale * s[:, :rank],
        residuals=scale * residuals[:, :rank],
        upper=scale * (_upper(triplets, rest.norm) + rounding)[:, :rank],
        confidence=confidence,
        converged=converged,
        certified=converged & _ranked(side, triplets, rank, tol, rest),
        left=left,
        right=right,
        lowest=scale[:, 0] * s[:, -1],
        lowest_residual=scale[:, 0] * residuals[:, -1],
        products=side.products,
        blocks=side.calls,
        seconds=time.perf_counter() - began,
    )
