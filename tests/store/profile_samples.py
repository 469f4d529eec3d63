"""A block profile whose gains are given, with errors of one part in a hundred."""

from __future__ import annotations

import math

import numpy as np

from isometry.spectrum import Spectrum
from isometry.spectrum.block_profile import BlockProfile


def profile(
    gains: tuple[float, ...] = (1.0, 1.1, 0.001, 1.05), *, name: str = "net", kind: str = "Linear"
) -> BlockProfile:
    """Square blocks of width 8 with these factors on the mean square."""
    count = len(gains)
    with np.errstate(divide="ignore"):
        log = np.log10(np.array(gains))
    total = np.cumsum(log)
    error = np.full(count, 0.01)
    spectra = {
        depth: Spectrum.from_singular_values(
            np.geomspace(0.5, 2, 8) * 10 ** max(float(total[depth - 1]) / 2, -100), name=f"{name} at {depth}"
        )
        for depth in (1, count)
    }
    return BlockProfile(
        blocks=tuple(f"block {k}" for k in range(count)),
        kinds=(kind,) * count,
        shapes=np.full((count, 2), 8),
        chi=np.array(gains),
        chi_stderr=error * np.array(gains),
        s_max=2 * np.sqrt(gains),
        s_max_residual=np.zeros(count),
        log10_quantiles=np.add.outer(log / 2, [-0.4, -0.1, 0.0, 0.1, 0.2]),
        log10_mean_square=total,
        log10_mean_square_stderr=error / math.log(10),
        log10_gain=log,
        log10_gain_stderr=error / math.log(10) / 4,
        running=spectra,
        name=name,
        provenance={"seed": 0, "probes": 16, "model": "MLP"},
    )
