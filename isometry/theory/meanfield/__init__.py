"""Mean-field theory of signal propagation: variances, correlations, the critical line, and spatial modes.

Public are the names here and those of `convolution`; the other modules are internal.
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
