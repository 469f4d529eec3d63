"""The spectrum of one orthogonal layer: lambda is d = phi'(h)^2 itself, times a constant. Internal.

There is no free multiplication, so the law has the singularities of d: its density is infinite where phi' has
an extremum. The cdf comes from inverting d on each stretch where it is monotone, exactly.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import special

from isometry.theory.freeprobability.product import FreeProduct, Group

Array = NDArray[np.float64]

SMALLEST_D = 1e-300
# Beyond it there is less than 1e-18 of a Gaussian.
FARTHEST = 9.0


def single_factor(product: FreeProduct) -> Group | None:
    """The one layer whose D is all there is in the product, or None."""
    if product.linear or product.fraction or product.skip_layers or len(product.groups) != 1:
        return None
    group = product.groups[0]
    alone = product.sizes.size == 1 and product.exponents[0] == 1.0
    if alone and group.count == 1.0 and abs(product.sizes[0] - group.size) < 1e-12 * group.size:
        return group
    return None


def law_of_one_layer(
    group: Group, points: int, remaining_mass: float = 5e-10
) -> tuple[Array, Array, Array, tuple[float, float]]:
    """(log lambda, cdf, density per log lambda, support) of the continuous part of d > 0, over its mean.

    Parameters
    ----------
    group : Group
    points : int
        Size of the grid, roughly.
    remaining_mass : float
        The grid begins where this much mass is left below.
    """
    rule = group.law.continuous
    shift = math.log(group.law.nonzero_mass / group.law.mean)
    places = [math.log(value) for value in group.law.values]
    if rule is None:
        empty = np.empty(0)
        return empty, empty, empty, (min(places) + shift, max(places) + shift)
    share = rule.fold / group.law.nonzero_mass
    stretches = [np.sort(np.array(stretch)) for stretch in rule.stretches]
    # Ends of stretches are extrema or zeros of phi': cluster there, for the cdf has a root in log d.
    near = np.geomspace(1e-9, 0.02, max(points // 16, 60))
    candidates = []
    for low, high in stretches:
        a, b = max(low, -FARTHEST), min(high, FARTHEST)
        if a < b:
            even = np.linspace(0.0, 1.0, max(int(points * (b - a) / (2.0 * FARTHEST)), 60))
            grid = np.unique(np.concatenate([even, near, 1.0 - near]))
            candidates.append(np.log(np.maximum(rule.function(a + (b - a) * grid), SMALLEST_D)))
    values = np.unique(np.concatenate(candidates))
    values = values[np.diff(values, prepend=-np.inf) > 1e-13 * np.maximum(np.abs(values), 1e-3)]
    cdf, density = np.zeros(values.size), np.zeros(values.size)
    for low, high in stretches:
        x, rising = _inverse(rule.function, low, high, values)
        mass = special.ndtr(x) - special.ndtr(low) if rising else special.ndtr(-x) - special.ndtr(-high)
        cdf += share * mass
        # At an end the inversion has run into the bracket: nothing of this stretch lies there.
        inside = (x - low > 1e-11) & (high - x > 1e-11)
        step = 1e-5 * np.minimum(1.0, np.minimum(x - low, high - x))[inside]
        above = np.log(np.maximum(rule.function(x[inside] + step), SMALLEST_D))
        below = np.log(np.maximum(rule.function(x[inside] - step), SMALLEST_D))
        steepness = np.maximum(np.abs(above - below) / (2 * step), 1e-12)
        density[inside] += share * np.exp(-0.5 * x[inside] ** 2) / math.sqrt(2 * math.pi) / steepness
    kept = np.flatnonzero(cdf >= remaining_mass)
    start = max(int(kept[0]) - 1, 0)
    values, cdf, density = values[start:], cdf[start:], density[start:]
    # Where the density is infinite any finite number stands for it: three times the secant keeps the cubic monotone.
    secant = np.diff(cdf) / np.diff(values)
    limit = 3.0 * np.maximum(np.append(secant, secant[-1]), np.insert(secant, 0, secant[0]))
    cdf[-1] = share * float(rule.mass.sum()) / rule.fold
    lowest = min([float(values[0]), *places]) if rule_minimum(rule.ranges) > 1e-15 else -math.inf
    highest = max([float(values[-1]), *places])
    return (
        values + shift,
        np.maximum.accumulate(cdf),
        np.minimum(density, limit),
        (
            lowest + shift,
            highest + shift,
        ),
    )


def single_rotation(product: FreeProduct) -> float | None:
    """c of the one layer 1 + sqrt(c) U that is all there is in the product, or None."""
    if len(product.skip_layers) != 1 or product.exponents.tolist() != [1.0]:
        return None
    layer = product.skip_layers[0]
    return layer.strength * layer.law.mean if layer.is_rotation and layer.count == 1.0 else None


def law_of_one_rotation(strength: float, points: int) -> tuple[Array, Array, Array, tuple[float, float]]:
    """(log lambda, cdf, density per log lambda, support) of |1 + sqrt(c) U|^2 over its mean.

    U Haar orthogonal has its eigenvalues even on the circle: lambda = (1 - sqrt c)^2 + 4 sqrt c sin^2(angle/2).
    """
    size = math.sqrt(strength)
    half = 0.5 * np.pi * np.linspace(0.0, 1.0, points + 1)
    if size == 1.0:
        # The support reaches zero: cdf = (2/pi) arcsin(sqrt(lambda)/2).
        half = np.geomspace(1e-10, 0.5 * np.pi, points + 1)
    eigenvalue = (1.0 - size) ** 2 + 4.0 * size * np.sin(half) ** 2
    log_lambda = np.log(eigenvalue / (1.0 + strength))
    rising = np.diff(log_lambda, prepend=-np.inf) > 0
    log_lambda, half, eigenvalue = log_lambda[rising], half[rising], eigenvalue[rising]
    cdf = 2.0 / np.pi * half
    with np.errstate(divide="ignore"):
        density = eigenvalue / (2.0 * np.pi * size * np.sin(2.0 * half))
    secant = np.diff(cdf) / np.diff(log_lambda)
    limit = 3.0 * np.maximum(np.append(secant, secant[-1]), np.insert(secant, 0, secant[0]))
    low = -math.inf if size == 1.0 else float(log_lambda[0])
    return log_lambda, cdf, np.minimum(np.abs(density), limit), (low, float(log_lambda[-1]))


def rule_minimum(ranges: list[tuple[float, float]]) -> float:
    """Smallest d relative to the largest."""
    return min(low for low, _ in ranges) / max(high for _, high in ranges)


def _inverse(function, low: float, high: float, values: Array) -> tuple[Array, bool]:  # type: ignore[no-untyped-def]
    """x in [low, high] with log d(x) = value, clipped to the ends, and whether d rises."""
    ends = function(np.array([low, high]))
    rising = bool(ends[1] >= ends[0])
    a, b = np.full(values.size, low), np.full(values.size, high)
    for _ in range(60):
        middle = 0.5 * (a + b)
        below = np.log(np.maximum(function(middle), SMALLEST_D)) < values
        go_right = below if rising else ~below
        a, b = np.where(go_right, middle, a), np.where(go_right, b, middle)
    return 0.5 * (a + b), rising
