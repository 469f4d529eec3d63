"""Networks of finite width about their law: spread of mean square, edge and cdf. Internal but for the names here."""

from __future__ import annotations

from isometry.theory.finitewidth.slope_chain import LogNormal
from isometry.theory.finitewidth.spread import FiniteWidth, finite_width

__all__ = ["FiniteWidth", "LogNormal", "finite_width"]
