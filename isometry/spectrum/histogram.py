"""A histogram of log10 s for a page of text: few cells, round edges, the same for several spectra."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .concentration import cell_masses, shown_range
from .spectrum import Spectrum

Array = NDArray[np.float64]

LN10 = math.log(10)
# Cell widths in decades, from which the narrowest is taken that gives few enough rows.
CELL_WIDTHS = tuple(m * 10.0**k for k in range(-3, 4) for m in (1, 2, 5))


@dataclass(frozen=True)
class Histogram:
    """Masses of common cells of log10 s.

    Parameters
    ----------
    edges : (b + 1,) array
        In log10 s, increasing. The width is round and s = 1 is the middle of a cell, not an edge, so that an
        isometry fills one cell whichever side of 1 rounding leaves it.
    masses : (spectra, b) array
        Fractions of each spectrum's singular values.
    at_zero : (spectra,) array
        Mass at zero or below the floor.
    open_below : bool
        Whether the first cell also holds a long thin tail below its lower edge.
    """

    edges: Array
    masses: Array
    at_zero: Array
    open_below: bool = False


def histogram(spectra: Sequence[Spectrum], *, rows: int = 16) -> Histogram:
    """The masses of the spectra in at most ``rows`` common cells of log10 s with round edges."""
    ranges = [shown_range(spectrum.distribution) for spectrum in spectra]
    finite = [(a / LN10, b / LN10) for a, b in ranges if not math.isnan(a)]
    at_zero = np.array([spectrum.zero_mass for spectrum in spectra])
    if not finite:
        return Histogram(np.empty(0), np.empty((len(spectra), 0)), at_zero)
    low, high = min(a for a, _ in finite), max(b for _, b in finite)
    # One value to the eye: at least a few hundredths of a decade, so that the labels tell the cells apart.
    for width in CELL_WIDTHS:
        first = math.floor(low / width + 0.5)
        count = math.floor(high / width + 0.5) - first + 1
        if count <= rows and width >= 0.02:
            break
    edges = width * (np.arange(first, first + count + 1, dtype=np.float64) - 0.5)
    # The outermost values belong to the outermost cells: those that rounding puts just outside, and a long tail.
    logs: Array = edges * LN10
    lowest = min(a for a in (spectrum.distribution.log_range[0] for spectrum in spectra) if not math.isnan(a))
    logs[0], logs[-1] = min(logs[0], lowest), max(logs[-1], high * LN10)
    masses = np.array([cell_masses(spectrum.distribution, logs) for spectrum in spectra])
    return Histogram(edges, masses, at_zero, open_below=bool(lowest / LN10 < edges[0] - 0.01 * width))
