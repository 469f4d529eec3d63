"""s_min of an operator by solves with the factors of J, or with J as a matrix where it fits into the memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from isometry.errors import InputError
from isometry.progress import StepProgress

from .blocks import ShortSide, random_block
from .chain_factors import ChainFactor, MatrixFactor, Step, refuse_gaps
from .inverse_chain import FURTHER_PRODUCTS, SolvedSmallest, scaled, smallest_by_inverses
from .smallest_interval import SmallestSingularValue

Factors = Sequence[ChainFactor] | Callable[[], Sequence[ChainFactor] | None] | None
# Vectors of a Krylov space before solves take over.
BEFORE_SOLVES = 64
# The matrix, its QR, inverse, and copies; measured on the matrix.
_MATRIX_COPIES = 8
_ROWS_AT_ONCE = 256
_STREAM = 6


@dataclass(frozen=True, eq=False)
class Solves:
    """Solves for the J of an operator.

    Parameters
    ----------
    side : ShortSide
    factors : sequence of ChainFactor or None
        Of the single J; without them the matrices of all inputs are built.
    memory_limit : int
    """

    side: ShortSide
    factors: Sequence[ChainFactor] | None
    memory_limit: int

    def applied(
        self,
        found: SmallestSingularValue,
        *,
        rtol: float,
        delta: float,
        seed: tuple[int, int],
        progress: StepProgress | None,
    ) -> SmallestSingularValue:
        """With the intervals of those inputs that have not converged by products."""
        side, extra = self.side, 0
        chains: list[Sequence[ChainFactor]]
        if self.factors is not None:
            by, chains, shifts, extra = "factors", [self.factors], [0.0], solve_products(side)
        else:
            dense = side.matrix(min(side.short, _ROWS_AT_ONCE), progress)
            rounding = max(side.precision.rounding, 8 * side.eps)
            by, chains = "matrix", [[MatrixFactor(matrix.T, rounding)] for matrix in dense]
            shifts = np.log(side.scale).tolist()
        for index in np.flatnonzero(~found.converged).tolist():
            solved = smallest_by_inverses(
                chains[index], rtol=rtol, delta=delta, seed=(seed[0], seed[1] + index), device=side.device,
                memory_limit=self.memory_limit, progress=progress if by == "factors" else None,
            )  # fmt: skip
            solved = replace(
                solved, log_lower=solved.log_lower + shifts[index], log_upper=solved.log_upper + shifts[index]
            )
            long, short = (
                vector.to(side.dtype).expand(1, side.batch, -1) for vector in (solved.long, solved.short)
            )
            left, right = side.pair(long, short)
            found = found.with_solved(
                index, solved, by=by, rtol=rtol, pair=(left[0], right[0]), cause=self._cause(solved, by)
            )
            if solved.delta:
                found = replace(found, confidence=min(found.confidence, 1 - delta))
        return replace(found, products=side.products + extra, blocks=side.calls)

    def _cause(self, solved: SolvedSmallest, by: str) -> str:
        """The cause with its cure."""
        text = solved.cause
        if not text:
            return ""
        if self.side.dtype != torch.float64:
            return f"{text}; measure with dtype=torch.float64"
        if by == "matrix":
            return f"{text}; factors of J carry more: a model that has cuts, or factors="
        if solved.singular:
            return f"{text}; method='chain' counts the values that are zero to rounding"
        return f"{text}; method='chain' has the value with an error that is measured, not proved"


def solves_for(
    side: ShortSide, factors: Factors, max_products: int | None, memory_limit: int
) -> tuple[Solves | None, str]:
    """Solves, or why there are none."""
    if factors is not None and side.batch > 1:
        raise InputError(f"factors are those of one J, and this operator holds {side.batch}")
    if isinstance(factors, Sequence):
        _refuse_other_product(side, factors)
    if side.rows_alone:
        return None, "there are products J^T u alone; method='exact' builds J from its rows"
    products = solve_products(side) + 2 * min(BEFORE_SOLVES, side.short)
    if max_products is not None and products > max_products:
        return None, f"max_products={max_products} ends the search; with solves it takes {products}"
    given = factors() if callable(factors) else factors
    if given is None:
        size = (
            _MATRIX_COPIES
            * 8
            * side.short
            * side.long
            * (1 if side.batch == 1 else 1 + side.batch // _MATRIX_COPIES)
        )
        if size > memory_limit:
            return None, (
                f"solves with the {side.shape[0]} x {side.shape[1]} matrix take about {size / 1e9:.3g} GB, more than "
                f"memory_limit ({memory_limit / 1e9:.3g} GB); raise it"
            )
    return Solves(side, given, memory_limit), ""


def _refuse_other_product(side: ShortSide, factors: Sequence[ChainFactor]) -> None:
    """Raise InputError where the product of the factors is not J: of another shape, or off for a random vector.

    Factors in the wrong order are off by all of it; factors that nearly undo one another may be off by rounding times
    their condition number, so that the root of rounding is allowed.
    """
    refuse_gaps(factors)
    m, n = factors[-1].shape[0], factors[0].shape[1]
    if (m, n) != side.shape:
        raise InputError(
            f"the product of the factors is {m} x {n}, and J is {side.shape[0]} x {side.shape[1]}: factors= takes "
            "the first one first"
        )
    vector = random_block(1, side, 0, stream=_STREAM)
    expected = (side.apply(vector) * float(side.scale[0])).double().flatten()
    found, exponent = vector.double().reshape(1, -1), 0
    steps = [Step(factor, side.transposed) for factor in (reversed(factors) if side.transposed else factors)]
    for step in steps:
        found, power = scaled(step.apply(found))
        exponent += power
    limits = torch.finfo(side.dtype)
    size = float(torch.linalg.vector_norm(expected))
    if not limits.tiny / limits.eps < size < limits.max:
        # Products of the whole leave the range of floats, and those of the factors do not.
        return
    found = torch.ldexp(found.flatten(), torch.tensor(exponent, device=found.device))
    off = float(torch.linalg.vector_norm(found - expected)) / size
    allowed = math.sqrt(max(side.eps, side.precision.rounding, *(step.error for step in steps)))
    if not off <= allowed:
        raise InputError(
            f"the product of the factors differs from J by {off:.1e}, relatively, for a random vector: factors= takes "
            "the first one first. Where they nearly undo one another, leave factors= out"
        )


def solve_products(side: ShortSide) -> int:
    """Products of each input that solves take: of a basis, and of the vectors that measure rounding and find zeros."""
    return side.short + FURTHER_PRODUCTS
