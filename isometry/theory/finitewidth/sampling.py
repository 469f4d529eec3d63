"""Seeded draws of the singular values of an ensemble's networks at finite width, by numpy. Internal.

What theory has no formula for is sampled: the network of the ensemble itself, x_l = phi(W_l x_{l-1} + b_l), its J as
the product of its layers, and a dense SVD of it. The input is Gaussian; its mean square is fixed where the ensemble has
q0, as one that a measurement recorded, and fluctuates by sqrt(2/N) where it has not.
Draw k of a seed is the same whatever the number of draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isometry.errors import InputError
from isometry.theory.activations import Activation
from isometry.theory.ensemble import Ensemble
from isometry.theory.finitewidth.slope_chain import AlikeLayers, alike_layers

Array = NDArray[np.float64]

# Values below this multiple of the largest are rounding of the dense SVD.
SMALLEST_RATIO = 1e-13


@dataclass(frozen=True)
class Kernel:
    """How the weights of a convolution lie in space: the variance share of every tap, circular.

    Parameters
    ----------
    positions : tuple of int
        Height and width of the map; () is a dense network.
    profile : tuple of tuple of float, optional
        Share of sigma_w^2 of each tap, (k, k), sum 1. None is a delta kernel, one tap at the centre.
    """

    positions: tuple[int, ...] = ()
    profile: tuple[tuple[float, ...], ...] | None = None

    @property
    def count(self) -> int:
        """Number of positions."""
        return math.prod(self.positions)


DENSE = Kernel()


def widths_of(ensemble: Ensemble, width: int | None) -> tuple[int, ...]:
    """N_0 .. of the network to draw: the ensemble's own, or ``width`` in every layer.

    Raises
    ------
    InputError
        When neither says how wide the network is, or they contradict each other.
    """
    if ensemble.widths is None:
        if width is None:
            raise InputError("this ensemble is square of any width: give width, the units of a layer.")
        return (int(width),) * (ensemble.matrix_count + 1)
    if width is None or width == min(ensemble.widths):
        return ensemble.widths
    ratio = width / min(ensemble.widths)
    scaled = [ratio * one for one in ensemble.widths]
    if any(abs(one - round(one)) > 1e-9 * one for one in scaled):
        raise InputError(
            f"the ensemble has widths {ensemble.widths}: no network of the same ratios is {width} wide at its "
            "narrowest."
        )
    return tuple(round(one) for one in scaled)


@dataclass(frozen=True, eq=False)
class Draw:
    """One network.

    Parameters
    ----------
    log_values : (d,) array
        ln s of J, increasing; -inf at and below rounding.
    log_direction : float
        ln of |J u|^2 N_0/N_L for one fixed direction u, at the first position.
    pre_activations : (L, N) array, optional
        Where kept.
    """

    log_values: Array
    log_direction: float
    pre_activations: Array | None = None


def sample(
    ensemble: Ensemble,
    width: int | None,
    draws: int,
    *,
    kernel: Kernel = DENSE,
    seed: int = 0,
    keep_pre_activations: bool = False,
) -> Iterator[Draw]:
    """One network of the ensemble after the other.

    Parameters
    ----------
    ensemble : Ensemble
    width : int, optional
        Units of a layer, channels of a convolution; None takes the ensemble's own widths.
    draws : int
    kernel : Kernel
    seed : int
    keep_pre_activations : bool
        Keep h of every layer, (L, N), of a dense network of one width.
    """
    activation, variances = alike_layers(ensemble)
    widths = widths_of(ensemble, width)
    for index in range(draws):
        generator = np.random.default_rng([seed, index])
        kept: list[Array] | None = [] if keep_pre_activations else None
        logs, direction = _draw(ensemble, activation, variances, widths, kernel, generator, kept)
        yield Draw(logs, direction, None if kept is None else np.array(kept))


def sample_chain(ensemble: Ensemble, width: int, draws: int, *, seed: int = 0) -> Iterator[Array]:
    """h of every layer, (L, N), of one dense network of one width after the other, without its weights.

    Given x_{l-1} and Gaussian weights, the entries of W x are independent of variance sigma_w^2 |x|^2/N; with
    orthogonal ones W x is uniform on a sphere. Both are exact, and cost no matrix.
    """
    activation, variances = alike_layers(ensemble)
    sigma_w, sigma_b = math.sqrt(variances.sigma_w2), math.sqrt(variances.sigma_b2)
    for index in range(draws):
        generator = np.random.default_rng([seed, 1, index])
        x = _input(ensemble, variances, (width, width), 1, generator)[0]
        found = np.empty((ensemble.depth, width))
        for layer in range(ensemble.depth):
            direction = generator.standard_normal(width)
            size = math.sqrt(float(x @ x) / width)
            if ensemble.layer_weights[layer] == "orthogonal":
                direction *= math.sqrt(width / float(direction @ direction))
            found[layer] = sigma_w * size * direction + sigma_b * generator.standard_normal(width)
            x = np.asarray(activation.function(found[layer]), float)
        yield found


def _draw(
    ensemble: Ensemble,
    activation: Activation,
    variances: AlikeLayers,
    widths: tuple[int, ...],
    kernel: Kernel,
    generator: np.random.Generator,
    kept: list[Array] | None,
) -> tuple[Array, float]:
    positions = max(kernel.count, 1)
    sigma_w, sigma_b = math.sqrt(variances.sigma_w2), math.sqrt(variances.sigma_b2)
    x = _input(ensemble, variances, widths, positions, generator)
    spread = kernel.profile is not None
    if spread:
        size = positions * widths[0]
        product = np.eye(size).reshape(positions, widths[0], size)
    else:
        product = np.broadcast_to(np.eye(widths[0]), (positions, widths[0], widths[0]))
    log_scale = 0.0
    for layer, law in enumerate(ensemble.layer_weights):
        before, after = widths[layer], widths[layer + 1]
        if spread:
            taps = _taps(kernel, after, before, sigma_w, generator)
            h, grown = _convolve(taps, kernel, x[:, :, None])[:, :, 0], _convolve(taps, kernel, product)
        else:
            weight = sigma_w * _matrix(law, after, before, generator)
            h, grown = x @ weight.T, weight @ product
        if layer == ensemble.depth:
            product = grown
            break
        h = h + sigma_b * generator.standard_normal(after)
        if kept is not None:
            kept.append(h[0])
        slope = np.asarray(activation.derivative(h), float)
        value = np.asarray(activation.function(h), float)
        if ensemble.residual is None:
            x, product = value, slope[:, :, None] * grown
        else:
            x = x + ensemble.residual * value
            product = product + ensemble.residual * slope[:, :, None] * grown
        largest = float(np.max(np.abs(product)))
        if not 0.0 < largest < math.inf:
            return np.full(positions * min(widths[0], widths[-1]), -np.inf), -math.inf
        product = product / largest
        log_scale += math.log(largest)
    matrices = product.reshape(1, positions * after, -1) if spread else product
    values = np.sort(np.linalg.svd(matrices, compute_uv=False), axis=None)
    with np.errstate(divide="ignore"):
        logs = np.log(values)
    logs[values <= SMALLEST_RATIO * values[-1]] = -np.inf
    with np.errstate(divide="ignore"):
        direction = float(np.log(np.sum(matrices[0, :, 0] ** 2) * widths[0] / widths[-1]))
    return logs + log_scale, direction + 2.0 * log_scale


def _input(
    ensemble: Ensemble,
    variances: AlikeLayers,
    widths: tuple[int, ...],
    positions: int,
    generator: np.random.Generator,
) -> Array:
    """x_0, (positions, N_0): Gaussian, of the variance that the first layer asks for; with q0 of that mean square."""
    first = float(variances.q[0])
    if math.isnan(first):
        first = next((one for one in (ensemble.q0, ensemble.q_star) if one is not None), 1.0)
    signal = max(first - variances.sigma_b2, 0.0) / variances.sigma_w2
    if ensemble.layer_weights[0] == "orthogonal":
        signal *= max(1.0, widths[1] / widths[0])
    x = generator.standard_normal((positions, widths[0]))
    return x * math.sqrt(signal / (float(np.mean(x * x)) if ensemble.q0 is not None else 1.0))


def _matrix(law: str, rows: int, columns: int, generator: np.random.Generator) -> Array:
    """A weight matrix of sigma_w = 1."""
    if law == "gaussian":
        return generator.standard_normal((rows, columns)) / math.sqrt(columns)
    q, r = np.linalg.qr(generator.standard_normal((max(rows, columns), min(rows, columns))))
    q = q * np.where(np.diag(r) < 0, -1.0, 1.0)
    return q if rows >= columns else q.T


def _taps(
    kernel: Kernel, rows: int, columns: int, sigma_w: float, generator: np.random.Generator
) -> list[tuple[tuple[int, int], Array]]:
    """(shift, matrix) of every tap of a Gaussian kernel."""
    assert kernel.profile is not None
    profile = np.asarray(kernel.profile)
    centre = [(size - 1) // 2 for size in profile.shape]
    found = []
    for index in np.ndindex(*profile.shape):
        scale = sigma_w * math.sqrt(float(profile[index]) / columns)
        shift = (centre[0] - index[0], centre[1] - index[1])
        found.append((shift, scale * generator.standard_normal((rows, columns))))
    return found


def _convolve(taps: list[tuple[tuple[int, int], Array]], kernel: Kernel, block: Array) -> Array:
    """A circular convolution of (positions, channels, n) images."""
    shape = (*kernel.positions, *block.shape[1:])
    result = np.zeros((block.shape[0], taps[0][1].shape[0], block.shape[2]))
    for shift, matrix in taps:
        moved = np.roll(block.reshape(shape), shift, axis=(0, 1)).reshape(block.shape)
        result += matrix @ moved
    return result
