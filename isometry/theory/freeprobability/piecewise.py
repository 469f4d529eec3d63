"""A curve known point by point, as polynomials on panels that are halved until they are accurate. Internal.

The spectral curve is analytic between its edges in the variable used here, so sixteen Gauss-Legendre points on a
few dozen panels give every quantity along it to nine digits or more; the size of the last Legendre coefficients
says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray

from isometry.errors import ConvergenceError
from isometry.theory.freeprobability.leading import CurvePoints

Array = NDArray[np.float64]

ORDER = 16
NODES, WEIGHTS = legendre.leggauss(ORDER)
_VALUES = legendre.legvander(NODES, ORDER - 1)
# Values at the nodes -> Legendre coefficients, by the discrete orthogonality of the Gauss rule.
_TO_COEFFICIENTS = ((_VALUES * WEIGHTS[:, None]).T * (np.arange(ORDER) + 0.5)[:, None]).T
_TO_FIRST_HALF, _TO_SECOND_HALF = (
    legendre.legvander(0.5 * (NODES + shift), ORDER - 1) @ _TO_COEFFICIENTS.T for shift in (-1.0, 1.0)
)
_DERIVATIVE = np.stack([legendre.legval(NODES, legendre.legder(row)) for row in np.eye(ORDER)])
MOST_PANELS = 2000
# Weight of an error of the mass in the mean, of lambda over its mean: the mean need not be as good as the mass.
MEAN_SHARE, LARGEST_LOG = 0.05, 40.0


@dataclass(frozen=True, eq=False)
class PiecewiseCurve:
    """Legendre coefficients of (log lambda, density, mass above) on panels of s.

    Parameters
    ----------
    left, width : (P,) arrays
        Panels, increasing.
    coefficients : (3, P, 16) array
    """

    left: Array
    width: Array
    coefficients: Array

    def at(self, u: Array) -> Array:
        """(3, P, k) values at the (k,) relative places u in [0, 1] of every panel."""
        return self.coefficients @ legendre.legvander(2.0 * u - 1.0, ORDER - 1).T

    def integrate(self, integrand: Callable[[Array], Array]) -> Array:
        """int integrand(log lambda) density d log lambda over each panel, (P,)."""
        log_lambda, density, _ = self.coefficients @ _VALUES.T
        slope = self.coefficients[0] @ _DERIVATIVE
        return (integrand(log_lambda) * density * slope) @ WEIGHTS

    def flattened(
        self, mass_at_start: float | None, mass_at_end: float | None, *, narrowest: float
    ) -> tuple[PiecewiseCurve, float]:
        """The curve with panels too narrow to resolve their density made linear, and the mass in them.

        Such panels surround a point where the density is infinite. Their log lambda is exact, but their masses are
        noisy; their neighbours' are not.

        Parameters
        ----------
        mass_at_start, mass_at_end : float, optional
            Mass above at the first and at the last s, where it is known.
        narrowest : float
            Span of log lambda below which a panel is too narrow.
        """
        ends = self.at(np.array([0.0, 1.0]))
        narrow = np.abs(ends[0, :, 1] - ends[0, :, 0]) < narrowest
        if not np.any(narrow):
            return self, 0.0
        coefficients = self.coefficients.copy()
        total = 0.0
        steps = np.flatnonzero(np.diff(np.concatenate([[0], narrow.astype(int), [0]])))
        for first, stop in zip(steps[::2], steps[1::2], strict=True):
            before = ends[2, first - 1, 1] if first > 0 else ends[2, 0, 0]
            if first == 0 and mass_at_start is not None:
                before = mass_at_start
            after = ends[2, stop, 0] if stop < narrow.size else ends[2, -1, 1]
            if stop == narrow.size and mass_at_end is not None:
                after = mass_at_end
            start, run = ends[0, first, 0], ends[0, stop - 1, 1] - ends[0, first, 0]
            total += abs(float(after - before))
            for panel in range(first, stop):
                a, b = ends[0, panel]
                masses = before + (after - before) * (np.array([a, b]) - start) / run
                coefficients[:, panel] = 0.0
                coefficients[0, panel, :2] = 0.5 * (a + b), 0.5 * (b - a)
                coefficients[1, panel, 0] = (before - after) / run
                coefficients[2, panel, :2] = 0.5 * masses.sum(), 0.5 * (masses[1] - masses[0])
        return PiecewiseCurve(self.left, self.width, coefficients), total


def resolve(
    solve: Callable[[Array, NDArray], CurvePoints],
    start: Array,
    guess: Callable[[Array], NDArray],
    *,
    tolerance: float = 1e-9,
    log_top: float = 0.0,
    narrowest: float = 1e-9,
    noise: float = 0.0,
) -> PiecewiseCurve:
    """Panels that carry the curve to the tolerance.

    Parameters
    ----------
    solve : callable
        (s, guess) -> CurvePoints.
    start : (K + 1,) array
        Ends of the first panels; s may run against log lambda.
    guess : callable
        First guess of the unknown at s.
    tolerance : float
        Absolute, on cumulative mass.
    log_top : float
        log of the largest lambda: near it panels must also resolve lambda itself, which carries the moments.
    narrowest : float
        Span of log lambda at which halving ends.
    noise : float
        Rounding of masses, below which an error is not weighed by lambda.

    Raises
    ------
    ConvergenceError
        When the curve does not become smooth under halving.
    """
    left, width = start[:-1].copy(), np.diff(start)
    guesses = guess((left[:, None] + width[:, None] * 0.5 * (NODES + 1.0)).ravel())
    done: list[_Panels] = []
    panels, worst = 0, 0.0
    for _ in range(80):
        s = (left[:, None] + width[:, None] * 0.5 * (NODES + 1.0)).ravel()
        sample = solve(s, guesses)
        values = np.stack([sample.log_lambda, sample.density, sample.mass_above]).reshape(3, -1, ORDER)
        new = _Panels(
            left,
            width,
            values @ _TO_COEFFICIENTS,
            np.ptp(values[0], axis=1),
            sample.unknown.reshape(left.size, ORDER, -1),
        )
        densest = np.max(values[1], axis=1)
        tail = np.max(np.abs(new.coefficients[:, :, -3:]), axis=2)
        # An error e of log lambda moves the cdf by density * e; one of the density moves it by e * span/10.
        error = np.maximum(tail[2], np.maximum(tail[0] * densest, tail[1] * np.minimum(new.span, 1.0) * 0.1))
        # A step, or an edge of a gap, between two nodes: the density does not make up the mass.
        curve = PiecewiseCurve(left, width, new.coefficients)
        ends = curve.at(np.array([0.0, 1.0]))[2]
        error = np.maximum(error, np.abs(curve.integrate(np.ones_like) - (ends[:, 0] - ends[:, 1])))
        # Little mass far above the mean counts in the mean.
        share = np.exp(np.minimum(np.max(values[0], axis=1), LARGEST_LOG)) * MEAN_SHARE
        error = np.where(error > noise, error * np.maximum(share, 1.0), error)
        # Where the density is infinite: two orthogonal ReLU layers.
        error[new.span < narrowest] = 0.0
        bulky = (new.span > 6.0) & (np.max(values[0], axis=1) > log_top - 45.0) & (densest > 1e-14)
        rough, worst = (error > tolerance) | bulky, float(np.max(error))
        done.append(new.chosen(~rough))
        todo = new.chosen(rough)
        if not np.any(rough):
            everything = _Panels.joined(done)
            torn = everything.torn(5.0 * tolerance, narrowest)
            if not np.any(torn):
                return PiecewiseCurve(everything.left, everything.width, everything.coefficients)
            # A step that hides between the outermost node of a panel and its end.
            done, todo = [everything.chosen(~torn)], everything.chosen(torn)
        panels += 2 * todo.left.size
        if panels > MOST_PANELS:
            break
        left, width, guesses = todo.halves()
    raise ConvergenceError(
        f"the spectral curve is not smooth at s = {left[0]:.6g}: {panels} panels do not bring its error below "
        f"{tolerance:g} (left {worst:.2g}). No spectrum is given; please report the ensemble."
    )


@dataclass(frozen=True, eq=False)
class _Panels:
    """Panels with their Legendre coefficients (3, P, 16), span of log lambda (P,), and unknowns at nodes (P, 16, k)."""

    left: Array
    width: Array
    coefficients: Array
    span: Array
    unknown: NDArray

    def chosen(self, which: NDArray) -> _Panels:
        return _Panels(
            self.left[which],
            self.width[which],
            self.coefficients[:, which],
            self.span[which],
            self.unknown[which],
        )

    @staticmethod
    def joined(parts: list[_Panels]) -> _Panels:
        """All panels in order of s."""
        left = np.concatenate([part.left for part in parts])
        whole = _Panels(
            left,
            np.concatenate([part.width for part in parts]),
            np.concatenate([part.coefficients for part in parts], axis=1),
            np.concatenate([part.span for part in parts]),
            np.concatenate([part.unknown for part in parts]),
        )
        return whole.chosen(np.argsort(left))

    def torn(self, tolerance: float, narrowest: float) -> NDArray[np.bool_]:
        """Panels whose mass does not meet that of a neighbour, (P,); those too narrow for that do not count."""
        ends = self.coefficients[2] @ legendre.legvander(np.array([-1.0, 1.0]), ORDER - 1).T
        narrow = self.span < narrowest
        open_joint = np.abs(ends[1:, 0] - ends[:-1, 1]) > tolerance
        open_joint &= ~(narrow[1:] | narrow[:-1])
        return np.append(open_joint, False) | np.insert(open_joint, 0, False)

    def halves(self) -> tuple[Array, Array, NDArray]:
        """(left, width, guesses at the nodes) of the halves: parents interpolate the guesses."""
        both = [
            np.einsum("co,pok->pck", matrix, self.unknown) for matrix in (_TO_FIRST_HALF, _TO_SECOND_HALF)
        ]
        width = 0.5 * np.concatenate([self.width, self.width])
        left = np.concatenate([self.left, self.left + 0.5 * self.width])
        return left, width, np.concatenate(both).reshape(-1, self.unknown.shape[2])
