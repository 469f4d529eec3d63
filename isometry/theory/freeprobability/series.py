"""Moments of the spectrum by series inversion. Internal.

With log z = C - log t + A(t), A(t) = a_1 t + a_2 t^2 + ..., and t = sum_k m_k z^-k the Lagrange inversion formula
gives every moment in closed form,

    m_k = e^{kC} (1/k) [t^{k-1}] exp(k A(t)),

so m_1 = e^C = prod sigma_w^2 mu_1 and m_2 = m_1^2 a_1: the variance formula of Pennington, Schoenholz, Ganguli (2017,
arXiv 1711.04735). The scale e^{kC} is kept as a logarithm.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from isometry.errors import ConvergenceError
from isometry.theory.freeprobability.product import FreeProduct, SkipLayers
from isometry.theory.freeprobability.slope_law import SlopeLaw

Array = NDArray[np.float64]


def log_moments(product: FreeProduct, count: int) -> Array:
    """log m_k, k = 1..count, of the nonzero eigenvalues of a free product; (count,).

    Raises
    ------
    ConvergenceError
        When rounding makes a moment negative.
    """
    scale, series = log_z_series(product, count)
    result = np.empty(count)
    for k in range(1, count + 1):
        coefficient = series_exp(k * series)[k - 1] / k
        if not coefficient > 0:
            raise ConvergenceError(
                f"moment {k} of the spectrum came out as {coefficient:.3g}: series inversion lost all digits. "
                "Please report the ensemble."
            )
        result[k - 1] = k * scale + math.log(coefficient)
    return result


def log_z_series(product: FreeProduct, count: int) -> tuple[float, Array]:
    """C and the coefficients a_0 = 0, a_1 .. a_{count-1} of A(t); (count,)."""
    orders = np.arange(1, count)
    series = np.zeros(count)
    scale = product.log_scale
    if count > 1:
        series[1] += product.linear
    # beta t/(1 + t) = -beta sum (-t)^n
    series[1:] -= product.fraction * (-1.0) ** orders
    for size, exponent in zip(product.sizes, product.exponents, strict=True):
        series[1:] -= exponent * (-1.0 / size) ** orders / orders
    for group in product.groups:
        log_mean, coefficients = log_inverse_s_series(group.law, count)
        scale += group.count * log_mean
        # The factor 1/t belongs to the levels, not to the groups: x = t/size only rescales here.
        series[1:] += group.count * coefficients[1:] / group.size**orders
    for layer in product.skip_layers:
        scale += layer.count * layer.log_mean
        series += layer.count * log_skip_series(layer, count)
    return scale, series


def log_skip_series(layer: SkipLayers, count: int) -> Array:
    """The series in t of log t (1 + t)/y - log(1 + c mu_1), coefficients 0..count-1: 1/S of 1 + a D W.

    t = kappa + m with kappa = y - y^2 + 2 y^3 - ..., the inverse of y = kappa (1 + kappa), and m(y) that of
    c y = m (1 + m)^(0 or 1) S_{D^2}(m), as in `skip_equations`.
    """
    _, inverse_s = log_inverse_s_series(layer.law, count)
    orders = np.arange(1, count)
    one_plus = np.append(0.0, (-1.0) ** (orders + 1) / orders)
    # In x = y (1 + c mu_1), whose coefficient in t is one.
    share = 1.0 / (1.0 + layer.strength * layer.law.mean)
    scales = np.array([share, layer.strength * layer.law.mean * share])
    roots = [
        reverted(series_exp(series))
        for series in (one_plus, (0.0 if layer.gaussian else 1.0) * one_plus - inverse_s)
    ]
    t = sum(root * scale ** np.arange(1, count + 1) for root, scale in zip(roots, scales, strict=True))
    # y/t as a series in t.
    return one_plus - series_log(reverted(np.asarray(t)))


def reverted(a: Array) -> Array:
    """b_1 .. of y = b_1 x + b_2 x^2 + ... where x = y (a_0 + a_1 y + ...), a_0 = 1: b_k = [y^(k-1)] (x/y)^-k / k."""
    r = series_log(a)
    return np.array([series_exp(-k * r)[k - 1] / k for k in range(1, a.size + 1)])


def log_inverse_s_series(law: SlopeLaw, count: int) -> tuple[float, Array]:
    """log mu_1 and the series of log 1/S_{D^2}(x) - log mu_1 in x, coefficients 0..count-1.

    1/S = w x/(1 + x) with x = sum_k mu_k w^-k. With v = mu_1/w and R(v) = log(x/v), Lagrange again:
    [x^n] R(v(x)) = (1/n) [v^{n-1}] R'(v) exp(-n R(v)).
    """
    moments = law.moments(count)
    mean = float(moments[0])
    ratios = moments / mean ** np.arange(1, count + 1)
    r = series_log(ratios)
    slope = np.append(r[1:] * np.arange(1, count), 0.0)
    result = np.zeros(count)
    for n in range(1, count):
        weights = series_exp(-n * r)
        result[n] = float(slope[:n] @ weights[n - 1 :: -1][:n]) / n
        # minus log(1 + x)
        result[n] += (-1.0) ** n / n
    return math.log(mean), result


def series_exp(a: Array) -> Array:
    """Coefficients of exp(a(x)), where a[0] = 0."""
    result = np.zeros(a.size)
    result[0] = 1.0
    for n in range(1, a.size):
        orders = np.arange(1, n + 1)
        result[n] = float((orders * a[1 : n + 1]) @ result[n - 1 :: -1][:n]) / n
    return result


def series_log(a: Array) -> Array:
    """Coefficients of log(a(x)), where a[0] = 1."""
    result = np.zeros(a.size)
    for n in range(1, a.size):
        orders = np.arange(1, n)
        result[n] = a[n] - float((orders * result[1:n]) @ a[n - orders]) / n
    return result
