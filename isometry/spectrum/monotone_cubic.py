"""The cubic through values with given slopes, limited so that it never falls (Fritsch & Carlson 1980, SIAM J. Numer.
Anal. 17, 238: slopes of at most three times the secant keep a cubic Hermite interpolant monotone).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def monotone_cubic(grid: Array, values: Array, slopes: Array, places: Array) -> Array:
    """The interpolant at each place; constant beyond the ends of the grid.

    Parameters
    ----------
    grid, values, slopes : (G,) arrays
        G >= 2; the grid increases strictly, the values do not fall, the slopes are not negative.
    places : array
    """
    i = np.clip(np.searchsorted(grid, places, side="right") - 1, 0, grid.size - 2)
    return np.where(places >= grid[-1], values[-1], cubic_pieces(grid, values, slopes, i)(places))


def cubic_pieces(grid: Array, values: Array, slopes: Array, i: NDArray[np.intp]) -> Callable[[Array], Array]:
    """The interpolant at places of which each lies in the known interval from grid[i] to grid[i + 1]."""
    start, low = grid[i], values[i]
    width, rise = grid[i + 1] - start, values[i + 1] - low
    limit = 3 * (rise / width)
    left, right = np.minimum(slopes[i], limit), np.minimum(slopes[i + 1], limit)

    def at(places: Array) -> Array:
        u = np.minimum(np.maximum((places - start) / width, 0.0), 1.0)
        cubic = u * u * (3 - 2 * u) * rise + width * u * (1 - u) * ((1 - u) * left - u * right)
        return np.asarray(low + cubic)

    return at
