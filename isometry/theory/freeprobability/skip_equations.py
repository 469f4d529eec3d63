"""The equations of layers with a skip connection, B = 1 + a D W, at any strength of the branch. Internal.

A = a D W is R-diagonal, so the law of |1 + A|, made symmetric about zero, is the free additive convolution of those of
|A| and of 1 (Haagerup and Schultz 2007, arXiv math/0605251, proposition 3.5 and section 4; Nica and Speicher 1997). A
symmetric law with Cauchy transform g at zeta has, with y = g^2 and K = zeta g - 1, the M-transform of its squares,

    y = K (1 + K) S(K),        zeta^2 = (1 + K)^2 / y,

and the K of a free sum at the same y is the sum of the K of its terms. With c = a^2 sigma_w^2, m = m(w) and
h(w) = (1 + m)/w of the law of D^2, and kappa for the skip, whose S is one:

    t = m + kappa,      y = kappa (1 + kappa) = h / c         Gaussian W,
                                              = (1 + m) h / c   orthogonal W,
    1/S_B(t) = t (1 + t) / y.

The S-transforms of layers multiply, and t is the same in all of them. Along the curve, t log(1/S_B) - int log(1/S_B) dt
is elementary: log (1 + kappa)/(1 + t) + Phi(w) + log(1 + m) + (m, or log(1 + m) for orthogonal W).

Where D is constant and W orthogonal, with c the square of A, y is elementary (`_Rotations`):

    1/S_B(t) = [(1 + c)(1 + t) + R]/(2 + t),      R^2 = (1 - c)^2 + 4 c (1 + t)^2,      Re R >= 0.

w is the square of a point of the upper half-plane over c, so it covers the plane without the positive axis:
v = log(-w) has its imaginary part between -pi and pi.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isometry.theory.freeprobability.branches import lower_log
from isometry.theory.freeprobability.continuation import System, falling_roots, transform_of
from isometry.theory.freeprobability.law_averages import Averages, LawAverages
from isometry.theory.freeprobability.product import FreeProduct, SkipLayers

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]


# d log y/du of the skip, which is 1 + 2 t where there is no branch, beyond which y is a small difference.
SMALL = 20.0
# Imaginary part of kappa beside its size that is rounding.
REAL = 1e-11


@dataclass(frozen=True, eq=False)
class Rotations:
    """Layers 1 + sqrt(c) U, U Haar orthogonal; everything is explicit in t, at (n,) points."""

    strengths: Array
    counts: Array

    def _root(self, one_plus_t: ComplexArray) -> ComplexArray:
        """R/(1 + c), (n, K)."""
        return np.asarray(np.sqrt(self._rest + self._share * (one_plus_t**2)[:, None]))

    @property
    def _share(self) -> Array:
        return 4.0 * self.strengths / (1.0 + self.strengths) ** 2

    @property
    def _rest(self) -> Array:
        """One minus the share, without cancellation."""
        return np.asarray(((1.0 - self.strengths) / (1.0 + self.strengths)) ** 2)

    def log_z(self, t: ComplexArray, one_plus_t: ComplexArray) -> tuple[ComplexArray, ComplexArray]:
        """Sum of log 1/S_B - log(1 + c), and its slope in t, (n,) each."""
        root, level = self._root(one_plus_t), one_plus_t[:, None]
        excess = self._share * t[:, None] / (1.0 + root)
        # (1 + t + R)/(2 + t), where R^2 - (1 + t)^2 = (1 - share)(1 - (1 + t)^2).
        with np.errstate(all="ignore"):
            mirrored = self._rest * (1.0 - level) / (root - level)
            whole = np.where(level.real > 0.0, (level + root) / (1.0 + level), mirrored)
        value = _log_inverse_s(excess, whole, t[:, None] * level)
        slope = (
            self._share
            / (1.0 + root)
            * (1.0 - self._share * (t * one_plus_t)[:, None] / (root * (1.0 + root)))
        )
        return value @ self.counts, (slope / whole) @ self.counts

    def mass(self, t: ComplexArray, one_plus_t: ComplexArray) -> ComplexArray:
        """t log(1/S_B) - int log(1/S_B) dt: log (1 + kappa)(1 + m)/(1 + t), 1 + kappa and 1 + m = (2 + t -+ e)/2."""
        ratio = (1.0 - self.strengths) / (1.0 + self.strengths)
        root, level = self._root(one_plus_t), one_plus_t[:, None]
        # (1 + t)^2 - 1 = (1 + t + R)(1 + t - R)/ratio^2, so that one of the two does not cancel.
        with np.errstate(all="ignore"):
            e = np.where(
                level.real > 0.0, ratio * (t * (2.0 + t))[:, None] / (level + root), (level - root) / ratio
            )
        logs = [np.log(0.5 * (1.0 + level + sign * e)) for sign in (-1.0, 1.0)]
        return np.asarray((logs[0] + logs[1] - lower_log(one_plus_t)[:, None]) @ self.counts)


@dataclass(frozen=True, eq=False)
class SkipEquations:
    """The `continuation.Equations` of a product's layers with a skip connection."""

    product: FreeProduct
    highest_angle: float = np.pi

    @cached_property
    def rotations(self) -> Rotations:
        """The layers that are explicit in t."""
        layers = [layer for layer in self.product.skip_layers if layer.is_rotation]
        return Rotations(
            np.array([layer.strength * layer.law.mean for layer in layers]),
            np.array([layer.count for layer in layers]),
        )

    @cached_property
    def kinds(self) -> tuple[SkipLayers, ...]:
        """The others, K kinds, each with its w."""
        return tuple(layer for layer in self.product.skip_layers if not layer.is_rotation)

    def explicit(self, t: ComplexArray, one_plus_t: ComplexArray) -> tuple[ComplexArray, ComplexArray]:
        """The part of log z - C that is explicit in t, and its slope in t, at (n,) points."""
        value, slope = self.rotations.log_z(t, one_plus_t)
        return (
            self.product.explicit_log_z(t, one_plus_t) + value,
            self.product.explicit_slope(t, one_plus_t) + slope,
        )

    @cached_property
    def averages(self) -> LawAverages:
        """Averages over the laws of D^2 of all kinds of layers at once."""
        return LawAverages([layer.law for layer in self.kinds])

    @cached_property
    def counts(self) -> Array:
        """Number of layers of each kind, (K,)."""
        return np.array([layer.count for layer in self.kinds])

    @cached_property
    def strengths(self) -> Array:
        """c of each kind, (K,)."""
        return np.array([layer.strength for layer in self.kinds])

    @cached_property
    def powers(self) -> Array:
        """Power of 1 + m in y c w: 1 for Gaussian, 2 for orthogonal weights; (K,)."""
        return np.array([1.0 if layer.gaussian else 2.0 for layer in self.kinds])

    @cached_property
    def log_means(self) -> Array:
        """log of the mean squared singular value of each kind, (K,)."""
        return np.array([layer.log_mean for layer in self.kinds])

    def system(self, unknown: ComplexArray) -> System:
        """The equations at (n, 1 + K) unknowns."""
        t, one_plus_t = transform_of(unknown[:, 0])
        w = -np.exp(unknown[:, 1:])
        at, turned = self.at(w)
        m, one_plus_m, rate = (_turned(x, turned) for x in (at.m, at.one_plus_m, at.m_rate))
        level, t_rate = t[:, None], (t * one_plus_t)[:, None]
        miss, log_inverse_s, kappa_slope = self.layers(level, one_plus_t[:, None], w, m, one_plus_m)
        miss_v, own = -kappa_slope * rate, kappa_slope * rate
        # d log y/dv, y = kappa (1 + kappa) or by its other form.
        other = 1.0 - self.powers * rate / one_plus_m
        own_u = 1.0 + 2.0 * level - kappa_slope * t_rate
        # In a gap where t = -1, kappa or 1 + kappa is a small difference, and y - h/c a better equation than its log.
        small = np.abs(kappa_slope * t_rate) > SMALL * np.abs(1.0 + 2.0 * level)
        if np.any(small):
            ratio = np.exp(-miss)
            log_inverse_s = np.where(small, log_inverse_s + miss, log_inverse_s)
            miss_v = np.where(small, miss_v + other * ratio, miss_v + other)
            miss = np.where(small, 1.0 - ratio, miss)
            own, own_u = np.where(small, other, own), np.where(small, 1.0 + 2.0 * level, own_u)
        else:
            miss_v = miss_v + other
        log_z, slope = self.explicit(t, one_plus_t)
        return System(
            miss,
            kappa_slope * t_rate,
            miss_v,
            log_z + (log_inverse_s - self.log_means) @ self.counts,
            slope * t_rate[:, 0] + own_u @ self.counts,
            self.counts * own,
        )

    def layers(
        self,
        t: ComplexArray,
        one_plus_t: ComplexArray,
        w: ComplexArray,
        m: ComplexArray,
        one_plus_m: ComplexArray,
    ) -> tuple[ComplexArray, ComplexArray, ComplexArray]:
        """log of kappa (1 + kappa) over y, log 1/S_B, and d log(kappa (1 + kappa))/d kappa, of every kind; (n, K)."""
        kappa, one_plus_kappa = _difference(t, one_plus_t, m, one_plus_m), one_plus_t - m
        y = kappa * one_plus_kappa
        miss = np.log(y * self.strengths * w / one_plus_m**self.powers)
        # t (1 + t) - y is small for a weak branch.
        excess = m * (t + one_plus_t - m) / y
        return miss, _log_inverse_s(excess, t * one_plus_t / y, t * one_plus_t), (kappa + one_plus_kappa) / y

    def on_negative_axis(self, u: Array) -> Array:
        """Real v_g that solve the equations at (n,) real u, (n, K)."""
        if not self.kinds:
            return np.empty((u.size, 0))
        number = np.arange(self.counts.size)
        t, one_plus_t = (np.repeat(x, number.size) for x in transform_of(u))
        kind = np.tile(number, u.size)
        c, power = self.strengths[kind], self.powers[kind]

        def miss(v: Array, active: NDArray[np.intp]) -> tuple[Array, Array]:
            here = kind[active]
            at = self.averages(_upper(-np.exp(v)), here)
            m, one_plus_m, rate = at.m.real, at.one_plus_m.real, at.m_rate.real
            kappa = _difference(t[active], one_plus_t[active], m, one_plus_m)
            one_plus_kappa = one_plus_t[active] - m
            with np.errstate(divide="ignore", invalid="ignore"):
                value = -(
                    v + np.log(c[active] * kappa * -one_plus_kappa) - power[active] * np.log(one_plus_m)
                )
                slope = -(
                    1.0
                    - rate
                    * ((kappa + one_plus_kappa) / (kappa * one_plus_kappa) + power[active] / one_plus_m)
                )
            # Beyond kappa = 0 w is too close to zero.
            return np.where(kappa < 0.0, value, np.inf), np.where(kappa < 0.0, slope, -1.0)

        mean = np.array([layer.law.mean for layer in self.kinds])[kind]
        # Where w is large y = -t/(1 + c mu_1), and y c w = 1.
        first = -np.log(-t * one_plus_t * c / (1.0 + c * mean))
        return falling_roots(miss, first).reshape(u.size, -1)

    def mass(self, unknown: ComplexArray) -> tuple[ComplexArray, ComplexArray]:
        """(log z - C, t log z - int log z dt) at (n, 1 + K) solutions: density and mass follow from them."""
        t, one_plus_t = transform_of(unknown[:, 0])
        w = -np.exp(unknown[:, 1:])
        at, turned = self.at(w, logarithm=True)
        assert at.logarithm is not None
        m, one_plus_m, phi = (_turned(x, turned) for x in (at.m, at.one_plus_m, at.logarithm))
        _, log_inverse_s, _ = self.layers(t[:, None], one_plus_t[:, None], w, m, one_plus_m)
        log_z = self.explicit(t, one_plus_t)[0] + (log_inverse_s - self.log_means) @ self.counts
        kappa = _difference(t[:, None], one_plus_t[:, None], m, one_plus_m)
        one_plus_kappa = one_plus_t[:, None] - m
        # 1 + m and 1 + kappa lie below the real axis while the roots of w and of (1 + kappa)/kappa have a positive real
        # part. In a gap all are real, and those roots are (1 + m) and (1 + kappa) over the same g.
        same = (one_plus_kappa.real > 0.0) == (one_plus_m.real > 0.0)
        real = np.abs(kappa.imag) <= REAL * np.abs(kappa)
        below = np.where(real, same != turned, kappa.imag < 0.0)
        log_m = _sided_log(one_plus_m, ~turned)
        own = _sided_log(one_plus_kappa, below) - lower_log(one_plus_t)[:, None] + phi + log_m
        own = own + np.where(self.powers == 1.0, m, log_m)
        explicit = self.product.explicit_mass(t, one_plus_t) + self.rotations.mass(t, one_plus_t)
        return log_z, explicit + own @ self.counts

    def at(self, w: ComplexArray, *, logarithm: bool = False) -> tuple[Averages, NDArray[np.bool_]]:
        """Averages at (n, K) points or their mirror images in the upper half-plane, and where it is the image."""
        turned = w.imag < 0.0
        if not self.kinds:
            return Averages(w, w, w, w, w, w, (w, w), w), turned
        return self.averages(np.where(turned, w.conj(), w), logarithm=logarithm), turned


def _difference(
    t: NDArray[Any], one_plus_t: NDArray[Any], m: NDArray[Any], one_plus_m: NDArray[Any]
) -> NDArray[Any]:
    """t - m, with the digits that remain where both are close to -1."""
    first = np.maximum(np.abs(t), np.abs(m)) < np.maximum(np.abs(one_plus_t), np.abs(one_plus_m))
    return np.where(first, t - m, one_plus_t - one_plus_m)


def _sided_log(values: ComplexArray, below: NDArray[np.bool_]) -> ComplexArray:
    """log of numbers that lie below or above the real axis, whatever rounding makes of their imaginary part."""
    angle = np.abs(np.angle(values))
    return np.log(np.abs(values)) + 1j * np.where(below, -angle, angle)


def _upper(w: Array) -> ComplexArray:
    return w.astype(complex)


def _turned(values: ComplexArray, turned: NDArray[np.bool_]) -> ComplexArray:
    return np.where(turned, values.conj(), values)


def _log_inverse_s(excess: ComplexArray, whole: ComplexArray, level: ComplexArray) -> ComplexArray:
    """log 1/S, exact also where the excess 1/S - 1 is small; ``level`` is t (1 + t)."""
    x, y = excess.real, excess.imag
    near = np.abs(excess) < 0.5
    result: ComplexArray = np.log(whole)
    result.real[near] = 0.5 * np.log1p((x * (2.0 + x) + y * y)[near])
    result.imag[near] = np.arctan2(y[near], 1.0 + x[near])
    # Its argument is that of z_B t/(1 + t), z_B above and t/(1 + t) below the real axis, the one of which is negative.
    flat = (whole.real < 0.0) & (np.abs(whole.imag) < REAL * np.abs(whole))
    result.imag[flat] = np.where(np.broadcast_to(level.real, whole.shape)[flat] < 0.0, -np.pi, np.pi)
    return result
