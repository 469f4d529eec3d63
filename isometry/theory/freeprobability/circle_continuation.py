"""The cdf of a free product of discrete factors, by following its root around a circle of the z plane.

In the notation of `.discrete`: with v_l = log(-w_l) and u = log(-t / (t + n)) the equations

    log(E[a / (a + x_l)] / (x_l E[1 / (a + x_l)])) = log(-t / (t + n_l)),   x_l = e^v_l,   for every factor l,
    sum_l v_l + sum_j log(-t / (t + N_j)) = log(-z)

are real for z < 0, where they have one solution, and analytic off the positive axis. From z = -lambda the solution is
followed along z = lambda e^(i theta), theta from pi to 0, by Newton's method with steps that shrink where it fails:
no root has to be chosen, and each lambda stands for itself.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isometry.errors import ConvergenceError
from isometry.spectrum.distribution import Curve

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

# Elements of one block of the work array (64 MB of complex numbers).
BLOCK = 2**22
NEWTON_STEPS = 12
NEWTON_TOLERANCE = 1e-10
SMALLEST_TURN = 1e-5
# A curve whose cdf is further than this from a distribution's, or its mean ten times further, is not returned.
CURVE_TOLERANCE = 2e-3


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
        ln of what was divided out of lambda.
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


def _slopes(problem: Problem, v: ComplexArray) -> tuple[ComplexArray, ComplexArray]:
    """u_l = log(E[a/(a+x)] / (x E[1/(a+x)])) at x = e^v, and its derivative in v; (G, K) each."""
    x = np.exp(v)
    value, slope = np.empty_like(v), np.empty_like(v)
    rows = max(1, BLOCK // problem.values.size)
    for start in range(0, v.shape[0], rows):
        part = slice(start, start + rows)
        inverse = 1.0 / (problem.values + x[part, :, None])
        weighted = problem.weights * inverse
        first = np.einsum("gki,ki->gk", weighted, problem.values)
        second = weighted.sum(axis=-1)
        squared = weighted * inverse
        d_first = -np.einsum("gki,ki->gk", squared, problem.values)
        d_second = -squared.sum(axis=-1)
        value[part] = np.log(first / second) - v[part]
        slope[part] = x[part] * (d_first / first - d_second / second) - 1.0
    return value, slope


def _dimension(sizes: Array, u: ComplexArray) -> tuple[ComplexArray, ComplexArray]:
    """log(-t / (t + N)) for t / n = -e^u / (1 + e^u), and its derivative in u; (G, len(sizes)) each."""
    # Written for either end: nothing cancels where t is close to -n or to 0.
    e = np.exp(np.where(u.real > 0, -u, u))[:, None]
    large = (u.real > 0)[:, None]
    lower = np.where(large, sizes * e + (sizes - 1.0), sizes + (sizes - 1.0) * e)
    value = np.where(large, 0.0, u[:, None]) - np.log(lower)
    slope = np.where(large, sizes * e / lower, sizes / lower)
    return value, slope


def _nearest_turn(difference: ComplexArray) -> ComplexArray:
    return difference - 2j * np.pi * np.round(difference.imag / (2 * np.pi))


def _newton(
    problem: Problem, u: ComplexArray, v: ComplexArray, target: ComplexArray
) -> tuple[ComplexArray, ComplexArray, NDArray[np.bool_]]:
    """Newton's method for sum v_l + sum u_j = target, u_l(v_l) = u_l(u); (u, v, converged)."""
    u, v = u.copy(), v.copy()
    done = np.zeros(u.size, bool)
    alive = np.ones(u.size, bool)
    for _ in range(NEWTON_STEPS):
        i = np.flatnonzero(alive & ~done)
        if i.size == 0:
            break
        with np.errstate(all="ignore"):
            own, own_slope = _slopes(problem, v[i])
            wanted, wanted_slope = _dimension(problem.sizes, u[i])
            between, between_slope = _dimension(problem.interfaces, u[i])
            # Logs of products and quotients are known up to full turns: the nearest one is meant.
            miss = _nearest_turn(own - wanted)
            rest = _nearest_turn(target[i] - v[i].sum(axis=1) - between.sum(axis=1))
            rate = (wanted_slope / own_slope).sum(axis=1) + between_slope.sum(axis=1)
            step_u = (rest + (miss / own_slope).sum(axis=1)) / rate
            step_v = (wanted_slope * step_u[:, None] - miss) / own_slope
        size = np.maximum(np.abs(step_u), np.abs(step_v).max(axis=1))
        good = np.isfinite(size)
        alive[i[~good]] = False
        damp = np.where(good, 1.0 / np.maximum(size, 1.0), 1.0)
        u[i[good]] += (damp * step_u)[good]
        v[i[good]] += (damp[:, None] * step_v)[good]
        done[i[good & (size < NEWTON_TOLERANCE)]] = True
    return u, v, done


@dataclass(frozen=True, eq=False)
class _Roots:
    """The roots at places lambda (before scaling back): ln lambda, u, v, and where they were found."""

    log_lambda: Array
    u: ComplexArray
    v: ComplexArray

    def joined(self, other: _Roots) -> _Roots:
        order = np.argsort(np.concatenate([self.log_lambda, other.log_lambda]))
        return _Roots(
            np.concatenate([self.log_lambda, other.log_lambda])[order],
            np.concatenate([self.u, other.u])[order],
            np.concatenate([self.v, other.v])[order],
        )


def _negative_axis(problem: Problem, log_top: float) -> _Roots:
    """The real roots at z = -lambda, lambda from above the support down to where the tail is left."""
    left = problem.zero_mass + problem.tail
    u_grid = np.linspace(-max(log_top, 0.0) - 4.0, math.log((1.0 - left) / left), 160)
    means = np.einsum("ki,ki->k", problem.weights, problem.values)
    v = np.log(means * problem.sizes) - u_grid[0]
    before, rows = None, []
    for u in u_grid:
        guess = v if before is None else 2 * v - before
        before = v
        wanted = _dimension(problem.sizes, np.array([u + 0j]))[0].real[0]
        for _ in range(60):
            value, slope = (part.real[0] for part in _slopes(problem, guess[None] + 0j))
            step = np.clip((value - wanted) / -slope, -3.0, 3.0)
            guess = guess + step
            if np.abs(step).max() < 1e-12:
                break
        v = guess
        rows.append(v)
    u = u_grid.astype(complex)
    v_rows = np.array(rows, complex)
    log_lambda = (v_rows.sum(axis=1) + _dimension(problem.interfaces, u)[0].sum(axis=1)).real
    if not np.all(np.diff(log_lambda) < 0):
        raise ConvergenceError(
            "the free product of these factors has no monotone root on the negative axis: a factor's singular values "
            "span more than floating point resolves. Leave out values below 1e-12 of the largest"
        )
    return _Roots(log_lambda[::-1].copy(), u[::-1].copy(), v_rows[::-1].copy())


def _rotated(problem: Problem, start: _Roots, log_lambda: Array) -> _Roots:
    """The roots at lambda + i0 for the places given, followed around |z| = lambda from the negative axis."""
    u = np.interp(log_lambda, start.log_lambda, start.u.real).astype(complex)
    v = np.stack(
        [np.interp(log_lambda, start.log_lambda, column) for column in start.v.real.T], axis=1
    ).astype(complex)
    u, v, done = _newton(problem, u, v, log_lambda.astype(complex))
    angle, step = np.zeros(u.size), np.full(u.size, 0.3)
    u_before, v_before, angle_before = u.copy(), v.copy(), np.full(u.size, 1.0)
    lost = ~done
    while True:
        i = np.flatnonzero(~lost & (angle > -np.pi))
        if i.size == 0:
            break
        goal = np.maximum(angle[i] - step[i], -np.pi)
        # The last bit before the axis is taken in one go only from close by.
        reach = np.where(angle_before[i] > 0.5, 0.0, (goal - angle[i]) / (angle[i] - angle_before[i]))
        new_u, new_v, good = _newton(
            problem,
            u[i] + reach * (u[i] - u_before[i]),
            v[i] + reach[:, None] * (v[i] - v_before[i]),
            log_lambda[i] + 1j * goal,
        )
        inside = (new_v.imag.max(axis=1) < 1e-6) & (new_v.imag.min(axis=1) > -np.pi - 1e-6)
        good &= inside & (new_u.imag > -1e-6) & (new_u.imag < np.pi + 1e-6)
        k = i[good]
        u_before[k], v_before[k], angle_before[k] = u[k], v[k], angle[k]
        u[k], v[k], angle[k] = new_u[good], new_v[good], goal[good]
        step[k] *= 1.6
        step[i[~good]] *= 0.4
        # Beside an edge of the support the root is a square root: what is left of the turn changes nothing.
        close = (step < SMALLEST_TURN) & (angle < -np.pi + 1e-3)
        angle[close] = -np.pi
        lost |= (step < SMALLEST_TURN) & ~close
    kept = ~lost
    return _Roots(log_lambda[kept], u[kept], v[kept])


def _cdf(problem: Problem, roots: _Roots) -> Array:
    """F(lambda) = 1 - Im Phi / pi from the closed form of the module's head."""
    total = np.zeros(roots.u.size)
    rows = max(1, BLOCK // problem.values.size)
    for start in range(0, total.size, rows):
        part = slice(start, start + rows)
        v = roots.v[part]
        # All these angles lie in [-pi, 0]; on the real axis the sign of a zero must not decide between the two.
        logs = -np.abs(np.angle(problem.values + np.exp(v)[:, :, None]))
        total[part] = (np.einsum("gki,ki->gk", logs, problem.weights) - v.imag) @ problem.sizes
    e = np.exp(np.where(roots.u.real > 0, -roots.u, roots.u))[:, None]
    large = (roots.u.real > 0)[:, None]
    r = problem.interfaces
    # 1 + t / N = (r + (r - 1) e^u) / (r (1 + e^u)), written for either end.
    ratio = np.where(large, r * e + (r - 1.0), r + (r - 1.0) * e) / (1.0 + e)
    total -= np.abs(np.angle(ratio)) @ r
    return 1.0 - total / np.pi


def free_curve(problem: Problem, moments: tuple[float, ...], grid_points: int) -> Curve:
    log_top = _log_upper_edge(problem)
    real = _negative_axis(problem, log_top)
    low = float(real.log_lambda[0])
    # Towards the upper edge the density ends like a root, or rises like its inverse: places crowd there.
    coarse = np.union1d(
        np.linspace(low, log_top, 48), log_top - (log_top - low) * np.geomspace(1e-7, 0.02, 16)
    )
    roots = _rotated(problem, real, coarse)
    zero = problem.zero_mass
    for _ in range(12):
        f = _cdf(problem, roots) - zero
        # Room below the support is looked through until the lower edge stands in a narrow gap.
        inside = np.flatnonzero(f > problem.tail)
        first = int(inside[0]) if inside.size else roots.u.size - 1
        a, b = roots.log_lambda[max(first - 1, 0)], roots.log_lambda[first]
        span = log_top - b
        if b - a < 0.02 * max(span, 1e-9):
            break
        roots = roots.joined(_rotated(problem, real, np.linspace(a, b, 14)[1:-1]))
    keep = slice(max(first - 1, 0), None)
    roots = _Roots(roots.log_lambda[keep], roots.u[keep], roots.v[keep])
    for _ in range(8):
        f = _cdf(problem, roots)
        gaps, rises = np.diff(roots.log_lambda), np.diff(f)
        span = roots.log_lambda[-1] - roots.log_lambda[0]
        wanted = np.maximum(gaps / (span / (0.3 * grid_points)), rises * 0.7 * grid_points)
        room = grid_points - roots.u.size
        split = np.argsort(-wanted)[: max(room, 0)]
        split = split[(wanted[split] > 1.0) & (gaps[split] > 1e-9)]
        if split.size == 0:
            break
        middle = 0.5 * (roots.log_lambda[split] + roots.log_lambda[split + 1])
        roots = roots.joined(_rotated(problem, real, np.sort(middle)))
    return _checked_curve(problem, roots, moments, log_top)


def _checked_curve(problem: Problem, roots: _Roots, moments: tuple[float, ...], log_top: float) -> Curve:
    place, mass = problem.atom
    t, f = roots.log_lambda, _cdf(problem, roots) - problem.zero_mass
    e = np.exp(np.where(roots.u.real > 0, -roots.u, roots.u))
    resolvent = -np.where(roots.u.real > 0, 1.0 / (1.0 + e), e / (1.0 + e))
    density = np.maximum(-resolvent.imag / np.pi, 0.0)
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
            f"the free product of these {len(problem.full)} factors did not come out as a distribution: its cdf falls "
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
