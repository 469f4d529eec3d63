"""Covariances E phi(u1) phi(u2) of correlated Gaussians as power series in the correlation. Internal.

With phi(sqrt(q) z) = sum_k a_k(q) h_k(z), h_k = He_k / sqrt(k!), Mehler's formula gives
E phi(u1) phi(u2) = sum_k a_k(q1) a_k(q2) c^k. All terms are positive where q1 = q2 and c > 0, so that neither the
value, nor its slope in c, nor its distance from the value at c = 1 loses digits; and one set of
coefficients serves every c. Where the series ends too early for the accuracy asked (kinks at c near 1), the
average over the plane is taken instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from isometry.errors import ConvergenceError, NonFiniteError
from isometry.theory.activations import Activation
from isometry.theory.gaussian import checked_variance, gaussian_average, legendre_rule
from isometry.theory.meanfield.pairs import checked_correlation, pair_average

Array = NDArray[np.float64]

# a_k falls like exp(-d sqrt(k)) for a smooth phi, d the distance of its nearest pole in units of sqrt(q): 1024 terms
# are enough for tanh up to q = 6. For kinks it falls like a power, and no count is.
COUNT = 1024
PANEL = 0.5
POINTS = 24
# |h_k(z)| exp(-z^2/4) is below one, and the other exp(-z^2/4) is 5e-22 there.
TAIL = 14.0
SERIES_TOLERANCE = 1e-14
HALVINGS = 6


def hermite_coefficients(
    function: Callable[[Array], Array], q: float, *, count: int = COUNT, kinks: Sequence[float] = ()
) -> Array:
    """Coefficients a_k = E f(sqrt(q) z) h_k(z), k = 0 .. count - 1, h_k = He_k / sqrt(k!).

    Parameters
    ----------
    function : callable
        Elementwise on (n,) arrays.
    q : float
        Variance.
    count : int
        How many coefficients at most; fewer are taken, and the rest left zero, where 16 in a row add nothing.
    kinks : sequence of float
        Points h where the function is not smooth.

    Returns
    -------
    (count,) array
        With absolute errors of about 1e-15 sqrt(E f^2).
    """
    sigma = math.sqrt(checked_variance(q))
    edges = [np.arange(-TAIL, TAIL + PANEL / 2.0, PANEL)]
    if sigma > 0:
        powers = np.exp2(np.arange(-2, math.ceil(math.log2(max(sigma, 1e-3) * TAIL)) + 1))
        edges.extend(
            (centre + np.concatenate([[0.0], powers, -powers])) / sigma
            for centre in {0.0, *map(float, kinks)}
        )
    cuts = np.unique(np.concatenate(edges))
    cuts = cuts[np.abs(cuts) <= TAIL]
    z, measure, values = _resolved(function, sigma, cuts)
    # Half of the Gaussian stays with the polynomials, which are then bounded by one and cannot overflow.
    root = np.exp(-0.25 * z * z)
    integrand = measure * values * root / math.sqrt(2.0 * math.pi)
    coefficients = np.zeros(count)
    before, now = np.zeros_like(z), root
    for k in range(count):
        coefficients[k] = integrand @ now
        if k >= 32 and k % 16 == 0:
            recent = coefficients[k - 16 : k + 1]
            if k * float(recent @ recent) < 1e-19 * float(coefficients @ coefficients):
                break
        before, now = now, (z * now - math.sqrt(k) * before) / math.sqrt(k + 1.0)
    return coefficients


def _resolved(function: Callable[[Array], Array], sigma: float, cuts: Array) -> tuple[Array, Array, Array]:
    """Nodes z, weights dz and values f(sigma z) on panels halved until E f^2 stands still.

    Polynomials are resolved by the panels as they are; it is a function with a narrow feature that needs more.
    """
    nodes, weights = legendre_rule(POINTS)
    before = math.inf
    for _ in range(HALVINGS + 1):
        width = np.diff(cuts)
        z = (cuts[:-1, None] + width[:, None] * nodes).ravel()
        measure = (width[:, None] * weights).ravel()
        with np.errstate(all="ignore"):
            values = np.asarray(function(sigma * z), dtype=np.float64)
        now = float(measure @ (values**2 * np.exp(-0.5 * z * z)))
        if not math.isfinite(now):
            raise NonFiniteError(
                f"the function is not finite within fourteen standard deviations of {sigma:.6g}."
            )
        if abs(now - before) <= SERIES_TOLERANCE * now:
            return z, measure, values
        before, cuts = now, np.sort(np.concatenate([cuts, (cuts[1:] + cuts[:-1]) / 2.0]))
    raise ConvergenceError(
        f"the Hermite expansion at variance {sigma**2:.6g} did not settle. List the function's kinks, or smooth it."
    )


@dataclass(frozen=True, eq=False)
class Covariance:
    """E phi(u1) phi(u2) as a function of the correlation c, at one variance q.

    Parameters
    ----------
    activation : Activation
        phi.
    q : float
        Variance of u1 and u2, above zero.
    coefficients : (count,) array
        a_k(q) of phi.
    mean_square, mean_square_slope : float
        E phi^2 and E phi'^2.
    """

    activation: Activation
    q: float
    coefficients: Array
    mean_square: float
    mean_square_slope: float

    def value(self, c: float) -> float:
        """E phi(u1) phi(u2) at correlation c."""
        correlation = checked_correlation(c)
        squares = self.coefficients**2
        left = max(self.mean_square - float(squares.sum()), 0.0) * abs(correlation) ** squares.size
        if left > SERIES_TOLERANCE * self.mean_square:
            phi = self.activation.function
            return pair_average(
                lambda u, v: phi(u) * phi(v), self.q, c=correlation, kinks=self.activation.kinks
            )
        return float(np.polynomial.polynomial.polyval(correlation, squares))

    def gap(self, one_minus_c: float) -> float:
        """E phi(u1)^2 - E phi(u1) phi(u2) = E (phi(u1) - phi(u2))^2 / 2, with all its digits for small 1 - c."""
        order = np.arange(self.coefficients.size)
        squares = self.coefficients**2
        if one_minus_c >= 1.0:
            factors = 1.0 - (1.0 - one_minus_c) ** order
        else:
            factors = -np.expm1(order * math.log1p(-one_minus_c))
        gap = float(squares @ factors)
        # The terms left out are a_k^2 (1 - c^k). Near c = 1 they are below k a_k^2 (1 - c); further away they are a_k^2
        # to within c^count, and the sum of those is known.
        if self._slope_left() * one_minus_c <= 10.0 * SERIES_TOLERANCE * gap:
            return gap
        left = max(self.mean_square - float(squares.sum()), 0.0)
        if left * abs(1.0 - one_minus_c) ** squares.size <= SERIES_TOLERANCE * gap:
            return gap + left
        phi = self.activation.function
        return 0.5 * pair_average(
            lambda u, v: (phi(u) - phi(v)) ** 2,
            self.q,
            c=1.0 - one_minus_c,
            one_minus_c=one_minus_c,
            kinks=self.activation.kinks,
        )

    def slope(self, c: float, *, one_minus_c: float | None = None) -> float:
        """E phi'(u1) phi'(u2), which is 1/q times the derivative of `value` by c."""
        correlation = checked_correlation(c)
        order = np.arange(1, self.coefficients.size)
        terms = order * self.coefficients[1:] ** 2 / self.q
        left = self._slope_left() / self.q * abs(correlation) ** order.size
        if left > 10.0 * SERIES_TOLERANCE * self.mean_square_slope:
            derivative = self.activation.derivative
            return pair_average(
                lambda u, v: derivative(u) * derivative(v),
                self.q,
                c=correlation,
                one_minus_c=one_minus_c,
                kinks=self.activation.kinks,
            )
        return float(np.polynomial.polynomial.polyval(correlation, terms))

    def _slope_left(self) -> float:
        """Remainder of the series q E phi'^2 = sum_k k a_k^2, a bound on the remainder of the others."""
        order = np.arange(self.coefficients.size)
        return max(self.q * self.mean_square_slope - float(order @ self.coefficients**2), 0.0)


@lru_cache(maxsize=128)
def covariance(activation: Activation, q: float) -> Covariance:
    """The activation's `Covariance` at variance q > 0 (kept: root finding asks for it again and again)."""
    phi, derivative, kinks = activation.function, activation.derivative, activation.kinks
    return Covariance(
        activation,
        q,
        hermite_coefficients(phi, q, kinks=kinks),
        gaussian_average(lambda h: phi(h) ** 2, q, kinks=kinks),
        gaussian_average(lambda h: derivative(h) ** 2, q, kinks=kinks),
    )


def covariance_matrix(matrix: Array, activation: Activation) -> Array:
    """E phi(h_a) phi(h_b) for h ~ N(0, matrix), entrywise.

    Parameters
    ----------
    matrix : (n, n) array
        A covariance matrix.
    activation : Activation
        phi.

    Returns
    -------
    (n, n) array
        Symmetric; relative errors of 1e-13 or so.
    """
    variances = np.diagonal(matrix).copy()
    # One set of coefficients for each distinct variance: a stationary state needs a single one.
    distinct, index = np.unique(variances, return_inverse=True)
    phi, kinks = activation.function, activation.kinks
    table = np.array([hermite_coefficients(phi, float(q), kinks=kinks) for q in distinct])[index]
    # Coefficients that are zero for all of them stand at the end.
    table = table[:, : max(1, int(np.flatnonzero(np.any(table != 0.0, axis=0)).max(initial=0)) + 1)]
    second = np.array([gaussian_average(lambda h: phi(h) ** 2, float(q), kinks=kinks) for q in distinct])[
        index
    ]
    roots = np.sqrt(variances)
    scale = np.outer(roots, roots)
    correlation = np.clip(np.divide(matrix, scale, out=np.zeros_like(matrix), where=scale > 0), -1.0, 1.0)
    result = np.zeros_like(matrix)
    for k in range(table.shape[1] - 1, -1, -1):
        result = result * correlation + np.outer(table[:, k], table[:, k])
    left = np.sqrt(np.maximum(second - (table**2).sum(axis=1), 0.0))
    bound = np.outer(left, left) * np.abs(correlation) ** table.shape[1]
    for a, b in np.argwhere(np.triu(bound > SERIES_TOLERANCE * np.sqrt(np.outer(second, second)), 1)):
        result[a, b] = result[b, a] = pair_average(
            lambda u, v: phi(u) * phi(v),
            float(variances[a]),
            c=float(correlation[a, b]),
            q2=float(variances[b]),
            kinks=kinks,
        )
    np.fill_diagonal(result, second)
    return result
