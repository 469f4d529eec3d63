"""The critical line: the pairs (sigma_w, sigma_b) at which gradients neither grow nor shrink, chi_1 = 1. Internal.

For each stationary variance q there is at most one such pair,

    sigma_w^2 = 1 / E phi'(h)^2,     sigma_b^2 = q - E phi(h)^2 / E phi'(h)^2,     h ~ N(0, q)

(Xiao et al. 2018, arXiv 1806.05393; Pennington et al. 2017, arXiv 1711.04735). The second difference is 4/3 q^3 for
tanh. Integration by parts turns it into an average that cannot cancel: with g = phi - phi(0),

    q E phi'^2 - E g^2 = q E (phi' - g / h)^2,

since E[h F(h)] = q E F'(h) for F = g^2 / h. So sigma_b^2 is never negative where phi(0) = 0, and such an activation
has a critical point for every q.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from isometry.errors import ConvergenceError, InputError, TheoryError
from isometry.theory.activations import Activation, get_activation
from isometry.theory.gaussian import checked_variance, gaussian_average
from isometry.theory.meanfield.remainder import remainder
from isometry.theory.meanfield.variance import (
    SETTLED_Q,
    ActivationLike,
    checked_deviation,
    chi_1,
    q_map_slope_minus_one,
    relative_variance_drift,
)

Array = NDArray[np.float64]

SMALLEST_Q = 1e-16
LARGEST_Q = 1e6
# sigma_w^2 is known to a few roundings, and a user's sigma_w squares to no better.
NOISE = 1e-14


@dataclass(frozen=True)
class CriticalPoint:
    """A point of the critical line, chi_1 = 1.

    Parameters
    ----------
    activation : str
        Name of phi.
    q_star : float
        Stationary variance of the pre-activations.
    sigma_w2, sigma_b2 : float
        Variances of weights (times fan_in) and biases. `sigma_w` and `sigma_b` are their roots.
    chi_1 : float
        sigma_w2 E phi'^2, computed; one to rounding.
    xi_c : float
        Depth scale of correlations, in layers: infinite, since the slope of the c-map at c* = 1 is chi_1.
    q_slope : float
        Derivative of the q-map at q_star.
    stable : bool
        Whether a variance close to q_star moves towards it. Where it is not (GELU, SiLU, ReLU) the network has to
        be started at q_star and drifts away over ``xi_q`` layers.
    xi_q : float
        Depth scale of the variance, in layers: of its approach, or, where it is not stable, of its drift.
    note : str
        A remark for the user of this point, or empty.
    """

    activation: str
    q_star: float
    sigma_w2: float
    sigma_b2: float
    chi_1: float
    xi_c: float
    q_slope: float
    stable: bool
    xi_q: float
    note: str = ""

    @property
    def sigma_w(self) -> float:
        """Standard deviation of the weights, times sqrt(fan_in)."""
        return math.sqrt(self.sigma_w2)

    @property
    def sigma_b(self) -> float:
        """Standard deviation of the biases."""
        return math.sqrt(self.sigma_b2)


def critical_variances(activation: ActivationLike, q: float) -> tuple[float, float]:
    """(sigma_w^2, sigma_b^2) that make q stationary and chi_1 one; a negative sigma_b^2 where there are none.

    Parameters
    ----------
    activation : str, Activation or callable
        phi.
    q : float
        Variance of the pre-activations; q = 0 takes the limit.

    Raises
    ------
    TheoryError
        When E phi'^2 vanishes, so that no sigma_w makes chi_1 one.
    """
    phi = get_activation(activation)
    variance = checked_variance(q)
    near = remainder(phi)
    square_slope = (
        near.mean_square_slope
        if variance == 0.0
        else gaussian_average(lambda h: phi.derivative(h) ** 2, variance, kinks=phi.kinks)
    )
    if not square_slope > 0.0:
        raise TheoryError(
            f"{phi.name} has E phi'^2 = 0 at q = {variance:.6g}: every unit is saturated, chi_1 is zero "
            "for any sigma_w, and there is no critical point."
        )
    difference = 0.0
    if variance > 0.0:
        difference = variance * gaussian_average(
            lambda h: near.slope_deficit(h) ** 2, variance, kinks=phi.kinks
        )
    if near.value != 0.0:
        # E phi^2 = E g^2 + phi(0) (2 E phi - phi(0)): this is what can make the bias variance negative.
        mean = gaussian_average(phi.function, variance, kinks=phi.kinks)
        difference -= near.value * (2.0 * mean - near.value)
    return 1.0 / square_slope, difference / square_slope


def critical_point(
    activation: ActivationLike,
    *,
    q_star: float | None = None,
    sigma_b: float | None = None,
    sigma_w: float | None = None,
) -> CriticalPoint:
    """The point of the critical line with the given variance, bias or weights: exactly one of the three.

    Parameters
    ----------
    activation : str, Activation or callable
        phi, as `get_activation` takes it.
    q_star : float
        Stationary variance, 0 (the limit) or from 1e-16 to 1e6 or so.
    sigma_b, sigma_w : float
        Standard deviations. Where several points have it, the stable one with the smallest q* is taken, or
        else the smallest, and the note says so.

    Returns
    -------
    CriticalPoint
        With relative errors of 1e-15 in sigma_w2 and 1e-12 in sigma_b2 at any q* given, down to 1e-12. A point
        asked for by sigma_w is as good as sigma_w allows: near q* = 0 of tanh, sigma_w2 = 1 + 2 q*.

    Raises
    ------
    InputError
        When not exactly one of the three is given, or it is out of range.
    TheoryError
        When there is no such critical point, saying why.
    """
    phi = get_activation(activation)
    given = {"q_star": q_star, "sigma_b": sigma_b, "sigma_w": sigma_w}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise InputError(
            f"critical_point needs exactly one of q_star, sigma_b and sigma_w; got {', '.join(names) or 'none'}. "
            "The critical line has one free parameter."
        )
    if phi.is_homogeneous:
        return _homogeneous(phi, q_star, sigma_b, sigma_w)
    if q_star is not None:
        return _at(phi, checked_variance(q_star, name="q_star"))
    if sigma_b is not None:
        bias = checked_deviation(sigma_b, "sigma_b")
        if bias == 0.0 and remainder(phi).value == 0.0:
            return _at(phi, 0.0)
        return _search(phi, "sigma_b", bias)
    return _search(phi, "sigma_w", checked_deviation(float(sigma_w or 0.0), "sigma_w", positive=True))


def _at(phi: Activation, q: float, *, note: str = "") -> CriticalPoint:
    """The critical point at this q.

    Raises
    ------
    TheoryError
        When it would need a negative bias variance.
    """
    weight2, bias2 = critical_variances(phi, q)
    if bias2 < 0.0:
        # Rounding of E phi^2, where sigma_b = 0 was asked for and phi(0) is not zero.
        if bias2 > -NOISE * q:
            bias2 = 0.0
        else:
            raise TheoryError(
                f"{phi.name} has no critical point at q* = {q:.6g}: chi_1 = 1 needs sigma_w^2 = {weight2:.6g}, which "
                f"alone brings the variance to {q - bias2:.6g}, so sigma_b^2 would have to be {bias2:.6g}. "
                f"{_offset_remark(phi)}"
            )
    excess = _slope_minus_one(phi, q, weight2)
    if excess != 0.0:
        stable = -2.0 < excess < 0.0
    else:
        # The slope is one: at q = 0, or where a hard-tanh is linear to all digits. What decides is which way the
        # q-map bends further out, and a hard-tanh bends only from 0.01 on.
        bends = (
            relative_variance_drift(phi, larger, weight2, 0.0)
            for larger in (1e-10, 1e-6, 1e-3, 1e-2, 1e-1)
            if larger > q
        )
        stable = next((bend for bend in bends if abs(bend) > NOISE), 0.0) < 0.0
    xi_variance = _scale(excess)
    remarks = [note] if note else []
    if not stable:
        remarks.append(
            "q* is an unstable fixed point of the q-map: variances drift away from it, so start the network at q*"
            + (
                "."
                if math.isinf(xi_variance)
                else f" and expect it to hold for about {xi_variance:.3g} layers."
            )
        )
    return CriticalPoint(
        activation=phi.name,
        q_star=q,
        sigma_w2=weight2,
        sigma_b2=bias2,
        chi_1=chi_1(phi, math.sqrt(weight2), q),
        xi_c=math.inf,
        q_slope=1.0 + excess,
        stable=stable,
        xi_q=xi_variance,
        note=" ".join(remarks),
    )


def _slope_minus_one(phi: Activation, q: float, weight2: float) -> float:
    """Derivative of the q-map minus one, on the critical line."""
    near = remainder(phi)
    if q == 0.0 or near.value != 0.0:
        return q_map_slope_minus_one(phi, q, weight2)

    # There sigma_w^2 phi'(0)^2 - 1 is - sigma_w^2 E (phi'^2 - phi'(0)^2): as small as q, and no difference of ones.
    def bend(h: Array) -> Array:
        change = near.slope_change(h)
        return change * (2.0 * near.slope_at_zero(h) + change)

    tangent_excess = -weight2 * gaussian_average(bend, q, kinks=phi.kinks)
    return q_map_slope_minus_one(phi, q, weight2, tangent_excess=tangent_excess)


def _scale(excess: float) -> float:
    """Layers in which a deviation changes by a factor e, growing or shrinking."""
    if excess == 0.0:
        return math.inf
    if excess <= -1.0:
        return 0.0 if excess == -1.0 else 1.0 / abs(math.log(-1.0 - excess) or math.inf)
    return 1.0 / abs(math.log1p(excess))


def _homogeneous(
    phi: Activation, q: float | None, sigma_b: float | None, sigma_w: float | None
) -> CriticalPoint:
    """The one critical point of a homogeneous phi, at which every variance is stationary."""
    square_slope = remainder(phi).mean_square_slope
    if square_slope == 0.0:
        raise TheoryError(f"{phi.name} is constant: chi_1 is zero for any sigma_w.")
    weight2 = 1.0 / square_slope
    only = f"its only critical point is sigma_w^2 = {weight2:.6g}, sigma_b = 0, where every variance is stationary"
    if sigma_b is not None and checked_deviation(sigma_b, "sigma_b") != 0.0:
        raise TheoryError(
            f"{phi.name} has no critical point with sigma_b = {sigma_b:.6g}: it does not bend, so at chi_1 = 1 the "
            f"weights keep the variance as it is and any bias adds to it for ever; {only}."
        )
    if sigma_w is not None and abs(checked_deviation(sigma_w, "sigma_w") ** 2 * square_slope - 1.0) > 1e-9:
        raise TheoryError(f"{phi.name} has no critical point with sigma_w^2 = {sigma_w**2:.6g}; {only}.")
    variance = 1.0 if q is None else checked_variance(q, name="q_star")
    note = "Every variance is stationary: the input sets q*, and it is neither attracted nor repelled."
    if q is None:
        note += " q_star = 1 is written by convention."
    return CriticalPoint(phi.name, variance, weight2, 0.0, 1.0, math.inf, 1.0, False, math.inf, note)


def _search(phi: Activation, name: str, target: float) -> CriticalPoint:
    """The critical point with this sigma_w or sigma_b, by signs on a grid of q and bisection in log q."""
    index = 0 if name == "sigma_w" else 1
    grid, line = _critical_line(phi)
    allowed = line[:, 1] >= 0.0
    if not allowed.any():
        raise TheoryError(
            f"{phi.name} has no critical point at all: wherever chi_1 = 1 (q from {SMALLEST_Q:g} to {LARGEST_Q:g}) the "
            f"weights alone bring the variance above q, and the bias variance would have to be negative. "
            f"{_offset_remark(phi)}"
        )
    roots = _crossings(phi, index, target**2, grid)
    near = remainder(phi)
    if name == "sigma_w" and near.value == 0.0 and abs(target**2 * near.mean_square_slope - 1.0) < NOISE:
        roots.insert(0, 0.0)
    if not roots:
        shown = line[allowed, index]
        raise TheoryError(
            f"{phi.name} has no critical point with {name} = {target:.6g}: along its critical line (q* from "
            f"{grid[allowed][0]:.3g} to {grid[allowed][-1]:.3g}) {name}^2 runs between {shown.min():.6g} and "
            f"{shown.max():.6g}."
        )
    points = [_at(phi, root) for root in roots]
    chosen = next((point for point in points if point.stable), points[0])
    if len(points) == 1:
        return chosen
    others = ", ".join(f"{point.q_star:.6g}" for point in points if point is not chosen)
    return _at(phi, chosen.q_star, note=f"Other critical points have this {name}, at q* = {others}.")


def _critical_line(phi: Activation) -> tuple[Array, Array]:
    """Increasing q (n,), and `critical_variances` there, (n, 2)."""
    grid = np.concatenate(
        [np.geomspace(SMALLEST_Q, 1e-3, 27)[:-1], np.geomspace(1e-3, 1e3, 37), [1e4, 1e5, LARGEST_Q]]
    )
    pairs: list[tuple[float, float]] = []
    for q in grid:
        try:
            pairs.append(critical_variances(phi, float(q)))
        except TheoryError:
            # A function that saturates for good has no gradient left at large q, and nothing critical beyond.
            break
        except ConvergenceError:
            # A wave (sin) has too many periods under a Gaussian this wide.
            if q <= SETTLED_Q:
                raise
            break
    return grid[: len(pairs)], np.array(pairs)


def _crossings(phi: Activation, index: int, square: float, grid: Array) -> list[float]:
    """Variances at which `critical_variances` has this value at ``index`` and no negative bias variance."""

    def mismatch(log_q: float) -> float:
        # Logarithms, because sigma_b^2 runs over 50 decades; plain differences for a target of zero.
        value = critical_variances(phi, math.exp(log_q))[index]
        if square == 0.0 or value <= 0.0:
            return value - square
        return math.log(value / square)

    logs = np.log(grid)
    values = np.array([_quiet(mismatch(float(x))) for x in logs])
    roots: list[float] = []
    for a, b in itertools.pairwise(np.flatnonzero(values)):
        if values[a] * values[b] < 0:
            root = math.exp(optimize.brentq(mismatch, logs[a], logs[b], xtol=1e-15, rtol=1e-15))
            if critical_variances(phi, root)[1] >= -NOISE * root:
                roots.append(root)
    return roots


def _quiet(value: float) -> float:
    """The value, or 0 where it is rounding."""
    return 0.0 if abs(value) < NOISE else value


def _offset_remark(phi: Activation) -> str:
    value = remainder(phi).value
    if value == 0.0:
        return ""
    return f"The cause is phi(0) = {value:.4g}: use an activation that is zero at zero, or subtract it."
