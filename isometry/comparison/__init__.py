"""Two spectra -> their distances, what chance shows at finite width, p-values and a verdict. Never torch.

Public is `compare` and what it returns; the modules are internal.
"""

from __future__ import annotations

from isometry.comparison.comparison import Comparison, Distances, compare
from isometry.comparison.expected import ExpectedFluctuation
from isometry.comparison.ratios import Edge
from isometry.comparison.significance import PValues

__all__ = ["Comparison", "Distances", "Edge", "ExpectedFluctuation", "PValues", "compare"]
