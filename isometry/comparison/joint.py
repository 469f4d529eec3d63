"""Mean square and shape of a spectrum at once: Hotelling's T^2 of ln m_1 and of smooth moments of the shape.

A singular value in shape (mean square one) at the level u = F(s) of the replicas' mean cdf F adds Legendre polynomials
P_k(2 u - 1), k = 1..`ORDER` (Neyman's smooth test, 1937, Skand. Aktuarietidskr. 20, 149). Such means, linear statistics
of the spectrum, are nearly normal, and at one network they move together: what its slopes and the size of its signal
add to one of them they add to the others, and to ln m_1, in proportion. Their covariance over replicas knows in which
directions networks stray, and a law that lies off in another one is told by far less than what each number strays
alone:

    T^2 = (f - mean f)^T C^(-1) (f - mean f)    (Hotelling 1931, Ann. Math. Stat. 2, 360).

Its cube root is nearly normal (Wilson and Hilferty 1931, PNAS 17, 684), so that Student's t of it over replicas, each
against the mean and covariance of the others, gives p whether or not the numbers are normal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray
from scipy.special import stdtr

Array = NDArray[np.float64]

ORDER = 4
# Where draws are cut off: below this multiple of their largest value is rounding.
SMALLEST_RATIO = 1e-13


@dataclass(frozen=True, eq=False)
class Levels:
    """The mean cdf of replicas in shape, as the level of a place.

    Parameters
    ----------
    log_nodes, cumulative : (P,) arrays
        Of all replicas together, increasing.
    log_clip : float
        ln s in shape below which places are one.
    tolerance : float
        In ln s, within which two places are one.
    """

    log_nodes: Array
    cumulative: Array
    log_clip: float
    tolerance: float

    def features(self, log_nodes: Array, cumulative: Array, log_mean_squares: Array) -> Array:
        """ln m_1 and the smooth moments of spectra, (D, 1 + ORDER), from (D, K) nodes with cumulative masses."""
        masses = np.diff(cumulative, prepend=0.0, axis=1)
        places = np.maximum(log_nodes - 0.5 * log_mean_squares[:, None], self.log_clip)
        table = np.append(0.0, self.cumulative)
        below = table[np.searchsorted(self.log_nodes, places - self.tolerance, side="left")]
        above = table[np.searchsorted(self.log_nodes, places + self.tolerance, side="right")]
        moments = np.moveaxis(legendre.legvander(below + above - 1.0, ORDER)[..., 1:], 2, 0)
        return np.column_stack([log_mean_squares, *((masses * one).sum(axis=1) for one in moments)])


def levels_of(spectra: list[tuple[Array, Array, Array]], *, log_floor: float, tolerance: float) -> Levels:
    """The mean cdf of several sets of replicas: (log_nodes, cumulative, log_mean_squares) each.

    ``log_floor`` is the ln s in shape below which nothing is compared.
    """
    nodes = np.concatenate([(one - 0.5 * m[:, None]).ravel() for one, _, m in spectra])
    if np.isneginf(nodes).any():
        log_floor = max(log_floor, float(nodes.max()) + np.log(SMALLEST_RATIO))
    nodes = np.maximum(nodes, log_floor)
    masses = np.concatenate([np.diff(mass, prepend=0.0, axis=1).ravel() for _, mass, _ in spectra])
    order = np.argsort(nodes)
    cumulative = np.cumsum(masses[order])
    return Levels(nodes[order], cumulative / cumulative[-1], log_floor, tolerance)


class Hotelling:
    """T^2 of a vector against the mean and covariance of replicas.

    Parameters
    ----------
    features : (D, p) array
        Of the replicas.
    least : (p,) array
        Standard deviations that rounding or the discreteness of values has at least.
    """

    def __init__(self, features: Array, least: Array) -> None:
        count = features.shape[0]
        self.mean = features.mean(axis=0)
        self.std = np.sqrt(features.var(axis=0, ddof=1) + least**2)
        centred = (features - self.mean) / self.std
        scatter = centred.T @ centred + (count - 1) * np.diag((least / self.std) ** 2)
        self._count, self._inverse = count, np.linalg.inv(scatter)
        # Of each replica against the others (Sherman and Morrison 1950).
        own = np.einsum("ij,jk,ik->i", centred, self._inverse, centred)
        left = np.maximum(1.0 - own * count / (count - 1), 1e-12)
        self.roots = np.cbrt((count / (count - 1)) ** 2 * (count - 2) * own / left)

    def p_values(self, features: Array) -> Array:
        """Share of right networks that are as far, (n,), of (n, p) vectors."""
        centred = (features - self.mean) / self.std
        value = (self._count - 1) * np.einsum("ij,jk,ik->i", centred, self._inverse, centred)
        # Where replicas do not differ beyond what `least` allows, T^2 is that of p normal numbers.
        size = features.shape[1]
        mean = max(float(self.roots.mean()), size ** (1 / 3) * (1 - 2 / (9 * size)))
        std = max(float(self.roots.std(ddof=1)), size ** (1 / 3) * math.sqrt(2 / (9 * size)))
        t = (np.cbrt(value) - mean) / (std * math.sqrt(1 + 1 / self._count))
        return np.asarray(stdtr(self._count - 1, -t))
