"""Two spectra -> their distances, the fluctuation that a network of finite width shows, and a verdict. Never torch."""

from __future__ import annotations

from isometry.comparison.comparison import Comparison, compare

__all__ = ["Comparison", "compare"]
