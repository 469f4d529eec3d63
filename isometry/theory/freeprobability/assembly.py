"""From an ensemble to its `FreeProduct`: which factors, at which levels, and which point masses survive. Internal.

Widths are relative to the rank of J: rank = min over the levels of N_l P(phi' != 0), and N_0. The point masses of a
product with orthogonal weights are counted by dimensions: an eigenspace of D_l^2 of dimension p N_l meets a generic
subspace of dimension k in k - (1 - p) N_l dimensions, and a shrinking orthogonal matrix takes N_{l-1} - N_l away. A
Gaussian matrix leaves no point mass but the one at zero.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isometry.errors import TheoryError
from isometry.theory.activations import Activation
from isometry.theory.ensemble import Ensemble
from isometry.theory.freeprobability.product import FreeProduct, Group, SkipLayers
from isometry.theory.freeprobability.slope_law import SlopeLaw, slope_law
from isometry.theory.meanfield.layer_variances import LayerVariances, representative_variances

Array = NDArray[np.float64]

MOST_GROUPS = 64
# Share of the singular values that is not zero below which there is no law of the rest.
LEAST_RANK = 1e-12


@dataclass(frozen=True, eq=False)
class Assembly:
    """A product on its nonzero eigenvalues, and how to read it.

    Parameters
    ----------
    product : FreeProduct
    rank_share : float
        rank / min(N_0, N_L): one minus the mass at zero of the reported singular values.
    log_chi : float
        log of the mean growth of squared gradients per layer, mean over layers of log(sigma_w^2 E phi'^2).
    """

    product: FreeProduct
    rank_share: float
    log_chi: float


@dataclass(frozen=True, eq=False)
class Slopes:
    """``count`` layers of relative width ``width`` (N_l) with one law of D^2.

    ``sigma_w2`` and ``weights`` are those of their matrices, which only layers with a skip need.
    """

    law: SlopeLaw
    width: float
    count: float
    sigma_w2: float
    weights: str


def assemble(ensemble: Ensemble, activations: Sequence[Activation], variances: LayerVariances) -> Assembly:
    """The free product of an ensemble's factors.

    Parameters
    ----------
    ensemble : Ensemble
    activations : sequence of Activation
        One per layer where they differ, or the one of all.
    variances : LayerVariances

    Raises
    ------
    TheoryError
        When no signal passes, or when the layers fall into too many different kinds.
    """
    widths = np.ones(1) if ensemble.widths is None else np.array(ensemble.widths, float)
    slopes = _slopes(ensemble, activations, variances, widths)
    matrices = ensemble.matrix_count
    log_sigma_w2 = np.log(variances.sigma_w2)
    log_weights = float(log_sigma_w2.sum() if log_sigma_w2.size > 1 else matrices * log_sigma_w2[0])
    read_out = float(log_sigma_w2[-1]) if ensemble.readout else 0.0
    log_slopes = sum(item.count * math.log(item.law.moments(1)[0]) for item in slopes)
    log_chi = (log_weights - read_out + float(log_slopes)) / ensemble.depth
    if ensemble.residual is not None:
        return Assembly(_residual(ensemble, read_out, slopes), 1.0, log_chi)
    rank = min(widths[0], widths[-1], *(item.width * item.law.nonzero_mass for item in slopes))
    rank = min(rank, float(widths.min()))
    if rank < LEAST_RANK * min(widths[0], widths[-1]):
        raise TheoryError(
            f"all singular values but a share of {rank / min(widths[0], widths[-1]):.2g} are zero: phi' vanishes at "
            "nearly all pre-activations of a layer. Choose variances at which more units pass a signal."
        )
    terms: Counter[float] = Counter()
    scale = math.log(widths[0] / rank) + log_weights
    _add(terms, widths[0] / rank, 1.0)
    for (law, before, after), count in _matrix_kinds(ensemble).items():
        if law == "gaussian" or after < before:
            scale += count * math.log(after / before)
            _add(terms, after / rank, count)
        if law == "orthogonal" and after < before:
            _add(terms, before / rank, -count)
    groups: list[Group] = []
    for item in slopes:
        size = item.width / rank
        if item.law.is_constant or item.law.is_two_point:
            # 1/S = a (p + x)/(1 + x)
            p = item.law.nonzero_mass
            scale += item.count * math.log(float(item.law.values[0]) * p)
            if p < 1.0:
                _add(terms, size * p, item.count)
                _add(terms, size, -item.count)
        else:
            groups.append(Group(item.law, size, item.count))
    kept = [(size, exponent) for size, exponent in sorted(terms.items()) if abs(exponent) > 1e-12]
    product = FreeProduct(
        scale,
        np.array([size for size, _ in kept]),
        np.array([exponent for _, exponent in kept], float),
        tuple(groups),
        atoms=_point_masses(ensemble, log_weights, slopes, widths, rank),
    )
    return Assembly(product, float(rank / min(widths[0], widths[-1])), log_chi)


def _matrix_kinds(ensemble: Ensemble) -> Counter[tuple[str, float, float]]:
    """How many matrices there are of each (law, columns, rows)."""
    if ensemble.widths is None and isinstance(ensemble.weights, str):
        return Counter({(ensemble.weights, 1.0, 1.0): ensemble.matrix_count})
    widths = ensemble.widths or (1,) * (ensemble.matrix_count + 1)
    return Counter(zip(ensemble.layer_weights, widths[:-1], widths[1:], strict=True))


def _add(terms: Counter[float], size: float, exponent: float) -> None:
    """Add to the exponent of 1 + t/size; sizes equal to rounding are one."""
    for known in terms:
        if abs(known - size) <= 1e-13 * size:
            terms[known] += exponent  # type: ignore[assignment]
            return
    terms[size] += exponent  # type: ignore[assignment]


def _slopes(
    ensemble: Ensemble, activations: Sequence[Activation], variances: LayerVariances, widths: Array
) -> list[Slopes]:
    """Layers joined into kinds of equal activation, width and (representative) q; with a skip, of equal weights too."""
    depth, residual = ensemble.depth, ensemble.residual is not None
    sigma_w2, weights = variances.sigma_w2, np.array(ensemble.weights).reshape(-1)
    keys = [
        np.arange(1) if len(activations) == 1 else np.array([activations.index(phi) for phi in activations]),
        widths[1 : depth + 1] if widths.size > 1 else widths,
        np.unique(sigma_w2, return_inverse=True)[1] if residual else np.zeros(1),
        np.unique(weights, return_inverse=True)[1] if residual else np.zeros(1),
    ]
    q, counts = variances.q, variances.counts
    if any(key.size > 1 for key in keys):
        q, counts = variances.per_layer, np.ones(depth)
    table = np.stack([np.broadcast_to(key[:depth] if key.size > 1 else key, q.shape) for key in keys], axis=1)
    kinds, kind = np.unique(table, axis=0, return_inverse=True)
    result: list[Slopes] = []
    for number, (which, width, _, _) in enumerate(kinds):
        own = np.flatnonzero(kind.reshape(-1) == number)
        activation, first = activations[int(which)], int(own[0])
        # Where S is rational a kind costs nothing, and the mass at zero of the worst layer is exact.
        most = 1000 if activation.slopes is not None else 0
        for value, count in zip(*representative_variances(q[own], counts[own], most=most), strict=True):
            law = slope_law(activation, 1.0 if np.isnan(value) else float(value))
            result.append(
                Slopes(
                    law,
                    float(width),
                    float(count),
                    float(sigma_w2[first if sigma_w2.size > 1 else 0]),
                    str(weights[first if weights.size > 1 else 0]),
                )
            )
    if len(result) > MOST_GROUPS and not all(item.law.is_two_point for item in result):
        raise TheoryError(
            f"the layers are of {len(result)} different kinds (activation, width and variance), more than the "
            f"{MOST_GROUPS} this solver takes on. Use fewer different layers."
        )
    return result


def _residual(ensemble: Ensemble, read_out: float, slopes: list[Slopes]) -> FreeProduct:
    """The product of the layers 1 + a D W, and of the read-out, whose log sigma_w^2 is given.

    Where two subspaces of dimension 1 - p are not moved by a layer, those of D W = 0 and of W^T D = 0, they meet in
    1 - 2 p dimensions, and those of all layers leave a point mass.
    """
    square = (ensemble.residual or 0.0) ** 2
    layers = tuple(
        SkipLayers(item.law, square * item.sigma_w2, item.weights == "gaussian", item.count)
        for item in slopes
    )
    exponent, scale = 1.0, read_out
    if ensemble.readout:
        last = ensemble.weights if isinstance(ensemble.weights, str) else ensemble.weights[-1]
        exponent += float(last == "gaussian")
    unmoved = 1.0 - 2.0 * sum(item.count * item.law.nonzero_mass for item in slopes)
    atoms = ((scale, unmoved),) if unmoved > 0.0 and exponent == 1.0 else ()
    return FreeProduct(scale, np.array([1.0]), np.array([exponent]), atoms=atoms, skip_layers=layers)


def _point_masses(
    ensemble: Ensemble, log_weights: float, slopes: list[Slopes], widths: Array, rank: float
) -> tuple[tuple[float, float], ...]:
    """(log lambda, share of the rank) of the point masses at nonzero lambda."""
    if any(law == "gaussian" for law, _, _ in _matrix_kinds(ensemble)):
        return ()
    lost = float(np.sum(np.maximum(widths[:-1] - widths[1:], 0.0)))
    found: list[tuple[float, float]] = [(log_weights, widths[0] - lost)]
    for item in slopes:
        # Two of several equal layers cannot give different values: the two masses add up to at most one.
        found = [
            (place + item.count * math.log(value), dimension - item.count * (1.0 - mass) * item.width)
            for place, dimension in found
            for value, mass in zip(item.law.values, item.law.masses, strict=True)
        ]
        found = [(place, dimension) for place, dimension in found if dimension > 1e-12 * widths[0]]
    joined: dict[float, float] = {}
    for place, dimension in found:
        key = next((known for known in joined if abs(known - place) < 1e-12 * max(abs(place), 1.0)), place)
        joined[key] = joined.get(key, 0.0) + dimension / rank
    return tuple(sorted(joined.items()))
