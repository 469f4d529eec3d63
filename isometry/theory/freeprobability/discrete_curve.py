"""The cdf of a free product of discrete factors, by continuation from the negative axis. Internal.

In the notation of `.discrete`: with v_l = log(-w_l), x_l = e^v_l and u = log(-t / (t + n)) the equations are

    log(E[a / (a + x_l)] / (x_l E[1 / (a + x_l)])) = log(-t / (t + n_l))   for every factor l,
    sum_l v_l + sum_j log(-t / (t + N_j)) = log(-z),

and `continuation` follows their solution from z = -lambda to z = lambda, for each lambda by itself.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isometry.errors import ConvergenceError
from isometry.spectrum import Curve
from isometry.theory.freeprobability.branches import lower_log, upper_log
from isometry.theory.freeprobability.continuation import (
    Continuation,
    Factors,
    Levels,
    Separable,
    transform_of,
)

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

# Elements of one block of the work array (64 MB of complex numbers).
BLOCK = 2**22
# A curve whose cdf is further than this from a distribution's, or its mean ten times further, is not returned.
CURVE_TOLERANCE = 2e-3
# Places of the table on the negative axis.
TABLE_SIZE = 160


@dataclass(frozen=True, eq=False)
class Problem:
    """A product of K factors, each divided by its root mean square, as arrays.

    Parameters
    ----------
    values, weights : (K, k) arrays
        Squared singular values of each factor and their shares, padded with weight 0; neighbours may be merged.
    sizes : (K,) array
        n_l / n: the shorter side of each factor in units of the shorter side of the product.
    interfaces : (K - 1,) array
        N_j / n: the dimensions between neighbouring factors.
    log_scale : float
        ln of the factor that was divided out of lambda.
    full : tuple of (values, weights)
        The factors with all their values.
    zero_mass : float
        Mass at zero: 1 - rank / n.
    atom : (float, float)
        (ln lambda, mass) of the one point mass a product can have beside zero; mass 0 where there is none.
    tail : float
        Mass at the lower end of the support that need not be resolved.
    """

    values: Array
    weights: Array
    sizes: Array
    interfaces: Array
    log_scale: float
    full: tuple[tuple[Array, Array], ...]
    zero_mass: float
    atom: tuple[float, float]
    tail: float

    @property
    def means(self) -> Array:
        """Mean of the squared singular values of each factor, (K,)."""
        return np.asarray(np.einsum("ki,ki->k", self.weights, self.values))

    def factors(self, v: ComplexArray, index: NDArray[np.intp] | None = None) -> Factors:
        """r = log(E[a/(a+x)] / (x E[1/(a+x)])) at x = e^v and f = v, as `continuation.Equations` asks."""
        relation, slope = np.empty_like(v), np.empty_like(v)
        per_row = self.values.size if index is None else self.values.shape[1]
        rows = max(1, BLOCK // per_row)
        for start in range(0, v.shape[0], rows):
            part = slice(start, start + rows)
            which = slice(None) if index is None else index[part]
            values, x = self.values[which], np.exp(v[part])
            inverse = 1.0 / (values + x[..., None])
            weighted = self.weights[which] * inverse
            first, second = np.einsum("...i,...i->...", weighted, values), weighted.sum(axis=-1)
            squared = weighted * inverse
            d_first = -np.einsum("...i,...i->...", squared, values)
            d_second = -squared.sum(axis=-1)
            # Both averages lie in the closed upper half-plane.
            relation[part] = upper_log(first) - upper_log(second) - v[part]
            slope[part] = x * (d_first / first - d_second / second) - 1.0
        return Factors(relation, slope, v, np.ones_like(v))

    def levels(self, u: ComplexArray) -> Levels:
        """l = log(-t / (t + n_l)) and sum_j log(-t / (t + N_j)) + i pi, the rest of log z."""
        relation, slope = _dimensions(self.sizes, u)
        between, between_slope = _dimensions(self.interfaces, u)
        return Levels(relation, slope, between.sum(axis=1) + 1j * np.pi, between_slope.sum(axis=1))


def _dimensions(sizes: Array, u: ComplexArray) -> tuple[ComplexArray, ComplexArray]:
    """log(-t / (t + N)) for t / n = -e^u / (1 + e^u), and its derivative in u; (G, len(sizes)) each."""
    e = np.exp(-u)[:, None]
    # The reciprocal of -t / (t + N), in the closed lower half-plane.
    lower: ComplexArray = np.asarray(sizes * e + (sizes - 1.0), complex)
    return -lower_log(lower), np.asarray(sizes * e / lower, complex)


@dataclass(frozen=True, eq=False)
class _Roots:
    """Solutions at places lambda (before scaling back): ln lambda (n,) and the unknowns (n, 1 + K)."""

    log_lambda: Array
    unknown: ComplexArray

    def joined(self, other: _Roots) -> _Roots:
        """The solutions of both, in order of lambda."""
        log_lambda = np.concatenate([self.log_lambda, other.log_lambda])
        order = np.argsort(log_lambda)
        return _Roots(log_lambda[order], np.concatenate([self.unknown, other.unknown])[order])


def _continuation(problem: Problem, log_top: float) -> Continuation:
    """The continuation with a table from above the support down to where the tail is left."""
    left = problem.zero_mass + problem.tail
    table = np.linspace(-max(log_top, 0.0) - 4.0, math.log((1.0 - left) / left), TABLE_SIZE)
    result = Continuation(Separable(problem), table)
    if not np.all(np.diff(result.negative_axis[0]) < 0):
        raise ConvergenceError(
            "the free product of these factors has no monotone root on the negative axis: a factor's singular values "
            "span more than floating point resolves. Leave out values below 1e-12 of the largest"
        )
    return result


def _solved(continuation: Continuation, log_lambda: Array) -> _Roots:
    """The solutions at those of the places that can be reached."""
    unknown, reached = continuation.to_positive_axis(log_lambda)
    return _Roots(log_lambda[reached], unknown[reached])


def _cdf(problem: Problem, roots: _Roots) -> Array:
    """F(lambda) = 1 - Im Phi / pi from the closed form of the module's head."""
    u = roots.unknown[:, 0]
    total = np.zeros(u.size)
    rows = max(1, BLOCK // problem.values.size)
    for start in range(0, total.size, rows):
        part = slice(start, start + rows)
        v = roots.unknown[part, 1:]
        # All these angles lie in [-pi, 0]; on the real axis the sign of a zero must not decide between the two.
        logs = -np.abs(np.angle(problem.values + np.exp(v)[:, :, None]))
        total[part] = (np.einsum("gki,ki->gk", logs, problem.weights) - v.imag) @ problem.sizes
    _, one_plus_t = transform_of(u)
    # N + t, whose argument is that of 1 + t / N.
    total -= np.abs(np.angle((problem.interfaces - 1.0) + one_plus_t[:, None])) @ problem.interfaces
    return 1.0 - total / np.pi


def free_curve(problem: Problem, moments: tuple[float, ...], grid_points: int) -> Curve:
    log_top = _log_upper_edge(problem)
    continuation = _continuation(problem, log_top)
    low = float(continuation.negative_axis[0][-1])
    # Towards the upper edge the density ends like a root, or rises like its inverse: places crowd there.
    coarse = np.union1d(
        np.linspace(low, log_top, 48), log_top - (log_top - low) * np.geomspace(1e-7, 0.02, 16)
    )
    roots = _solved(continuation, coarse)
    zero = problem.zero_mass
    for _ in range(12):
        f = _cdf(problem, roots) - zero
        # Room below the support is looked through until the lower edge stands in a narrow gap.
        inside = np.flatnonzero(f > problem.tail)
        first = int(inside[0]) if inside.size else roots.log_lambda.size - 1
        a, b = roots.log_lambda[max(first - 1, 0)], roots.log_lambda[first]
        span = log_top - b
        if b - a < 0.02 * max(span, 1e-9):
            break
        roots = roots.joined(_solved(continuation, np.linspace(a, b, 14)[1:-1]))
    keep = slice(max(first - 1, 0), None)
    roots = _Roots(roots.log_lambda[keep], roots.unknown[keep])
    for _ in range(8):
        f = _cdf(problem, roots)
        gaps, rises = np.diff(roots.log_lambda), np.diff(f)
        span = roots.log_lambda[-1] - roots.log_lambda[0]
        wanted = np.maximum(gaps / (span / (0.3 * grid_points)), rises * 0.7 * grid_points)
        room = grid_points - roots.log_lambda.size
        split = np.argsort(-wanted)[: max(room, 0)]
        split = split[(wanted[split] > 1.0) & (gaps[split] > 1e-9)]
        if split.size == 0:
            break
        middle = 0.5 * (roots.log_lambda[split] + roots.log_lambda[split + 1])
        roots = roots.joined(_solved(continuation, np.sort(middle)))
    return _checked_curve(problem, roots, moments, log_top)


def _checked_curve(problem: Problem, roots: _Roots, moments: tuple[float, ...], log_top: float) -> Curve:
    place, mass = problem.atom
    t, f = roots.log_lambda, _cdf(problem, roots) - problem.zero_mass
    density = np.maximum(-transform_of(roots.unknown[:, 0])[0].imag / np.pi, 0.0)
    if mass > 0:
        # On the atom itself the resolvent has its pole.
        away = np.abs(t - place) > 1e-7
        t, f, density = t[away], f[away] - mass * (t[away] >= place), density[away]
    total = 1.0 - problem.zero_mass - mass
    if (
        not np.all(np.isfinite(f))
        or np.any(np.diff(f) < -CURVE_TOLERANCE)
        or abs(f[-1] - total) > CURVE_TOLERANCE
    ):
        raise ConvergenceError(
            f"the free product of these {len(problem.full)} factors is not a distribution: its cdf falls "
            f"by up to {max(-np.diff(f).min(), 0.0):.1e} and ends at {f[-1] + 1 - total:.6f}. Give more bins, or leave "
            "out singular values below 1e-12 of the largest"
        )
    # The unresolved tail is spread over the whole: a jump at the lower end would look like a point mass.
    f = np.maximum.accumulate(np.clip(f, 0.0, total))
    f = (f - f[0]) * (total / (f[-1] - f[0])) if f[-1] > f[0] else f
    shift = problem.log_scale
    places = np.array([-np.inf, 0.5 * (place + shift)])
    masses = np.array([problem.zero_mass, mass])
    curve = Curve(0.5 * (t + shift), f, 2.0 * density, places[masses > 0], masses[masses > 0], moments)
    free = Curve(curve.log_s, curve.cdf_continuous, curve.log_density, curve.atom_log_s, curve.atom_mass)
    error = math.expm1(free.log_moment(2) - moments[0])
    if abs(error) > 10 * CURVE_TOLERANCE:
        raise ConvergenceError(
            f"the mean square of the computed law is off by {100 * error:.2g} % from the exact one: give more "
            "grid_points or bins"
        )
    return curve


def _log_upper_edge(problem: Problem) -> float:
    """ln of the upper edge of the support: the minimum of z over real t > 0, w_l above all values of its factor."""

    def log_z(log_t: float) -> tuple[float, float]:
        t = math.exp(log_t)
        total = float(np.sum(log_t - np.log(t + problem.interfaces)))
        slope = float(np.sum(1.0 - t / (t + problem.interfaces)))
        w, rate = _outer_inverse(problem, t)
        return total + float(np.log(w).sum()), slope + float((t * rate / w).sum())

    low = -30.0
    points = np.linspace(low, 12.0, 85)
    for a, b in itertools.pairwise(points):
        if log_z(b)[1] > 0:
            for _ in range(60):
                c = 0.5 * (a + b)
                a, b = (c, b) if log_z(c)[1] <= 0 else (a, c)
            return log_z(0.5 * (a + b))[0]
    return log_z(points[-1])[0]


def _outer_inverse(problem: Problem, t: float) -> tuple[Array, Array]:
    """w_l > max a with size_l E[a / (w - a)] = t, and dw / dt; (K,) each."""
    a, p = problem.values, problem.weights * problem.sizes[:, None]
    top = np.where(problem.weights > 0, a, 0.0).max(axis=1)
    held = np.where(problem.weights > 0, a, 0.0)
    # y = ln(w - top): the sum lies between the share of the top value alone and all mass at the top.
    share = np.sum(np.where(held == top[:, None], p, 0.0), axis=1) * top
    y_low, y_high = np.log(share / t), np.log(p.sum(axis=1) * top / t)
    for _ in range(80):
        y = 0.5 * (y_low + y_high)
        value = np.sum(p * held / (np.exp(y)[:, None] + (top[:, None] - held)), axis=1)
        y_low, y_high = np.where(value > t, y, y_low), np.where(value > t, y_high, y)
    y = 0.5 * (y_low + y_high)
    distance = np.exp(y)[:, None] + (top[:, None] - held)
    return top + np.exp(y), -1.0 / np.sum(p * held / distance**2, axis=1)
