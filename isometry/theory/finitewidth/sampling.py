"""Seeded draws of the singular values of an ensemble's networks at finite width, by numpy. Internal.

What theory has no formula for is sampled: the network of the ensemble itself, x_l = phi(W_l x_{l-1} + b_l), its J as
the product of its layers, and a dense SVD of it. The input is Gaussian; its mean square is fixed where the ensemble has
q0, as one that a measurement recorded, and fluctuates by sqrt(2/N) where it has not.

In a deep network ever fewer singular values stay in sight of the largest: after some layers the product U S V^T is
replaced by the k columns of U S above rounding. The next weights act on them, and on the signal, as any random matrix
of that many columns would: a Gaussian matrix is Gaussian in every basis, and a Haar one takes an orthonormal basis to
a uniformly distributed one. Late layers so cost N k^2 and not N^3, and nothing but rounding is left out.

Draw k of a seed is the same whatever the number of draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isometry.errors import InputError
from isometry.theory.ensemble import Ensemble
from isometry.theory.finitewidth.slope_chain import Layers, layers_of

Array = NDArray[np.float64]

# Values below this multiple of the largest are rounding of the dense SVD.
SMALLEST_RATIO = 1e-13
# Layers after which the product is looked at, relative to those before: columns are dropped where many are in the dark.
LOOK = 1.25
FIRST_LOOK = 40
KEPT_SHARE = 0.8
# Narrower products cost less than looking at them.
NARROWEST = 48


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
    layers = layers_of(ensemble)
    widths = widths_of(ensemble, width)
    for index in range(draws):
        generator = np.random.default_rng([seed, index])
        kept: list[Array] | None = [] if keep_pre_activations else None
        logs, direction = _draw(ensemble, layers, widths, kernel, generator, kept)
        yield Draw(logs, direction, None if kept is None else np.array(kept))


def sample_chain(ensemble: Ensemble, width: int, draws: int, *, seed: int = 0) -> Iterator[Array]:
    """h of every layer, (L, N), of one dense network of one width after the other, without its weights.

    Given x_{l-1} and Gaussian weights, the entries of W x are independent of variance sigma_w^2 |x|^2/N; with
    orthogonal ones W x is uniform on a sphere. Both are exact, and cost no matrix.
    """
    layers = layers_of(ensemble)
    sigma_w, sigma_b = np.sqrt(layers.sigma_w2), np.sqrt(layers.sigma_b2)
    for index in range(draws):
        generator = np.random.default_rng([seed, 1, index])
        x = _input(ensemble, layers, (width, width), 1, generator)[0]
        found = np.empty((ensemble.depth, width))
        for layer in range(ensemble.depth):
            direction = generator.standard_normal(width)
            size = math.sqrt(float(x @ x) / width)
            if ensemble.layer_weights[layer] == "orthogonal":
                direction *= math.sqrt(width / float(direction @ direction))
            found[layer] = sigma_w[layer] * size * direction + sigma_b[layer] * generator.standard_normal(
                width
            )
            x = np.asarray(layers.activations[layer].function(found[layer]), float)
        yield found


def _draw(
    ensemble: Ensemble,
    layers: Layers,
    widths: tuple[int, ...],
    kernel: Kernel,
    generator: np.random.Generator,
    kept: list[Array] | None,
) -> tuple[Array, float]:
    positions = max(kernel.count, 1)
    x = _input(ensemble, layers, widths, positions, generator)
    spread = kernel.profile is not None
    narrows = not kernel.positions and ensemble.residual is None and min(widths) >= NARROWEST
    if spread:
        size = positions * widths[0]
        product = np.eye(size).reshape(positions, widths[0], size)
    else:
        product = np.broadcast_to(np.eye(widths[0]), (positions, widths[0], widths[0]))
    log_scale, look = 0.0, FIRST_LOOK
    first = np.eye(product.shape[2])[:1]  # u in the basis that the columns of the product belong to
    for layer, law in enumerate(ensemble.layer_weights):
        before, after = widths[layer], widths[layer + 1]
        sigma_w = math.sqrt(layers.sigma_w2[layer])
        if spread:
            taps = _taps(kernel, after, before, sigma_w, generator)
            h, grown = _convolve(taps, kernel, x[:, :, None])[:, :, 0], _convolve(taps, kernel, product)
        elif product.shape[2] < before:
            h, grown = _acted(law, sigma_w, after, x, product, generator)
        else:
            weight = sigma_w * _matrix(law, after, before, generator)
            h, grown = x @ weight.T, weight @ product
        if layer == ensemble.depth:
            product = grown
            break
        h = h + math.sqrt(layers.sigma_b2[layer]) * generator.standard_normal(after)
        if kept is not None:
            kept.append(h[0])
        slope = np.asarray(layers.activations[layer].derivative(h), float)
        value = np.asarray(layers.activations[layer].function(h), float)
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
        if narrows and layer + 1 >= look:
            look = max(layer + 2, int(LOOK * look))
            product, first = _in_sight(product, first)
    matrices = product.reshape(1, positions * after, -1) if spread else product
    values = np.sort(np.linalg.svd(matrices, compute_uv=False), axis=None)
    with np.errstate(divide="ignore"):
        logs = np.log(values)
    logs[values <= SMALLEST_RATIO * values[-1]] = -np.inf
    missing = positions * min(widths[0], widths[-1]) - logs.size
    logs = np.concatenate([np.full(max(missing, 0), -np.inf), logs[max(-missing, 0) :]])
    with np.errstate(divide="ignore"):
        image = matrices[0] @ first[0]
        direction = float(np.log(np.sum(image**2) * widths[0] / widths[-1]))
    return logs + log_scale, direction + 2.0 * log_scale


def _in_sight(product: Array, first: Array) -> tuple[Array, Array]:
    """(1, N, k) columns U S of a product, those above rounding, and the first vector in the basis V."""
    u, s, v = np.linalg.svd(product[0], full_matrices=False)
    count = int(np.sum(s > SMALLEST_RATIO * s[0]))
    if count > KEPT_SHARE * product.shape[2]:
        return product, first
    return (u[:, :count] * s[:count])[None], first @ v[:count].T


def _acted(
    law: str, sigma_w: float, rows: int, x: Array, product: Array, generator: np.random.Generator
) -> tuple[Array, Array]:
    """h, (1, rows), and W product, (1, rows, k), for random weights W that nothing was drawn of."""
    block = np.concatenate([product[0], x.T], axis=1)
    basis, upper = np.linalg.qr(block)
    image = _matrix(law, rows, basis.shape[1], generator, of=x.shape[1])
    found = sigma_w * (image @ upper)
    return found[None, :, -1], found[None, :, :-1]


def _input(
    ensemble: Ensemble,
    layers: Layers,
    widths: tuple[int, ...],
    positions: int,
    generator: np.random.Generator,
) -> Array:
    """x_0, (positions, N_0): Gaussian, of the variance that the first layer asks for; with q0 of that mean square."""
    first = float(layers.q[0])
    if math.isnan(first):
        first = next((one for one in (ensemble.q0, ensemble.q_star) if one is not None), 1.0)
    signal = max(first - float(layers.sigma_b2[0]), 0.0) / float(layers.sigma_w2[0])
    if ensemble.layer_weights[0] == "orthogonal":
        signal *= max(1.0, widths[1] / widths[0])
    x = generator.standard_normal((positions, widths[0]))
    return x * math.sqrt(signal / (float(np.mean(x * x)) if ensemble.q0 is not None else 1.0))


def _matrix(law: str, rows: int, columns: int, generator: np.random.Generator, *, of: int = 0) -> Array:
    """A weight matrix of sigma_w = 1, or what it makes of ``columns`` orthonormal vectors of ``of`` units."""
    fan_in = of or columns
    if law == "gaussian":
        return generator.standard_normal((rows, columns)) / math.sqrt(fan_in)
    if fan_in > rows:
        # Of a matrix with orthonormal rows, a part of the columns: the rows of a Haar frame, transposed.
        return _frame(fan_in, rows, generator).T[:, :columns]
    return _frame(rows, columns, generator)


def _frame(rows: int, columns: int, generator: np.random.Generator) -> Array:
    """Haar distributed orthonormal columns, (rows, columns)."""
    q, r = np.linalg.qr(generator.standard_normal((rows, columns)))
    return q * np.where(np.diag(r) < 0, -1.0, 1.0)


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
