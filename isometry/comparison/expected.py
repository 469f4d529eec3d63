"""The ranges that right networks of this width, measured this way, keep to: what a table sets beside a distance."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isometry.comparison.replicas import Replicas
from isometry.spectrum import Distribution

Array = NDArray[np.float64]

MOMENTS = (1, 2, 3, 4)
SHARE = 0.95
PLACES = 600
UNKNOWN = (math.nan, math.nan)


@dataclass(frozen=True)
class ExpectedFluctuation:
    """Where 95 % of right networks lie: finite width, finite probes; nan where unknown.

    Parameters
    ----------
    ks, ks_shape : float
        KS distance from the law, raw and in shape, that 95 % stay below.
    log_moments : tuple of (float, float)
        Ranges of ln(m_k ratio), k = 1..4.
    log_s_max, log_s_min : (float, float)
        Ranges of ln(s_max ratio) and of ln(s_min ratio).
    source : str
        What was drawn to know.
    """

    ks: float
    ks_shape: float
    log_moments: tuple[tuple[float, float], ...]
    log_s_max: tuple[float, float]
    log_s_min: tuple[float, float]
    source: str
    replicas: Replicas | None = field(default=None, repr=False, compare=False)

    def cdf_band(self, log_s: ArrayLike) -> tuple[Array, Array]:
        """Where 95 % of right networks have their cdf at (k,) places ln s, pointwise: lower and upper, (k,) each."""
        places = np.atleast_1d(np.asarray(log_s, float))
        if self.replicas is None:
            unknown = np.full(places.size, np.nan)
            return unknown, unknown
        lower, upper = np.quantile(_cdfs(self.replicas, places, 0.0), _tails(), axis=0, method="weibull")
        return lower, upper


NOT_KNOWN = ExpectedFluctuation(math.nan, math.nan, (UNKNOWN,) * 4, UNKNOWN, UNKNOWN, "")


def expected_fluctuation(
    replicas: Replicas | None, law: Distribution, *, log_floor: float, tolerance: float
) -> ExpectedFluctuation:
    """The ranges that replicas of a law keep to.

    Parameters
    ----------
    replicas : Replicas or None
    law : Distribution
    log_floor, tolerance : float
        As the distances have them.
    """
    if replicas is None:
        return NOT_KNOWN
    mean = replicas.log_mean_squares
    law_mean = law.log_moment(2)
    raw = _sup(replicas, law, np.zeros(mean.size), log_floor, tolerance)
    shape = _sup(replicas, law, 0.5 * (law_mean - mean), log_floor, tolerance)
    masses = np.diff(replicas.cumulative, prepend=0.0, axis=1)
    moments = [_range(mean - law_mean)]
    for k in MOMENTS[1:]:
        top = replicas.log_nodes.max(axis=1)
        with np.errstate(invalid="ignore"):
            sums = (masses * np.exp(2 * k * (replicas.log_nodes - top[:, None]))).sum(axis=1)
            moments.append(_range(np.log(sums) + 2 * k * top - law.log_moment(2 * k)))
    if replicas.mean_square is not None:
        center, std = replicas.mean_square
        moments[0] = (center - law_mean - 1.96 * std, center - law_mean + 1.96 * std)
    low, high = law.log_ends
    return ExpectedFluctuation(
        ks=float(np.quantile(raw, SHARE, method="weibull")),
        ks_shape=float(np.quantile(shape, SHARE, method="weibull")),
        log_moments=tuple(moments),
        log_s_max=_range(replicas.log_s_maxima - high),
        log_s_min=_range(replicas.log_s_minima - low) if law.zero_mass == 0 else UNKNOWN,
        source=replicas.source,
        replicas=replicas,
    )


def _tails() -> list[float]:
    return [0.5 * (1.0 - SHARE), 0.5 * (1.0 + SHARE)]


def _range(values: Array) -> tuple[float, float]:
    if not np.all(np.isfinite(values)):
        return UNKNOWN
    low, high = np.quantile(values, _tails(), method="weibull")
    return float(low), float(high)


def _cdfs(replicas: Replicas, places: Array, shift: float | Array) -> Array:
    shifts = np.broadcast_to(np.asarray(shift, float), (replicas.count,))
    return np.array(
        [
            np.append(0.0, mass)[np.searchsorted(nodes + move, places, side="right")]
            for nodes, mass, move in zip(replicas.log_nodes, replicas.cumulative, shifts, strict=True)
        ]
    )


def _sup(replicas: Replicas, law: Distribution, shift: Array, log_floor: float, tolerance: float) -> Array:
    """KS distances of the replicas, moved by ``shift``, from the law, (D,), over `PLACES` quantiles of either."""
    shift = np.where(np.isfinite(shift), shift, 0.0)
    pooled = np.sort((replicas.log_nodes + shift[:, None]).ravel())
    pooled = pooled[np.isfinite(pooled)]
    if not pooled.size:
        return np.zeros(replicas.count)
    picked = pooled[np.linspace(0, pooled.size - 1, PLACES).astype(int)]
    atoms = law.point_masses[0]
    places = np.unique(np.concatenate([picked, atoms[np.isfinite(atoms)]]))
    places = np.unique(np.concatenate([places, places - 1.5 * tolerance]))
    places = places[places >= log_floor]
    if not places.size:
        return np.zeros(replicas.count)
    here, beyond = _cdfs(replicas, places, shift), _cdfs(replicas, places + tolerance, shift)
    above = (here - law.cdf(places + tolerance)).max(axis=1)
    below = (law.cdf(places) - beyond).max(axis=1)
    return np.maximum(np.maximum(above, below), 0.0)
