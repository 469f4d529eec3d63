"""Ends of the spectrum of layers with a skip connection: real t where d log z / dt = 0. Internal.

Above the spectrum t > 0, in the gap between 0 and the spectrum t < -1, and every w_g is real. Solutions are followed
from t = 0, where y = t/(1 + c mu_1) and c w y = 1, and from t = -1, where w (1 + t) = mu_1 - 1/c as long as c mu_1 < 1,
and w = (1 + t)/(nu^2/c - nu), nu = E 1/d, as long as nu < c (orthogonal W): 1 + a D W is singular in between.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from isometry.errors import ConvergenceError
from isometry.theory.freeprobability.edges import Band
from isometry.theory.freeprobability.product import SkipLayers
from isometry.theory.freeprobability.skip_equations import SkipEquations

Array = NDArray[np.float64]

# How far from the spectrum solutions start, in log |t|.
MARGIN, FARTHEST = 6.0, -70.0
ROUNDS, MOST_STEPS = 12, 400
# Newton's last step, whose square is the error; distance in log |t| from an edge at which its place is known.
LAST_STEP, CLOSE = 1e-6, 1e-4
SHORTEST = 1e-9
# Distance of a solution from where the path points beyond which it is another one.
NEAR = 0.5
# Error of d log z / d log t per layer.
ROUNDING = 1e-14
# Distance of c from one at which 1 + sqrt(c) U counts as singular.
SINGULAR = 1e-9


def skip_band(equations: SkipEquations) -> Band:
    """The ends of the spectrum in log lambda - C, without gaps inside it."""
    high, high_edge = _RealPath(equations, above=True).end()
    low, low_edge = -math.inf, False
    open_below = all(_start_below(layer) is not None for layer in equations.kinds)
    if open_below and np.all(np.abs(equations.rotations.strengths - 1.0) > SINGULAR):
        low, low_edge = _RealPath(equations, above=False).end()
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


def _share(slope: float, turned: tuple[float, float], y: float) -> float:
    """Step to where the secant of the slope vanishes, and a little further, so that the bracket shrinks."""
    return (turned[0] - y) * min(1.02 * slope / (slope - turned[1]) + 1e-6, 0.95)


class _RealPath:
    """log z at real t = e^y above the spectrum, or t = -1 - e^y below it, followed as y grows."""

    def __init__(self, equations: SkipEquations, *, above: bool) -> None:
        self._equations, self._above = equations, above
        layers = equations.kinds
        # An edge has |t| near one over the width of a narrow law, over the variance of a wide one.
        spread = equations.product.relative_variance
        self._start = -math.log(max(math.sqrt(spread), spread)) - MARGIN
        if above:
            first = [math.log((1.0 + layer.strength * layer.law.mean) / layer.strength) for layer in layers]
            falls = np.full(len(layers), True)
        else:
            starts = [_start_below(layer) or math.nan for layer in layers]
            first = [math.log(abs(start)) for start in starts]
            falls = np.array(starts) > 0.0
        self._first, self._falls = np.array(first), falls
        smallest, largest = (np.array([layer.law.support[end][end] for layer in layers]) for end in (0, -1))
        # w = largest d (1 + e^x), or smallest d / (1 + e^-x) where it starts below the values of d.
        self._ends = np.where(self._falls, largest, smallest)

    def end(self) -> tuple[float, bool]:
        """log z - C at the first y where it turns, and True; or where real solutions end, and False."""
        y, step = self._start, 1.0
        while (x := self._newton(y, self._asymptote(y))) is None:
            # Where a layer is nearly singular the solution at t = -1 reaches less far.
            y -= 4.0
            if y < FARTHEST:
                raise ConvergenceError(
                    "the equations of the skip layers have no real solution far from the spectrum. No spectrum is "
                    "given; please report the ensemble."
                )
        direction = self._asymptote(y + 0.5) - self._asymptote(y - 0.5)
        value, slope = self._at(y, x)
        turned: tuple[float, float] | None = None
        for _ in range(MOST_STEPS):
            ahead = y + step
            guess = x + direction * step
            found = self._newton(ahead, guess)
            if found is None or (found.size and np.max(np.abs(found - guess)) > NEAR):
                step *= 0.3
                if step < SHORTEST:
                    return value, False
                continue
            ahead_value, ahead_slope = self._at(ahead, found)
            if not math.isfinite(ahead_slope):
                return ahead_value, False
            if ahead_slope * slope > 0.0:
                direction = (found - x) / step
                y, x, value, slope = ahead, found, ahead_value, ahead_slope
                step = 1.0 if turned is None else min((turned[0] - y) * 0.5, _share(slope, turned, y))
            else:
                turned = (ahead, ahead_slope)
                if step * abs(slope) / abs(slope - ahead_slope) < CLOSE:
                    # Integrate the linear slope: an error of third order.
                    return value + 0.5 * step * slope * slope / (slope - ahead_slope), True
                step = _share(slope, turned, y)
        raise ConvergenceError("an edge of the spectrum was not found. Please report the ensemble.")

    def _asymptote(self, y: float) -> Array:
        """x close to t = 0 or -1; where the branch is weak it holds farther, for y is then near t (1 + t)."""
        return self._first + np.where(self._falls, -y - math.log1p(math.exp(y)), y) - np.log(self._ends)

    def _transform(self, y: float) -> tuple[float, float, float]:
        """t, 1 + t, dt/dy."""
        rate = math.exp(y)
        return (rate, 1.0 + rate, rate) if self._above else (-1.0 - rate, -rate, -rate)

    def _newton(self, y: float, x: Array) -> Array | None:
        t, one_plus_t, _ = self._transform(y)
        for _ in range(ROUNDS):
            miss, _, by_w, _, _ = self._layers(t, one_plus_t, x)
            step = -miss / by_w / self._w(x)[1]
            if not np.all(np.abs(step) < 2.0):
                return None
            x = x + step
            if np.all(np.abs(step) < LAST_STEP):
                return x
        return None

    def _w(self, x: Array) -> tuple[Array, Array]:
        """w and d log w/dx."""
        with np.errstate(over="ignore"):
            growing, falling = np.exp(x), np.exp(-x)
        w = self._ends * np.where(self._falls, 1.0 + growing, 1.0 / (1.0 + falling))
        return w, np.where(self._falls, 1.0 / (1.0 + falling), 1.0 / (1.0 + growing))

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
