"""`Extremes`: the extreme singular values of a measurement with their residual bounds."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from .log_scale import times_exp

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Extremes:
    """Extreme singular values with their residual bounds.

    Parameters
    ----------
    top : (inputs, r) array
        The largest singular values found, descending. Each is a lower bound of the value of its rank.
    top_residual : (inputs, r) array
        max(||J v - s u||, ||J^T u - s v||): some singular value lies within this distance of s.
    bottom : (inputs,) array
        The smallest singular value found; an upper bound of s_min.
    bottom_residual : (inputs,) array
        Residual of ``bottom``.
    bottom_resolved : (inputs,) bool array
        Whether ``bottom`` may be reported as s_min: its residual is small beside it and it lies above the floor.
    """

    top: Array
    top_residual: Array
    bottom: Array
    bottom_residual: Array
    bottom_resolved: NDArray[np.bool_]

    def shifted(self, shift: float) -> Extremes:
        """The extremes of exp(shift) J."""
        return Extremes(
            times_exp(self.top, shift), times_exp(self.top_residual, shift),
            times_exp(self.bottom, shift), times_exp(self.bottom_residual, shift), self.bottom_resolved,
        )  # fmt: skip

    def input(self, index: int) -> Extremes:
        """Those of one input."""
        return Extremes(*(getattr(self, field.name)[[index]] for field in fields(self)))
