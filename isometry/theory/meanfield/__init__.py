"""Mean-field theory of signal propagation, gathered: variances, correlations and the critical line.

Each idea has its own module (`variance`, `correlation`, `critical`); this one is where users find them.
"""

from __future__ import annotations

from isometry.theory.meanfield.correlation import c_map, c_star, chi_c, xi_c
from isometry.theory.meanfield.critical import CriticalPoint, critical_point, critical_variances
from isometry.theory.meanfield.variance import (
    FixedPoint,
    chi_1,
    every_variance_is_fixed,
    fixed_point,
    fixed_points,
    q_map,
    xi_q,
)

__all__ = [
    "CriticalPoint",
    "FixedPoint",
    "c_map",
    "c_star",
    "chi_1",
    "chi_c",
    "critical_point",
    "critical_variances",
    "every_variance_is_fixed",
    "fixed_point",
    "fixed_points",
    "q_map",
    "xi_c",
    "xi_q",
]
