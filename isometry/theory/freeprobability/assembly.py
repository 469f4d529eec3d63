"""From an ensemble to its `FreeProduct`: which factors, at which levels, and which point masses survive. Internal.

Widths are relative to the rank of J: rank = min over the levels of N_l P(phi' != 0), and N_0. The point masses of a
product with orthogonal weights are counted by dimensions: an eigenspace of D_l^2 of dimension p N_l meets a generic
subspace of dimension k in k - (1 - p) N_l dimensions, and a shrinking orthogonal matrix takes N_{l-1} - N_l away. A
Gaussian matrix leaves no point mass but the one at zero.
"""

from __future__ import annotations

import math
from collections import Counter
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
    """``count`` layers of relative width ``width`` (N_l) with one law of D^2."""

    law: SlopeLaw
    width: float
    count: float


def assemble(ensemble: Ensemble, activation: Activation, variances: LayerVariances) -> Assembly:
    """The free product of an ensemble's factors.

    Raises
    ------
    TheoryError
        When no signal passes, or when the layers fall into too many different kinds.
    """
    widths = np.array(ensemble.widths or (1,) * (ensemble.matrix_count + 1), float)
    slopes = _slopes(ensemble, activation, variances, widths)
    log_chi = float(
        sum(item.count * math.log(variances.sigma_w2 * item.law.moments(1)[0]) for item in slopes)
        / ensemble.depth
    )
    if ensemble.residual is not None:
        return Assembly(_residual(ensemble, variances, slopes), 1.0, log_chi)
    rank = min(widths[0], widths[-1], *(item.width * item.law.nonzero_mass for item in slopes))
    rank = min(rank, float(widths.min()))
    terms: Counter[float] = Counter()
    scale = math.log(widths[0] / rank)
    _add(terms, widths[0] / rank, 1.0)
    kinds = Counter(zip(ensemble.layer_weights, widths[:-1], widths[1:], strict=True))
    for (law, before, after), count in kinds.items():
        scale += count * math.log(variances.sigma_w2)
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
        atoms=_point_masses(ensemble, variances, slopes, widths, rank),
    )
    return Assembly(product, float(rank / min(widths[0], widths[-1])), log_chi)


def _add(terms: Counter[float], size: float, exponent: float) -> None:
    """Add to the exponent of 1 + t/size; sizes equal to rounding are one."""
    for known in terms:
        if abs(known - size) <= 1e-13 * size:
            terms[known] += exponent  # type: ignore[assignment]
            return
    terms[size] += exponent  # type: ignore[assignment]


def _slopes(
    ensemble: Ensemble, activation: Activation, variances: LayerVariances, widths: Array
) -> list[Slopes]:
    """Layers joined into kinds of equal width and (representative) q."""
    result: list[Slopes] = []
    levels = widths[1 : ensemble.depth + 1]
    # Where S is rational a kind costs nothing, and the mass at zero of the worst layer is exact.
    most = 1000 if activation.slopes is not None else 0
    for width in np.unique(levels):
        values, counts = representative_variances(variances.q[levels == width], most=most)
        for q, count in zip(values, counts, strict=True):
            law = slope_law(activation, 1.0 if np.isnan(q) else float(q))
            result.append(Slopes(law, float(width), float(count)))
    if len(result) > MOST_GROUPS and not all(item.law.is_two_point for item in result):
        raise TheoryError(
            f"the layers are of {len(result)} different kinds (width and variance), more than the {MOST_GROUPS} this "
            "solver takes on. Use fewer different widths."
        )
    return result


def _residual(ensemble: Ensemble, variances: LayerVariances, slopes: list[Slopes]) -> FreeProduct:
    """The product of the layers 1 + a D W, and of the read-out.

    Where two subspaces of dimension 1 - p are not moved by a layer, those of D W = 0 and of W^T D = 0, they meet in
    1 - 2 p dimensions, and those of all layers leave a point mass.
    """
    strength = (ensemble.residual or 0.0) ** 2 * variances.sigma_w2
    gaussian = ensemble.layer_weights[0] == "gaussian"
    layers = tuple(SkipLayers(item.law, strength, gaussian, item.count) for item in slopes)
    exponent, scale = 1.0, 0.0
    if ensemble.readout:
        scale += math.log(variances.sigma_w2)
        exponent += float(ensemble.layer_weights[-1] == "gaussian")
    unmoved = 1.0 - 2.0 * sum(item.count * item.law.nonzero_mass for item in slopes)
    atoms = ((scale, unmoved),) if unmoved > 0.0 and exponent == 1.0 else ()
    return FreeProduct(scale, np.array([1.0]), np.array([exponent]), atoms=atoms, skip_layers=layers)


def _point_masses(
    ensemble: Ensemble, variances: LayerVariances, slopes: list[Slopes], widths: Array, rank: float
) -> tuple[tuple[float, float], ...]:
    """(log lambda, share of the rank) of the point masses at nonzero lambda."""
    if "gaussian" in ensemble.layer_weights:
        return ()
    lost = float(np.sum(np.maximum(widths[:-1] - widths[1:], 0.0)))
    found: list[tuple[float, float]] = [
        (ensemble.matrix_count * math.log(variances.sigma_w2), widths[0] - lost)
    ]
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
