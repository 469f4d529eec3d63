"""Gains of layers that make up for an activation: averages of phi and phi' over a Gaussian. Internal."""

from __future__ import annotations

import math
from functools import lru_cache

from isometry.errors import IsometryError
from isometry.theory.activations import Activation, get_activation
from isometry.theory.gaussian import gaussian_average

# Beyond it an activation is driven into saturation, as a sigmoid is whose slope is at most 1/4.
LARGEST_GAIN = 4.0


@lru_cache(maxsize=256)
def unit_gain(activation: str | Activation, chi: float = 1.0) -> float | None:
    """g with g^2 E phi'(g z)^2 = chi, z ~ N(0, 1): the chi of a layer and phi, for inputs of mean square 1.

    None where no g up to 4 is enough, or the average does not exist.
    """
    phi = get_activation(activation)

    def log_chi(gain: float) -> float:
        slope = gaussian_average(lambda h: phi.derivative(h) ** 2, gain**2, kinks=phi.kinks)
        return 2 * math.log(gain) + math.log(slope) - math.log(chi) if slope > 0 else -math.inf

    if chi <= 0:
        return None
    try:
        low, high = 0.05 * math.sqrt(chi), LARGEST_GAIN
        if log_chi(high) < 0 or log_chi(low) > 0:
            return None
        while high / low > 1 + 1e-12:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if log_chi(middle) >= 0 else (middle, high)
    except IsometryError:
        return None
    return high


@lru_cache(maxsize=256)
def second_moments(activation: str | Activation) -> tuple[float, float]:
    """E phi(z)^2 and E phi'(z)^2, z ~ N(0, 1)."""
    phi = get_activation(activation)
    value = gaussian_average(lambda h: phi.function(h) ** 2, 1.0, kinks=phi.kinks)
    slope = gaussian_average(lambda h: phi.derivative(h) ** 2, 1.0, kinks=phi.kinks)
    return float(value), float(slope)
