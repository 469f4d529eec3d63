"""Spectra in closed form: references for tests of the solver, and named limits.

All are laws of lambda = s^2. Depth L counts layers, J = D_L W_L ... D_1 W_1; the ReLU laws are those of the nonzero
half of the spectrum at sigma_w^2 = 2. None of them is used by the solver.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from isometry.errors import InputError

__all__ = [
    "bernoulli_limit_atom",
    "bernoulli_limit_density",
    "fuss_catalan_curve",
    "fuss_catalan_log_edge",
    "fuss_catalan_log_moment",
    "marchenko_pastur_cdf",
    "marchenko_pastur_edges",
    "relu_gaussian_log_edge",
    "relu_moment",
    "relu_orthogonal_edge",
    "residual_edges",
    "smooth_limit_curve",
    "smooth_limit_edges",
]

Array = NDArray[np.float64]


def marchenko_pastur_edges(ratio: float) -> tuple[float, float]:
    """Support of the nonzero eigenvalues of W^T W, W (N_1, N_0) Gaussian of variance 1/N_0, ratio = N_1/N_0.

    (1 -+ sqrt(ratio))^2; Marchenko and Pastur 1967.
    """
    root = math.sqrt(_positive(ratio, "ratio"))
    return (1.0 - root) ** 2, (1.0 + root) ** 2


def marchenko_pastur_cdf(eigenvalue: ArrayLike, ratio: float) -> Array:
    """Share of the nonzero eigenvalues at or below each value, shape of ``eigenvalue``.

    The density is sqrt((b - x)(x - a))/(2 pi x min(ratio, 1)); its integral is elementary.
    """
    a, b = marchenko_pastur_edges(ratio)
    x = np.clip(np.asarray(eigenvalue, float), max(a, 1e-300), b)
    up, down = np.sqrt(np.maximum(x - a, 0.0)), np.sqrt(np.maximum(b - x, 0.0))
    # Arcsines as arctangents, which keep their digits at the ends.
    first = 2.0 * np.arctan2(up, down)
    second = 2.0 * np.arctan2(math.sqrt(b) * up, math.sqrt(a) * down)
    integral = up * down + 0.5 * (a + b) * first - math.sqrt(a * b) * second
    return integral / (2.0 * np.pi * min(ratio, 1.0))


def fuss_catalan_log_edge(depth: int) -> float:
    """log of the largest eigenvalue of a product of ``depth`` square Gaussian matrices: (L+1)^(L+1)/L^L ~ e L."""
    return (depth + 1) * math.log(depth + 1) - depth * math.log(depth)


def fuss_catalan_log_moment(depth: int, order: int) -> float:
    """log of m_k = binom((L+1) k, k)/(L k + 1), the Fuss-Catalan numbers (L = 1: Catalan)."""
    top = (depth + 1) * order
    return float(
        special.gammaln(top + 1)
        - special.gammaln(order + 1)
        - special.gammaln(top - order + 1)
        - math.log(depth * order + 1)
    )


def fuss_catalan_curve(depth: int, angle: ArrayLike) -> tuple[Array, Array, Array]:
    """(log lambda, mass above, density per log lambda) along the angle in (0, pi/(L+1)), each of its shape.

    lambda = sin((L+1) a)^(L+1) / (sin a sin(L a)^L) (Biane; Penson and Zyczkowski 2011, arXiv 1103.3453); the mass
    above it, ((L+1) a - L sin((L+1) a) sin a / sin(L a))/pi, is the integral of the density in closed form.
    """
    a = np.asarray(angle, float)
    small, middle, large = np.sin(a), np.sin(depth * a), np.sin((depth + 1) * a)
    log_lambda = (depth + 1) * np.log(large) - np.log(small) - depth * np.log(middle)
    imaginary = large * small / middle
    return log_lambda, ((depth + 1) * a - depth * imaginary) / np.pi, imaginary / np.pi


def relu_gaussian_log_edge(depth: int) -> float:
    """log of the largest eigenvalue for ReLU with Gaussian weights, from d/dt [(2 + t)/t (1 + t)^L] = 0."""
    t = (math.sqrt(depth**2 + 1.0) - (depth - 1.0)) / depth
    return math.log((2.0 + t) / t) + depth * math.log1p(t)


def relu_orthogonal_edge(depth: int) -> float:
    """Largest eigenvalue for ReLU with orthogonal weights, L^L/(L-1)^(L-1); the limit 2 for one layer."""
    return 2.0 if depth == 1 else math.exp(depth * math.log(depth) - (depth - 1) * math.log(depth - 1))


def relu_moment(depth: int, order: int, weights: str) -> Fraction:
    """m_k of the nonzero half for ReLU, exactly: (1/k) [t^(k-1)] of a power of z(t) t.

    z t = (2 + t)(1 + t)^L for Gaussian, 2^L (1 + t)^L (2 + t)^(1-L) for orthogonal weights. The moment over the whole
    spectrum is half of it.
    """
    gaussian = weights == "gaussian"
    power = order if gaussian else order * (1 - depth)
    scale = Fraction(2) ** (0 if gaussian else depth * order)
    total = sum(
        _binomial(power, j) * Fraction(2) ** (power - j) * _binomial(depth * order, order - 1 - j)
        for j in range(order)
    )
    return scale * total / order


def bernoulli_limit_atom(variance: float) -> tuple[float, float]:
    """(lambda, mass) of the point mass in the Bernoulli universal limit; the mass is 0 from variance 1 on.

    Orthogonal weights, slopes 0 or 1 (hard-tanh), L to infinity at fixed variance s0^2 of lambda: lambda = exp(s0^2)
    of mass 1 - s0^2. Pennington, Schoenholz, Ganguli 2018, arXiv 1802.09979.
    """
    return math.exp(_positive(variance, "variance")), max(1.0 - variance, 0.0)


def bernoulli_limit_density(eigenvalue: ArrayLike, variance: float) -> Array:
    """Density of the bulk of the Bernoulli limit on (0, e s0^2), shape of ``eigenvalue``.

    G(z) = s0^2 / (z [s0^2 + W_0(-s0^2/z)]), W_0 the Lambert function. The density diverges at 0, integrably.
    """
    x = np.asarray(eigenvalue, float)
    inside = (x > 0) & (x < math.e * _positive(variance, "variance"))
    safe = np.where(inside, x, 1.0)
    # lambertw on its cut takes the side Im W > 0, which belongs to z above the axis.
    resolvent = variance / (safe * (variance + special.lambertw((-variance / safe).astype(complex))))
    return np.where(inside, np.abs(resolvent.imag) / np.pi, 0.0)


def smooth_limit_edges(variance: float) -> tuple[float, float]:
    """Support of the smooth universal limit, S(x) = exp(-s0^2 x), bounded away from zero.

    Orthogonal weights, smooth phi with phi'(0) != 0, q* to 0 at fixed variance s0^2 of lambda. Pennington, Schoenholz,
    Ganguli 2018, arXiv 1802.09979.
    """
    s = math.sqrt(_positive(variance, "variance"))
    root = s * math.sqrt(variance + 4.0)
    low, high = (
        0.5 * (2.0 + variance + sign * root) * math.exp(0.5 * (sign * root - variance))
        for sign in (-1.0, 1.0)
    )
    return low, high


def smooth_limit_curve(variance: float, imaginary: ArrayLike) -> tuple[Array, Array, Array]:
    """(log lambda below, log lambda above, density per log lambda) of the smooth limit, each of the shape given.

    With x = u - i y, z = (1 + x)/x exp(s0^2 x) is real where u^2 + u + y^2 = y cot(s0^2 y): two u for each
    y, mirrored at -1/2, and the law of log lambda is symmetric about zero. The density is y/pi; where y has
    no real u (beyond the largest density) the places are nan.
    """
    y = np.asarray(imaginary, float)
    with np.errstate(invalid="ignore"):
        root = np.sqrt(0.25 - y * y + y / np.tan(variance * y))
    above = np.log(np.abs((0.5 + root - 1j * y) / (root - 0.5 - 1j * y))) + variance * (root - 0.5)
    below = np.log(np.abs((0.5 - root - 1j * y) / (-root - 0.5 - 1j * y))) - variance * (root + 0.5)
    return below, above, y / np.pi


def residual_edges(c: float) -> tuple[float, float]:
    """Support of the large-depth residual law S(x) = exp(-c (1 + 2x)): the smooth limit of variance 2c, times e^c.

    Tarnowski et al. 2019, arXiv 1809.08848; c is the sum over layers of a^2 sigma_w^2 E phi'^2.
    """
    low, high = smooth_limit_edges(2.0 * c)
    return math.exp(c) * low, math.exp(c) * high


def _binomial(top: int, bottom: int) -> Fraction:
    """Generalised binomial coefficient, top possibly negative."""
    result = Fraction(1)
    for step in range(bottom):
        result *= Fraction(top - step, step + 1)
    return result


def _positive(value: float, name: str) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"{name} must be a finite number above zero, got {value!r}.")
    return float(value)
