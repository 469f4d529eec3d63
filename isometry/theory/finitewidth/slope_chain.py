"""Mean and spread of ln of a network's mean square at width N, to order 1/N: a recursion over the layers. Internal.

With G = J_l^T J_l and d = phi'(h)^2, layer l multiplies tr G by the mean over its N units of d_i c_i, c_i being the
diagonal of W G W^T, and makes of phi(h_i)^2 the variance q of the next layer. Both are means of N nearly independent
terms, so a layer adds noise of relative variance

    of tr G:   (1/N) [mu_2/mu_1^2 - 1 + C],   mu_k = E d^k,
    of q:      (1/N) sigma_w^4 Var phi^2,     and of both together  (1/N) sigma_w^2 Cov(phi^2, d)/mu_1,
    C = 2 tau mu_2/mu_1^2                     Gaussian weights, whose rows are independent,
        2 (tau - 1/N)(mu_2/mu_1^2 - 1)        orthogonal ones, which keep tr G,

where tau = tr G^2/(tr G)^2 before the layer. What q has gained decays by the slope of the q-map and changes ln tr G by
d ln mu_1/dq in every layer on its way. Orthogonal weights keep |W x|: there a mean of f counts less its regression on
h^2. The mean of ln tr G has the second-order terms of the same steps, and the direction of the signal, on which d
depends: x^T J J^T x over its mean is followed from layer to layer.

For all directions tau = (1 + v)/N, v the relative variance of the spectrum; for one direction u it is 1. Then a
Gaussian ReLU network has Var ln|Ju|^2 = 5 L/N (Hanin and Nica 2018, arXiv 1812.05994, there for piecewise linear phi).
For smooth phi these are the 1/N corrections of Roberts, Yaida and Hanin (2021, arXiv 2106.10165), in the variables of
J; derived here, and checked against draws by figures/finite_width.py.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from isometry.theory.activations import Activation, get_activation
from isometry.theory.ensemble import Ensemble
from isometry.theory.gaussian import legendre_rule
from isometry.theory.meanfield.layer_variances import layer_variances

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LogNormal:
    """A positive number whose logarithm is nearly normal: that logarithm's mean and standard deviation."""

    mean: float
    std: float


@dataclass(frozen=True, eq=False)
class Layers:
    """Layer by layer: activations (L), sigma_w^2 of every matrix, sigma_b^2 and q of every layer.

    q is nan where no slope depends on it.
    """

    activations: tuple[Activation, ...]
    sigma_w2: Array
    sigma_b2: Array
    q: Array


def layers_of(ensemble: Ensemble) -> Layers:
    """The layers of an ensemble."""
    activations = tuple(get_activation(one) for one in ensemble.activations)
    found = layer_variances(ensemble, activations)
    each = activations if len(activations) > 1 else activations * ensemble.depth
    return Layers(
        each,
        np.broadcast_to(found.sigma_w2, (ensemble.matrix_count,)),
        np.broadcast_to(found.sigma_b2, (ensemble.depth,)),
        found.per_layer if found.per_layer.size > 1 else np.full(ensemble.depth, found.q[0]),
    )


@dataclass(frozen=True)
class _Layer:
    """Averages over one layer's h ~ N(0, q); units of mu_1 where they concern d."""

    log_mu: float
    ratio: float  # mu_2 / mu_1^2
    kappa: float  # d ln mu_1 / dq
    kappa_slope: float
    chi_q: float
    chi_q_slope: float
    sphere: float  # half of N times the variance of the mean of (W x)^2 that Gaussian entries would have, if orthogonal
    slope_noise: float
    square_noise: float
    cross_noise: float
    signal_slope: float  # E d h^2 / (q mu_1) - 1
    signal_kept: float  # (E phi phi' h)^2 / (q E phi^2 mu_1)
    signal_gain: float  # E phi^2 phi'^2 / (E phi^2 mu_1)


LINEAR = _Layer(0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0)
# Below this q (of an activation that has one) phi is linear: corrections are of order q.
LINEAR_VARIANCE = 1e-9


def gaussian_cells(
    q: float, kinks: tuple[float, ...], *, cells: int = 37, nodes: int = 12
) -> tuple[Array, Array, Array]:
    """Cells of h ~ N(0, q) cut at kinks: edges (H + 1,), nodes (H, n) and probabilities (H, n), which sum to one."""
    sigma = math.sqrt(q)
    scales = np.concatenate([2.0 ** np.arange(-8, 4), -(2.0 ** np.arange(-8, 4))])
    places = [np.linspace(-9.0, 9.0, cells)]
    for centre in {0.0, *kinks}:
        places.append(np.append(centre, centre + scales) / sigma)
    edges = np.unique(np.concatenate(places))
    edges = edges[np.abs(edges) <= 9.0]
    points, weights = legendre_rule(nodes)
    size = np.diff(edges)[:, None]
    z = edges[:-1, None] + size * points
    weight = size * weights * np.exp(-0.5 * z * z)
    return sigma * edges, sigma * z, weight / weight.sum()


def _layer(activation: Activation, q: float, sigma_b2: float, gain: float, *, orthogonal: bool) -> _Layer:
    """Averages over h ~ N(0, q), of which biases give sigma_b2, and the next layer makes gain * phi^2."""
    if q < LINEAR_VARIANCE and 0.0 not in activation.kinks:
        # Slopes are all alike, and no digit of them depends on q.
        slope = np.asarray(activation.derivative(np.zeros(1)), float)
        return replace(LINEAR, log_mu=2.0 * math.log(abs(float(slope[0]))))
    q = max(q, LINEAR_VARIANCE)
    _, nodes, weights = gaussian_cells(q, activation.kinks)
    h, weight = nodes.ravel(), weights.ravel()
    z2 = h * h / q
    phi, slope = np.asarray(activation.function(h), float), np.asarray(activation.derivative(h), float)
    d, square = slope**2, phi**2

    def mean(f: Array) -> float:
        return float(weight @ f)

    # Derivatives by q of an average over N(0, q), by parts: no derivative of phi' is taken.
    first, second = (z2 - 1) / (2 * q), (z2 * z2 - 6 * z2 + 3) / (4 * q * q)
    mu, mean_square = mean(d), mean(square)
    kappa = mean(d * first) / mu
    share = 1.0 - sigma_b2 / q if q > sigma_b2 else 0.0
    # Regression on (W x)^2, of which h^2 holds the share q_u/q.
    constraint = 0.5 * share**2 if orthogonal else 0.0
    d_on_h, square_on_h = mean(d * (z2 - 1)) / mu, gain * mean(square * (z2 - 1))
    return _Layer(
        log_mu=math.log(mu),
        ratio=mean(d * d) / mu**2,
        kappa=kappa,
        kappa_slope=mean(d * second) / mu - kappa**2,
        chi_q=gain * mean(square * first),
        chi_q_slope=gain * mean(square * second),
        sphere=(share * q) ** 2 if orthogonal else 0.0,
        slope_noise=mean(d * d) / mu**2 - 1.0 - constraint * d_on_h**2,
        square_noise=gain**2 * (mean(square * square) - mean_square**2) - constraint * square_on_h**2,
        cross_noise=gain * (mean(square * d) / mu - mean_square) - constraint * d_on_h * square_on_h,
        signal_slope=share * (mean(d * z2) / mu - 1.0),
        signal_kept=share * mean(phi * slope * h) ** 2 / (q * mean_square * mu) if mean_square > 0 else 0.0,
        signal_gain=mean(square * d) / (mean_square * mu) if mean_square > 0 else 0.0,
    )


def log_signal_value(ensemble: Ensemble) -> float | None:
    """ln s of the direction of the signal itself, at infinite width; None where it is not known: for residual networks,
    changing widths, and homogeneous activations with biases.

    The input x enters the layers' slopes: J x is not a random direction. Along x_l the layers act as the scalars
    <x_l, D W x_{l-1}>/(|x_l| |x_{l-1}|), whose product this is. In a stationary network it is chi_q^L, chi_q the slope
    of the q-map (Poole et al. 2016, arXiv 1606.05340), whatever chi_1. What the scalars miss mixes with all other
    directions: where this value lies apart from the law, the smallest singular value is near it.
    """
    if ensemble.residual is not None or not ensemble.is_square:
        return None
    layers = layers_of(ensemble)
    if np.isnan(layers.q[0]) and np.any(layers.sigma_b2 > 0):
        # How much of h is the signal depends on its size, which phi' does not.
        return None
    total = 0.5 * float(np.sum(np.log(layers.sigma_w2)))
    q = np.where(np.isnan(layers.q), 1.0, layers.q).tolist()
    kinds = Counter(zip(layers.activations, q, layers.sigma_b2.tolist(), strict=True))
    for (activation, variance, sigma_b2), count in kinds.items():
        one = _layer(activation, variance, sigma_b2, 1.0, orthogonal=False)
        if not one.signal_kept > 0:
            return -math.inf
        total += 0.5 * count * (math.log(one.signal_kept) + one.log_mu)
    return total


def log_mean_square(
    ensemble: Ensemble, widths: tuple[int, ...], *, one_direction: bool = False
) -> LogNormal | None:
    """ln of the mean square gain at finite width, less ln of its value at infinite width, to order 1/N.

    Parameters
    ----------
    ensemble : Ensemble
    widths : tuple of int
        N_0 .. of the network.
    one_direction : bool
        ln|J u|^2 for one fixed unit vector u, times N_0/N_L, instead of the mean over all directions.

    Returns
    -------
    LogNormal or None
        None for a residual network, which this recursion does not cover.

    Notes
    -----
    The error is of order (L/N)^2 in both, and some percent at L/N = 1/10.
    """
    if ensemble.residual is not None:
        return None
    layers = layers_of(ensemble)
    known: dict[tuple[Activation, float, float, float, bool], _Layer] = {}
    tau = 1.0 if one_direction else 1.0 / widths[0]
    v_a = v_e = c_ae = m_a = m_e = 0.0
    first = float(layers.q[0])
    if ensemble.q0 is None and not math.isnan(first):
        # A Gaussian input, whose own mean square fluctuates.
        v_e = 2.0 * max(first - float(layers.sigma_b2[0]), 0.0) ** 2 / widths[0]
    signal = 1.0  # x^T J J^T x over its mean over all directions
    for index, law in enumerate(ensemble.layer_weights):
        before, after = widths[index], widths[index + 1]
        orthogonal = law == "orthogonal"
        if index < ensemble.depth:
            q = float(layers.q[index])
            gain = float(layers.sigma_w2[min(index + 1, ensemble.depth - 1)])
            if index + 1 < ensemble.depth and ensemble.layer_weights[index + 1] == "orthogonal":
                gain *= min(1.0, after / widths[index + 2])
            q = 1.0 if math.isnan(q) else q
            key = (layers.activations[index], q, float(layers.sigma_b2[index]), gain, orthogonal)
            if key not in known:
                known[key] = _layer(*key[:4], orthogonal=orthogonal)
            one = known[key]
        else:
            one = LINEAR
        if orthogonal:
            mixing = 2.0 * max(tau - 1.0 / max(before, after), 0.0) * (one.ratio - min(1.0, after / before))
            spread = after * tau if after >= before else 1.0 + after / before * (before * tau - 1.0)
        else:
            mixing = 2.0 * tau * one.ratio
            spread = 1.0 + (after + 1) * tau
        noise = (one.slope_noise + mixing) / after
        m_a += one.kappa * m_e + 0.5 * one.kappa_slope * v_e - 0.5 * noise
        # Rows of an orthogonal matrix have one length: what lies along x lacks across it.
        along = signal - 1.0 if orthogonal else signal
        m_a += along / before * one.signal_slope - one.sphere / after * (one.kappa_slope + one.kappa**2)
        m_e = one.chi_q * m_e + (0.5 * v_e - one.sphere / after) * one.chi_q_slope
        v_a += 2 * one.kappa * c_ae + one.kappa**2 * v_e + noise
        c_ae = one.chi_q * (c_ae + one.kappa * v_e) + one.cross_noise / after
        v_e = one.chi_q**2 * v_e + one.square_noise / after
        # W^T W x is x for orthogonal weights; Gaussian ones add a direction of their own, of the same size.
        signal = one.signal_kept * signal + one.signal_gain - (one.signal_kept if orthogonal else 0.0)
        tau = min((spread + one.ratio - 1.0) / after, 1.0)
    return LogNormal(m_a, math.sqrt(max(v_a, 0.0)))
