"""Confidence intervals of what random probes measure.

The mass that a probe v, uniform on the unit sphere of R^n, gives to j of n orthonormal directions is the share of j in
a sum of n squared Gaussians: Beta(n F / 2, n (1 - F) / 2) with F = j / n, of mean F and variance
2 F (1 - F) / (n + 2). The variance needs no estimate, so that few probes, or one, have honest intervals. Uniform probes
that are orthogonal to one another stray less. A probe of random signs has a variance of at most 2 F (1 - F) / n, but
a distribution that depends on the directions (to a singular vector of two entries its mass is 0 or 2 / n).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, kolmogi, stdtrit

Array = NDArray[np.float64]


def student_quantile(p: float, degrees: int) -> float:
    """Quantile of Student's t; nan without a degree of freedom."""
    return float(stdtrit(degrees, p)) if degrees >= 1 else math.nan


def probe_degrees(dimensions: Sequence[float]) -> float:
    """D, where 2 F (1 - F) / D bounds the variance of the mean mass over independent probes.

    Parameters
    ----------
    dimensions : sequence of float
        n of each probe, whose masses are averaged in proportion to n. For k probes of one n it is k (n + 2) and the
        variance is exact. Probes of several matrices have the mean of their F (1 - F), which is at most that of
        the mean F: the bound is then not attained.
    """
    return sum(dimensions) * (1 + 2 / max(dimensions))


def share_limits(lower: Array, upper: Array, degrees: float, confidence: float) -> tuple[Array, Array]:
    """Limits of the F behind a mean mass M of which ``lower <= M <= upper`` is known.

    Both ends invert the distribution of M, as Clopper & Pearson (1934, Biometrika 26, 404) did for counts: the lower
    limit is the least F under which a mean mass of at least M has a chance of (1 - confidence) / 2, the upper limit
    the largest F under which one of at most M has. Limits rise with M, so ``lower`` and ``upper`` bound them. The
    interval is stretched to M where a low confidence and a skewed distribution leave that outside.
    """
    least = 1 - _largest_share(1 - lower, degrees, confidence)
    return np.minimum(least, lower), np.maximum(_largest_share(upper, degrees, confidence), upper)


def _largest_share(mass: Array, degrees: float, confidence: float) -> Array:
    """The largest F under which a mean mass of at most ``mass`` has a chance of (1 - confidence) / 2.

    The mean of several Beta variables is taken for one Beta of its mean and variance: exact for one probe, and the
    limit for many directions, where both are sums of squared Gaussians.
    """
    masses, where = np.unique(np.clip(mass, 0, 1), return_inverse=True)
    low, high = np.zeros(masses.shape), np.ones(masses.shape)
    half = (degrees - 2) / 2
    for _ in range(50):
        middle = (low + high) / 2
        likely = betainc(half * middle, half * (1 - middle), masses) >= (1 - confidence) / 2
        low, high = np.where(likely, middle, low), np.where(likely, high, middle)
    high = np.where(masses == 0, 0.0, high)
    return high[where].reshape(mass.shape)


def limits_by_variance(lower: Array, upper: Array, degrees: float, confidence: float) -> tuple[Array, Array]:
    """As `share_limits`, from the variance 2 F (1 - F) / degrees alone, whatever the distribution.

    Chebyshev's inequality, (M - F)^2 <= c F (1 - F) with c = 2 / (degrees (1 - confidence)), solved for F.
    """
    c = 2 / (degrees * (1 - confidence))

    def end(mass: Array, sign: int) -> Array:
        root = np.sqrt(c * mass * (1 - mass) + c * c / 4)
        return np.clip((mass + c / 2 + sign * root) / (1 + c), 0, 1)

    return end(lower, -1), end(upper, 1)


def band_half_width(degrees: float, confidence: float) -> float:
    """How far the mean mass strays from F anywhere, with this confidence.

    The mean mass less F is a Brownian bridge in F of variance 2 F (1 - F) / degrees, in the limit of many directions;
    its largest deviation has Kolmogorov's law (1933). Steps in F, and several matrices, make it smaller (a bridge seen
    at fewer places; Anderson's inequality 1955).
    """
    return float(kolmogi(1 - confidence)) * math.sqrt(2 / degrees)
