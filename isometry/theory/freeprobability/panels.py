"""Panels of the Gaussian line with a 16-point rule each that resolve d(x) = phi'(sqrt(q) x)^2. Internal.

Whether a pole of 1/(w - d) is close to a panel is read from the values of d on it: with d nearly linear in x across
it, the pole sits at (w - middle)/half-range in units of the half-length; with log d nearly linear (an exponential
tail, for w far smaller than d) at (log w - middle)/half-range of log d; a panel that is neither counts as close. A
Gauss rule of n points errs by rho^(-2n), rho = D + sqrt(D^2 - 1) for a pole at distance D from the middle
(Trefethen, Approximation Theory and Approximation Practice, 2013, theorem 19.3).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from isometry.errors import ConvergenceError, TheoryError

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)
# Pole distance in half-lengths: rho = 3.7: errors of 1e-11 at worst, next to bends.
FAR = 2.0
# Legendre coefficients of degree 4 and more, relative to the half-range, up to which "d is linear" is trusted: a
# quadratic passes, an exponential while it spans less than e^3.
STRAIGHT = 0.03
# d this far below |w| counts as zero.
NOTHING = 1e-17
# Half-range of log d up to which "log d is linear" is trusted.
LOG_SPAN = 4.0
_HIGHER = np.polynomial.legendre.legvander(NODES, 9)[:, 4:] * WEIGHTS[:, None] * (np.arange(4, 10) + 0.5)
DEEPEST = 48
# Named activations take some hundred panels; a wave of a hundred periods takes some thousand.
MOST_PANELS = 20_000
UNBOUNDED = (
    "phi' is unbounded, so high moments of J J^T are infinite. Spectra are predicted for a phi' that is bounded on "
    "bounded intervals."
)


@dataclass(frozen=True, eq=False)
class Shape:
    """Middle and half of the range of d and of log d on panels, (P,) each, and whether d is nearly linear there."""

    centre: Array
    half: Array
    log_centre: Array
    log_half: Array
    linear: NDArray[np.bool_]

    @classmethod
    def of(cls, d: Array) -> Shape:
        """From the values at the nodes, (P, 16)."""
        low, high = d.min(axis=1), d.max(axis=1)
        log_low, log_high = np.log(np.maximum(low, 1e-300)), np.log(np.maximum(high, 1e-300))
        # The outermost Gauss nodes leave less than 1 % of the half-length uncovered on either side.
        half = 0.51 * (high - low)
        bend = np.max(np.abs(d @ _HIGHER), axis=1)
        return cls(
            0.5 * (low + high),
            half,
            0.5 * (log_low + log_high),
            0.51 * (log_high - log_low),
            bend <= STRAIGHT * half + 1e-15 * high,
        )

    @staticmethod
    def far(
        shape: Array, linear: NDArray[np.bool_], gap: Array, log_w: ComplexArray, size: Array
    ) -> NDArray[np.bool_]:
        """Whether every pole is far from each panel, (m,).

        Parameters
        ----------
        shape : (m, 4) array
            centre, half, log_centre, log_half.
        linear : (m,) array
        gap : (m,) array
            |w - centre|.
        log_w, size : (m,) arrays
            log w and |w|.
        """
        centre, half, log_centre, log_half = shape.T
        result = linear & (gap >= FAR * half)
        rest = np.flatnonzero(~result)
        exponential = np.abs(log_w[rest] - log_centre[rest]) >= FAR * log_half[rest]
        exponential &= log_half[rest] <= LOG_SPAN
        # Quartering ends where d is constant to rounding, or nothing beside w.
        ended = half[rest] <= 2e-15 * centre[rest]
        ended |= centre[rest] + half[rest] < NOTHING * size[rest]
        result[rest] = exponential | ended
        return result


@dataclass(frozen=True, eq=False)
class PanelRule:
    """Panels of the line that resolve d and the Gaussian weight themselves, without any pole.

    Parameters
    ----------
    function : callable
        d(x) from an array to an array of the same shape.
    left, width : (P,) arrays
        The panels.
    d, weight : (P, 16) arrays
        Values of d at the Gauss nodes, and Gaussian weight times node weight (times ``fold``).
    shape : Shape
        What d looks like on each panel.
    fold : float
        2 where d is even and only x >= 0 is covered.
    stretches : list of (low, high)
        Intervals of x between kinks, zeros and extrema of phi', so that d is monotone on each.
    ranges : list of (low, high)
        Range of d on each of them.
    """

    function: Callable[[Array], Array]
    left: Array
    width: Array
    d: Array
    weight: Array
    shape: Shape
    fold: float
    stretches: list[tuple[float, float]]
    ranges: list[tuple[float, float]]

    @classmethod
    def build(cls, function: Callable[[Array], Array], cuts: list[Array], *, fold: float) -> PanelRule:
        """Panels between the cuts of each piece, halved until E d and E d^6 agree to rounding.

        Raises
        ------
        ConvergenceError
            When they do not within 20,000 panels.
        TheoryError
            When d is unbounded at some x.
        """
        starts, ends, stretches, ranges = [], [], [], []
        for piece in cuts:
            for low, high in itertools.pairwise(piece):
                stretches.append((float(low), float(high)))
                edges = np.linspace(low, high, max(1, math.ceil((high - low) / 2)) + 1)
                starts.append(edges[:-1])
                ends.append(edges[1:])
        left = np.concatenate(starts)
        width = np.concatenate(ends) - left
        kept: list[tuple[Array, Array, Array, Array]] = []
        scale, noise = _size_and_noise(function, left, width)
        for _ in range(DEEPEST):
            size = left.size
            d, weight = sample(function, left, width, fold)
            halves_left = np.concatenate([left, left + 0.5 * width])
            halves_width = np.concatenate([width, width]) * 0.5
            halves_d, halves_weight = sample(function, halves_left, halves_width, fold)
            error = np.zeros(size)
            for power in (1, 6):
                whole = np.sum(weight * (d / scale) ** power, axis=1)
                parts = np.sum(halves_weight * (halves_d / scale) ** power, axis=1)
                error = np.maximum(error, np.abs(whole - parts[:size] - parts[size:]))
            fine = error <= 3e-16 + (1e-14 + 3.0 * noise) * weight.sum(axis=1)
            kept.append((left[fine], width[fine], d[fine], weight[fine]))
            rough = np.concatenate([~fine, ~fine])
            left, width = halves_left[rough], halves_width[rough]
            if left.size == 0:
                break
            if sum(part[0].size for part in kept) + left.size > MOST_PANELS:
                raise ConvergenceError(
                    f"phi' is not resolved by {MOST_PANELS} panels, first near {left[0]:.6g} standard deviations: it "
                    "has noise or too many waves there. Give its exact derivative, or a smaller variance."
                )
        else:
            # The rest has a width of 1e-13: a jump of d that was not declared as a kink.
            kept.append((left, width, *sample(function, left, width, fold)))
            if np.max(kept[-1][2]) > 1.5 * scale:
                raise TheoryError(UNBOUNDED)
        left, width, d, weight = (np.concatenate(parts) for parts in zip(*kept, strict=True))
        for low, high in stretches:
            corners = function(np.array([low, high]))
            lowest, highest = float(corners.min()), float(corners.max())
            # A zero of phi' is a zero to rounding only.
            ranges.append((lowest if lowest > 1e-28 * scale else 0.0, highest))
        return cls(function, left, width, d, weight, Shape.of(d), fold, stretches, ranges)

    @cached_property
    def mass(self) -> Array:
        """Gaussian mass of each panel, (P,)."""
        return self.weight.sum(axis=1)

    @cached_property
    def largest(self) -> float:
        """Largest d."""
        return max(high for _, high in self.ranges)

    def average(self, integrand: Callable[[Array], Array]) -> Array:
        """E[integrand(d)] over this part, for integrands that map (P, 16) to (P, 16, k); gives (k,)."""
        return np.einsum("pn,pnk->k", self.weight, integrand(self.d))


def _size_and_noise(function: Callable[[Array], Array], left: Array, width: Array) -> tuple[float, float]:
    """Largest d, and the noise of d beside it (a numerical derivative has some), from sixth differences."""
    x = left[:, None] + width[:, None] * (np.linspace(0.0, 1.0, 17)[:, None] + 1e-3 * np.arange(7)).ravel()
    d = function(x.ravel()).reshape(-1, 7)
    scale = float(np.max(d))
    return scale, float(np.median(np.abs(np.diff(d, 6, axis=1)))) / (30.4 * scale)


def sample(function: Callable[[Array], Array], left: Array, width: Array, fold: float) -> tuple[Array, Array]:
    """d at the nodes of panels, and Gaussian weight times node weight; (P, 16) each."""
    x = left[:, None] + 0.5 * width[:, None] * (NODES + 1.0)
    weight = (0.5 * fold / math.sqrt(2.0 * math.pi)) * width[:, None] * WEIGHTS * np.exp(-0.5 * x * x)
    return function(x.ravel()).reshape(x.shape), weight
