"""The smallest of the min(m, n) singular values: an interval that holds with stated confidence, or a refusal.

**By products.** The smallest Ritz value of a Golub-Kahan space is an upper bound of s_min and nothing more: a residual
says that *some* singular value is near, and an isolated tiny one below a bulk may not have been met at all. So the
space is grown from a random block, never cut, until :mod:`.exclusion` rules out everything below the Ritz value but a
share ``rtol`` of it. That takes about s_max / s_min steps for a spectrum without gaps, and a few dozen where s_min
stands alone below a bulk or where all values are alike; there is no way around by products alone: the inner solves of
inverse iteration are Krylov spaces of the same size (Golub & Van Loan 2013, section 10.4; Hochstenbach 2013, BIT 53, 1
for probabilistic bounds on extreme singular values).

**By solves.** Where a few dozen steps do not end it, the factors of J, or J as a matrix where it fits into the memory,
are inverted, and s_min = 1 / ||J^-1|| with all errors carried (:mod:`.inverse_chain`).
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from isometry.errors import InputError
from isometry.progress import StepProgress

from . import exclusion
from .block_krylov import BlockKrylov, RitzTriplets
from .blocks import Operator, ShortSide, random_block, strictly
from .smallest_interval import SmallestSingularValue
from .solves import BEFORE_SOLVES, Factors, solves_for

Array = NDArray[np.float64]

DEFAULT_BLOCK = 2
_START = 4
# The small SVD of a space of j vectors costs j^3: not after every step.
_GROWTH = 1.1


@strictly
def smallest_singular_value(
    operator: Operator,
    *,
    factors: Factors = None,
    rtol: float = 1e-2,
    delta: float = 1e-3,
    block: int = DEFAULT_BLOCK,
    max_products: int | None = None,
    memory_limit: int = 2**30,
    seed: int = 0,
    first_input: int = 0,
    progress: StepProgress | None = None,
) -> SmallestSingularValue:
    """The smallest of the min(m, n) singular values between two bounds, or "not converged, at most".

    Parameters
    ----------
    operator : Operator
        Anything with ``shape``, ``matmat`` and ``rmatmat``; with a batch, each sample has its own matrix.
    factors : sequence of ChainFactor, or a function without arguments that returns one or None, optional
        J as a product, the first factor first, for a single J: solves go through them, whatever the condition number
        where cuts of exactly min(m, n) numbers keep that of each piece below 1e12.
    rtol : float
        Width of the interval wanted, relative to its upper end.
    delta : float
        Probability with which the lower end may fail, for each input.
    block : int
        Random vectors to start from, and vectors of a product; 2. One reaches further for as many products (1.2 to 2
        times), in more calls.
    max_products : int, optional
        Products of each input at most; without it, as many as the memory allows. Solves take min(m, n) + 27,
        after at most 128 that try without.
    memory_limit : int
        Bytes for the space, (m + n) numbers for every two products; and for solves, whose matrices are of n numbers by
        max(m, n). What does not fit is left to products.
    seed, first_input : int
        As for :func:`isometry.estimators.lanczos`.
    progress : callable, optional
        Called with (vectors, most vectors).

    Returns
    -------
    SmallestSingularValue

    Notes
    -----
    A single matrix is inverted up to a condition number of about 1e13 in float64 (the width of the interval is then
    some percent), and 1e4 in float32: rounding of the products, times the condition number, is the least width.

    Examples
    --------
    >>> import torch
    >>> from isometry.jacobian import MatrixOperator
    >>> matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    >>> print(smallest_singular_value(MatrixOperator(matrix)))
    s_min = 1 to 1 (confidence 1)
    """
    if not rtol > 0:
        raise InputError(f"rtol is a positive relative width; got {rtol}")
    if not 0 < delta < 1:
        raise InputError(f"delta is a probability between 0 and 1; got {delta}")
    if block < 1:
        raise InputError(f"block is at least 1; got {block}")
    began = time.perf_counter()
    side = ShortSide(operator)
    width = min(block, side.short)
    of_one_vector = side.batch * (side.short + side.long) * side.dtype.itemsize
    most = min(side.short, memory_limit // of_one_vector)
    if max_products is not None:
        most = min(most, max_products // 2)
    if most < width:
        raise InputError(
            f"the limits hold {most} vectors, fewer than a single block of {width}: raise memory_limit or max_products"
        )
    solves, why = solves_for(side, factors, max_products, memory_limit)
    if solves is not None:
        most = min(most, max(BEFORE_SOLVES, width))
    start = random_block(width, side, seed, first_input=first_input, stream=_START)
    space = BlockKrylov(side, start, most, seed=seed, first_input=first_input)
    looked = 0
    while True:
        space.expand()
        if progress is not None:
            progress(min(space.size, most), most)
        last = space.complete or space.size + space.width > most
        if last or space.size >= min(_GROWTH * looked, looked + 64):
            looked = space.size
            triplets = space.ritz()
            upper, lower = _bounds(space, triplets, delta)
            zero = triplets.values[:, -1] <= side.noise_floor(triplets.values[:, 0])
            if last or np.all(zero | (upper - lower <= rtol * upper)):
                break
    if progress is not None:
        progress(most, most)
    position = slice(space.size - 1, space.size)
    last_one = RitzTriplets(
        triplets.values[:, position], triplets.left[:, :, position], triplets.right[:, :, position],
        triplets.coupling[:, :, position],
    )  # fmt: skip
    left, right = side.pair(*(part.transpose(0, 1) for part in space.vectors(last_one, 1)))
    rounding = side.rounding_error(triplets.values[:, -1], triplets.values[:, 0], space.size)
    upper, lower = side.scale * upper, side.scale * lower
    converged = upper - lower <= rtol * upper
    if solves is not None and solves.factors is not None:
        # Products of the whole may have left the range of floats where those of the factors have not.
        limits = torch.finfo(side.dtype)
        lost = side.scale * triplets.values[:, 0] < limits.tiny / limits.eps
        converged, upper = converged & ~lost, np.where(lost, np.inf, upper)
    with np.errstate(divide="ignore"):
        log_lower, log_upper = np.log(lower), np.log(upper)
    found = SmallestSingularValue(
        upper=upper,
        lower=lower,
        converged=converged,
        zero=zero,
        confidence=1.0 if space.complete else 1 - delta,
        residual=side.scale * (triplets.residuals[:, -1] + rounding),
        left=left[0],
        right=right[0],
        products=side.products,
        blocks=side.calls,
        seconds=time.perf_counter() - began,
        log_lower=log_lower,
        log_upper=log_upper,
        zeros=np.zeros(upper.size, np.int64),
        cause=tuple(
            "" if done else _singular(side) if null else why
            for done, null in zip(converged, zero, strict=True)
        ),
        solved=("products",) * upper.size,
    )
    if solves is None or bool(converged.all()):
        return found
    found = solves.applied(found, rtol=rtol, delta=delta, seed=(seed, first_input), progress=progress)
    return replace(found, seconds=time.perf_counter() - began)


def _singular(side: ShortSide) -> str:
    text = f"J is singular as far as its precision shows ({side.eps:.0e} of s_max)"
    return text if side.eps < 1e-12 else f"{text}; measure with dtype=torch.float64"


def _bounds(space: BlockKrylov, triplets: RitzTriplets, delta: float) -> tuple[Array, Array]:
    """(upper, lower) bounds of s_min, (B,) each."""
    smallest = triplets.values[:, -1]
    rounding = space.side.rounding_error(smallest, triplets.values[:, 0], space.size)
    lower = np.minimum(exclusion.below(space, triplets, delta), smallest)
    return smallest + rounding, np.maximum(lower - rounding, 0.0)
