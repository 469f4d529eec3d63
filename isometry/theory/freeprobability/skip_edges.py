"""Ends of the spectrum of layers with a skip connection: real t where d log z / dt = 0. Internal.

Above the spectrum t > 0, in the gap between 0 and the spectrum t < -1, and every w_g is real. Solutions are followed from
t = 0, where y = t/(1 + c mu_1) and c w y = 1, and from t = -1, where w (1 + t) = mu_1 - 1/c as long as c mu_1 < 1, and
w = (1 + t)/(nu^2/c - nu), nu = E 1/d, as long as nu < c (orthogonal W): 1 + a D W is singular in between.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from isometry.theory.freeprobability.edges import Band
from isometry.theory.freeprobability.product import SkipLayers
from isometry.theory.freeprobability.real_edges import extremum
from isometry.theory.freeprobability.skip_equations import SkipEquations

Array = NDArray[np.float64]

# log t at which solutions start, and where the search for an edge ends.
START, STOP = -30.0, 40.0
ROUNDS = 12
# Distance of a solution from where the path points beyond which it is another one.
NEAR = 0.5
# Error of d log z / d log t per layer.
ROUNDING = 1e-14
# Distance of c from one at which 1 + sqrt(c) U counts as singular.
SINGULAR = 1e-9


def skip_band(equations: SkipEquations) -> Band:
    """The ends of the spectrum in log lambda - C, without gaps inside it."""
    high, high_edge = extremum(_RealPath(equations, above=True).log_z, START, STOP)
    low, low_edge = -math.inf, False
    open_below = all(_start_below(layer) is not None for layer in equations.kinds)
    if open_below and np.all(np.abs(equations.rotations.strengths - 1.0) > SINGULAR):
        low, low_edge = extremum(_RealPath(equations, above=False).log_z, START, STOP)
        if not low_edge:
            low = -math.inf
    return Band(low, high, low_edge, high_edge)


def _start_below(layer: SkipLayers) -> float | None:
    """-w (1 + t), or w/(1 + t), which is negative, as t falls to -1; None where the spectrum reaches zero."""
    mean = layer.strength * layer.law.mean
    if mean < 1.0:
        return (1.0 - mean) / layer.strength
    if layer.gaussian or layer.law.zero_mass or layer.law.support[0][0] <= 0.0:
        return None
    # E 1/d from h(w) at a w far below all d.
    w = 1e-12 * layer.law.support[0][0]
    inverse = -float(layer.law.averages(np.array([w], complex)).one_plus_m[0].real) / w
    return -1.0 / (inverse * (1.0 - inverse / layer.strength)) if inverse < layer.strength else None


class _RealPath:
    """log z at real t = e^y above the spectrum, or t = -1 - e^y below it; each solution starts the next."""

    def __init__(self, equations: SkipEquations, *, above: bool) -> None:
        self._equations, self._above = equations, above
        layers = equations.kinds
        if above:
            first = [math.log((1.0 + layer.strength * layer.law.mean) / layer.strength) - START for layer in layers]
        else:
            starts = [_start_below(layer) or math.nan for layer in layers]
            first = [math.log(start) - START if start > 0 else START + math.log(-start) for start in starts]
        smallest, largest = (np.array([layer.law.support[end][end] for layer in layers]) for end in (0, -1))
        # w = largest d (1 + e^x), or smallest d / (1 + e^-x) where it starts below the values of d.
        self._outside = np.array(first) > np.log(largest)
        self._ends = np.where(self._outside, largest, smallest)
        # (y, x of every kind), y growing.
        self._known: list[tuple[float, Array]] = [(START, np.array(first) - np.log(self._ends))]

    def log_z(self, y: Array) -> tuple[Array, Array]:
        """log z - C at (n,) increasing y and its slope; nan from where there is no real solution."""
        value, slope = np.full(y.size, np.nan), np.full(y.size, np.nan)
        for index, place in enumerate(y):
            x = self._followed(float(place))
            if x is None:
                break
            value[index], slope[index] = self._at(float(place), x)
        return value, slope

    def _transform(self, y: float) -> tuple[float, float, float]:
        """t, 1 + t, dt/dy."""
        rate = math.exp(y)
        return (rate, 1.0 + rate, rate) if self._above else (-1.0 - rate, -rate, -rate)

    def _followed(self, y: float) -> Array | None:
        """x at y, from the nearest known solution below it on."""
        if not self._ends.size:
            return self._ends
        start = max(index for index, (known, _) in enumerate(self._known) if known <= y)
        place, x = self._known[start]
        # w falls like 1/|y| at first, or rises where it is small.
        first = (place - 1.0, x + np.where(self._outside, 1.0, -1.0))
        before = self._known[start - 1] if start else first
        step = y - place
        while place < y:
            ahead = min(place + step, y)
            guess = x + (x - before[1]) * ((ahead - place) / (place - before[0]))
            found = self._newton(ahead, guess)
            if found is not None and np.max(np.abs(found - guess)) < NEAR:
                before, place, x, step = (place, x), ahead, found, 2.0 * step
            elif step < 1e-7:
                return None
            else:
                step *= 0.3
        if place > self._known[start][0]:
            self._known.insert(start + 1, (place, x))
        return x

    def _newton(self, y: float, x: Array) -> Array | None:
        t, one_plus_t, _ = self._transform(y)
        for _ in range(ROUNDS):
            miss, _, by_w, _, _ = self._layers(t, one_plus_t, x)
            step = -miss / by_w / self._w(x)[1]
            if not np.all(np.abs(step) < 2.0):
                return None
            x = x + step
            if np.max(np.abs(step)) < 1e-9:
                return x
        return None

    def _w(self, x: Array) -> tuple[Array, Array]:
        """w and d log w/dx."""
        with np.errstate(over="ignore"):
            growing, falling = np.exp(x), np.exp(-x)
        w = self._ends * np.where(self._outside, 1.0 + growing, 1.0 / (1.0 + falling))
        return w, np.where(self._outside, 1.0 / (1.0 + falling), 1.0 / (1.0 + growing))

    def _layers(self, t: float, one_plus_t: float, x: Array) -> tuple[Array, Array, Array, Array, Array]:
        """F, log 1/S_B, dF/dlog w, dm/dlog w, d log y/d kappa of every kind."""
        own = self._equations
        w = self._w(x)[0].astype(complex)
        with np.errstate(all="ignore"):
            at, _ = own.at(w[None, :])
            m, one_plus_m = at.m, at.one_plus_m
            miss, inverse_s, slope = own.layers(
                np.full((1, 1), t, complex), np.full((1, 1), one_plus_t, complex), w, m, one_plus_m
            )
        rate = at.m_rate[0].real
        by_w = 1.0 - rate * (slope[0].real + own.powers / one_plus_m[0].real)
        # On the way out of the right region the product changes its sign, and F its imaginary part.
        good = np.abs(miss[0].imag) < 1.0
        return np.where(good, miss[0].real, np.nan), inverse_s[0].real, by_w, rate, slope[0].real

    def _at(self, y: float, x: Array) -> tuple[float, float]:
        own, (t, one_plus_t, t_rate) = self._equations, self._transform(y)
        _, inverse_s, by_w, rate, slope = self._layers(t, one_plus_t, x)
        at, above = np.array([t], complex), np.array([one_plus_t], complex)
        explicit, explicit_slope = (float(part[0].real) for part in own.explicit(at, above))
        value = explicit + float((inverse_s - own.log_means) @ own.counts)
        by_t = (t + one_plus_t) / (t * one_plus_t) - slope * (1.0 + rate * slope / by_w)
        rate_of_z = t_rate * (explicit_slope + float(by_t @ own.counts))
        # Where all of it is rounding log z stands still: the density is infinite at this end.
        return value, rate_of_z if abs(rate_of_z) > ROUNDING * own.product.terms else math.nan
