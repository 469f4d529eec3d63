"""Variance q of the pre-activations of every layer, and a few values that represent them all. Internal.

Layers share their law of D^2 when they share q. A network that is not started at q* has a different q in every layer,
but q is a smooth coordinate: a sum over layers of a smooth function of log q is an integral against the empirical
measure of log q, and a Gauss rule for that measure with n nodes is exact for polynomials of degree 2n - 1. So ten
thousand different layers cost as much as eight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal

from isometry.errors import InputError, TheoryError
from isometry.theory.activations import Activation
from isometry.theory.ensemble import Ensemble
from isometry.theory.gaussian import gaussian_average
from isometry.theory.meanfield.critical import critical_point
from isometry.theory.meanfield.variance import fixed_point, q_map

Array = NDArray[np.float64]

# q that agree to this are one q.
SAME = 1e-12
# Absolute error of sums over layers of logarithms.
SUM_TOLERANCE = 1e-9
# Smallest q that is followed; below it every activation is linear to all digits.
SMALLEST_Q = 1e-60


@dataclass(frozen=True, eq=False)
class LayerVariances:
    """Variances of weights, biases and pre-activations of an ensemble.

    Parameters
    ----------
    sigma_w2, sigma_b2 : float
        Variances of weights (times fan-in) and biases.
    q : (L,) array
        Variance of h_1 .. h_L; nan throughout where phi' does not depend on it.
    q_star : float or None
        The stationary variance, where there is one that matters.
    """

    sigma_w2: float
    sigma_b2: float
    q: Array
    q_star: float | None


def layer_variances(ensemble: Ensemble, activation: Activation) -> LayerVariances:
    """sigma_w^2, sigma_b^2 and the variance of every layer of an ensemble.

    Raises
    ------
    InputError
        When neither q_star nor sigma_w is given, or q_star contradicts sigma_w and sigma_b.
    TheoryError
        When there is no critical or no stable fixed point, or the variance leaves every bound on the way.
    """
    sigma_w2, sigma_b2 = _weight_and_bias(ensemble, activation)
    if activation.is_homogeneous:
        # phi' depends on the sign of h alone.
        return LayerVariances(sigma_w2, sigma_b2, np.full(ensemble.depth, np.nan), ensemble.q_star)
    sigma_w, sigma_b = math.sqrt(sigma_w2), math.sqrt(sigma_b2)
    q_star = ensemble.q_star
    if q_star is None and ensemble.q0 is None:
        q_star = fixed_point(activation, sigma_w, sigma_b)
    first = q_star if ensemble.q0 is None else ensemble.q0
    assert first is not None
    if ensemble.residual is not None:
        return LayerVariances(
            sigma_w2, sigma_b2, _residual_variances(ensemble, activation, sigma_w2, sigma_b2, first), q_star
        )
    factors = _fan_factors(ensemble)
    if ensemble.q0 is None and np.all(factors == 1.0):
        # Stationary by definition, also at a fixed point that is unstable.
        return LayerVariances(sigma_w2, sigma_b2, np.full(ensemble.depth, first), q_star)
    return LayerVariances(
        sigma_w2, sigma_b2, _followed(activation, sigma_w2, sigma_b2, first, factors), q_star
    )


def _weight_and_bias(ensemble: Ensemble, activation: Activation) -> tuple[float, float]:
    if ensemble.sigma_w is None:
        if ensemble.q_star is None and not activation.is_homogeneous:
            raise InputError(
                f"{activation.name} needs a variance: give q_star (the critical point with that variance of the "
                "pre-activations), or sigma_w and sigma_b."
            )
        point = critical_point(activation, q_star=1.0 if ensemble.q_star is None else ensemble.q_star)
        if ensemble.sigma_b is not None and abs(ensemble.sigma_b**2 - point.sigma_b2) > 1e-6 * max(
            point.sigma_b2, 1e-300
        ):
            raise InputError(
                f"q_star = {ensemble.q_star} alone means the critical point, whose sigma_b is {point.sigma_b:.8g}; "
                f"sigma_b = {ensemble.sigma_b:.8g} contradicts it. Leave sigma_b out, or give sigma_w with it."
            )
        return point.sigma_w2, point.sigma_b2
    sigma_w2 = ensemble.sigma_w**2
    if ensemble.q_star is None or activation.is_homogeneous or ensemble.residual is not None:
        return sigma_w2, (ensemble.sigma_b or 0.0) ** 2
    signal = q_map(activation, ensemble.q_star, ensemble.sigma_w, 0.0)
    if ensemble.sigma_b is None:
        if signal > ensemble.q_star * (1 + 1e-9):
            raise TheoryError(
                f"no bias makes q_star = {ensemble.q_star:.6g} stationary for {activation.name} at sigma_w = "
                f"{ensemble.sigma_w:.6g}: the weights alone bring the variance to {signal:.6g}. Lower sigma_w, or "
                "leave one of the two out."
            )
        return sigma_w2, max(ensemble.q_star - signal, 0.0)
    sigma_b2 = ensemble.sigma_b**2
    if abs(signal + sigma_b2 - ensemble.q_star) > 1e-6 * ensemble.q_star + 1e-15:
        raise InputError(
            f"q_star = {ensemble.q_star:.8g} is not stationary for {activation.name} with sigma_w = "
            f"{ensemble.sigma_w:.8g}, sigma_b = {ensemble.sigma_b:.8g}: the next layer would have "
            f"{signal + sigma_b2:.8g}. Leave q_star out, or start from it with q0."
        )
    return sigma_w2, sigma_b2


def _fan_factors(ensemble: Ensemble) -> Array:
    """Var h_{l+1} = factor * sigma_w^2 E phi^2 + sigma_b^2, l = 1..L-1: below 1 for a growing orthogonal matrix.

    W^T W = sigma_w^2 spreads the same energy over more units.
    """
    factors = np.ones(ensemble.depth - 1)
    if ensemble.widths is not None:
        for layer, law in enumerate(ensemble.layer_weights[1 : ensemble.depth]):
            if law == "orthogonal":
                factors[layer] = min(1.0, ensemble.widths[layer + 1] / ensemble.widths[layer + 2])
    return factors


def _followed(
    activation: Activation, sigma_w2: float, sigma_b2: float, first: float, factors: Array
) -> Array:
    mean_square = _fast_average(activation, lambda h: activation.function(h) ** 2)
    q = np.empty(factors.size + 1)
    q[0] = first
    for layer, factor in enumerate(factors):
        q[layer + 1] = _bounded(
            factor * sigma_w2 * mean_square(q[layer]) + sigma_b2, activation, layer + 2, sigma_w2
        )
        rest = factors[layer + 1 :]
        if abs(q[layer + 1] - q[layer]) <= 1e-15 * q[layer] and np.all(rest == factor):
            q[layer + 2 :] = q[layer + 1]
            break
    return q


def _residual_variances(
    ensemble: Ensemble, activation: Activation, sigma_w2: float, sigma_b2: float, first: float
) -> Array:
    """q_l = sigma_w^2 E x_{l-1}^2 + sigma_b^2, with E x_l^2 = E x_{l-1}^2 + 2 a E x_{l-1} E phi + a^2 E phi^2.

    Yang and Schoenholz (2017, arXiv 1712.08969); a phi with a mean adds it up coherently. The input has mean zero.
    """
    strength = ensemble.residual or 0.0
    mean_phi = _fast_average(activation, activation.function)
    mean_square_phi = _fast_average(activation, lambda h: activation.function(h) ** 2)
    if first < sigma_b2:
        raise InputError(
            f"the first pre-activation has variance q0 = {first:.6g}, less than the biases alone give "
            f"(sigma_b^2 = {sigma_b2:.6g}). Give a larger q0."
        )
    square, mean = (first - sigma_b2) / sigma_w2, 0.0
    q = np.empty(ensemble.depth)
    for layer in range(ensemble.depth):
        q[layer] = _bounded(sigma_w2 * square + sigma_b2, activation, layer + 1, sigma_w2)
        branch = mean_phi(q[layer])
        square += 2.0 * strength * mean * branch + strength**2 * mean_square_phi(q[layer])
        mean += strength * branch
    return q


def _bounded(q: float, activation: Activation, layer: int, sigma_w2: float) -> float:
    if not q < 1e12:
        raise TheoryError(
            f"the variance of {activation.name} reaches {q:.3g} at layer {layer} (sigma_w^2 = {sigma_w2:.6g}): it "
            "grows without bound. Lower sigma_w, or the number of layers."
        )
    return max(q, SMALLEST_Q)


def _fast_average(activation: Activation, function: Callable[[Array], Array]) -> Callable[[float], float]:
    """q -> E function(sqrt(q) z), in a few microseconds where there is no kink and q is moderate."""
    z = np.linspace(-12.0, 12.0, 241)
    weight = np.exp(-0.5 * z * z)
    weight /= weight.sum()

    def average(q: float) -> float:
        if activation.kinks or q > 4.0:
            return gaussian_average(function, q, kinks=activation.kinks)
        # The trapezoid rule converges faster than any power for a smooth phi.
        return float(weight @ function(math.sqrt(q) * z))

    return average


def representative_variances(q: Array, *, most: int = 0) -> tuple[Array, Array]:
    """Values of q and how many layers each represents: (values, counts), the counts summing to ``q.size``.

    Equal q are joined. Where many different ones remain, the few that stand apart are kept and the rest is replaced by
    the Gauss rule of its distribution in log q, with as many nodes as functions of the kind log(1 + c q) need:
    exactly those are log E phi'^(2k) of an erf network, and they are typical. Up to ``most`` different ones are kept as
    they are.
    """
    if np.all(np.isnan(q)):
        return np.array([np.nan]), np.array([float(q.size)])
    ordered = np.sort(q)
    starts = np.flatnonzero(np.diff(ordered, prepend=-1.0) > SAME * ordered)
    counts = np.diff(np.append(starts, q.size)).astype(float)
    values = ordered[starts]
    if values.size <= max(most, 1):
        return values, counts
    exact = _typical(values) @ counts
    far_first = np.argsort(-np.abs(np.log(values) - np.median(np.log(q))))
    choices = sorted((alone + nodes, alone, nodes) for alone in (0, 2, 4, 7) for nodes in range(2, 17, 2))
    for total, alone, nodes in choices:
        if total >= values.size:
            break
        single, rest = far_first[:alone], far_first[alone:]
        places, weights = _gauss_rule(np.log(values[rest]), counts[rest], nodes)
        places, weights = np.append(values[single], places), np.append(counts[single], weights)
        if np.max(np.abs(_typical(places) @ weights - exact)) < SUM_TOLERANCE:
            return places, weights
    return values, counts


def _typical(q: Array) -> Array:
    """log(1 + c q) for several c, (c, q)."""
    return np.log1p(np.array([[0.3], [1.0], [3.0], [10.0], [30.0]]) * q)


def _gauss_rule(points: Array, weights: Array, nodes: int) -> tuple[Array, Array]:
    """exp(nodes) and weights of the Gauss rule of a discrete measure, by the Lanczos (Stieltjes) recurrence."""
    low, high = points.min(), points.max()
    x = (2.0 * points - low - high) / (high - low)
    total = weights.sum()
    vector = np.sqrt(weights / total)
    basis = [vector]
    diagonal, off_diagonal = [], []
    for step in range(nodes):
        image = x * basis[-1]
        diagonal.append(float(basis[-1] @ image))
        for _ in range(2):
            for known in basis:
                image = image - (known @ image) * known
        size = float(np.linalg.norm(image))
        if step + 1 < nodes:
            off_diagonal.append(size)
            basis.append(image / size)
    places, vectors = eigh_tridiagonal(np.array(diagonal), np.array(off_diagonal))
    return np.exp(0.5 * (low + high + (high - low) * places)), total * vectors[0] ** 2
