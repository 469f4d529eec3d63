"""Variance q of the pre-activations of every layer, and a few values that represent them all. Internal.

Layers share their law of D^2 when they share q. A network that is not started at q* has a different q in every layer,
but q is a smooth coordinate: a sum over layers of a smooth function of log q is an integral against the empirical
measure of log q, and a Gauss rule for that measure with n nodes is exact for polynomials of degree 2n - 1. So ten
thousand different layers cost as much as eight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal

from isometry.errors import InputError, TheoryError
from isometry.theory.activations import Activation, ArrayFunction, without_rounding
from isometry.theory.ensemble import Ensemble
from isometry.theory.meanfield.average_table import AverageTable, distinct
from isometry.theory.meanfield.critical import critical_point
from isometry.theory.meanfield.variance import fixed_point, q_map

Array = NDArray[np.float64]

# q that agree to this are one q.
SAME = 1e-12
# Absolute error of sums over layers of logarithms.
SUM_TOLERANCE = 1e-9
# Relative change of q, with all changes to come, at which it has converged.
CONVERGED = 1e-14
# Ratio of the largest to the smallest q beyond which a root of q is a better coordinate than log q.
WIDE = 1e12
# Length of a stretch of log q whose points a Gauss rule of so many nodes replaces to rounding.
STRETCH, STRETCH_NODES = 0.5, 12
# Smallest q that is followed; below it every activation is linear to all digits.
SMALLEST_Q = 1e-60
# Largest q: beyond it the bends of phi are too narrow on the scale of h, unless phi is linear by pieces.
LARGEST_Q, LARGEST_LINEAR_Q = 1e12, 1e250


@dataclass(frozen=True, eq=False)
class LayerVariances:
    """Variances of weights, biases and pre-activations of an ensemble.

    Parameters
    ----------
    sigma_w2, sigma_b2 : arrays
        Variances of weights (times fan-in) and biases: (1,) where all layers share them, or one per matrix and per
        layer.
    q, counts : (R,) arrays
        Variance of h in runs of equal layers, first layer first, and the layers of each run; q is nan where phi' does
        not depend on it.
    q_star : float or None
        The stationary variance, where there is one that matters.
    """

    sigma_w2: Array
    sigma_b2: Array
    q: Array
    counts: Array
    q_star: float | None

    @property
    def per_layer(self) -> Array:
        """q of every layer."""
        return np.repeat(self.q, self.counts.astype(int))


def layer_variances(ensemble: Ensemble, activations: Sequence[Activation]) -> LayerVariances:
    """sigma_w^2, sigma_b^2 and the variance of every layer of an ensemble.

    Parameters
    ----------
    ensemble : Ensemble
    activations : sequence of Activation
        One per layer where they differ, or the one of all.

    Raises
    ------
    InputError
        When neither q_star nor sigma_w is given, or q_star contradicts sigma_w and sigma_b, or layers differ and q0 is
        not given.
    TheoryError
        When there is no critical or no stable fixed point, or the variance leaves every bound on the way.
    """
    if ensemble.is_uniform:
        w, b = _weight_and_bias(ensemble, activations[0])
        sigma_w2, sigma_b2 = np.array([w]), np.array([b])
    else:
        sigma_w2, sigma_b2 = _squared(ensemble.sigma_w), _squared(ensemble.sigma_b)
    depth, q_star = ensemble.depth, ensemble.q_star
    whole = np.array([float(depth)])
    if all(activation.is_homogeneous for activation in activations):
        # phi' depends on the sign of h alone.
        return LayerVariances(sigma_w2, sigma_b2, np.full(1, np.nan), whole, q_star)
    if not ensemble.is_uniform and ensemble.q0 is None:
        raise InputError(
            "layers that differ in activation, sigma_w or sigma_b have no stationary variance: give q0, the variance "
            "of the first pre-activation."
        )
    if q_star is None and ensemble.q0 is None:
        q_star = fixed_point(activations[0], math.sqrt(sigma_w2[0]), math.sqrt(sigma_b2[0]))
    first = q_star if ensemble.q0 is None else ensemble.q0
    assert first is not None
    if ensemble.residual is not None:
        layers = layers_of(ensemble, activations, sigma_w2, sigma_b2)
        q = _residual_variances(ensemble.residual, layers, first)
        return LayerVariances(sigma_w2, sigma_b2, q, np.ones(depth), q_star)
    factors = _fan_factors(ensemble)
    if ensemble.q0 is None and np.all(factors == 1.0):
        # Stationary by definition, also at a fixed point that is unstable.
        return LayerVariances(sigma_w2, sigma_b2, np.full(1, first), whole, q_star)
    q = _followed(ensemble, activations, sigma_w2, sigma_b2, first, factors)
    counts = np.ones(q.size)
    counts[-1] += depth - q.size
    return LayerVariances(sigma_w2, sigma_b2, q, counts, q_star)


def _squared(values: float | tuple[float, ...] | None) -> Array:
    return np.square(np.atleast_1d(np.asarray(values or 0.0, float)))


def layers_of(
    ensemble: Ensemble, activations: Sequence[Activation], sigma_w2: Array, sigma_b2: Array
) -> list[tuple[Activation, float, float]]:
    """(activation, sigma_w^2, sigma_b^2) of every layer; one object where all are alike."""
    depth = ensemble.depth
    if ensemble.is_uniform:
        return [(activations[0], float(sigma_w2[0]), float(sigma_b2[0]))] * depth
    columns = [
        list(column) if len(column) > 1 else [column[0]] * depth
        for column in (activations, sigma_w2.tolist(), sigma_b2.tolist())
    ]
    return list(zip(*(column[:depth] for column in columns), strict=True))


def _weight_and_bias(ensemble: Ensemble, activation: Activation) -> tuple[float, float]:
    sigma_w, sigma_b = ensemble.sigma_w, ensemble.sigma_b
    assert not isinstance(sigma_w, tuple)
    assert not isinstance(sigma_b, tuple)
    if sigma_w is None:
        if ensemble.q_star is None and not activation.is_homogeneous:
            raise InputError(
                f"{activation.name} needs a variance: give q_star (the critical point with that variance of the "
                "pre-activations), or sigma_w and sigma_b."
            )
        point = critical_point(activation, q_star=1.0 if ensemble.q_star is None else ensemble.q_star)
        if sigma_b is not None and abs(sigma_b**2 - point.sigma_b2) > 1e-6 * max(point.sigma_b2, 1e-300):
            raise InputError(
                f"q_star = {ensemble.q_star} alone means the critical point, whose sigma_b is {point.sigma_b:.8g}; "
                f"sigma_b = {sigma_b:.8g} contradicts it. Leave sigma_b out, or give sigma_w with it."
            )
        return point.sigma_w2, point.sigma_b2
    sigma_w2 = sigma_w**2
    if ensemble.q_star is None or activation.is_homogeneous or ensemble.residual is not None:
        return sigma_w2, (sigma_b or 0.0) ** 2
    signal = q_map(activation, ensemble.q_star, sigma_w, 0.0)
    if sigma_b is None:
        if signal > ensemble.q_star * (1 + 1e-9):
            raise TheoryError(
                f"no bias makes q_star = {ensemble.q_star:.6g} stationary for {activation.name} at sigma_w = "
                f"{sigma_w:.6g}: the weights alone bring the variance to {signal:.6g}. Lower sigma_w, or "
                "leave one of the two out."
            )
        return sigma_w2, max(ensemble.q_star - signal, 0.0)
    sigma_b2 = sigma_b**2
    if abs(signal + sigma_b2 - ensemble.q_star) > 1e-6 * ensemble.q_star + 1e-15:
        raise InputError(
            f"q_star = {ensemble.q_star:.8g} is not stationary for {activation.name} with sigma_w = "
            f"{sigma_w:.8g}, sigma_b = {sigma_b:.8g}: the next layer would have "
            f"{signal + sigma_b2:.8g}. Leave q_star out, or start from it with q0."
        )
    return sigma_w2, sigma_b2


def _fan_factors(ensemble: Ensemble) -> Array:
    """Var h_{l+1} = factor * sigma_w^2 E phi^2 + sigma_b^2, l = 1..L-1: below 1 for a growing orthogonal matrix.

    W^T W = sigma_w^2 spreads the same energy over more units. (1,) where all widths are equal.
    """
    if ensemble.widths is None:
        return np.ones(1)
    factors = np.ones(max(ensemble.depth - 1, 1))
    for layer, law in enumerate(ensemble.layer_weights[1 : ensemble.depth]):
        if law == "orthogonal":
            factors[layer] = min(1.0, ensemble.widths[layer + 1] / ensemble.widths[layer + 2])
    return factors


def _followed(
    ensemble: Ensemble,
    activations: Sequence[Activation],
    sigma_w2: Array,
    sigma_b2: Array,
    first: float,
    factors: Array,
) -> Array:
    """q of the layers, ending where it has converged: its last value stands for all that follow.

    The changes to come sum up to the last one over 1 - r, r the ratio of the last two, and their sum over all layers to
    come to it over (1 - r)^2: that is kept below 1e-14 of q.
    """
    tables = {
        activation: AverageTable(activation, [_square(activation)])
        for activation in dict.fromkeys(activations)
    }
    alike = ensemble.is_uniform and bool(np.all(factors == factors[0]))
    q, change = [first], math.inf
    for layer in range(1, ensemble.depth):
        activation = activations[min(layer - 1, len(activations) - 1)]
        w, b = (float(column[layer if column.size > 1 else 0]) for column in (sigma_w2, sigma_b2))
        factor = float(factors[layer - 1 if factors.size > 1 else 0])
        mean_square = tables[activation](q[-1])[0]
        q.append(_bounded(factor * w * mean_square + b, activation, layer + 1, w))
        before, change = change, abs(q[-1] - q[-2])
        ratio = change / before if before > 0.0 else 0.0
        if alike and change <= CONVERGED * q[-1] * max(1.0 - ratio, 0.0) ** 2:
            break
    return np.array(q)


def _square(activation: Activation) -> ArrayFunction:
    phi = without_rounding(activation)
    return lambda h: phi(h) ** 2


def _residual_variances(
    strength: float, layers: Sequence[tuple[Activation, float, float]], first: float
) -> Array:
    """q_l = sigma_w^2 E x_{l-1}^2 + sigma_b^2, with E x_l^2 = E x_{l-1}^2 + 2 a E x_{l-1} E phi + a^2 E phi^2.

    Yang and Schoenholz (2017, arXiv 1712.08969); a phi with a mean adds it up coherently. The input has mean zero.
    """
    tables = {}
    for activation in dict.fromkeys(layer[0] for layer in distinct(layers)):
        tables[activation] = AverageTable(activation, [without_rounding(activation), _square(activation)])
    _, sigma_w2, sigma_b2 = layers[0]
    if first < sigma_b2:
        raise InputError(
            f"the first pre-activation has variance q0 = {first:.6g}, less than the biases alone give "
            f"(sigma_b^2 = {sigma_b2:.6g}). Give a larger q0."
        )
    square, mean = (first - sigma_b2) / sigma_w2, 0.0
    q = []
    for number, (activation, sigma_w2, sigma_b2) in enumerate(layers, start=1):
        q.append(_bounded(sigma_w2 * square + sigma_b2, activation, number, sigma_w2))
        branch, branch_square = tables[activation](q[-1])
        square += 2.0 * strength * mean * branch + strength**2 * branch_square
        mean += strength * branch
    return np.array(q)


def _bounded(q: float, activation: Activation, layer: int, sigma_w2: float) -> float:
    if not q < (LARGEST_Q if activation.slopes is None else LARGEST_LINEAR_Q):
        raise TheoryError(
            f"the variance of {activation.name} reaches {q:.3g} at layer {layer} (sigma_w^2 = {sigma_w2:.6g}): it "
            "grows without bound. Lower sigma_w, or the number of layers."
        )
    return max(q, SMALLEST_Q)


def representative_variances(q: Array, counts: Array | None = None, *, most: int = 0) -> tuple[Array, Array]:
    """Values of q and how many layers each represents: (values, counts), the counts summing to the number of layers.

    Equal q are joined. Where many different ones remain, the few that stand apart are kept and the rest is replaced by
    the Gauss rule of its distribution in log q, with as many nodes as functions of the kind log(1 + c q) need:
    exactly those are log E phi'^(2k) of an erf network, and they are typical. Up to ``most`` different ones are kept as
    they are. ``counts`` are the layers of each q, one unless given.
    """
    layers = np.ones(q.size) if counts is None else counts
    if np.all(np.isnan(q)):
        return np.array([np.nan]), np.array([layers.sum()])
    order = np.argsort(q, kind="stable")
    ordered = q[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1.0) > SAME * ordered)
    counts = np.add.reduceat(layers[order], starts)
    values = ordered[starts]
    if values.size <= max(most, 1):
        return values, counts
    exact = _typical(values) @ counts
    # Where q falls through many decades most layers are linear to all digits, and log q tells them apart in vain.
    wide = values[-1] > WIDE * values[0]
    coordinate = (lambda q: np.log1p(np.sqrt(q))) if wide else np.log
    back = (lambda x: np.expm1(x) ** 2) if wide else np.exp
    points, weights_of = _condensed(coordinate(values), counts, 0.1 * STRETCH if wide else STRETCH)
    far_first = np.argsort(-np.abs(points - coordinate(np.median(ordered))))
    choices = sorted((alone + nodes, alone, nodes) for alone in (0, 2, 4, 7) for nodes in range(2, 33, 2))
    for total, alone, nodes in choices:
        if total >= points.size:
            break
        single, rest = far_first[:alone], far_first[alone:]
        places, weights = _gauss_rule(points[rest], weights_of[rest], nodes)
        places = back(np.append(points[single], places))
        weights = np.append(weights_of[single], weights)
        if np.max(np.abs(_typical(places) @ weights - exact)) < SUM_TOLERANCE:
            return places, weights
    return values, counts


def _typical(q: Array) -> Array:
    """log(1 + c q) for several c, and log(1 + sqrt(c q)), for a kink of phi' at zero; (2 c, q)."""
    scaled = np.array([[0.3], [1.0], [3.0], [10.0], [30.0]]) * q
    return np.log1p(np.concatenate([scaled, np.sqrt(scaled)]))


def _condensed(points: Array, weights: Array, length: float) -> tuple[Array, Array]:
    """The measure with the many points of every short stretch replaced by a Gauss rule, exact to rounding there."""
    stretch = np.floor((points - points[0]) / length)
    starts = np.flatnonzero(np.diff(stretch, prepend=-1.0))
    parts = []
    for own in np.split(np.arange(points.size), starts[1:]):
        many = own.size > 2 * STRETCH_NODES
        parts.append(
            _gauss_rule(points[own], weights[own], STRETCH_NODES) if many else (points[own], weights[own])
        )
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _gauss_rule(points: Array, weights: Array, nodes: int) -> tuple[Array, Array]:
    """Nodes and weights of the Gauss rule of a discrete measure, by the Lanczos (Stieltjes) recurrence."""
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
    return 0.5 * (low + high + (high - low) * places), total * vectors[0] ** 2
