"""The mean of a function of the singular values over random probes: its variance, and the interval that follows.

A probe v, uniform on the unit sphere of R^n, sees sum_i (v_i . v)^2 f(s_i), whose mean is E f and whose variance is
2 / (n + 2) (E f^2 - (E f)^2). Both moments the probes know far better than their own spread: a Gauss rule of K nodes
has E s^(2 j) exactly for j up to 2 K - 1. Two things more are known of f = s^(2 k). The largest and the smallest
singular value have a mass of 1 / n at least, however little of it the probes have seen, which bounds the variance from
below. And the mean is a sum of squared Gaussians with positive factors, skewed to the right: its law is close to a
multiple of a chi-square (Satterthwaite 1946, Biometrics Bull. 2, 110; Box 1954, Ann. Math. Stat. 25, 290). Matched is
the multiple c = variance / mean, which is the size of the largest of these factors where few values dominate, and which
few probes know; how many squares there are is what the interval is about. With a Gamma law of shape mean / c and scale
c, both ends invert its distribution, as Garwood (1936, Biometrika 28, 437) did for counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .error_model import ErrorModel, mean_factor, orthogonal_factor

Array = NDArray[np.float64]

# Student's t on the spread of probes takes so many squares of like size, where the sum is normal enough, and so many
# probes: of fewer it is wider than the law.
_NORMAL_SQUARES = 128.0
_FEWEST_PROBES = 16
# So many squares are a normal variable to all digits.
_NORMAL_COUNT = 1e10


@dataclass(frozen=True)
class ProbeMean:
    """A mean over probes and inputs.

    Parameters
    ----------
    known : float
        Its part without chance: values that were found one by one.
    sampled : float
        The part that random probes saw.
    variance : float
        Of the sampled part; nan where nothing tells it.
    scale : float
        c of the Gamma law.
    degrees : float
        Degrees of freedom of Student's t, where the variance is an estimate from the spread of the probes; inf where it
        is that of the law of the probes.
    """

    known: float
    sampled: float
    variance: float
    scale: float
    degrees: float = math.inf

    @property
    def mean(self) -> float:
        return self.known + self.sampled

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.variance) if not math.isnan(self.variance) else math.nan

    def interval(self, level: float) -> tuple[float, float]:
        """Limits between which the mean over all probes lies with that confidence; (0, inf) where nothing is known."""
        if self.variance == 0:
            return self.mean, self.mean
        if math.isnan(self.variance):
            return self.known, math.inf
        from scipy.special import gdtrib, ndtri, stdtrit

        tail = (1 - level) / 2
        if math.isfinite(self.degrees):
            half = float(stdtrit(self.degrees, 1 - tail)) * math.sqrt(self.variance)
            return max(self.mean - half, self.known), self.mean + half
        c, count = self.scale, self.sampled / self.scale
        if count > _NORMAL_COUNT:
            half = float(ndtri(1 - tail)) * math.sqrt(self.variance)
            return self.mean - half, self.mean + half
        return (
            self.known + min(c * float(gdtrib(1.0, 1 - tail, count)), self.sampled),
            self.known + max(c * float(gdtrib(1.0, tail, count)), self.sampled),
        )


def probe_mean(
    values: Array, weights: Array, counted: NDArray[np.bool_], errors: ErrorModel, *, known_law: bool
) -> ProbeMean:
    """The mean of a non-negative f over probes and inputs.

    Parameters
    ----------
    values, weights, counted : (inputs, probes, K) arrays
        f at the nodes, their masses, and which of them have no part of chance.
    errors : ErrorModel
        With a dimension.
    known_law : bool
        Whether the rules are long enough to have E f^2.
    """
    inputs, probes, _ = weights.shape
    chance = (weights > 0) & ~counted
    known = float(np.sum(np.where(counted, weights * values, 0.0)) / (inputs * probes))
    w = np.where(chance, weights, 0.0)
    share = w.sum(axis=-1)
    rows = np.sum(w * values, axis=-1)
    sampled = float(rows.mean())
    if sampled == 0:
        return ProbeMean(known, 0.0, 0.0, 0.0)
    dimension = float(errors.dimension or 1)
    law, quartic, largest = np.zeros(inputs), np.zeros(inputs), np.zeros(inputs)
    for index in range(inputs):
        part = float(share[index].mean())
        if part > 0:
            law[index], quartic[index], largest[index] = _law(
                values[index], w[index], chance[index], part, part * dimension
            )
    factor = mean_factor(probes, errors.orthogonal_group, dimension) / probes
    # Random signs vary at most by the factor 1 + 2 / n more than probes on the sphere.
    if not errors.on_the_sphere:
        factor *= 1 + 2 / dimension
    variance = factor * float(law.sum()) / inputs**2
    if probes > 1:
        each = rows.var(axis=1, ddof=1) / probes
        each = each * orthogonal_factor(probes, errors.orthogonal_group, errors.dimension or 1)
        spread = float(each.sum()) / inputs**2
        # Welch 1947, Biometrika 34, 28: inputs whose probes vary least count for nothing.
        degrees = (
            spread**2 / float(np.sum((each / inputs**2) ** 2)) * (probes - 1) if spread > 0 else probes - 1.0
        )
        if not known_law:
            return ProbeMean(known, sampled, spread, math.nan, degrees)
        # Of like size: the share of the inputs' and of the directions' variances that their squares have.
        squares = probes * float(law.sum()) ** 2 / float(quartic.sum()) if quartic.any() else math.inf
        if not errors.on_the_sphere and squares >= _NORMAL_SQUARES and probes >= _FEWEST_PROBES:
            return ProbeMean(known, sampled, spread, math.nan, degrees)
    elif not known_law:
        return ProbeMean(known, sampled, math.nan, math.nan)
    # No factor is larger than that of the largest value.
    scale = min(variance / sampled, factor * float(largest.max()) / inputs) if variance > 0 else 0.0
    return ProbeMean(known, sampled, variance if scale > 0 else 0.0, scale)


def _law(
    values: Array, w: Array, chance: NDArray[np.bool_], part: float, n: float
) -> tuple[float, float, float]:
    """Of the mean that one probe of one input sees, a sum over directions: variance, the sum of the squares of the
    directions' own variances, and the largest variance over mean of a single direction."""
    f = np.where(chance, values, np.nan)
    mean = float(np.sum(w * values) / w.sum())
    squares = np.where(chance, (values - mean) ** 2, 0.0)
    spread, quartic = (float(np.sum(w * squares**k) / w.sum()) for k in (1, 2))
    for place, extreme in ((np.nanargmax, np.nanmax), (np.nanargmin, np.nanmin)):
        rows = np.flatnonzero(chance.any(axis=-1))
        ends = place(f[rows], axis=-1)
        mass = w[rows, ends] / w.sum()
        # The extreme value has the mass of one direction at least.
        least, away = max(float(mass.sum()), 1 / n), (float(extreme(f)) - mean) ** 2
        spread += least * away - float(np.sum(mass * squares[rows, ends]))
        quartic += least * away**2 - float(np.sum(mass * squares[rows, ends] ** 2))
    factor = 2 / (n + 2) * part
    spread, quartic = max(spread, 0.0), max(quartic, 0.0)
    return factor * part * spread, factor**2 * part**2 * quartic / n, factor * float(np.nanmax(f))
