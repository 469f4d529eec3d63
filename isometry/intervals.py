"""Confidence intervals of what random probes measure."""

from __future__ import annotations

import math

from scipy.special import stdtrit


def student_quantile(p: float, degrees: int) -> float:
    """Quantile of Student's t; nan without a degree of freedom."""
    return float(stdtrit(degrees, p)) if degrees >= 1 else math.nan
