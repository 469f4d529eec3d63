"""Growth of the one direction that the law of a residual network does not hold: that of the signal itself. Internal.

Where phi has a mean the branches add it up along one direction, that of the vector of ones, which the signal x_l
follows. D_l W_l maps x_{l-1} to phi'(h_l) h_l, which has a mean too, so J stretches the directions of x_0 and of the
ones by a factor that grows with the depth as the signal does: a perturbation of low rank of the free product, of which
the law knows nothing. For tangents v with S = E v v', M = E v, C = E x v, kappa = sigma_w^2 C and q = sigma_w^2 E x^2 +
sigma_b^2, where the components of W v are kappa/q h plus an independent Gaussian,

    S -> S + a (M g' + g M') + a^2 [kappa kappa'/q^2 E (phi' h)^2 + (sigma_w^2 S - kappa kappa'/q) E phi'^2],
    C -> C + a E x g + a M E phi + a^2 kappa/q E phi phi' h,      M -> M + a g,      g = kappa/q E phi' h,

as the moments of x do (Yang and Schoenholz 2017, arXiv 1712.08969). The largest eigenvalue of S_L is a lower bound of
the largest squared singular value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from isometry.theory.activations import Activation
from isometry.theory.meanfield.average_table import AverageTable, distinct

Array = NDArray[np.float64]

# E phi beside the root of E phi^2 that counts as no mean.
NO_MEAN = 1e-6
# Change of the shares of the moments over a thousand layers at which they are settled.
SETTLED = 1e-9
# Where moments are brought back to one.
LARGE = 1e100


def has_mean(activation: Activation, q: float) -> bool:
    """Whether E phi differs from zero at variance q."""
    mean, square = AverageTable(activation, [activation.function, lambda h: activation.function(h) ** 2])(q)
    return abs(mean) > NO_MEAN * math.sqrt(square)


def log_signal_gain(
    layers: Sequence[tuple[Activation, float, float]], strength: float, first: float
) -> float:
    """log of the factor by which J stretches the most in the plane of the input and of the vector of ones.

    Parameters
    ----------
    layers : sequence of (Activation, sigma_w^2, sigma_b^2)
        One for each layer.
    strength : float
        a of the branches.
    first : float
        Variance of the first pre-activation; the input has mean zero.
    """
    kinds = distinct(layers)
    tables = {activation: _table(activation) for activation in dict.fromkeys(layer[0] for layer in kinds)}
    unit = {phi: table(1.0) if phi.is_homogeneous else None for phi, table in tables.items()}
    _, sigma_w2, bias = layers[0]
    square, mean = (first - bias) / sigma_w2, 0.0
    s11, s12, s22, m1, m2, c1, c2 = 1.0, 0.0, 1.0, 0.0, 1.0, math.sqrt(square), 0.0
    log_scale, shrunk, last = 0.0, 1.0, None
    a, a2 = strength, strength**2
    # Without biases, layers alike end by multiplying all moments by one factor.
    alike = len(set(kinds)) == 1 and all(averages is not None for averages in unit.values()) and bias == 0.0
    for number, (phi, sigma_w2, sigma_b2) in enumerate(layers):
        before = s11 + s22
        q = sigma_w2 * square + sigma_b2 * shrunk
        averages = unit[phi]
        if averages is None:
            phi1, phi2, slope_h, phi_slope_h, slope_h2, slope2 = tables[phi](q)
        else:
            # phi(b h) = b phi(h).
            root = math.sqrt(q)
            phi1, slope_h = root * averages[0], root * averages[2]
            phi2, phi_slope_h, slope_h2, slope2 = (
                q * averages[1],
                q * averages[3],
                q * averages[4],
                averages[5],
            )
        k1, k2 = sigma_w2 * c1 / q, sigma_w2 * c2 / q
        g1, g2 = k1 * slope_h, k2 * slope_h
        along = slope_h2 - q * slope2
        c1, c2 = (
            c1 + a * (mean * g1 + m1 * phi1) + a2 * k1 * phi_slope_h,
            c2 + a * (mean * g2 + m2 * phi1) + a2 * k2 * phi_slope_h,
        )
        grown = 1.0 + a2 * sigma_w2 * slope2
        s11 = grown * s11 + 2.0 * a * m1 * g1 + a2 * k1 * k1 * along
        s12 = grown * s12 + a * (m1 * g2 + m2 * g1) + a2 * k1 * k2 * along
        s22 = grown * s22 + 2.0 * a * m2 * g2 + a2 * k2 * k2 * along
        m1, m2 = m1 + a * g1, m2 + a * g2
        square, mean = square + 2.0 * a * mean * phi1 + a2 * phi2, mean + a * phi1
        if alike and number % 1000 == 999:
            shape = np.array([m1 * m1, m2 * m2, s12, mean * m1 / math.sqrt(square)]) / (s11 + s22)
            if last is not None and np.max(np.abs(shape - last)) < SETTLED:
                log_scale += 0.5 * (len(layers) - number - 1) * math.log((s11 + s22) / before)
                break
            last = shape
        if s11 + s22 > LARGE:
            # Tangents are linear.
            scale = 1.0 / math.sqrt(s11 + s22)
            log_scale -= math.log(scale)
            s11, s12, s22 = (value * scale * scale for value in (s11, s12, s22))
            m1, m2, c1, c2 = (value * scale for value in (m1, m2, c1, c2))
        if square > LARGE and all(averages is not None for averages in unit.values()):
            # So is the signal where every phi is homogeneous, but for the biases.
            scale = 1.0 / math.sqrt(square)
            square, mean, c1, c2, shrunk = 1.0, mean * scale, c1 * scale, c2 * scale, shrunk * scale * scale
    half, spread = 0.5 * (s11 + s22), math.hypot(0.5 * (s11 - s22), s12)
    return log_scale + 0.5 * math.log(half + spread)


def _table(activation: Activation) -> AverageTable:
    phi, slope = activation.function, activation.derivative
    return AverageTable(
        activation,
        [
            phi,
            lambda h: phi(h) ** 2,
            lambda h: slope(h) * h,
            lambda h: phi(h) * slope(h) * h,
            lambda h: (slope(h) * h) ** 2,
            lambda h: slope(h) ** 2,
        ],
    )
