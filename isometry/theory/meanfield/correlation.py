"""Correlation c of two inputs from layer to layer: ordered phase, chaotic phase, depth scale. Internal.

    c_{l+1} = (sigma_w^2 E phi(u1) phi(u2) + sigma_b^2) / q*      (the c-map; Cov(u) = q* [[1, c], [c, 1]])
    chi_c*  = sigma_w^2 E phi'(u1) phi'(u2) at c = c*             (its slope at the fixed point c*)
    xi_c    = -1 / log chi_c*                                     (depth that two inputs can be told apart)

Poole et al. 2016, arXiv 1606.05340; Schoenholz et al. 2017, arXiv 1611.01232; Xiao et al. 2018, arXiv 1806.05393.
On [0, 1] the c-map is a power series with positive coefficients (Mehler), hence convex: where chi_1 <= 1 it stays
above the diagonal and c* = 1; where chi_1 > 1 there is exactly one fixed point below one, and it is stable.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize

from isometry.theory.activations import Activation, get_activation
from isometry.theory.gaussian import checked_variance
from isometry.theory.meanfield.hermite import covariance
from isometry.theory.meanfield.pairs import checked_correlation
from isometry.theory.meanfield.variance import (
    ActivationLike,
    checked_deviation,
    chi_1,
    depth_scale,
    every_variance_is_fixed,
    fixed_point,
)

_ZERO = np.zeros(1)
# chi_1 is known to a few roundings; 1 - c* is about chi_1 - 1, and is taken as zero below this.
CRITICAL_TOLERANCE = 1e-13


def c_map(
    activation: ActivationLike, c: float, *, sigma_w: float, sigma_b: float, q: float | None = None
) -> float:
    """Correlation of two inputs one layer on, given their correlation c.

    Parameters
    ----------
    activation : str, Activation or callable
        phi.
    c : float
        Correlation of the two pre-activations.
    sigma_w, sigma_b : float
        Standard deviations.
    q : float, optional
        Variance of both; the stationary q* unless given. The result is normalised by the next layer's variance,
        so that 1 goes to 1 for any q.

    Raises
    ------
    TheoryError
        When q is left out and there is no stationary variance.
    """
    phi = get_activation(activation)
    correlation = checked_correlation(c)
    weight2 = checked_deviation(sigma_w, "sigma_w") ** 2
    bias2 = checked_deviation(sigma_b, "sigma_b") ** 2
    variance = _variance(phi, sigma_w, sigma_b, q)
    if variance == 0.0 and (bias2 > 0.0 or float(phi.function(_ZERO)[0]) != 0.0):
        return 1.0
    # At q -> 0 with phi(0) = 0 the layer is linear in all that counts (or homogeneous): any small q will do.
    cov = covariance(phi, variance if variance > 0.0 else 1e-24)
    following = weight2 * cov.mean_square + bias2
    if following == 0.0:
        return correlation
    if correlation > 0.5:
        return 1.0 - weight2 * cov.gap(1.0 - correlation) / following
    return (weight2 * cov.value(correlation) + bias2) / following


def c_star(activation: ActivationLike, sigma_w: float, sigma_b: float, *, q: float | None = None) -> float:
    """Correlation c* that any two inputs tend to, the stable fixed point of the c-map on [0, 1].

    Parameters
    ----------
    activation : str, Activation or callable
        phi.
    sigma_w, sigma_b : float
        Standard deviations.
    q : float, optional
        The stationary variance, where it is known already.

    Returns
    -------
    float
        1 in the ordered phase and on the critical line, below 1 in the chaotic phase.

    Raises
    ------
    TheoryError
        When there is no stationary variance.
    """
    return 1.0 - distance_to_one(activation, sigma_w, sigma_b, q=q)


def distance_to_one(
    activation: ActivationLike, sigma_w: float, sigma_b: float, *, q: float | None = None
) -> float:
    """1 - c*, with its digits also where c* is 1 to float64 (just above the critical line)."""
    phi = get_activation(activation)
    weight2 = checked_deviation(sigma_w, "sigma_w", positive=True) ** 2
    bias2 = checked_deviation(sigma_b, "sigma_b") ** 2
    variance = _variance(phi, sigma_w, sigma_b, q)
    if variance == 0.0 or chi_1(phi, sigma_w, variance) <= 1.0 + CRITICAL_TOLERANCE:
        return 0.0
    cov = covariance(phi, variance)
    following = weight2 * cov.mean_square + bias2

    def chord(log_distance: float) -> float:
        distance = math.exp(log_distance)
        return math.log(weight2 * cov.gap(distance) / (following * distance))

    # At c = 0 the chord has slope one exactly where phi is odd and there is no bias: then c* = 0.
    upper = 0.0
    if chord(upper) >= -1e-14:
        return 1.0
    # Towards c = 1 the slope of the chord rises to chi_1 > 1: step there until it has passed one.
    lower = -1.0
    while chord(lower) <= 0.0:
        upper, lower = lower, lower - 1.5
        if lower < math.log(CRITICAL_TOLERANCE):
            return 0.0
    return math.exp(optimize.brentq(chord, lower, upper, xtol=1e-14, rtol=1e-14))


def chi_c(activation: ActivationLike, sigma_w: float, sigma_b: float, *, q: float | None = None) -> float:
    """Slope of the c-map at c*, sigma_w^2 E phi'(u1) phi'(u2): the decay of a change in correlation per layer.

    It equals chi_1 where c* = 1, and is below one in the chaotic phase.

    Parameters
    ----------
    activation : str, Activation or callable
        phi.
    sigma_w, sigma_b : float
        Standard deviations.
    q : float, optional
        The stationary variance, where it is known already.

    Raises
    ------
    TheoryError
        When there is no stationary variance.
    """
    phi = get_activation(activation)
    variance = _variance(phi, sigma_w, sigma_b, q)
    distance = distance_to_one(phi, sigma_w, sigma_b, q=variance)
    if distance == 0.0:
        return chi_1(phi, sigma_w, variance)
    weight2 = checked_deviation(sigma_w, "sigma_w") ** 2
    return weight2 * covariance(phi, variance).slope(1.0 - distance, one_minus_c=distance)


def xi_c(activation: ActivationLike, sigma_w: float, sigma_b: float, *, q: float | None = None) -> float:
    """Depth scale of correlations, in layers: -1 / log chi_c*. Infinite on the critical line.

    Schoenholz et al. 2017, arXiv 1611.01232, equation 9; networks train up to about six times this depth (figure 5
    there).

    Parameters
    ----------
    activation : str, Activation or callable
        phi.
    sigma_w, sigma_b : float
        Standard deviations.
    q : float, optional
        The stationary variance, where it is known already.

    Raises
    ------
    TheoryError
        When there is no stationary variance.
    """
    rate = chi_c(activation, sigma_w, sigma_b, q=q)
    # chi_1 is known to rounding only: closer to one than this is one.
    return math.inf if abs(rate - 1.0) < CRITICAL_TOLERANCE else depth_scale(rate - 1.0)


def _variance(activation: Activation, sigma_w: float, sigma_b: float, q: float | None) -> float:
    if q is not None:
        return checked_variance(q)
    if every_variance_is_fixed(activation, sigma_w, sigma_b):
        # Nothing here depends on the scale of a homogeneous activation's input.
        return 1.0
    return fixed_point(activation, sigma_w, sigma_b)
