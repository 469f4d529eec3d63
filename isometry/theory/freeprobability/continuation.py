"""The spectrum's curve for a product of several kinds of layers, turned in from the negative axis.

With one w per kind nothing leads: t and every w_g are unknown together,

    log z(t, w) - C = log lambda - C + i eta,        m_g(w_g) = t/nu_g.

For eta = pi, z on the negative axis, all of them are real and monotone in |z|, so the solution is unique and found by
bisection. From there eta is turned down to 0 for all lambda at once, by Newton's method with steps that adapt to each
lambda: the solution is analytic in the upper half-plane, so no root has to be chosen.

Unknowns are kept as u = log(-t/(1 + t)) and v_g = log(-w_g), real on the negative axis and free of cancellation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isometry.errors import ConvergenceError
from isometry.theory.freeprobability.leading import CurvePoints
from isometry.theory.freeprobability.product import FreeProduct, group_log_z, group_mass, lower_log

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

# u on the table of the negative axis: |t| from e^-60 to 1 - e^-26, beyond which there is less mass than anyone sees.
TABLE = np.concatenate([[-60.0, -50.0, -40.0, -30.0, -24.0, -20.0, -16.0], np.arange(-13.0, 26.5, 1.5)])
# At u = 22.5 less than 4e-10 of the mass lies below lambda = |z|.
BOTTOM = 22.5
# In the open half-plane there is only one solution, so steps may be long where Newton's method bears them.
FIRST_STEP = 1.55
# The axis is entered from no further than this.
LAST_TURN = 0.1
# Of a step that failed, the share that is tried next: next to an edge the rest of the way shrinks by fifths.
SHORTER = 0.8
SMALLEST_STEP = 1e-8
# Newton step, per unit of the angle left, that is small enough while the path only has to be kept.
ON_THE_WAY = 1e-2
# Newton step after which the error, of the order of its square, does not show.
LAST_STEP = 1e-7
# Where averages lose digits (next to a zero of phi') the last bit of the way may be noise.
CLOSE_ENOUGH = 1e-6
CLOSE_ENOUGH_BELOW = 0.05


@dataclass(frozen=True, eq=False)
class TurningCurve:
    """A product with several groups (or one whose level does not limit the rank)."""

    product: FreeProduct

    @cached_property
    def _counts(self) -> Array:
        return np.array([group.count for group in self.product.groups])

    @cached_property
    def _ranks(self) -> Array:
        """Relative rank of D at the level of each group, at least one."""
        return np.array([group.size * group.law.nonzero_mass for group in self.product.groups])

    def _evaluate(
        self, unknown: ComplexArray
    ) -> tuple[ComplexArray, ComplexArray, ComplexArray, ComplexArray, ComplexArray]:
        """(log z, its slope in u with the groups eliminated, correction, v slopes, v corrections) at (n, 1 + K).

        A Newton step for log z = target is du = (target - log z + correction)/slope, dv = v_slope du - v_correction.
        """
        t, one_plus_t = _from_u(unknown[:, 0])
        # dt/du = t (1 + t)
        rate = t * one_plus_t
        averages = self.product.averages(-np.exp(unknown[:, 1:]))
        # m = t/nu as log m/(p + m) = log t/(nu p + t), which keeps its digits at both ends.
        rest = (self._ranks - 1.0) + one_plus_t[:, None]
        miss = _ratio(averages.m, averages.one_plus_m_nonzero) - _ratio(t[:, None], rest)
        per_v = averages.m_rate / averages.m - averages.m_rate / averages.one_plus_m_nonzero
        v_slopes = (1.0 / t[:, None] - 1.0 / rest) * rate[:, None] / per_v
        v_corrections = miss / per_v
        value = self.product.explicit_log_z(t, one_plus_t) + group_log_z(averages) @ self._counts
        slope = self.product.explicit_slope(t, one_plus_t) * rate
        slope = slope + (averages.ratio_rate * v_slopes) @ self._counts
        correction = (averages.ratio_rate * v_corrections) @ self._counts
        return value, slope, correction, v_slopes, v_corrections

    def newton(
        self,
        unknown: ComplexArray,
        target: ComplexArray,
        *,
        rounds: int = 40,
        tolerance: float | Array = LAST_STEP,
        impatient: bool = False,
    ) -> tuple[ComplexArray, NDArray]:
        """Solutions of log z = target near the given unknowns, and which of them converged in the right half-plane.

        ``tolerance`` is the last step of Newton's method: the error is of the order of its square. ``impatient`` gives
        up where steps do not shrink.
        """
        tolerance = np.broadcast_to(tolerance, target.shape)
        current = unknown.copy()
        good = np.zeros(target.size, bool)
        last = np.full(target.size, np.inf)
        active = np.arange(target.size)
        for round_number in range(rounds):
            with np.errstate(all="ignore"):
                value, slope, correction, v_slopes, v_corrections = self._evaluate(current[active])
                du = (target[active] - value + correction) / slope
                dv = v_slopes * du[:, None] - v_corrections
            step = np.concatenate([du[:, None], dv], axis=1)
            size = np.max(np.abs(step), axis=1)
            # Beyond one the linearisation means nothing.
            step = step / np.maximum(size, 1.0)[:, None]
            current[active] += np.where(np.isfinite(size)[:, None], step, 0.0)
            valid = np.isfinite(size) & _in_half_plane(current[active], 1e-9)
            # Next to a zero of phi' averages have fewer digits, and Newton stops gaining before 1e-10.
            settled = valid & ((size < tolerance[active]) | ((size < 1e-5) & (size > 0.25 * last[active])))
            # Far from a solution steps do not shrink.
            valid &= (round_number < 2) | settled | (size < 0.7 * last[active]) if impatient else True
            last[active] = size
            good[active[settled]] = True
            active = active[valid & ~settled]
            if active.size == 0:
                break
        return _clipped(current), good

    @cached_property
    def on_negative_axis(self) -> tuple[Array, Array]:
        """(log |z|, unknowns) on the table: (n,) and (n, 1 + K), real; log |z| decreases."""
        return self._table(TABLE)

    def _table(self, u: Array) -> tuple[Array, Array]:
        t, one_plus_t = _from_u(u)
        target = np.log(-t[:, None] / (self._ranks - 1.0 + one_plus_t[:, None]))
        unknown = np.concatenate([u[:, None], self._negative_inverse(target)], axis=1)
        return self._evaluate(unknown.astype(complex))[0].real, unknown

    def _negative_inverse(self, target: Array) -> Array:
        """v with log(-m/(p + m)) = target at w = -e^v, for (n, K) values: m runs monotonically from -p to 0."""
        # For a constant d this is v = log d - target.
        means = np.array([group.law.mean for group in self.product.groups])
        v = np.clip(np.log(means) - target, -680.0, 680.0).ravel()
        law = np.broadcast_to(np.arange(means.size), target.shape).ravel()
        target = target.ravel()
        low, high = np.full(target.size, -690.0), np.full(target.size, 690.0)
        active = np.arange(target.size)
        for _ in range(200):
            here = v[active]
            averages = self.product.averages(-np.exp(here).astype(complex), law[active])
            m, rest, rate = averages.m.real, averages.one_plus_m_nonzero.real, averages.m_rate.real
            value = np.log(-m / rest)
            # The left side falls as w moves away from zero.
            over = value > target[active]
            low[active], high[active] = np.where(over, here, low[active]), np.where(over, high[active], here)
            step = (target[active] - value) / np.minimum(rate / m - rate / rest, -1e-3)
            moved = here + step
            settled = np.abs(step) < 1e-6
            inside = (moved > low[active]) & (moved < high[active])
            v[active] = np.where(settled | inside, moved, 0.5 * (low[active] + high[active]))
            active = active[~(settled | (high[active] - low[active] < 1e-9))]
            if active.size == 0:
                break
        return v.reshape(-1, means.size)

    def _start(self, log_lambda: Array) -> ComplexArray:
        """The unknowns at z = -exp(log_lambda), (n, 1 + K), where they are real.

        Raises
        ------
        ConvergenceError
            When Newton's method does not get there from the table, however fine.
        """
        heights, table = self.on_negative_axis
        target = log_lambda + 1j * np.pi
        for _ in range(6):
            guess = [np.interp(log_lambda, heights[::-1], column[::-1]) for column in table.T]
            found, good = self.newton(
                np.stack(guess, axis=1).astype(np.complex128), target.astype(np.complex128)
            )
            if np.all(good):
                return found
            # A law with a long tail runs through many decades between two places of the table: look closer there.
            places = np.clip(np.searchsorted(-heights, -log_lambda[~good]), 1, heights.size - 1)
            finer = np.concatenate(
                [np.linspace(table[place - 1, 0], table[place, 0], 10)[1:-1] for place in np.unique(places)]
            )
            more_heights, more = self._table(finer)
            table, heights = np.concatenate([table, more]), np.concatenate([heights, more_heights])
            order = np.argsort(table[:, 0])
            table, heights = table[order], heights[order]
        raise ConvergenceError(
            f"the equations of the layers could not be solved at z = -exp({log_lambda[~good][0]:.6g}), where they are "
            "real. No spectrum is given; please report the ensemble."
        )

    def turned(self, log_lambda: Array) -> ComplexArray:
        """The unknowns on the positive axis at (n,) points, (n, 1 + K), from the negative axis.

        Raises
        ------
        ConvergenceError
            When some lambda cannot be reached.
        """
        current, angle = self._start(log_lambda), np.full(log_lambda.size, np.pi)
        previous, previous_angle = current.copy(), angle.copy()
        step = np.full(log_lambda.size, FIRST_STEP)
        active = np.arange(log_lambda.size)
        for _ in range(4000):
            target_angle = np.maximum(angle[active] - step[active], 0.0)
            # On the axis itself there may be other solutions: go there only from close by.
            target_angle[(target_angle == 0.0) & (angle[active] > LAST_TURN)] = LAST_TURN
            # Extrapolate along the path.
            run = previous_angle[active] - angle[active]
            share = np.where(run > 0, (angle[active] - target_angle) / np.where(run > 0, run, 1.0), 0.0)
            guess = current[active] + share[:, None] * (current[active] - previous[active])
            guess = _clipped(guess)
            found, good = self.newton(
                guess,
                log_lambda[active] + 1j * target_angle,
                rounds=7,
                impatient=True,
                tolerance=np.clip(ON_THE_WAY * target_angle, LAST_STEP, ON_THE_WAY),
            )
            # A root that is far from where the path points is another root.
            good &= np.max(np.abs(found - guess), axis=1) < 0.5 + 2.0 * step[active]
            turn = angle[active] - target_angle
            moved = active[good]
            previous[moved], previous_angle[moved] = current[moved], angle[moved]
            current[moved], angle[moved] = found[good], target_angle[good]
            step[active] = np.where(good, np.minimum(2.0 * turn, FIRST_STEP), SHORTER * turn)
            if np.any(step[active[~good]] < SMALLEST_STEP):
                break
            # |1 + t| = e^-18 bounds the mass below: there the last bit of the way changes nothing that shows.
            below = (current[active, 0].real > 18.0) & (angle[active] <= CLOSE_ENOUGH_BELOW)
            near_enough = below | (~good & (angle[active] <= CLOSE_ENOUGH))
            active = active[(angle[active] > 0.0) & ~near_enough]
            if active.size == 0:
                return current
        raise ConvergenceError(
            f"the path from the negative to the positive axis stopped at angle {angle[active][0]:.3g} for lambda = "
            f"exp({log_lambda[active][0]:.6g}). No spectrum is given; please report the ensemble."
        )

    @property
    def cusps(self) -> list[float]:
        """Point masses, whose places are known; next to one the density may be infinite."""
        return [place for place, _ in self.product.atoms]

    def looking_down(self, top: float) -> list[float]:
        """How far below the top mass has to be looked for: mass below lambda is at most 2 (1 + t) at z = -lambda."""
        heights, table = self.on_negative_axis
        bottom = float(np.interp(BOTTOM, table[:, 0], heights))
        return [max(top - bottom, 1.0)]

    def log_lambda_at(self, log_lambda: float) -> float:
        """The coordinate is log lambda itself."""
        return log_lambda

    def points(self, log_lambda: Array, guess: ComplexArray | None = None) -> CurvePoints:
        """The curve at (n,) values of log lambda."""
        if guess is not None:
            unknown, good = self.newton(guess, log_lambda.astype(complex))
        else:
            # Turn every fourth; between them Newton's method finds its way.
            steps = np.arange(log_lambda.size)
            turned = np.unique(np.append(steps[::4], steps[-1]))
            columns = self.turned(log_lambda[turned]).T
            guess = np.stack([np.interp(steps, turned, column) for column in columns], axis=1)
            unknown, good = self.newton(guess, log_lambda.astype(complex), rounds=8, impatient=True)
            good &= np.max(np.abs(unknown - guess), axis=1) < 0.5
            unknown[turned], good[turned] = columns.T, True
        if not np.all(good):
            unknown[~good] = self.turned(log_lambda[~good])
        t, one_plus_t = _from_u(unknown[:, 0])
        log_z = self.product.explicit_log_z(t, one_plus_t)
        mass = self.product.explicit_mass(t, one_plus_t)
        averages = self.product.averages(-np.exp(unknown[:, 1:]), logarithm=True)
        sizes = np.array([group.size for group in self.product.groups])
        log_z = log_z + group_log_z(averages) @ self._counts
        mass = mass + group_mass(averages) @ (self._counts * sizes)
        # What is left of arg z belongs to z, not to the mass.
        above = (mass.imag - t.real * log_z.imag) / np.pi
        return CurvePoints(log_lambda, np.maximum(-t.imag, 0.0) / np.pi, above, unknown)


def _in_half_plane(unknown: ComplexArray, slack: float) -> NDArray[np.bool_]:
    """Whether w lies in the upper and t/(1 + t) in the lower half-plane: Im v in [-pi, 0], Im u in [0, pi]; (n,)."""
    inside = (unknown.imag[:, 0] > -slack) & (unknown.imag[:, 0] < np.pi + slack)
    v = unknown.imag[:, 1:]
    return inside & np.all((v < slack) & (v > -np.pi - slack), axis=1)


def _clipped(unknown: ComplexArray) -> ComplexArray:
    result = unknown.copy()
    result.imag[:, 0] = np.clip(result.imag[:, 0], 0.0, np.pi)
    result.imag[:, 1:] = np.clip(result.imag[:, 1:], -np.pi, 0.0)
    return result


def _from_u(u: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
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


def _ratio(m: NDArray[Any], rest: NDArray[Any]) -> ComplexArray:
    """log of m/(p + m), both numbers in the closed lower half-plane."""
    return lower_log(m) - lower_log(rest)
