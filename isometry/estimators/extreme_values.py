"""The extremes of a measurement, put together of everything it found: the one place where a value is called s_min.

Every value found is an upper bound of s_min, and its residual says that *some* singular value is near. The smallest of
them may be called s_min where all values are known, or where something else rules out smaller ones (:mod:`.exclusion`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from isometry.spectrum import Extremes

Array = NDArray[np.float64]

# A smallest value is called s_min where nothing further below it than one part in a hundred is left open.
_RESOLVED = 1e-2


def extremes_of_all(values: Array, errors: Array, floor: Array) -> Extremes:
    """The extremes where all singular values are known, (B, d) descending with their errors."""
    return Extremes(values, errors, values[:, -1], errors[:, -1], values[:, -1] > floor)


def extremes_of_found(
    top: Array,
    top_residual: Array,
    smallest: Sequence[tuple[Array, Array]],
    *,
    lower: Array,
    floor: Array,
    rounding: Array,
) -> Extremes:
    """The extremes of a measurement that knows some values.

    Parameters
    ----------
    top, top_residual : (B, r) arrays
        Leading values, descending; nan where there are fewer.
    smallest : sequence of ((B,) array, (B,) array)
        The smallest values of each part of the measurement, with their residuals; nan where a part has none.
    lower : (B,) array
        No singular value lies below it, as far as the measurement shows; 0 where it shows nothing.
    floor : (B,) array
        What lies below is not told from zero.
    rounding : (B,) array
        What rounding of the products adds to the residual of the smallest value.
    """
    values, residuals = (np.stack(parts) for parts in zip(*smallest, strict=True))
    which = np.nanargmin(values, axis=0)[None]
    bottom, residual = (np.take_along_axis(part, which, axis=0)[0] for part in (values, residuals))
    # A v of length t for a unit v: some singular value lies in [0, t], whatever A^T u says.
    residual = np.minimum(residual, bottom) + rounding
    resolved = (bottom - lower <= _RESOLVED * bottom) & (bottom > floor)
    return Extremes(
        top,
        top_residual,
        bottom,
        np.where(resolved, np.maximum(residual, bottom - lower), residual),
        resolved,
    )
