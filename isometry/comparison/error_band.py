"""How far the error of a measurement alone, probes and truncation, may move its cdf."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isometry.spectrum import Spectrum

Array = NDArray[np.float64]

SIGMAS = 3.0


def error_band(spectrum: Spectrum, t: Array) -> tuple[Array, Array]:
    """How far the true cdf may lie below and above the one reported: probes at `SIGMAS`, and truncation."""
    d = spectrum.distribution
    cdf, (lower, upper) = d.cdf(t), d.cdf_bounds(t)
    # The largest standard error, everywhere: a sup is taken, and in the tails few probes see nothing.
    error = SIGMAS * float(d.share_stderr(t).max(initial=0.0))
    if d.all_resolved and error == 0:
        return np.zeros(t.size), np.zeros(t.size)
    return np.maximum(cdf - lower, 0) + error, np.maximum(upper - cdf, 0) + error
