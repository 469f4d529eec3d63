"""Two spectra -> their distances, the expected fluctuation of a network of finite width, and a verdict. Never torch.

Public is `compare` and what it returns; the modules are internal.
"""

from __future__ import annotations

from isometry.comparison.comparison import Comparison, Distances, compare
from isometry.comparison.finite_size import ExpectedFluctuation
from isometry.comparison.ratios import Edge

__all__ = ["Comparison", "Distances", "Edge", "ExpectedFluctuation", "compare"]
