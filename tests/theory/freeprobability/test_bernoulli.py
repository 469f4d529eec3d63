"""Orthogonal hard-tanh networks, whose z is rational: a thin bulk below a point mass that holds nearly everything.

With chi = 1, x = M(z) solves z = ((1 + x)/x) ((p + x)/(p (1 + x)))^L (Pennington, Schoenholz, Ganguli 2018, arXiv
1802.09979): a point mass 1 - L(1 - p) at p^-L, 1 - p at zero, and a bulk that ends where dz/dx = 0.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special

from isometry.spectrum import Spectrum
from isometry.theory.prediction import predict

VARIANCES = (0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.3, 0.5, 1.0)
DEPTHS = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100, 300, 1000, 3000, 10_000)
# Bulks of 1e-6 to 1e-3 of the mass, whose zero of dz/dx lies next to a pole.
THIN = [
    *((0.04, depth) for depth in (2, 3, 4, 5, 7)),
    *((0.05, depth) for depth in (3, 4, 5, 7, 10)),
    (0.1, 2),
]
BULKY = [(0.2, 5), (0.3, 2), (0.5, 20), (1.0, 3), (1.0, 100), (0.06, 10_000)]


def saturated(q: float) -> float:
    """1 - p, without cancellation."""
    return float(special.erfc(1 / math.sqrt(2 * q)))


def log_z(x: NDArray[np.float64] | float, c: float, depth: int) -> NDArray[np.float64]:
    """log z of the equation above at real x < -1 or x > 0, c = 1 - p."""
    up = np.log(np.abs(1 + x)) - np.log(np.abs(x))
    return up + depth * (np.log(np.abs(1 + x - c)) - np.log(np.abs(1 + x)) - math.log1p(-c))


def mean_log(c: float, depth: int) -> float:
    """E log lambda over lambda > 0, -int_{-1}^0 log S(t) dt of the nonzero part: exact."""
    # 1/S = p^-1 ((1 + t)/(1 + p t))^(L - 1), since sigma_w^2 p = 1.
    p = 1 - c
    inner = (-p - c * math.log(c)) / p
    return (depth - 1) * (-1.0 - inner) - math.log1p(-c)


def bulk_is_right(spectrum: Spectrum, q: float, depth: int) -> None:
    """Masses, edge and mean logarithm of the bulk against their closed forms."""
    c, curve = saturated(q), spectrum.distribution
    share = max(1.0 - depth * c, 0.0)
    top = -depth * math.log1p(-c)
    assert spectrum.zero_mass == pytest.approx(c, rel=1e-9, abs=1e-15)
    at_top = sum(mass for place, mass in spectrum.atoms if place > 0)
    # p is a double near one, and L of its roundings add up.
    rounding = 4e-16 * depth
    assert at_top == pytest.approx(share, abs=1e-15 + rounding)
    bulk = 1.0 - share - c
    # What is below 1e-9 of the whole is not worth a curve.
    if bulk < 2e-9 or depth == 1:
        return
    assert curve.cdf_continuous[-1] == pytest.approx(bulk, rel=1e-7, abs=1e-13 + rounding)
    edge = (1 - c) / (depth * c - 1)
    assert 2 * curve.log_s[-1] == pytest.approx(float(log_z(edge, c, depth)), abs=1e-8 + rounding / c)
    # Mean of log lambda over the bulk, int F by Simpson's rule, from the grid's end at 5e-10 of the mass down.
    low, high = curve.log_s[:-1], curve.log_s[1:]
    inside = [np.interp(at, curve.log_s, curve.cdf_continuous) for at in (low, high)]
    half = 0.5 * (low + high)
    between = curve.cdf(half) - c
    area = np.sum((inside[0] + 4 * between + inside[1]) / 6 * (high - low))
    mean = 2 * (curve.log_s[-1] - area / bulk)
    expected = (mean_log(c, depth) * (1 - c) - share * top) / bulk
    cut = (5e-10 + rounding) / bulk
    assert mean == pytest.approx(expected, abs=1e-6 * depth + 60 * depth * cut)


@pytest.mark.parametrize(("q", "depth"), THIN + BULKY)
def test_a_thin_bulk_has_its_mass_its_edge_and_its_mean_logarithm(q: float, depth: int) -> None:
    bulk_is_right(predict("hard_tanh", depth, weights="orthogonal", q_star=q), q, depth)


@pytest.mark.slow
def test_the_bulk_is_right_on_a_whole_grid() -> None:
    for q, depth in itertools.product(VARIANCES, DEPTHS):
        bulk_is_right(predict("hard_tanh", depth, weights="orthogonal", q_star=q), q, depth)


@pytest.mark.parametrize(("q", "depth"), [(0.04, 3), (0.05, 5), (0.1, 2), (0.3, 4), (1.0, 3)])
def test_the_cdf_of_the_bulk_is_the_integral_over_a_root_of_its_polynomial(q: float, depth: int) -> None:
    # In y = (1 + x)/c, of order one in the bulk: (y - 1)^L p^-L = (z/c) (c y - 1) y^(L - 1).
    c = saturated(q)
    spectrum = predict("hard_tanh", depth, weights="orthogonal", q_star=q)
    edge = float(log_z((1 - c) / (depth * c - 1), c, depth))
    at = edge - np.linspace(0.0, math.sqrt(12.0), 3001) ** 2
    right = (np.poly1d([1.0, -1.0]) ** depth / (1 - c) ** depth).coeffs
    left = (np.poly1d([1.0, 0.0]) ** (depth - 1) * np.poly1d([c, -1.0])).coeffs

    def roots(log_lambda: complex) -> NDArray[np.complex128]:
        return np.roots(right - np.exp(log_lambda) / c * left)

    # From z < 0, where x lies in (-p, 0), turned to the positive axis, then downwards.
    real = [root.real for root in roots(at[-1] + 1j * math.pi) if abs(root.imag) < 1e-9]
    root = complex(min(value for value in real if value > 1.0))
    density = np.empty(at.size)
    for angle in np.linspace(math.pi, 0.0, 400):
        near = roots(at[-1] + 1j * angle)
        root = near[np.argmin(np.abs(near - root))]
    for index in range(at.size - 1, -1, -1):
        near = roots(complex(at[index]))
        root = near[np.argmin(np.abs(near - root))]
        density[index] = -c * root.imag / math.pi
    steps = 0.5 * (density[1:] + density[:-1]) * np.diff(at)
    expected = np.concatenate([[0.0], np.cumsum(steps)])
    got = spectrum.distribution.cdf(0.5 * at)
    bulk = 1.0 - max(1.0 - depth * c, 0.0) - c
    # Trapezoid on 3,000 cells, and a curve of 1e-8 of the whole.
    np.testing.assert_allclose(got - got[0], expected, atol=1e-5 * bulk + 2e-8)
