"""The product of S-transforms of all layers, as one explicit function log z(t). Internal.

With T(z) = sum_k tr (J J^T)^k z^-k, the same at every level of the network because a trace is cyclic, each factor
of J = D_L W_L ... D_1 W_1 contributes at its own level: x_l = T/N_l is the M-transform normalised by N_l, and

    z = (1 + x_0)/x_0  prod_l  A_l  prod_l 1/S_{D_l^2}(x_l),      1/S_{D^2}(m(w)) = m(w)/h(w),
    A_l = sigma_w^2 r_l (1 + x_l)                      Gaussian, r_l = N_l/N_{l-1},
          sigma_w^2                                    orthogonal, growing (W^T W = sigma_w^2),
          sigma_w^2 r_l (1 + x_l)/(1 + x_{l-1})        orthogonal, shrinking (W W^T = sigma_w^2).

This is S_{AB} = S_A S_B (Voiculescu 1987) carried from level to level; for square layers it is the master equation
of Pennington, Schoenholz, Ganguli (2018, arXiv 1802.09979), for Gaussian rectangular ones that of Chhaibi, Daouda,
Kahn (2021, arXiv 2111.00841). The rank of J is min over the levels of N_l P(phi' != 0), whatever the depth, so
everything is written in t = T/rank, the M-transform of the eigenvalues that are not zero: a probability law on
(0, inf). In logs, because z ranges over 1e-300 .. 1e300 and beyond:

    log z = const - log t + kappa t + beta t/(1 + t) + sum_j e_j log(1 + t/nu_j) + sum_g n_g [log m_g - log h_g],
    m_g(w_g) = t/nu_g.

Constant and two-point D^2 (linear, ReLU, hard-tanh) are rational and go into the e_j; the others are groups of equal
(law, width). kappa serves the smooth universal limit, beta the Bernoulli limit. Layers with a skip connection enter as
`skip_equations` says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from isometry.theory.freeprobability.branches import lower_log, lower_log_of_sum
from isometry.theory.freeprobability.law_averages import Averages, LawAverages
from isometry.theory.freeprobability.slope_law import SlopeLaw, point_masses

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

UNIT_LAW = point_masses([1.0], [1.0])


@dataclass(frozen=True, eq=False)
class Group:
    """``count`` layers with the same law of D^2 at levels of relative width ``size`` = N_l / rank."""

    law: SlopeLaw
    size: float
    count: float


@dataclass(frozen=True, eq=False)
class SkipLayers:
    """``count`` square layers 1 + a D W with the same law of D^2 and the same c = a^2 sigma_w^2."""

    law: SlopeLaw
    strength: float
    gaussian: bool
    count: float

    @property
    def is_rotation(self) -> bool:
        """Whether A is a multiple of a Haar orthogonal matrix, of size sqrt(c d): the law of |1 + A|^2 is explicit."""
        return not self.gaussian and self.law.is_constant

    @property
    def log_mean(self) -> float:
        """log of the mean square singular value, 1 + c E d."""
        return math.log1p(self.strength * self.law.mean)

    @property
    def relative_variance(self) -> float:
        """Variance of the squared singular values over their mean squared, from the series at t = 0."""
        mean, spread = self.strength * self.law.mean, self.law.relative_variance
        return float((2.0 * mean + mean**2 * (spread + self.gaussian)) / (1.0 + mean) ** 2)


@dataclass(frozen=True, eq=False)
class FreeProduct:
    """log z(t) of a product of free factors, on its nonzero eigenvalues.

    Parameters
    ----------
    log_scale : float
        log z minus everything else in it; with C = log_scale + sum_g n_g log E d_g, the mean of lambda is e^C, and all
        of the solver works with log z - C.
    sizes, exponents : (J,) arrays
        nu_j >= 1 and e_j.
    groups : tuple of Group
    skip_layers : tuple of SkipLayers
        Layers with a skip connection, which stand in a product without groups; log E d is `SkipLayers.log_mean` there.
    linear : float
        kappa.
    fraction : float
        beta.
    atoms : tuple of (log lambda, mass)
        Point masses among the nonzero eigenvalues; the masses are shares of the rank.
    """

    log_scale: float
    sizes: Array
    exponents: Array
    groups: tuple[Group, ...] = ()
    linear: float = 0.0
    fraction: float = 0.0
    atoms: tuple[tuple[float, float], ...] = ()
    skip_layers: tuple[SkipLayers, ...] = ()

    @cached_property
    def _outer(self) -> list[tuple[float, float]]:
        """(nu, e) with one factor 1 + t taken out, which goes with the 1/t: (1 + t)/t is near one in a narrow law."""
        terms = dict(zip(self.sizes.tolist(), self.exponents.tolist(), strict=True))
        terms[1.0] = terms.get(1.0, 0.0) - 1.0
        return [(size, exponent) for size, exponent in terms.items() if exponent]

    @cached_property
    def averages(self) -> LawAverages:
        """Averages over the laws of all groups at once."""
        return LawAverages([group.law for group in self.groups])

    @property
    def continuous_mass(self) -> float:
        """Mass of the nonzero eigenvalues outside the point masses."""
        return 1.0 - sum(mass for _, mass in self.atoms)

    @property
    def relative_variance(self) -> float:
        """Var lambda/(E lambda)^2 of the nonzero eigenvalues, a_1 - 1 of the moment series, without cancellation."""
        result = self.linear + self.fraction
        for size, exponent in zip(self.sizes, self.exponents, strict=True):
            result += (exponent - 1.0 if size == 1.0 else exponent) / size
        result += 0.0 if 1.0 in self.sizes else -1.0
        result += sum(group.count * group.law.relative_variance / group.size for group in self.groups)
        return float(result + sum(layer.count * layer.relative_variance for layer in self.skip_layers))

    @property
    def width(self) -> float:
        """Relative width of the law, one at most."""
        return min(1.0, math.sqrt(max(self.relative_variance, 1e-300)))

    @property
    def terms(self) -> float:
        """Number of terms log z is summed from."""
        layers = sum(group.count for group in self.groups) + sum(layer.count for layer in self.skip_layers)
        return 1.0 + layers + float(np.abs(self.exponents).sum())

    def explicit_log_z(self, t: ComplexArray, one_plus_t: ComplexArray) -> ComplexArray:
        """The part of log z - C that is explicit in t, at (n,) points of the closed lower half-plane.

        ``one_plus_t`` is passed apart: it has digits that 1 + t has lost near t = -1.
        """
        result = log_ratio(one_plus_t, t, 1.0 / t) + self.linear * t
        if self.fraction:
            result = result + self.fraction * t / one_plus_t
        for size, exponent in self._outer:
            result = result + exponent * lower_log((size - 1.0 + one_plus_t) / size)
        return result

    def explicit_slope(self, t: ComplexArray, one_plus_t: ComplexArray) -> ComplexArray:
        """d/dt of `explicit_log_z`."""
        result = self.linear - 1.0 / (t * one_plus_t)
        if self.fraction:
            result = result + self.fraction / one_plus_t**2
        for size, exponent in self._outer:
            result = result + exponent / (size - 1.0 + one_plus_t)
        return result

    def explicit_mass(self, t: ComplexArray, one_plus_t: ComplexArray) -> ComplexArray:
        """t log z - int log z dt for the explicit part: its imaginary part over pi is mass above lambda."""
        result = -lower_log(one_plus_t) + 0.5 * self.linear * t * t
        if self.fraction:
            result = result + self.fraction * (lower_log(one_plus_t) - t / one_plus_t)
        for size, exponent in self._outer:
            log = lower_log_of_sum(t / size, (size - 1.0 + one_plus_t) / size)
            result = result + exponent * (t - size * log)
        return result

    @property
    def leading_group(self) -> Group | None:
        """The one group whose w can parametrise the whole spectrum, or None where there is no such group.

        That is so when it is the only one and when it is the level that limits the rank; with no group at all a
        fictitious constant D at that level does it.
        """
        if self.skip_layers:
            return None
        if not self.groups:
            return Group(UNIT_LAW, 1.0, 0.0)
        if len(self.groups) == 1:
            group = self.groups[0]
            if abs(group.size * group.law.nonzero_mass - 1.0) < 1e-12:
                return group
        return None


def log_ratio(numerator: ComplexArray, denominator: ComplexArray, excess: ComplexArray) -> ComplexArray:
    """log(numerator/denominator) of numbers in the closed lower half-plane, exact also where the ratio is near one.

    ``excess`` is the ratio minus one, known without cancellation.
    """
    x, y = excess.real, excess.imag
    near = np.abs(excess) < 0.5
    result = lower_log(numerator) - lower_log(denominator)
    result.real[near] = 0.5 * np.log1p((x * (2.0 + x) + y * y)[near])
    result.imag[near] = np.arctan2(y[near], 1.0 + x[near])
    return result


def group_log_z(averages: Averages) -> ComplexArray:
    """log(m/h) - log E d of one layer: its log 1/S."""
    return log_ratio(*averages.log_ratio_branch, averages.ratio_excess)


def group_mass(averages: Averages) -> ComplexArray:
    """m log(m/h) - int log(m/h) dm of one layer: E log(1 - d/w) + log(1 + m), by parts with m/h = w m/(1 + m).

    The averages must hold that logarithm.
    """
    assert averages.logarithm is not None
    return averages.logarithm + lower_log_of_sum(averages.m, averages.one_plus_m)
