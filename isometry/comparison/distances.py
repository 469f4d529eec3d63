"""Distances between two distributions of singular values, exact for steps, point masses and curves.

Everything is computed in t = ln s. Both cdfs F and G are right-continuous; a sup or an integral over t is taken
over the union of the places where either jumps or has a grid point, from the left and from the right, so that
neither half a step nor a point mass between two grid points is lost. All mass at or below a floor counts as
lying at the floor: what a measurement cannot tell from zero is compared as one mass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isometry.spectrum import Distribution

Array = NDArray[np.float64]

LN10 = math.log(10)
# Beyond so many distinct places a distribution is looked at through its quantiles, to 1 / MOST_PLACES in mass.
MOST_PLACES = 20_000
# Levels at which a smooth curve is looked at beside its own grid points.
LEVELS = 1_000


def places(distribution: Distribution) -> Array:
    """Where to look at a distribution: ln s of its jumps, or its grid points, quantiles and point masses; increasing.

    Without ln 0 = -inf. At most `MOST_PLACES` and a few.
    """
    grid = distribution.grid
    if grid.size > MOST_PLACES:
        levels = (np.arange(MOST_PLACES) + 0.5) / MOST_PLACES
        grid = np.concatenate([distribution.quantile(levels), grid[[0, -1]]])
    quantiles = distribution.quantile(np.linspace(0.0, 1.0, LEVELS + 1))
    found = np.unique(np.concatenate([grid, quantiles, distribution.point_masses[0]]))
    return found[np.isfinite(found)]


@dataclass(frozen=True)
class SupDistance:
    """A Kolmogorov-Smirnov distance, the place where it is reached, and its sign.

    Parameters
    ----------
    value : float
        sup |F - G|, in [0, 1].
    log_s : float
        ln s where it is reached; nan for distance zero.
    sign : int
        +1 where the first distribution has more mass below that place, -1 where it has less, 0 for no distance.
    """

    value: float
    log_s: float
    sign: int


def kolmogorov_smirnov(
    first: Distribution,
    second: Distribution,
    *,
    log_floor: float = -math.inf,
    tolerance: float = 0.0,
    band: Callable[[Array], tuple[Array, Array]] | None = None,
) -> SupDistance:
    """sup over t >= floor of |F(t) - G(t)|, places within ``tolerance`` of each other counting as equal.

    Parameters
    ----------
    first, second : Distribution
        With cdfs F and G.
    log_floor : float
        ln of the floor.
    tolerance : float
        In ln s. The distance is the smallest one over all displacements of mass by at most ``tolerance``:
        max(sup F(t) - G(t + tolerance), sup G(t) - F(t + tolerance), 0). Two atoms at the same place but for
        rounding are then no distance apart, and a smooth G changes by its density times ``tolerance`` only.
    band : callable, optional
        From ln s, (k,) array, to the widths (down, up) of an error band: the true F - G lies between F - G - down
        and F - G + up. The distance is then that of the nearest curve inside the band.

    Returns
    -------
    SupDistance
    """
    jumps = np.union1d(places(first), places(second))
    # F(t) - G(t + tolerance) is largest at a jump of F, or just before a jump of G: there t + tolerance must not
    # round up to the jump itself.
    before = 1e-14 * np.maximum(1.0, np.abs(jumps) + tolerance)
    t = np.concatenate([jumps, jumps - tolerance - before])
    t = t[t >= log_floor]
    if math.isfinite(log_floor):
        t = np.append(t, log_floor)
    if t.size == 0:
        difference = first.zero_mass - second.zero_mass
        return SupDistance(abs(difference), -math.inf, int(np.sign(difference)))
    down, up = band(t) if band is not None else (np.zeros(t.size), np.zeros(t.size))
    best = SupDistance(0.0, math.nan, 0)
    for sign, upper, lower, slack in ((1, first, second, down), (-1, second, first, up)):
        excess = upper.cdf(t) - lower.cdf(t + tolerance) - slack
        worst = int(np.argmax(excess))
        if excess[worst] > best.value:
            best = SupDistance(float(excess[worst]), float(t[worst]), sign)
    return best


def wasserstein(
    first: Distribution, second: Distribution, *, log_floor: float, log_unit: float | None = None
) -> float:
    """Wasserstein-1 distance, the area between the two cdfs above the floor.

    Parameters
    ----------
    first, second : Distribution
    log_floor : float
        ln of the floor; all mass below it is moved to it. May be -inf for a distance in s.
    log_unit : float, optional
        ln of the unit in which s is counted, for a distance in s: int |F - G| ds / unit. None for the distance in
        log10 s: int |F - G| d log10 s, which needs a finite floor where either has mass at zero.

    Returns
    -------
    float
        inf where mass at zero meets log10 s without a floor.
    """
    return _area(first, second, _difference, log_floor=log_floor, log_unit=log_unit)


def spread_integral(distribution: Distribution, *, log_floor: float, log_unit: float | None = None) -> float:
    """int sqrt(F (1 - F)), over s / unit or over log10 s as in `wasserstein`.

    The expected area between F and the cdf of k independent draws is sqrt(2/pi) / sqrt(k) times this, because a sum
    of k indicator functions has the standard deviation sqrt(F (1 - F) / k) at every place.
    """
    return _area(distribution, distribution, _binomial, log_floor=log_floor, log_unit=log_unit)


def _difference(f: Array, g: Array) -> Array:
    return f - g


def _binomial(f: Array, g: Array) -> Array:
    return np.sqrt(np.clip(f * (1.0 - g), 0.0, None))


def _area(
    first: Distribution,
    second: Distribution,
    height: Callable[[Array, Array], Array],
    *,
    log_floor: float,
    log_unit: float | None,
) -> float:
    """int |height(F, G)|, linear between neighbouring places."""
    t = np.union1d(places(first), places(second))
    t = t[t > log_floor]
    if math.isfinite(log_floor):
        t = np.concatenate([[log_floor], t])
    elif log_unit is None and first.zero_mass != second.zero_mass:
        return math.inf
    if t.size < 2 and log_unit is None:
        return 0.0
    left = height(first.cdf(t), second.cdf(t))[:-1]
    right = height(first.cdf(t, left=True), second.cdf(t, left=True))[1:]
    a, b = np.abs(left), np.abs(right)
    total = np.where(a + b > 0, a + b, 1.0)
    # A line that crosses zero bounds two triangles.
    mean = np.where(left * right >= 0, 0.5 * (a + b), 0.5 * (a * a + b * b) / total)
    if log_unit is None:
        return float(np.sum(mean * np.diff(t)) / LN10)
    with np.errstate(over="ignore"):
        s = np.exp(t - log_unit)
    area = float(np.sum(mean * np.diff(s)))
    if not math.isfinite(log_floor) and t.size:
        # Between zero and the first place both cdfs are flat at their mass at zero.
        zero = np.atleast_1d(height(np.array([first.zero_mass]), np.array([second.zero_mass])))
        area += float(abs(zero[0]) * s[0])
    return area
