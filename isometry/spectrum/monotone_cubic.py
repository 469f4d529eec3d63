"""The cubic through values with given slopes, limited so that it never falls (Fritsch & Carlson 1980, SIAM J. Numer.
Anal. 17, 238: slopes of at most three times the secant keep a cubic Hermite interpolant monotone).
"""

from __future__ import annotations

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
    width, rise = grid[i + 1] - grid[i], values[i + 1] - values[i]
    u = np.clip((places - grid[i]) / width, 0.0, 1.0)
    limit = 3 * (rise / width)
    left, right = np.minimum(slopes[i], limit), np.minimum(slopes[i + 1], limit)
    cubic = u * u * (3 - 2 * u) * rise + width * u * (1 - u) * ((1 - u) * left - u * right)
    return np.where(places >= grid[-1], values[-1], values[i] + cubic)
