"""All singular values of a product J = J_L ... J_1 over any number of decades, each with a relative error.

The factors act on an orthonormal block one after another, and the product so far is kept graded
(:mod:`.graded_product`): P = Q diag(e^g) T. At the end the singular values of diag(e^g) T are those of J
(:mod:`.graded_svd`). No scale is ever added to one that is far from it, so that each value is known to a relative
error although they may span thousands of decades.

**Error.** All rounding of the sweep equals a small perturbation of each factor, as the rounding of the factors
themselves is. How far the singular values move under such perturbations is measured on products that are perturbed at
random, in proportion to the rows of each factor, by more than all rounding together (:mod:`.perturbed_chain`).

**Zeros.** A product has no more singular values that are not zero than any of its factors has rows (columns) that are
not zero: those zeros are proved by the pattern. A factor that is singular to rounding, as a layer norm is, makes
zeros to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isometry.progress import StepProgress

from .chain_factors import EPS, ChainFactor, Step, live_inputs, refuse_gaps
from .graded_product import (
    DIRECTIONS,
    MOST_DIRECTIONS,
    ErrorSamples,
    GradedBlock,
    GradedProduct,
    lengths_of,
    renewed,
)
from .graded_svd import log_singular_values
from .perturbed_chain import followed, outside_errors

Array = NDArray[np.float64]

# Vectors that a product of factors makes this dependent (length over the part orthogonal to those before) are
# orthogonalised: 1e2 for 128 values or fewer, 3e7 for 1,024. Each digit saves QRs, which take most of the time of many
# values, and costs the smallest values one. Where it is exceeded by so many times, it is done again with fewer factors.
_LEAST_DEPENDENCE, _MOST_DEPENDENCE, _EXCESS = 1e2, 1e8, 30.0
_MOST_FACTORS = 64
# The error of a value is so many times the root mean square of at least so many movements: its own in all perturbed
# products, and those of its neighbours.
_TIMES_MOVED, _MOVEMENTS = 4.0, 8
# Perturbed products move so many values together at least, but are no more than the second number.
_MOVED_VALUES, _MOST_PERTURBED = 200, 8
# Copies of the vectors, of the directions of errors, and of the square matrices at the peak, and what libraries take
# besides; bounds of what was measured.
_VECTORS, _ERRORS, _SQUARES, _BESIDES = 10, 4, 24, 2**23


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
        QRs.
    perturbed : int
        Perturbed products, each with as many QRs.
    vectors : int
        Vectors that go through the first factor.
    """

    log_values: Array
    log_error: Array
    proved_zeros: int
    condition: float
    decompositions: int
    perturbed: int
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
    refuse_gaps(factors)
    m, n = factors[-1].shape[0], factors[0].shape[1]
    short, device = min(m, n), torch.device(device)
    # Blocks start at the end of fewer dimensions.
    steps = [Step(factor, transposed=m < n) for factor in (reversed(factors) if m < n else factors)]
    masks = [*(live_inputs(step, device) for step in steps[1:]), None]
    found = _sweep(steps, masks, short, seed, device, progress)
    logs, *others = (
        _padded(log_singular_values(product.scales, product.rows), short)
        for product in (found.product, *found.perturbed)
    )
    with np.errstate(invalid="ignore"):
        moved = np.array([np.where(logs == other, 0.0, np.abs(logs - other)) for other in others])
    return ChainValues(
        log_values=logs,
        log_error=_error(logs, moved),
        proved_zeros=short - found.most_rank,
        condition=_condition(found.product.rows),
        decompositions=found.decompositions,
        perturbed=len(others),
        vectors=chain_vectors(short),
    )


def chain_vectors(short: int) -> int:
    """Vectors that go through the first factor for so many singular values."""
    return short + DIRECTIONS


def perturbed_products(short: int) -> int:
    """Perturbed products for so many singular values."""
    return min(-(-_MOVED_VALUES // short), _MOST_PERTURBED)


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
    directions = MOST_DIRECTIONS + DIRECTIONS
    vectors = short * (_VECTORS * 8 + 2 * dtype.itemsize) + directions * (_ERRORS * 8 + 2 * dtype.itemsize)
    return widest * vectors + _SQUARES * 8 * short**2 + _BESIDES


@dataclass(frozen=True, eq=False)
class _Sweep:
    """The whole product and perturbed ones, a bound of the rank by the pattern of zeros, and the number of QRs."""

    product: GradedProduct
    perturbed: list[GradedProduct]
    most_rank: int
    decompositions: int


def _sweep(
    steps: Sequence[Step],
    masks: Sequence[Tensor | None],
    short: int,
    seed: tuple[int, ...],
    device: torch.device,
    progress: StepProgress | None,
) -> _Sweep:
    """The whole product, with a QR wherever the vectors have become dependent."""
    product = GradedProduct.identity(short, device)
    perturbed = [product] * perturbed_products(short)
    errors = ErrorSamples.none(len(perturbed), product)
    generator = torch.Generator().manual_seed(int(np.random.default_rng(seed).integers(2**62)))
    most_rank, decompositions, start, ahead = short, 0, 0, 1
    allowed = min(_LEAST_DEPENDENCE * max(short / 128, 1.0) ** 6, _MOST_DEPENDENCE)
    while start < len(steps) and product.scales.size:
        block, stop = GradedBlock(product, errors, generator), start
        while stop < min(start + ahead, len(steps)):
            block.apply(steps[stop], masks[stop])
            stop += 1
            # Zeros of the pattern are counted before they meet others.
            if block.live < product.scales.size or block.graded:
                break
        renewal = renewed(block, None)
        if block.applied > 1 and max(renewal.dependence, 1 / block.shrunk) > _EXCESS * allowed:
            ahead = block.applied // 2
            continue
        perturbed = followed(perturbed, block, renewal)
        errors = outside_errors(block, renewal)
        most_rank, decompositions = min(most_rank, block.live), decompositions + 1
        growth = math.log(max(renewal.dependence, 2.0)) / block.applied
        ahead = max(1, min(int(math.log(allowed) / growth), 2 * block.applied, _MOST_FACTORS))
        product, start = renewal.product, stop
        if progress is not None:
            progress(stop, len(steps))
    return _Sweep(product, perturbed, most_rank, decompositions)


def _padded(logs: Array, count: int) -> Array:
    """With the zeros at the end."""
    return np.concatenate([logs, np.full(count - logs.size, -np.inf)])


def _error(logs: Array, moved: Array) -> Array:
    """Bound of the error of each ln s from the (products, values) movements."""
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
    upper = torch.linalg.qr((rows / lengths_of(rows, dim=1)[:, None]).T, mode="r").R
    inverse = torch.linalg.solve_triangular(upper, torch.eye(upper.shape[0]).to(upper), upper=True)
    return float(torch.linalg.matrix_norm(upper, 1) * torch.linalg.matrix_norm(inverse, 1))
