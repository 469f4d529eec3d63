"""Networks of finite width about their law: spread of the mean square, of the edge, of the cdf. Internal but for names here."""

from __future__ import annotations

from isometry.theory.finitewidth.finite_width import FiniteWidth, finite_width
from isometry.theory.finitewidth.slope_chain import LogNormal

__all__ = ["FiniteWidth", "LogNormal", "finite_width"]
