"""The product of S-transforms of all layers, as one explicit function log z(t).

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

    log z = C - log t + kappa t + beta t/(1 + t) + sum_j e_j log(1 + t/nu_j) + sum_g n_g [log m_g - log h_g],
    m_g(w_g) = t/nu_g.

Constant and two-point D^2 (linear, ReLU, hard-tanh) are rational and go into the e_j; the others are groups of equal
(law, width). kappa serves the residual law and the smooth universal limit, beta the Bernoulli limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isometry.theory.slope_law import Averages, SlopeLaw, point_masses

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
class FreeProduct:
    """log z(t) of a product of free factors, on its nonzero eigenvalues.

    Parameters
    ----------
    log_scale : float
        C.
    sizes, exponents : (J,) arrays
        nu_j >= 1 and e_j.
    groups : tuple of Group
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

    def explicit_log_z(self, t: ComplexArray, one_plus_t: ComplexArray) -> ComplexArray:
        """The part of log z that is explicit in t, at (n,) points of the closed lower half-plane.

        ``one_plus_t`` is passed apart: it has digits that 1 + t has lost near t = -1.
        """
        result = self.log_scale - lower_log(t) + self.linear * t
        if self.fraction:
            result = result + self.fraction * t / one_plus_t
        for size, exponent in zip(self.sizes, self.exponents, strict=True):
            result = result + exponent * lower_log((size - 1.0 + one_plus_t) / size)
        return result

    def explicit_slope(self, t: ComplexArray, one_plus_t: ComplexArray) -> ComplexArray:
        """d/dt of `explicit_log_z`."""
        result = self.linear - 1.0 / t
        if self.fraction:
            result = result + self.fraction / one_plus_t**2
        for size, exponent in zip(self.sizes, self.exponents, strict=True):
            result = result + exponent / (size - 1.0 + one_plus_t)
        return result

    def explicit_integral(self, t: ComplexArray, one_plus_t: ComplexArray) -> ComplexArray:
        """An antiderivative in t of `explicit_log_z`."""
        result = (self.log_scale + 1.0) * t - t * lower_log(t) + 0.5 * self.linear * t * t
        if self.fraction:
            result = result + self.fraction * (t - lower_log(one_plus_t))
        for size, exponent in zip(self.sizes, self.exponents, strict=True):
            shifted = size - 1.0 + one_plus_t
            result = result + exponent * (shifted * lower_log(shifted / size) - t)
        return result

    @property
    def leading_group(self) -> Group | None:
        """The one group whose w can parametrise the whole spectrum, or None where there is no such group.

        That is so when it is the only one and when it is the level that limits the rank; with no group at all a
        fictitious constant D at that level does it.
        """
        if not self.groups:
            return Group(UNIT_LAW, 1.0, 0.0)
        if len(self.groups) == 1:
            group = self.groups[0]
            if abs(group.size * group.law.nonzero_mass - 1.0) < 1e-12:
                return group
        return None


def lower_log(values: ComplexArray) -> ComplexArray:
    """log with arguments in [-pi, 0]: the branch of the closed lower half-plane, negative reals included."""
    signed = np.array(values, complex)
    signed.imag[signed.imag == 0.0] = -0.0
    return np.log(signed)


def group_integral(w: ComplexArray, averages: Averages) -> ComplexArray:
    """int log(m/h) dm along the curve of one group, by parts; the constant is that of w = infinity.

    m/h = w m/(1 + m), and int log w dm = m log w - E log(1 - d/w). The averages must hold that logarithm.
    """
    assert averages.logarithm is not None
    one_plus_m = w * averages.h
    return (
        averages.m * np.log(w)
        - averages.logarithm
        + averages.m * lower_log(averages.m)
        - one_plus_m * lower_log(one_plus_m)
    )
