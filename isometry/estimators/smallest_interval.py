"""The result of a search for s_min: an interval, or what is known and why it is no more."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .inverse_chain import SolvedSmallest

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SmallestSingularValue:
    """s_min of B Jacobians, between two bounds.

    Parameters
    ----------
    upper : (B,) array
        s_min is at most this: ||J v|| of the best v found and rounding, or by solves 1 / ||X y|| with the error of X.
    lower : (B,) array
        With probability ``confidence`` (each input for itself) s_min is at least this; 0 where nothing is ruled out.
    converged : (B,) bool array
        Whether ``upper - lower <= rtol * upper``. Where False, ``cause`` says why.
    zero : (B,) bool array
        Whether J is singular as far as its precision shows: ``lower`` is 0, and ``upper`` is rounding of s_max.
    confidence : float
        1 - delta; 1 where nothing random is in the bounds.
    residual : (B,) array
        Some singular value lies within it of ``upper``: ||J^T u - s v||, rounding included, or by solves the width.
    left, right : ([B,] *output_shape), ([B,] *input_shape) tensors
        u and v.
    products, blocks : int
        Products spent, and calls of the operator.
    seconds : float
        Wall time.
    log_lower, log_upper : (B,) arrays
        ln of the bounds, which hold where they leave the range of floats; -inf for 0.
    zeros : (B,) int array
        Singular values that are exactly zero, by rows and columns of zeros (units that are off) or a width below
        min(m, n); proved, with ``lower`` = ``upper`` = 0.
    cause : tuple of B str
        Why the interval is wider than asked for, and what to do; empty where it is not.
    solved : tuple of B str
        What the interval comes from: "products", "matrix" or "factors".
    """

    upper: Array
    lower: Array
    converged: NDArray[np.bool_]
    zero: NDArray[np.bool_]
    confidence: float
    residual: Array
    left: Tensor
    right: Tensor
    products: int
    blocks: int
    seconds: float
    log_lower: Array
    log_upper: Array
    zeros: NDArray[np.int64]
    cause: tuple[str, ...]
    solved: tuple[str, ...]

    def with_solved(
        self,
        index: int,
        solved: SolvedSmallest,
        *,
        by: str,
        rtol: float,
        pair: tuple[Tensor, Tensor],
        cause: str,
    ) -> SmallestSingularValue:
        """With what solves found for one input; ``pair`` is (u, v) of all inputs, of which that one is taken."""
        log_upper = solved.log_upper
        if not math.isfinite(solved.log_lower) and not solved.zeros:
            # Products may know more.
            log_upper = min(log_upper, float(self.log_upper[index]))
        lower, upper = bounded(solved.log_lower, up=False), bounded(log_upper, up=True)
        left, right = self.left.clone(), self.right.clone()
        if self.upper.size == 1:
            left, right = (new.reshape(old.shape) for new, old in zip(pair, (left, right), strict=True))
        else:
            left[index], right[index] = pair[0][index], pair[1][index]

        def at(array: NDArray[Any], value: float) -> NDArray[Any]:
            changed = array.copy()
            changed[index] = value
            return changed

        def named(texts: tuple[str, ...], text: str) -> tuple[str, ...]:
            return (*texts[:index], text, *texts[index + 1 :])

        return replace(
            self,
            lower=at(self.lower, lower),
            upper=at(self.upper, upper),
            converged=at(
                self.converged, solved.zeros > 0 or math.expm1(log_upper - solved.log_lower) <= rtol
            ),
            zero=at(self.zero, solved.singular),
            residual=at(self.residual, upper - lower),
            left=left,
            right=right,
            log_lower=at(self.log_lower, solved.log_lower),
            log_upper=at(self.log_upper, log_upper),
            zeros=at(self.zeros, solved.zeros),
            cause=named(self.cause, cause),
            solved=named(self.solved, by),
        )

    def __str__(self) -> str:
        return "\n".join(self._line(index) for index in range(self.upper.size))

    def _line(self, index: int) -> str:
        low, high = (_text(float(logs[index])) for logs in (self.log_lower, self.log_upper))
        because = f": {self.cause[index]}" if self.cause[index] else ""
        if self.zeros[index]:
            return f"s_min = 0: {self.zeros[index]} singular values are zero, by the pattern of J"
        if self.converged[index]:
            return f"s_min = {low} to {high} (confidence {self.confidence:g})"
        if math.isfinite(self.log_lower[index]) and self.solved[index] != "products":
            return f"s_min = {low} to {high} (confidence {self.confidence:g}), wider than asked{because}"
        return f"s_min not converged: at most {float(self.upper[index]):.3g}{because}"


def bounded(log: float, *, up: bool) -> float:
    """e^log, on the safe side where it leaves the range of floats."""
    if not math.isfinite(log):
        return 0.0
    if log > 709:
        return math.inf if up else math.exp(709)
    # Two units for the rounding of the logarithm and of its exponential.
    slack = 2.0**-51 * (2 + abs(log))
    return max(math.exp(log) * (1 + slack), 5e-324) if up else math.exp(log) * (1 - slack)


def _text(log: float) -> str:
    if not math.isfinite(log):
        return "0"
    return f"{math.exp(log):.6g}" if abs(log) < 700 else f"10^{log / math.log(10):.6g}"
