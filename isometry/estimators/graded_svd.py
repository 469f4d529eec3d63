"""ln of the singular values of diag(scale) T, each to a relative error, for scales over any number of decades.

One-sided Jacobi finds the singular values of a graded matrix to a relative error that the condition of T alone decides
(Demmel & Veselic 1992, SIAM J. Matrix Anal. Appl. 13, 1204; LAPACK's dgejsv, Drmac & Veselic 2008, SIAM J. Matrix
Anal. Appl. 29, 1322). It takes long and knows no numbers beyond 1e308. So the matrix is made triangular and QR sweeps
follow, which divide each coupling between two scales by their ratio (Mathias & Stewart 1993, Linear Algebra Appl. 182,
91): what is decades apart has then nothing to do with one another. Values are found in windows of a few decades that
overlap.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isometry.errors import ConvergenceError

from .wide_scales import Scales

Array = NDArray[np.float64]

# After k sweeps the coupling of two scales is their ratio to the power k + 1, below rounding at the margins.
_SWEEPS, _MARGIN = 8, 2.5
# Decades of values that are taken from one window.
_CORE = 3.0
# Values within so many decades go through an ordinary SVD, which loses no more digits than that.
_NARROW = 3.0
_LN10 = math.log(10)


def log_singular_values(scales: Scales, rows: Tensor) -> Array:
    """ln s of diag(scales) T, (r,), descending.

    Parameters
    ----------
    scales : Scales
        Of the rows.
    rows : (r, n) Tensor
        T, r <= n, its rows independent.

    Raises
    ------
    ConvergenceError
        Where Jacobi's method does not converge.
    """
    if scales.size == 0:
        return np.empty(0)
    scales, triangle = _graded_triangle(scales, rows)
    return -np.sort(-_window_values(scales, triangle))


def _graded_triangle(scales: Scales, rows: Tensor) -> tuple[Scales, Tensor]:
    """(d, U): diag(d) U has the singular values of diag(scales) T; U is upper triangular with a diagonal of 1.

    Its couplings U_ij decay with d_j / d_i.
    """
    lengths = torch.linalg.vector_norm(rows, dim=1)
    scales, rows = scales.times(lengths), rows / lengths[:, None]
    order = scales.descending
    scales = scales[order]
    # T^T diag(scales) = Q (R diag(scales)): so diag(scales) R^T is lower triangular with the same singular values.
    upper = torch.linalg.qr(rows[order].T, mode="r").R
    # With columns in units of their scales: of order one, and gone where it lies decades below the diagonal.
    lower = torch.tril(upper.T * scales.over(scales))
    for _ in range(_SWEEPS):
        upper = torch.linalg.qr(lower, mode="r").R
        pivots = upper.diagonal()
        unit = torch.triu(upper / pivots[:, None] * scales.over(scales).T)
        scales, lower = scales.times(pivots.abs()), unit.T
    return scales, unit


def _window_values(scales: Scales, unit: Tensor) -> Array:
    """ln of the singular values of diag(scales) unit, in the order of its rows."""
    place = (scales.log / _LN10).cpu().numpy()
    found = np.empty(place.size)
    start = 0
    while start < place.size:
        stop, first, last = _window(place, start)
        part = slice(first, last)
        top = int(scales.exponent[part].max())
        local = torch.ldexp(scales.mantissa[part], scales.exponent[part] - top)
        window = (local[:, None] * unit[part, part]).cpu()
        values = _singular_values(window, place[part])
        found[start:stop] = values[start - first : stop - first] + top * math.log(2)
        start = stop
    return found


def _window(place: Array, start: int) -> tuple[int, int, int]:
    """(stop, first, last): the values from ``start`` to ``stop`` are taken from the rows from ``first`` to ``last``."""
    if place.max() - place.min() <= _CORE + 2 * _MARGIN:
        return place.size, 0, place.size
    inside = place[start:] > place[start] - _CORE
    stop = place.size if inside.all() else start + int(inside.argmin())
    above = place[:start] >= place[start] + _MARGIN
    first = int(np.flatnonzero(above)[-1]) + 1 if above.any() else 0
    below = place[stop:] <= place[stop - 1] - _MARGIN
    last = stop + int(below.argmax()) if below.any() else place.size
    return stop, first, last


def _singular_values(matrix: Tensor, place: Array) -> Array:
    """ln s of a matrix with rows of graded scales, descending."""
    if place.max() - place.min() <= _NARROW:
        return np.log(torch.linalg.svdvals(matrix).numpy())
    from scipy.linalg.lapack import dgejsv

    # Columns graded, no values cut off as noise ("C", "N"), neither U nor V.
    values, _, _, work, _, info = dgejsv(matrix.T.numpy(), joba=0, jobu=3, jobv=3, jobr=0, jobt=0, jobp=0)
    if info != 0 or not np.all(values > 0):
        raise ConvergenceError(
            f"one-sided Jacobi did not converge on a {matrix.shape[0]} x {matrix.shape[1]} matrix"
        )
    return -np.sort(-(np.log(values) + math.log(work[0] / work[1])))
