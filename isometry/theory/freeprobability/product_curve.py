"""The spectrum's curve of a product of several kinds of layers, by continuation from the negative axis. Internal.

With one w per kind none of them parametrises the spectrum as in `leading`: t and every w_g are unknown together,

    log z(t, w) - C = log lambda - C + i eta,        m_g(w_g) = t/nu_g,

and are followed from eta = pi to 0 by `continuation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from isometry.errors import ConvergenceError
from isometry.theory.freeprobability.branches import lower_log
from isometry.theory.freeprobability.continuation import (
    Continuation,
    Factors,
    Levels,
    Separable,
    transform_of,
)
from isometry.theory.freeprobability.leading import CurvePoints
from isometry.theory.freeprobability.product import FreeProduct, group_log_z, group_mass
from isometry.theory.freeprobability.real_edges import gap_around
from isometry.theory.freeprobability.skip_equations import SkipEquations

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

# u on the table of the negative axis: |t| from e^-60 to 1 - e^-26, beyond which the mass is below 1e-11.
TABLE = np.concatenate([[-60.0, -50.0, -40.0, -30.0, -24.0, -20.0, -16.0], np.arange(-13.0, 26.5, 1.5)])
# At u = 22.5 less than 4e-10 of the mass lies below lambda = |z|.
BOTTOM = 22.5
# Im t relative to t (1 + t) below which t is real.
REAL = 1e-11


@dataclass(frozen=True, eq=False)
class GroupEquations:
    """The `continuation.SeparableEquations` of a product's groups of layers."""

    product: FreeProduct

    @cached_property
    def _counts(self) -> Array:
        return np.array([group.count for group in self.product.groups])

    @cached_property
    def _ranks(self) -> Array:
        """Relative rank of D at the level of each group, at least one."""
        return np.array([group.size * group.law.nonzero_mass for group in self.product.groups])

    @property
    def means(self) -> Array:
        """E d of each group."""
        return np.array([group.law.mean for group in self.product.groups])

    def factors(self, v: ComplexArray, index: NDArray[np.intp] | None = None) -> Factors:
        """r = log m/(p + m) and f = count log 1/S at w = -e^v."""
        averages = self.product.averages(-np.exp(v), index)
        # Both numbers lie in the closed lower half-plane; p + m keeps its digits at both ends.
        relation = lower_log(averages.m) - lower_log(averages.one_plus_m_nonzero)
        slope = averages.m_rate / averages.m - averages.m_rate / averages.one_plus_m_nonzero
        counts = self._counts if index is None else self._counts[index]
        return Factors(relation, slope, counts * group_log_z(averages), counts * averages.ratio_rate)

    def levels(self, u: ComplexArray) -> Levels:
        """l = log t/(nu p + t) and the part of log z - C that is explicit in t."""
        t, one_plus_t = transform_of(u)
        # dt/du = t (1 + t)
        rate = t * one_plus_t
        rest = (self._ranks - 1.0) + one_plus_t[:, None]
        return Levels(
            lower_log(t[:, None]) - lower_log(rest),
            (1.0 / t[:, None] - 1.0 / rest) * rate[:, None],
            self.product.explicit_log_z(t, one_plus_t),
            self.product.explicit_slope(t, one_plus_t) * rate,
        )

    def mass(self, unknown: ComplexArray) -> tuple[ComplexArray, ComplexArray]:
        """(log z - C, t log z - int log z dt) at (n, 1 + K) solutions: density and mass follow from them."""
        t, one_plus_t = transform_of(unknown[:, 0])
        averages = self.product.averages(-np.exp(unknown[:, 1:]), logarithm=True)
        sizes = np.array([group.size for group in self.product.groups])
        return (
            self.product.explicit_log_z(t, one_plus_t) + group_log_z(averages) @ self._counts,
            self.product.explicit_mass(t, one_plus_t) + group_mass(averages) @ (self._counts * sizes),
        )


@dataclass(frozen=True, eq=False)
class ProductCurve:
    """A product with several groups (or one whose level does not limit the rank), or of layers with a skip."""

    product: FreeProduct

    @cached_property
    def equations(self) -> GroupEquations | SkipEquations:
        """The equations of the product's layers."""
        return SkipEquations(self.product) if self.product.skip_layers else GroupEquations(self.product)

    @cached_property
    def _continuation(self) -> Continuation:
        own = self.equations
        equations = own if isinstance(own, SkipEquations) else Separable(own)
        return Continuation(equations, TABLE, self.product.width)

    def continue_to_axis(self, log_lambda: Array) -> ComplexArray:
        """The unknowns on the positive axis at (n,) points, (n, 1 + K), from the negative axis.

        Raises
        ------
        ConvergenceError
            When some lambda cannot be reached.
        """
        unknown, reached = self._continuation.to_positive_axis(log_lambda)
        if not np.all(reached):
            raise ConvergenceError(
                "the equations of the layers could not be followed from the negative to the positive axis at lambda = "
                f"exp({log_lambda[~reached][0]:.6g}). No spectrum is given; please report the ensemble."
            )
        return unknown

    @property
    def cusps(self) -> list[float]:
        """Point masses, whose places are known; next to one the density may be infinite."""
        return [place for place, _ in self.product.atoms]

    def lower_search_range(self, top: float) -> list[float]:
        """One distance below the top that holds all visible mass: below lambda there is at most 2 (1 + t(-lambda))."""
        heights, table = self._continuation.negative_axis
        bottom = float(np.interp(BOTTOM, table[:, 0], heights))
        return [max(top - bottom, 1.0)]

    def gap_around(self, unknown: ComplexArray) -> tuple[float, float] | None:
        """The ends of the gap in which a solution (1 + K,) without density lies, or None."""
        return None if self.product.skip_layers else gap_around(self.product, unknown)

    def log_lambda_at(self, log_lambda: float) -> float:
        """The coordinate is log lambda itself."""
        return log_lambda

    def points(self, log_lambda: Array, guess: ComplexArray | None = None) -> CurvePoints:
        """The curve at (n,) values of log lambda."""
        newton = self._continuation.newton
        if guess is not None:
            unknown, good = newton(guess, log_lambda.astype(complex))
        else:
            # Follow every fourth; between them Newton's method finds its way.
            steps = np.arange(log_lambda.size)
            followed = np.unique(np.append(steps[::4], steps[-1]))
            columns = self.continue_to_axis(log_lambda[followed]).T
            guess = np.stack([np.interp(steps, followed, column) for column in columns], axis=1)
            unknown, good = newton(guess, log_lambda.astype(complex), rounds=8, impatient=True)
            good &= np.max(np.abs(unknown - guess), axis=1) < 0.5
            unknown[followed], good[followed] = columns.T, True
        if not np.all(good):
            unknown[~good] = self.continue_to_axis(log_lambda[~good])
        t, one_plus_t = transform_of(unknown[:, 0])
        log_z, mass = self.equations.mass(unknown)
        # The rest of arg z belongs to z, not to the mass.
        above = (mass.imag - t.real * log_z.imag) / np.pi
        # In a gap t is real; next to a point mass it is large, and so is the rounding of its imaginary part.
        inside = -t.imag > REAL * np.abs(t * one_plus_t)
        return CurvePoints(log_lambda, np.where(inside, -t.imag, 0.0) / np.pi, above, unknown)
