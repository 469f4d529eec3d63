"""How many singular values, as large as the listed ones, a list of the largest ones leaves out.

A Krylov space of b vectors to start from meets b copies of a multiple singular value, and a value of few components in
its start late or not at all. No residual shows that: the number of values above a place does, which the confidence band
of the cdf bounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .extremes import Extremes
from .quadrature import Quadrature

CONFIDENCE = 0.999


@dataclass(frozen=True)
class Unlisted:
    """Singular values at least as large as the last one listed, to rounding, that are not in the list.

    Parameters
    ----------
    listed : int
        Values in the list.
    least, most : int
        Limits of the number of the others, copies of a multiple value counted each.
    confidence : float
        Chance, over the draw of the probes, that they hold; 1 where all values are known.
    """

    listed: int
    least: int
    most: int
    confidence: float = CONFIDENCE

    def text(self) -> str:
        """For a table: '3 to 9 as large as the last of 6'; empty where none is left out."""
        if self.most == 0:
            return ""
        count = f"{self.least} to {self.most}" if self.least < self.most else f"{self.most}"
        return f"{count} as large as the last of {self.listed}"


def unlisted(quadrature: Quadrature, extremes: Extremes) -> Unlisted:
    """What the list of the largest values of one input leaves out."""
    values = extremes.top[0][np.isfinite(extremes.top[0])]
    errors, n, listed = quadrature.errors, quadrature.dimension, values.size
    if listed >= n:
        return Unlisted(listed, 0, 0, 1.0)
    # Rounding parts copies of one value, and what lies within it of a place counts for either side (`.cdf_bounds`).
    rounding = max(10 * math.sqrt(n) * errors.eps * float(values[0]), errors.rounding * float(values[-1]))
    place = float(values[-1]) - 2 * rounding
    if place <= 0:
        return Unlisted(listed, 0, n - listed)
    lower, upper = quadrature.limits(np.array([place]), extremes, CONFIDENCE)
    # A cdf is known to rounding of its sums, a count is whole.
    most = math.floor(n * (1 - float(lower[0])) + 1e-6) - listed
    least = math.ceil(n * (1 - float(upper[0])) - 1e-6) - listed
    return Unlisted(listed, max(least, 0), max(most, 0))
