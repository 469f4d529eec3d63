"""Newton continuation of the equations of a free product, from the negative axis of z to the positive one. Internal.

The unknowns are t, the M-transform of the product on its nonzero eigenvalues, and one w_g for each kind of factor. They
are kept as u = log(-t/(1 + t)) and v_g = log(-w_g), real on the negative axis and free of cancellation. They solve

    F_g(u, v_g) = 0  for every factor g,        log z(u, v) = log lambda + i eta,

which an `Equations` object evaluates. At eta = pi, z on the negative axis, all unknowns are real, the solution is
unique and found by bisection. From there eta decreases to 0 for all lambda at once, by Newton's method with steps that
adapt to each lambda. The solution is analytic in the upper half-plane, so no root has to be chosen.

Products of matrices are `Separable`: F_g = r_g(v_g) - l_g(u) and log z = e(u) + sum_g f_g(v_g), where r_g and f_g
belong to the factor and l_g and e to the dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

# In the open half-plane there is only one solution, so steps may be as long as Newton's method converges.
FIRST_STEP = 1.55
# The axis is entered from no further than this angle.
LAST_ANGLE = 0.1
# Of a step that failed, the share that is tried next: next to an edge the rest of the way shrinks by fifths.
SHORTER = 0.8
SMALLEST_STEP = 1e-8
# Newton step, per unit of the angle left, that is small enough while the path only has to be kept.
ON_THE_WAY = 1e-2
# Newton step after which the error, of the order of its square, does not show.
LAST_STEP = 1e-7
# Where averages lose digits (next to a zero of phi') and at an edge the last bit of the way may be noise.
CLOSE_ENOUGH = 1e-6
CLOSE_ENOUGH_BELOW = 0.05
MOST_STEPS = 4000
# Rounding of an angle.
SLACK = 1e-9


class Factors(NamedTuple):
    """r_g and f_g at points v, and their derivatives in v; arrays of the shape of v."""

    relation: ComplexArray
    relation_slope: ComplexArray
    log_z: ComplexArray
    log_z_slope: ComplexArray


class Levels(NamedTuple):
    """l_g (n, K) and e (n,) at (n,) points u, and their derivatives in u."""

    relation: ComplexArray
    relation_slope: ComplexArray
    log_z: ComplexArray
    log_z_slope: ComplexArray


class System(NamedTuple):
    """F (n, K) and log z (n,) at (n,) places, and their derivatives in u and in each v."""

    miss: ComplexArray
    miss_u: ComplexArray
    miss_v: ComplexArray
    log_z: ComplexArray
    log_z_u: ComplexArray
    log_z_v: ComplexArray


class Equations(Protocol):
    """The equations of a product of K kinds of factors."""

    @property
    def highest_angle(self) -> float:
        """Im v lies between -pi and this."""
        ...

    def system(self, unknown: ComplexArray) -> System:
        """The equations at (n, 1 + K) unknowns u, v_1 .. v_K."""
        ...

    def on_negative_axis(self, u: Array) -> Array:
        """Real v_g that solve F_g at (n,) real u, (n, K)."""
        ...


class SeparableEquations(Protocol):
    """The two sides of the equations of a product of K kinds of matrices."""

    @property
    def means(self) -> Array:
        """Mean of the squared singular values of each factor, (K,)."""
        ...

    def factors(self, v: ComplexArray, index: NDArray[np.intp] | None = None) -> Factors:
        """The factors' side at v, (n, K); or at (n,) points v, each of the factor that ``index`` names."""
        ...

    def levels(self, u: ComplexArray) -> Levels:
        """The dimensions' side at (n,) points u."""
        ...


@dataclass(frozen=True, eq=False)
class Separable:
    """`Equations` of a product of matrices. Every w_g stays in the upper half-plane: Im v in [-pi, 0]."""

    sides: SeparableEquations
    highest_angle: float = 0.0

    def system(self, unknown: ComplexArray) -> System:
        """The equations at (n, 1 + K) unknowns."""
        own, level = self.sides.factors(unknown[:, 1:]), self.sides.levels(unknown[:, 0])
        return System(
            own.relation - level.relation,
            -level.relation_slope,
            own.relation_slope,
            level.log_z + own.log_z.sum(axis=1),
            level.log_z_slope,
            own.log_z_slope,
        )

    def on_negative_axis(self, u: Array) -> Array:
        """Real v_g with r_g(v_g) = l_g(u), (n, K), by Newton's method in a bracket: r_g falls from inf to -inf."""
        target = self.sides.levels(u.astype(complex)).relation.real
        means = self.sides.means
        # For a factor with one singular value this is the solution.
        v = np.clip(np.log(means) - target, -680.0, 680.0).ravel()
        factor = np.broadcast_to(np.arange(means.size), target.shape).ravel()
        target = target.ravel()

        def miss(v: Array, active: NDArray[np.intp]) -> tuple[Array, Array]:
            own = self.sides.factors(v.astype(complex), factor[active])
            return own.relation.real - target[active], own.relation_slope.real

        return falling_roots(miss, v).reshape(-1, means.size)


def falling_roots(miss: Callable[[Array, NDArray[np.intp]], tuple[Array, Array]], v: Array) -> Array:
    """Real roots of (n,) functions that fall from inf to -inf, by Newton's method in a bracket.

    ``miss(v, active)`` gives the values and slopes of the functions ``active`` at v; ``v`` is the first guess.
    """
    v = v.copy()
    low, high = np.full(v.size, -690.0), np.full(v.size, 690.0)
    active = np.arange(v.size)
    for _ in range(200):
        here = v[active]
        value, slope = miss(here, active)
        over = value > 0
        low[active], high[active] = np.where(over, here, low[active]), np.where(over, high[active], here)
        step = -value / np.minimum(slope, -1e-3)
        moved = here + step
        settled = np.abs(step) < 1e-6
        inside = (moved > low[active]) & (moved < high[active])
        v[active] = np.where(settled | inside, moved, 0.5 * (low[active] + high[active]))
        active = active[~(settled | (high[active] - low[active] < 1e-9))]
        if active.size == 0:
            break
    return v


@dataclass(frozen=True, eq=False)
class Continuation:
    """Solutions of a product's equations on the positive axis of z.

    Parameters
    ----------
    equations : Equations
    table : (m,) array
        Increasing u at which the solution on the negative axis is tabulated; log |z| decreases along it.
    width : float
        Relative width of the law, one at most: u runs through so much of its range next to the positive axis.
    """

    equations: Equations
    table: Array
    width: float = 1.0

    @cached_property
    def negative_axis(self) -> tuple[Array, Array]:
        """(log |z|, unknowns) on the table: (m,) and (m, 1 + K), real."""
        return self._on_negative_axis(self.table)

    def newton(
        self,
        unknown: ComplexArray,
        target: ComplexArray,
        *,
        rounds: int = 40,
        tolerance: float | Array = LAST_STEP,
        impatient: bool = False,
    ) -> tuple[ComplexArray, NDArray[np.bool_]]:
        """Solutions of log z = target near the given unknowns (n, 1 + K), and which of them converged.

        Only solutions in the right half-planes count as converged.

        Parameters
        ----------
        unknown : (n, 1 + K) array
            First guess: u, v_1 .. v_K.
        target : (n,) array
            log z.
        rounds : int
            Newton steps at most.
        tolerance : float or (n,) array
            Last step of Newton's method: the error is of the order of its square.
        impatient : bool
            Whether to give up where steps do not shrink.
        """
        tolerance = np.broadcast_to(tolerance, target.shape)
        current = unknown.copy()
        good = np.zeros(target.size, bool)
        last = np.full(target.size, np.inf)
        active = np.arange(target.size)
        for round_number in range(rounds):
            step = self._newton_step(current[active], target[active])
            size = np.max(np.abs(step), axis=1)
            # Beyond one the linearisation means nothing.
            current[active] += np.where(
                np.isfinite(size)[:, None], step / np.maximum(size, 1.0)[:, None], 0.0
            )
            size = np.maximum(size, np.abs(step[:, 0]) / self.width)
            valid = np.isfinite(size) & self._inside(current[active])
            # Next to a zero of phi' averages have fewer digits, and Newton stops gaining before 1e-10.
            settled = valid & ((size < tolerance[active]) | ((size < 1e-5) & (size > 0.25 * last[active])))
            # Far from a solution steps do not shrink.
            valid &= (round_number < 2) | settled | (size < 0.7 * last[active]) if impatient else True
            last[active] = size
            good[active[settled]] = True
            active = active[valid & ~settled]
            if active.size == 0:
                break
        return self._clipped(current), good

    def _newton_step(self, unknown: ComplexArray, target: ComplexArray) -> ComplexArray:
        """(du, dv) that solve the linearised equations, (n, 1 + K): every v_g is eliminated first."""
        with np.errstate(all="ignore"):
            at = self.equations.system(unknown)
            v_slopes, v_misses = -at.miss_u / at.miss_v, at.miss / at.miss_v
            rest = target - at.log_z + (at.log_z_v * v_misses).sum(axis=1)
            du = rest / (at.log_z_u + (at.log_z_v * v_slopes).sum(axis=1))
            return np.concatenate([du[:, None], v_slopes * du[:, None] - v_misses], axis=1)

    def to_positive_axis(self, log_lambda: Array) -> tuple[ComplexArray, NDArray[np.bool_]]:
        """The unknowns at z = lambda + i0 for (n,) values of log lambda, (n, 1 + K), and which were reached."""
        current, reached = self._start(log_lambda)
        angle, step = np.full(log_lambda.size, np.pi), np.full(log_lambda.size, FIRST_STEP)
        previous, previous_angle = current.copy(), angle.copy()
        active = np.flatnonzero(reached)
        reached[:] = False
        for _ in range(MOST_STEPS):
            if active.size == 0:
                break
            target_angle = np.maximum(angle[active] - step[active], 0.0)
            # On the axis itself there may be other solutions: go there only from close by.
            target_angle[(target_angle == 0.0) & (angle[active] > LAST_ANGLE)] = LAST_ANGLE
            # Extrapolate along the path.
            run = previous_angle[active] - angle[active]
            share = np.where(run > 0, (angle[active] - target_angle) / np.where(run > 0, run, 1.0), 0.0)
            guess = self._clipped(current[active] + share[:, None] * (current[active] - previous[active]))
            found, good = self.newton(
                guess,
                log_lambda[active] + 1j * target_angle,
                rounds=7,
                impatient=True,
                tolerance=np.clip(ON_THE_WAY * target_angle, LAST_STEP, ON_THE_WAY),
            )
            # A root that is far from where the path points is another root.
            good &= np.max(np.abs(found - guess), axis=1) < 0.5 + 2.0 * step[active]
            gone = angle[active] - target_angle
            moved = active[good]
            previous[moved], previous_angle[moved] = current[moved], angle[moved]
            current[moved], angle[moved] = found[good], target_angle[good]
            step[active] = np.where(good, np.minimum(2.0 * gone, FIRST_STEP), SHORTER * gone)
            # |1 + t| = e^-18 bounds the mass below: there the last bit of the way changes nothing that shows.
            below = (current[active, 0].real > 18.0) & (angle[active] <= CLOSE_ENOUGH_BELOW)
            arrived = (angle[active] == 0.0) | below | (~good & (angle[active] <= CLOSE_ENOUGH))
            reached[active[arrived]] = True
            stuck = ~good & (step[active] < SMALLEST_STEP)
            active = active[~(arrived | stuck)]
        # Solutions that count from off the axis were followed with less accuracy.
        early = np.flatnonzero(reached & (angle > 0.0))
        if early.size:
            current[early], _ = self.newton(current[early], log_lambda[early] + 1j * angle[early])
        return current, reached

    def _start(self, log_lambda: Array) -> tuple[ComplexArray, NDArray[np.bool_]]:
        """The unknowns at z = -exp(log_lambda), (n, 1 + K), where they are real; and which were found."""
        heights, table = self.negative_axis
        target = (log_lambda + 1j * np.pi).astype(np.complex128)
        for _ in range(6):
            guess = [np.interp(log_lambda, heights[::-1], column[::-1]) for column in table.T]
            found, good = self.newton(np.stack(guess, axis=1).astype(np.complex128), target)
            if np.all(good):
                break
            # A law with a long tail runs through many decades between two places of the table: look closer there.
            places = np.clip(np.searchsorted(-heights, -log_lambda[~good]), 1, heights.size - 1)
            finer = np.concatenate(
                [np.linspace(table[place - 1, 0], table[place, 0], 10)[1:-1] for place in np.unique(places)]
            )
            more_heights, more = self._on_negative_axis(finer)
            table, heights = np.concatenate([table, more]), np.concatenate([heights, more_heights])
            order = np.argsort(table[:, 0])
            table, heights = table[order], heights[order]
        return found, good

    def _on_negative_axis(self, u: Array) -> tuple[Array, Array]:
        """(log |z|, unknowns) at real (n,) points u: the solution with z on the negative axis."""
        unknown = np.concatenate([u[:, None], self.equations.on_negative_axis(u)], axis=1)
        return self.equations.system(unknown.astype(complex)).log_z.real, unknown

    def _inside(self, unknown: ComplexArray) -> NDArray[np.bool_]:
        """Whether t/(1 + t) lies in the lower half-plane and every w where it must, up to 1e-9; (n,)."""
        u, v, highest = unknown.imag[:, 0], unknown.imag[:, 1:], self.equations.highest_angle
        inside = (u > -SLACK) & (u < np.pi + SLACK)
        return inside & np.all((v < highest + SLACK) & (v > -np.pi - SLACK), axis=1)

    def _clipped(self, unknown: ComplexArray) -> ComplexArray:
        """The unknowns moved to the nearest point where they may lie."""
        result = unknown.copy()
        result.imag[:, 0] = np.clip(result.imag[:, 0], 0.0, np.pi)
        result.imag[:, 1:] = np.clip(result.imag[:, 1:], -np.pi, self.equations.highest_angle)
        return result


def transform_of(u: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """(t, 1 + t) of u = log(-t/(1 + t)), neither with cancellation."""
    small = (
        np.exp(-np.abs(u.real) + 1j * np.where(u.real > 0, -u.imag, u.imag))
        if np.iscomplexobj(u)
        else np.exp(-np.abs(u))
    )
    low = u.real <= 0
    one_plus_t = np.where(low, 1.0 / (1.0 + small), small / (1.0 + small))
    t = np.where(low, -small / (1.0 + small), -1.0 / (1.0 + small))
    return t, one_plus_t
