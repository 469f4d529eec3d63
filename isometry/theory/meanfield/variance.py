"""Variance q of the pre-activations from layer to layer, and its fixed points. Internal.

    q_{l+1} = sigma_w^2 E phi(sqrt(q_l) z)^2 + sigma_b^2        (the q-map)
    chi_1   = sigma_w^2 E phi'(sqrt(q) z)^2                     (growth of squared gradients per layer)

Poole et al. 2016, arXiv 1606.05340; Schoenholz et al. 2017, arXiv 1611.01232; Xiao et al. 2018, arXiv 1806.05393,
section 2. sigma_w and sigma_b are standard deviations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from isometry.errors import ConvergenceError, InputError, TheoryError
from isometry.theory.activations import Activation, get_activation
from isometry.theory.gaussian import checked_variance, gaussian_average
from isometry.theory.meanfield.remainder import remainder

Array = NDArray[np.float64]
ActivationLike = str | Activation | Callable[..., object]

SMALLEST_Q = 1e-14
LARGEST_Q = 1e12
# Averages are accurate up to here; beyond, they only locate the limit of a growing variance.
SETTLED_Q = 1e4
# The relative drift q_map(q)/q - 1 is known to a few roundings: below this its sign says nothing.
NOISE = 4e-15


@dataclass(frozen=True)
class FixedPoint:
    """A fixed point of the q-map.

    Parameters
    ----------
    q : float
        The variance.
    slope : float
        Derivative of the q-map there.
    stable : bool
        Whether variances close by move towards it.
    """

    q: float
    slope: float
    stable: bool


def checked_deviation(value: float, name: str, *, positive: bool = False) -> float:
    """A standard deviation as a float.

    Raises
    ------
    InputError
        When it is not a finite number of zero or more (above zero with ``positive``).
    """
    number = float(value)
    if not math.isfinite(number) or number < 0 or (positive and number == 0):
        raise InputError(
            f"{name} is a standard deviation and must be {'above zero' if positive else 'zero or more'}; got {value!r}."
        )
    return number


def q_map(activation: ActivationLike, q: float, sigma_w: float, sigma_b: float) -> float:
    """Variance of the next layer's pre-activations, sigma_w^2 E phi(sqrt(q) z)^2 + sigma_b^2.

    Parameters
    ----------
    activation : str, Activation or callable
        phi, as `get_activation` takes it.
    q : float
        Variance of this layer's pre-activations.
    sigma_w, sigma_b : float
        Standard deviations: Var W = sigma_w^2 / fan_in.
    """
    phi = get_activation(activation)
    weight, bias = checked_deviation(sigma_w, "sigma_w"), checked_deviation(sigma_b, "sigma_b")
    return weight**2 * gaussian_average(lambda h: phi.function(h) ** 2, q, kinks=phi.kinks) + bias**2


def chi_1(activation: ActivationLike, sigma_w: float, q: float) -> float:
    """Growth of squared perturbations and gradients per layer, sigma_w^2 E phi'(sqrt(q) z)^2.

    It is the slope of the c-map at c = 1 where q is stationary: below one the network forgets differences between
    inputs (ordered phase, gradients vanish), above one it amplifies them (chaotic phase, gradients explode).

    Parameters
    ----------
    activation : str, Activation or callable
        phi.
    sigma_w : float
        Standard deviation of the weights times sqrt(fan_in).
    q : float
        Variance of the pre-activations; q = 0 takes the limit.
    """
    phi = get_activation(activation)
    weight = checked_deviation(sigma_w, "sigma_w")
    return weight**2 * gaussian_average(lambda h: phi.derivative(h) ** 2, q, kinks=phi.kinks)


def relative_variance_drift(activation: Activation, q: float, sigma_w2: float, sigma_b2: float) -> float:
    """q_map(q) / q - 1 at q > 0: positive where the variance grows. Exact to rounding of sigma_w2, also near zero.

    For phi(0) = 0, E phi^2 / q = E (phi / h)^2 x^2 is split at phi'(0), x = h / sqrt(q): the
    difference to phi'(0)^2 comes from the Taylor series and not from a subtraction.
    """
    near = remainder(activation)
    # Above 0.01 the plain ratio is as good, and three times faster.
    if near.value != 0.0 or q > 0.01:
        ratio = gaussian_average(lambda h: activation.function(h) ** 2, q, kinks=activation.kinks) / q
        return sigma_w2 * ratio - 1.0 + sigma_b2 / q

    def beyond_tangent(h: Array) -> Array:
        tangent = near.slope_at_zero(h)
        change = near.slope_change(h) - near.slope_deficit(h)
        return change * (2.0 * tangent + change) * h * h / q

    left = sigma_w2 * near.mean_square_slope - 1.0
    return left + sigma_w2 * gaussian_average(beyond_tangent, q, kinks=activation.kinks) + sigma_b2 / q


def q_map_slope_minus_one(
    activation: Activation, q: float, sigma_w2: float, *, tangent_excess: float | None = None
) -> float:
    """d q_map / d q - 1 = sigma_w^2 E[h phi phi'] / q - 1, without cancellation where phi(0) = 0.

    ``tangent_excess`` is sigma_w^2 phi'(0)^2 - 1, from a caller who knows it better than the subtraction does.
    """
    near = remainder(activation)
    if q == 0.0:
        if near.value != 0.0:
            h = np.array([-1e-4, 1e-4])
            bend = (
                float(np.diff(activation.derivative(h))[0]) / 2e-4
                if near.slopes[0] == near.slopes[1]
                else math.inf
            )
            return sigma_w2 * (near.mean_square_slope + near.value * bend) - 1.0
        return sigma_w2 * near.mean_square_slope - 1.0
    if near.value != 0.0:
        phi, derivative = activation.function, activation.derivative
        average = gaussian_average(lambda h: h * phi(h) * derivative(h), q, kinks=activation.kinks)
        return sigma_w2 * average / q - 1.0

    # x^2 phi' (phi / h) with phi' = p + d and phi / h = p + d - k: p^2 averages to itself, the rest is small.
    def beyond_tangent(h: Array) -> Array:
        tangent, change, deficit = near.slope_at_zero(h), near.slope_change(h), near.slope_deficit(h)
        return (h * h / q) * ((2.0 * tangent + change) * change - deficit * (tangent + change))

    left = sigma_w2 * near.mean_square_slope - 1.0 if tangent_excess is None else tangent_excess
    return left + sigma_w2 * gaussian_average(beyond_tangent, q, kinks=activation.kinks)


def every_variance_is_fixed(activation: ActivationLike, sigma_w: float, sigma_b: float) -> bool:
    """Whether the q-map is the identity: a homogeneous phi at criticality (ReLU at sigma_w^2 = 2, sigma_b = 0)."""
    phi = get_activation(activation)
    weight, bias = checked_deviation(sigma_w, "sigma_w"), checked_deviation(sigma_b, "sigma_b")
    # sqrt(2)^2 is 2 (1 + 2e-16), and the user's sqrt(2) may come from single precision arithmetic no worse than 1e-12.
    return (
        phi.is_homogeneous and bias == 0.0 and abs(weight**2 * remainder(phi).mean_square_slope - 1.0) < 1e-12
    )


def fixed_points(activation: ActivationLike, sigma_w: float, sigma_b: float) -> list[FixedPoint]:
    """All variances between 0 and 1e12 that the q-map leaves unchanged, in increasing order; none is a valid answer.

    Parameters
    ----------
    activation : str, Activation or callable
        phi.
    sigma_w, sigma_b : float
        Standard deviations.

    Returns
    -------
    list of FixedPoint
        Empty where the variance grows from layer to layer for ever (ReLU with sigma_w^2 >= 2 and a bias). For a
        function that oscillates without end, such as sin, the search stops where averages no longer settle, above 1e4.

    Raises
    ------
    TheoryError
        When every variance is fixed (`every_variance_is_fixed`), so that no list can be given.
    """
    phi = get_activation(activation)
    weight, bias = checked_deviation(sigma_w, "sigma_w"), checked_deviation(sigma_b, "sigma_b")
    sigma_w2, sigma_b2 = weight**2, bias**2
    if every_variance_is_fixed(phi, weight, bias):
        raise TheoryError(
            f"with {phi.name}, sigma_w^2 = {sigma_w2:.6g} and no bias every variance is fixed: the q-map is the "
            "identity, and the input sets q. Give the variance (q_star or q0) instead of asking for it."
        )
    if phi.is_homogeneous:
        return _homogeneous_fixed_points(phi, sigma_w2, sigma_b2)

    return list(_searched_fixed_points(phi, weight, bias))


@lru_cache(maxsize=512)
def _searched_fixed_points(phi: Activation, weight: float, bias: float) -> tuple[FixedPoint, ...]:
    sigma_w2, sigma_b2 = weight**2, bias**2
    grid = _q_grid(sigma_b2)
    drifts: list[float] = []
    for q in grid:
        try:
            drifts.append(relative_variance_drift(phi, float(q), sigma_w2, sigma_b2))
        except ConvergenceError:
            # A wave (sin) has too many periods under a Gaussian this wide; below, its averages are as good as any.
            if q <= SETTLED_Q:
                raise
            break
    grid, drift = grid[: len(drifts)], np.array(drifts)
    if np.all(np.abs(drift) < NOISE):
        raise TheoryError(
            f"with {phi.name}, sigma_w = {weight:.6g} and sigma_b = {bias:.6g} every variance seems fixed: the q-map "
            "is the identity to rounding. Give the variance (q_star or q0) instead of asking for it."
        )
    roots = _roots(phi, sigma_w2, sigma_b2, grid, drift)
    points: list[FixedPoint] = []
    if sigma_b2 == 0.0 and (sigma_w2 == 0.0 or remainder(phi).value == 0.0):
        points.append(_at_zero(phi, sigma_w2, drift))
    elif sigma_w2 == 0.0:
        return (FixedPoint(sigma_b2, 0.0, True),)
    for q, stable_by_sign in roots:
        excess = q_map_slope_minus_one(phi, q, sigma_w2)
        # At a point of slope one the sign of the drift on both sides decides.
        stable = stable_by_sign if abs(excess) < 1e-9 else -2.0 < excess < 0.0
        points.append(FixedPoint(q, 1.0 + excess, bool(stable)))
    return tuple(points)


def fixed_point(activation: ActivationLike, sigma_w: float, sigma_b: float, *, q0: float = 1.0) -> float:
    """The stationary variance q*: the stable fixed point of the q-map that a signal of variance q0 runs into.

    Parameters
    ----------
    activation : str, Activation or callable
        phi.
    sigma_w, sigma_b : float
        Standard deviations.
    q0 : float
        Variance of the first pre-activation. It matters only where there are several fixed points (GELU, SiLU).

    Raises
    ------
    TheoryError
        When there is none, saying which way the variance goes; or when every variance is fixed.
    """
    phi = get_activation(activation)
    start = checked_variance(q0, name="q0")
    points = fixed_points(phi, sigma_w, sigma_b)
    if not any(point.stable for point in points):
        unstable = ", ".join(f"{point.q:.6g}" for point in points)
        raise TheoryError(
            f"{phi.name} with sigma_w = {sigma_w:.6g}, sigma_b = {sigma_b:.6g} has no stable fixed point: the variance "
            f"grows from layer to layer without bound{f' (unstable fixed points: {unstable})' if unstable else ''}. "
            "Lower sigma_w, or follow the variance layer by layer from a q0."
        )
    for point in points:
        if point.q == start and point.stable:
            return point.q
    weight2, bias2 = float(sigma_w) ** 2, float(sigma_b) ** 2
    grows = start == 0.0 or relative_variance_drift(phi, start, weight2, bias2) > 0
    ahead = [point for point in points if (point.q > start if grows else point.q < start)]
    nearest = (min if grows else max)(ahead, key=lambda point: point.q, default=None)
    if nearest is not None and nearest.stable:
        return nearest.q
    if nearest is not None:
        # Only a q-map that falls steeply jumps over the point it runs towards.
        return min((p for p in points if p.stable), key=lambda p: abs(math.log((p.q + 1e-300) / start))).q
    stable = ", ".join(f"{point.q:.6g}" for point in points if point.stable)
    raise TheoryError(
        f"{phi.name} with sigma_w = {sigma_w:.6g}, sigma_b = {sigma_b:.6g}: from q0 = {start:.6g} the variance grows "
        f"without bound. It converges to {stable} only from below an unstable fixed point; start from a "
        "smaller q0, or lower sigma_w."
    )


def xi_q(activation: ActivationLike, sigma_w: float, sigma_b: float, *, q: float | None = None) -> float:
    """Depth, in layers, over which the variance approaches q*: -1 / log |d q_map / d q|.

    Schoenholz et al. 2017, arXiv 1611.01232, equation 8. It is infinite where the slope is one.

    Parameters
    ----------
    activation : str, Activation or callable
        phi.
    sigma_w, sigma_b : float
        Standard deviations.
    q : float, optional
        The fixed point, where it is known already.
    """
    phi = get_activation(activation)
    variance = fixed_point(phi, sigma_w, sigma_b) if q is None else checked_variance(q)
    return depth_scale(q_map_slope_minus_one(phi, variance, checked_deviation(sigma_w, "sigma_w") ** 2))


def depth_scale(factor_minus_one: float) -> float:
    """-1 / log |1 + factor_minus_one|: layers over which something multiplied by that factor per layer falls to 1/e.

    Infinite where it does not fall, zero where one layer removes it.
    """
    factor = 1.0 + factor_minus_one
    if abs(factor) >= 1.0 and factor_minus_one != -2.0:
        return math.inf if factor_minus_one >= 0.0 or factor <= -1.0 else -1.0 / math.log1p(factor_minus_one)
    if factor == 0.0:
        return 0.0
    if abs(factor) == 1.0:
        return math.inf
    return -1.0 / (math.log1p(factor_minus_one) if factor > 0 else math.log(-factor))


def _q_grid(sigma_b2: float) -> Array:
    """Increasing variances at which the sign of the drift is taken. No fixed point lies below sigma_b^2."""
    lowest = SMALLEST_Q if sigma_b2 == 0.0 else max(min(SMALLEST_Q, sigma_b2), 1e-290) * (1.0 - 1e-12)
    # Six points a decade where activations bend; two where they are powers of h, or their tangent.
    middle = np.geomspace(1e-3, 1e3, 37)
    top = np.geomspace(1e3, LARGEST_Q, 19)[1:]
    bottom = np.geomspace(lowest, 1e-3, min(2 * math.ceil(math.log10(1e-3 / lowest)), 80) + 1)[:-1]
    extra = [sigma_b2 * (1.0 - 1e-12)] if sigma_b2 > lowest else []
    return np.unique(np.concatenate([bottom, middle, top, extra]))


def _homogeneous_fixed_points(activation: Activation, sigma_w2: float, sigma_b2: float) -> list[FixedPoint]:
    """The one root of q = k q + sigma_b^2 where k = sigma_w^2 E phi'^2 < 1; elsewhere at most q = 0."""
    slope = sigma_w2 * remainder(activation).mean_square_slope
    if sigma_b2 == 0.0:
        return [FixedPoint(0.0, slope, slope < 1.0)]
    return [FixedPoint(sigma_b2 / (1.0 - slope), slope, True)] if slope < 1.0 else []


def _roots(
    activation: Activation, sigma_w2: float, sigma_b2: float, grid: Array, drift: Array
) -> list[tuple[float, bool]]:
    """(root, whether the variance moves towards it from both sides) for each change of sign, and for touching pairs."""

    def of_log(log_q: float) -> float:
        return relative_variance_drift(activation, math.exp(log_q), sigma_w2, sigma_b2)

    logs = np.log(grid)
    known = [(float(x), float(y)) for x, y in zip(logs, drift, strict=True) if abs(y) > NOISE]
    # A maximum below zero or a minimum above it may touch zero between grid points: look closer.
    found: list[tuple[float, float]] = []
    for (x0, y0), (_, y1), (x2, y2) in zip(known, known[1:], known[2:], strict=False):
        sign = math.copysign(1.0, y1)
        if abs(y1) < min(abs(y0), abs(y2), 0.05) and y0 * y1 > 0 and y1 * y2 > 0:
            best = optimize.minimize_scalar(
                lambda x, s=sign: s * of_log(x), bounds=(x0, x2), method="bounded"
            )
            if best.fun < -NOISE:
                found.append((float(best.x), sign * float(best.fun)))
    known = sorted(known + found)
    roots = []
    for (x0, y0), (x1, y1) in itertools.pairwise(known):
        if y0 * y1 < 0:
            log_q = optimize.brentq(of_log, x0, x1, xtol=1e-15, rtol=1e-15)
            roots.append((math.exp(log_q), y0 > 0))
    return roots


def _at_zero(activation: Activation, sigma_w2: float, drift: Array) -> FixedPoint:
    excess = q_map_slope_minus_one(activation, 0.0, sigma_w2)
    if abs(excess) < 1e-9:
        known = drift[np.abs(drift) > NOISE]
        stable = bool(known[0] < 0) if known.size else False
    else:
        stable = excess < 0.0
    return FixedPoint(0.0, 1.0 + excess, stable)
