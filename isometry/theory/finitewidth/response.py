"""Response of a product's law to the slopes that a network happens to draw, to first order. Internal.

A layer of width N holds N slopes, not their law: delta nu = empirical law of d = phi'(h)^2 less its expectation, of
order 1/sqrt(N). In the S-transforms, whose logarithms add, this shifts

    delta ln z(M) = - sum_l delta M_l(w_l) / (w_l M_l'(w_l)),    M_l(w) = E d/(w - d),    M_l(w_l) = M

(Voiculescu 1987; w_l is the subordination function of layer l). Integrated along the curve it gives closed forms for

    cdf:         delta F(lambda) = -(1/pi) sum_l int delta nu_l(d) arg(1 - d/w_l(lambda + i0)),
    upper edge:  delta ln lambda_+ = sum_l int delta nu_l(d) [d/(w - d)] / E[w d/(w - d)^2]  at w = w_l(lambda_+),
    mean:        delta ln m_1 = sum_l int delta nu_l(d) d/mu_1.

All are sums over units of a known function of h: linear statistics, Gaussian at large N. What is random beyond the
slopes, the directions of the weights, moves a linear statistic by O(1/N) only (Collins, Mingo, Sniady and Speicher
2007, arXiv math/0606431).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isometry.spectrum import Curve
from isometry.theory.activations import Activation
from isometry.theory.finitewidth.slope_chain import gaussian_cells

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

# Height above the real axis, in arg z, at which the cdf's response is taken, over the spread of ln lambda: it smooths
# the cdf over as much.
HEIGHT = 0.02
LARGEST_HEIGHT = 0.2
STEPS = 24
NEWTON_STEPS = 5
LEVELS = 4000
CELLS = 181
NODES = 4


@dataclass(frozen=True, eq=False)
class Response:
    """What one unit of a layer adds to the law, by the cell that its pre-activation h lies in.

    Parameters
    ----------
    edges : (H + 1,) array
        Edges of the cells in h, increasing.
    cdf : (H, G) array
        Response of the cdf at the places asked for.
    edge, mean : (H,) arrays
        Responses of ln lambda_+ (zeros where the edge does not move with the slopes) and of ln m_1.

    Expectations are taken off.
    """

    edges: Array
    cdf: Array
    edge: Array
    mean: Array

    def counts(self, h: Array) -> Array:
        """Share of units h, (n, N), in every cell, (n, H)."""
        cell = np.clip(np.searchsorted(self.edges, h) - 1, 0, self.edges.size - 2)
        offset = (self.edges.size - 1) * np.arange(h.shape[0])[:, None]
        size = h.shape[0] * (self.edges.size - 1)
        return np.bincount((cell + offset).ravel(), minlength=size).reshape(h.shape[0], -1) / h.shape[1]


def responses(
    curve: Curve, activation: Activation, variances: Array, log_places: Array
) -> dict[float, Response]:
    """The response of every kind of layer, by its q.

    Parameters
    ----------
    curve : Curve
        The law, of a network whose layers are all equally wide.
    activation : Activation
    variances : (L,) array
        q of every layer; nan where phi' does not depend on it.
    log_places : (G,) array
        ln s at which the cdf is followed.
    """
    log_lambda = 2.0 * np.asarray(curve.quantile((np.arange(LEVELS) + 0.5) / LEVELS))
    finite = log_lambda[np.isfinite(log_lambda)]
    share = finite.size / LEVELS
    low, high = np.quantile(finite, [0.1, 0.9])
    height = min(HEIGHT * (high - low), LARGEST_HEIGHT)
    angles = np.geomspace(3.0, max(height, 1e-9), STEPS)
    paths = [_m_transform(finite, share, 2.0 * log_places + 1j * angle) for angle in angles]
    top = 2.0 * curve.log_ends[1]
    at_top = (
        None if not math.isfinite(top) else _m_transform(finite, share, np.array([top + 1e-4 * (high - low)]))
    )
    found = {}
    for q in np.unique(np.where(np.isnan(variances), 1.0, variances)):
        found[float(q)] = _response(activation, float(q), paths, at_top)
    return found


def _m_transform(log_lambda: Array, share: float, log_z: ComplexArray) -> ComplexArray:
    """M(z) = int lambda/(z - lambda) dF at (n,) points, F being so many equal steps and the rest at zero."""
    excess = log_z[:, None] - log_lambda
    ratio = np.exp(np.clip(excess.real, -600, 600) + 1j * excess.imag)
    return share * np.mean(1.0 / (ratio - 1.0), axis=1)


def _response(
    activation: Activation, q: float, paths: list[ComplexArray], at_top: ComplexArray | None
) -> Response:
    edges, h, weight = gaussian_cells(q, activation.kinks, cells=CELLS, nodes=NODES)
    d = np.asarray(activation.derivative(h), float) ** 2
    flat, mass = d.ravel(), weight.ravel()
    mu = float(mass @ flat)
    # A law of one point at mu has w = mu (1 + 1/M).
    w = mu * (1.0 + 1.0 / paths[0])
    for target in paths:
        w = _solve_m(flat, mass, w, target)
    with np.errstate(divide="ignore", invalid="ignore"):
        cdf = -np.abs(np.angle(1.0 - d[:, :, None] / w)) / math.pi
    top = np.zeros_like(d)
    if at_top is not None:
        # From far out on the real axis inwards, as long as w stays above every slope.
        w_top = complex(mu * (1.0 + 1.0 / at_top[0].real))
        w_top = max(w_top.real, 1.0001 * float(d.max()))
        for _ in range(60):
            value, slope = mass @ (flat / (w_top - flat)), mass @ (flat * w_top / (w_top - flat) ** 2)
            step = (value - at_top[0].real) / slope
            w_top = max(w_top * math.exp(min(step, 1.0)), float(d.max()) + 0.5 * (w_top - float(d.max())))
        if abs(value - at_top[0].real) < 1e-6 * abs(at_top[0].real):
            top = (d / (w_top - d)) / float(mass @ (flat * w_top / (w_top - flat) ** 2))

    def centred(values: Array) -> Array:
        """Average over every cell, less the expectation."""
        size = weight.sum(axis=1)
        shape = (slice(None), slice(None), *([None] * (values.ndim - 2)))
        with np.errstate(invalid="ignore", divide="ignore"):
            average = (weight[shape] * values).sum(axis=1) / size[shape[::2]]
        average = np.where(np.isfinite(average), average, values.mean(axis=1))
        return average - np.tensordot(size, average, axes=1)

    return Response(edges, centred(cdf), centred(top), centred(d / mu))


def _solve_m(d: Array, mass: Array, w: ComplexArray, target: ComplexArray) -> ComplexArray:
    """w with E d/(w - d) = target, by Newton's iteration in ln w from a near guess."""
    for _ in range(NEWTON_STEPS):
        pole = 1.0 / (w[:, None] - d)
        value = pole @ (mass * d)
        slope = -w * (pole**2 @ (mass * d))
        step = (value - target) / slope
        step *= np.minimum(1.0, 0.5 / np.maximum(np.abs(step), 1e-300))
        new = w * np.exp(-step)
        # Subordination keeps the upper half-plane.
        w = np.where(new.imag > 0, new, w.real + 0.5j * w.imag)
    return w
