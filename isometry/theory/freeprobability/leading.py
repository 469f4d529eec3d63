"""The real curve of a product with one group of layers: w parametrises the spectrum and nothing is inverted. Internal.

With w = r e^{i theta} in the upper half-plane and t = nu m(w), z is an explicit function of w. For every r exactly
one theta in [0, pi) makes z real; lambda = z increases with r; theta = 0 is a gap of the spectrum. So a bracketed
Newton iteration in theta at given r gives

    density of log lambda = -Im t / pi,
    mass above lambda     = Im Q / pi,     Q = t log z - int log z dt   (t d log z integrated by parts, elementary),

and no branch has to be chosen beyond arg in [-pi, 0] for t, h, m and 1 + t/nu_j.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from isometry.errors import ConvergenceError
from isometry.theory.freeprobability.law_averages import Averages
from isometry.theory.freeprobability.product import FreeProduct, Group, group_log_z, group_mass

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

# Below this angle (relative to the width) the density is below 5e-10 of its scale: the point counts as a gap.
SMALLEST_ANGLE = 5e-10


@dataclass(frozen=True, eq=False)
class CurvePoints:
    """Points of the spectrum's curve, (n,) each: log lambda - C, density per log lambda, mass above lambda.

    ``unknown``, (n, k), is what the solver iterated on: the angle, or the complex unknowns of `continuation`. It is a
    first guess for neighbouring points.
    """

    log_lambda: Array
    density: Array
    mass_above: Array
    unknown: NDArray


@dataclass(frozen=True, eq=False)
class LeadingCurve:
    """A product and the group whose w leads."""

    product: FreeProduct
    group: Group

    def _transform(
        self, w: ComplexArray, *, logarithm: bool = False
    ) -> tuple[Averages, ComplexArray, ComplexArray]:
        averages = self.group.law.averages(w, logarithm=logarithm)
        # 1 + t = w E[1/(w - d); d > 0]/P(d > 0), free of cancellation near t = -1.
        one_plus_t = averages.one_plus_m_nonzero / self.group.law.nonzero_mass
        return averages, self.group.size * averages.m, one_plus_t

    def one_plus_t(self, w: ComplexArray) -> ComplexArray:
        """1 + t at (n,) points w."""
        return self._transform(w)[2]

    def log_z(self, w: ComplexArray) -> tuple[ComplexArray, ComplexArray]:
        """log z - C and K = d log z / d log w at (n,) points w."""
        averages, t, one_plus_t = self._transform(w)
        value = self.product.explicit_log_z(t, one_plus_t)
        slope = self.product.explicit_slope(t, one_plus_t) * self.group.size * averages.m_rate
        if self.group.count:
            value = value + self.group.count * group_log_z(averages)
            slope = slope + self.group.count * averages.ratio_rate
        return value, slope

    def angles(self, log_radius: Array, guess: Array | None = None) -> Array:
        """The angle of the curve at each radius, (n,); 0 inside a gap.

        Raises
        ------
        ConvergenceError
            When the iteration does not end.
        """
        radius = np.exp(log_radius)
        smallest = self._smallest_angle
        angle = np.full(radius.size, 1.0) if guess is None else np.clip(guess, smallest, 3.14159)
        low, high = np.zeros(radius.size), np.full(radius.size, np.pi)
        # arg z at the two ends of the bracket, for regula falsi.
        at_low, at_high = np.full(radius.size, np.nan), np.full(radius.size, np.nan)
        was_left = np.zeros(radius.size, bool)
        active = np.arange(radius.size)
        for iteration in range(120):
            value, slope = self.log_z(radius[active] * np.exp(1j * angle[active]))
            here, arg, steepness = angle[active], value.imag, slope.real
            left = arg < 0
            # Illinois: an end that stays a second time counts half.
            again = np.where(left == was_left[active], 0.5, 1.0)
            at_high[active] = np.where(left, again * at_high[active], arg)
            at_low[active] = np.where(left, arg, again * at_low[active])
            was_left[active] = left
            low[active], high[active] = np.where(left, here, low[active]), np.where(left, high[active], here)
            a, b, f_a, f_b = low[active], high[active], at_low[active], at_high[active]
            with np.errstate(divide="ignore", invalid="ignore"):
                newton, falsi = here - arg / steepness, (a * f_b - b * f_a) / (f_b - f_a)
            # Next to the values of d the derivative, a sum over double poles, is noise, but arg z is nearly linear.
            new = np.where((here < 1e5 * smallest) & np.isfinite(falsi), falsi, newton)
            inside = (new > a) & (new < b) & np.isfinite(new)
            if iteration > 12 and iteration % 3 == 0:
                # A step that creeps, next to an edge or in the noise: halve the bracket.
                inside[:] = False
            # Toward an angle of zero bisect in the logarithm, for it may be 1e-9; and when Newton points to zero or
            # below, look at the smallest angle at once: a gap takes two evaluations.
            middle = np.where(b < 0.05, np.sqrt(np.maximum(a, smallest) * b), 0.5 * (a + b))
            middle = np.where((a == 0.0) & ~(newton > 0.0), smallest, middle)
            # A relative step of 1e-6 of Newton's leaves an error of 1e-12.
            settled = inside & (np.abs(new - here) <= 1e-6 * here)
            settled |= (steepness > 0) & (np.abs(newton - here) <= 1e-6 * here)
            # At small angles arg z is rounding before the step is small. The angle is as good as it gets, unless arg z
            # is flat there, as at a cusp.
            noise = 4e-16 * (1.0 + self.product.terms * self._width)
            across = np.where(np.isfinite(falsi), (f_b - f_a) / np.maximum(b - a, 1e-300), steepness)
            settled |= (np.abs(arg) <= noise) & (noise < 0.3 * here * across)
            gap = b <= smallest
            close = (newton > 0.5 * here) & (newton < 2.0 * here)
            new = np.where(inside, new, np.where(settled, np.where(close, newton, here), middle))
            new = np.maximum(new, smallest)
            angle[active] = np.where(gap, 0.0, new)
            done = settled | (b - a <= (2e-16 if iteration < 30 else 1e-8) * b)
            active = active[~(done | gap)]
            if active.size == 0:
                return angle
        raise ConvergenceError(
            f"the angle of the spectral curve did not converge at {active.size} of {radius.size} radii, first at "
            f"|w| = {radius[active[0]]:.6g}. No spectrum is given; please report the ensemble."
        )

    @cached_property
    def _width(self) -> float:
        """Relative spread of d, one at most: angles of a narrow law are of this order."""
        return min(1.0, math.sqrt(self.group.law.relative_variance)) if self.group.count else 1.0

    @cached_property
    def _smallest_angle(self) -> float:
        """The smallest angle above the rounding of arg z, which is a sum over all layers."""
        return max(SMALLEST_ANGLE, 2e-15 * self.product.terms) * self._width

    @property
    def cusps(self) -> list[float]:
        """A point mass of d inside a band may leave a cusp there: it does where L (1 - p) = 1."""
        return [float(np.log(value)) for value in self.group.law.values]

    def lower_search_range(self, top: float) -> list[float]:
        """Distances below the top in log |w|, growing, at which to look for the end of the mass."""
        del top
        return [16.0, 24.0, 32.0, 40.0, 48.0, 56.0, 64.0, 100.0, 200.0, 400.0, 650.0]

    def gap_around(self, unknown: NDArray) -> None:
        """Its bands are known without gaps inside."""
        del unknown

    def log_lambda_at(self, log_radius: float) -> float:
        """log lambda at a real edge."""
        return float(self.log_z(np.array([np.exp(log_radius)], complex))[0][0].real)

    def points(self, log_radius: Array, guess: NDArray | None = None) -> CurvePoints:
        """The curve at (n,) radii."""
        angle = self.angles(log_radius, None if guess is None else guess[:, 0])
        # A gap inside the range of d (of no visible mass) must not be entered on the axis itself.
        w = np.exp(log_radius + 1j * np.maximum(angle, self._smallest_angle))
        averages, t, one_plus_t = self._transform(w, logarithm=True)
        log_z = self.product.explicit_log_z(t, one_plus_t)
        mass = self.product.explicit_mass(t, one_plus_t)
        if self.group.count:
            log_z = log_z + self.group.count * group_log_z(averages)
            mass = mass + self.group.count * self.group.size * group_mass(averages)
        # The rest of arg z belongs to z, not to the mass.
        above = (mass.imag - t.real * log_z.imag) / np.pi
        return CurvePoints(log_z.real, np.maximum(-t.imag, 0.0) / np.pi, above, angle[:, None])
