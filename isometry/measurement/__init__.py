"""Model and input -> `Spectrum`: the choice of a method, when to stop, and the record of what was done.

Public is what `__all__` lists, and `distributed.process_group`; everything else in the modules is internal.
"""

from __future__ import annotations

from isometry.measurement.differentiable import isometry_penalty, mean_square, spectral_norm
from isometry.measurement.measurement import measure
from isometry.measurement.methods import Chain, Exact, Lanczos, Randomized
from isometry.measurement.options import MeasureOptions
from isometry.measurement.smallest import smallest_singular_value
from isometry.measurement.stopping import Goal

__all__ = [
    "Chain", "Exact", "Goal", "Lanczos", "MeasureOptions", "Randomized", "isometry_penalty", "mean_square", "measure",
    "smallest_singular_value", "spectral_norm",
]  # fmt: skip
