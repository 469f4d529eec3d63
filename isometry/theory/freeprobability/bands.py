"""The curve through one band of the spectrum, from edge to edge or down to where no mass is left. Internal."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from isometry.errors import ConvergenceError
from isometry.theory.freeprobability.edges import Band
from isometry.theory.freeprobability.leading import CurvePoints
from isometry.theory.freeprobability.piecewise import PiecewiseCurve, resolve
from isometry.theory.freeprobability.product import FreeProduct
from isometry.theory.freeprobability.slope_law import UNSEEN

Array = NDArray[np.float64]

# The grid reaches down until less than this mass is left below it.
REMAINING_MASS = 5e-10
TOLERANCE = 1e-8
# Relative to lambda: where a density is infinite, halving ends at one point to nine digits.
NARROWEST = 1e-9


class SpectralCurve(Protocol):
    """A solver that gives points of the curve along a real coordinate that grows with lambda."""

    @property
    def product(self) -> FreeProduct: ...

    @property
    def cusps(self) -> list[float]:
        """Coordinates at which the density may be infinite."""
        ...

    def lower_search_range(self, top: float) -> list[float]:
        """Distances below the top, growing, at which to look for the end of the mass."""
        ...

    def points(self, coordinate: Array, guess: NDArray | None = None) -> CurvePoints: ...

    def gap_around(self, unknown: NDArray) -> tuple[float, float] | None:
        """The ends of the gap in which a point without density lies, or None where it lies in none."""
        ...

    def log_lambda_at(self, coordinate: float) -> float:
        """log lambda at a real edge."""
        ...


class InnerGapError(Exception):
    """A band turned out to have a gap inside: it is the ``parts``, increasing."""

    def __init__(self, parts: list[Band]) -> None:
        super().__init__()
        self.parts = parts


@dataclass(frozen=True, eq=False)
class ResolvedBand:
    """One band resolved: its curve, s growing with log lambda, and its exact ends where they are edges.

    The mass of the curve is the continuous one, without the point masses.

    ``blurred`` is the mass next to infinite densities, inside panels a relative 1e-9 of lambda wide: there the cdf is
    interpolated.
    """

    curve: PiecewiseCurve
    low_edge: float | None
    high_edge: float | None
    blurred: float = 0.0

    @property
    def mass_above_bottom(self) -> float:
        """Continuous mass above the lower end."""
        return float(self.curve.at(np.array([0.0, 1.0]))[2, 0, 0])


@dataclass(frozen=True)
class Chart:
    """The coordinate as a function of s in [0, 1] in which the curve is analytic up to the ends of its band.

    An end of the spectrum is a square root in the coordinate, so s enters as a square there. (A lower end may be merely
    where no mass is left, but an edge often lies close to it.)
    """

    low: float
    high: float

    def coordinate(self, s: Array) -> Array:
        """Coordinates at (n,) values of s."""
        # From the nearer end, so that a small distance to either keeps its digits.
        span = self.high - self.low
        up, down = span * np.sin(0.5 * np.pi * s) ** 2, span * np.sin(0.5 * np.pi * (1.0 - s)) ** 2
        return np.where(s < 0.5, self.low + up, self.high - down)

    def parameter(self, coordinate: float) -> float:
        """s of a coordinate inside the band."""
        share = (coordinate - self.low) / (self.high - self.low)
        return 2.0 / np.pi * float(np.arcsin(np.sqrt(share)))


def resolve_band(
    curve: SpectralCurve,
    band: Band,
    above: float,
    *,
    lowest: bool,
    noise: float,
    width: float,
) -> ResolvedBand | None:
    """The curve through one band, or None where the band carries no visible mass.

    Parameters
    ----------
    curve : SpectralCurve
    band : Band
    above : float
        Continuous mass in the bands above.
    lowest : bool
        Whether there is no band below.
    noise : float
        Rounding error of masses, which no panel can beat.
    width : float
        Relative width of the law, one at most.

    Raises
    ------
    InnerGapError
        When the band consists of others.
    ConvergenceError
        When the curve cannot be followed or is not smooth.
    """
    offsets, below, unknown, log_top = _sample_downwards(curve, band, above)
    low, cut = band.low, False
    reach = band.high - band.low
    enough = np.flatnonzero(below <= REMAINING_MASS)
    if enough.size and enough[0] == 0:
        return None
    if enough.size and (not band.low_edge or offsets[enough[0]] < 0.95 * reach):
        index = int(enough[0])
        low = band.high - _where_mass_ends(curve, band, float(offsets[index - 1]), float(offsets[index]))
        cut = True
    elif not np.isfinite(band.low):
        raise ConvergenceError(
            f"the spectrum still has {below[-1]:.2g} of its mass where averages leave the range of floats. Choose a "
            "smaller q, or an activation whose slope does not vanish that fast."
        )
    chart = Chart(low, band.high)
    start = _first_panels(chart, [cusp for cusp in curve.cusps if low < cusp < band.high])

    def guess(s: Array) -> NDArray:
        at = chart.coordinate(s)
        known = (band.high - offsets)[::-1]
        columns = [np.interp(at, known, column[::-1].real) for column in unknown.T]
        if np.iscomplexobj(unknown):
            columns = [
                real + 1j * np.interp(at, known, column[::-1].imag)
                for real, column in zip(columns, unknown.T, strict=True)
            ]
        return np.stack(columns, axis=1)

    def solve(s: Array, near: NDArray) -> CurvePoints:
        at = chart.coordinate(s)
        found = _without_point_masses(curve.product, curve.points(at, near))
        _look_for_gaps(curve, band, above, at, found)
        return found

    resolved = resolve(
        solve,
        start,
        guess,
        tolerance=TOLERANCE + 3e-13 * curve.product.terms + noise,
        log_top=log_top,
        narrowest=NARROWEST * width,
        noise=3e-13 * curve.product.terms + noise,
    )
    at_bottom = None if cut else curve.product.continuous_mass if lowest else band.mass_above
    flat, blurred = resolved.flattened(at_bottom, above, narrowest=NARROWEST * width)
    return ResolvedBand(
        flat,
        curve.log_lambda_at(low) if band.low_edge and not cut else None,
        curve.log_lambda_at(band.high) if band.high_edge else None,
        blurred,
    )


def _look_for_gaps(
    curve: SpectralCurve, band: Band, above: float, coordinate: Array, points: CurvePoints
) -> None:
    """Raise `InnerGapError` where one of the points lies in a gap inside the band.

    ``points`` are without the point masses, ``above`` is the mass above the band. What carries no visible mass beside a
    gap belongs to it.
    """
    gaps: list[tuple[float, float, float]] = []
    left = np.flatnonzero(points.density == 0.0)
    while left.size:
        first, left = int(left[0]), left[1:]
        gap = curve.gap_around(points.unknown[first])
        if gap is not None and gap[0] < coordinate[first] < gap[1]:
            gaps.append((*gap, float(points.mass_above[first])))
            left = left[(coordinate[left] < gap[0]) | (coordinate[left] > gap[1])]
    parts, total = [], curve.product.continuous_mass if band.mass_above is None else band.mass_above
    near, rest = NARROWEST * min(band.high - band.low, 1.0), band
    for low, high, mass in sorted(gaps):
        parts.append((replace(rest, high=low, high_edge=True), total - mass))
        rest, total = replace(rest, low=high, low_edge=True, mass_above=mass), mass
    parts.append((rest, total - above))
    shown = [part for part, mass in parts if part.high - part.low > near and mass > UNSEEN]
    if all(part.high - part.low < band.high - band.low - near for part in shown):
        raise InnerGapError(shown)


def _where_mass_ends(curve: SpectralCurve, band: Band, near: float, far: float) -> float:
    """An offset between two at which no more than the remaining mass is left, on the far side of the exact one.

    The mass may fall like a power or stop at an edge, so look instead of interpolating.
    """
    for _ in range(2):
        between = np.linspace(near, far, 10)[1:-1]
        found = curve.points(band.high - between)
        below = _continuous_below(curve.product, found)
        enough = np.append(np.flatnonzero(below <= REMAINING_MASS), between.size)
        index = int(enough[0])
        grid = np.concatenate([[near], between, [far]])
        near, far = float(grid[index]), float(grid[index + 1])
    return far


def _first_panels(chart: Chart, cusps: list[float]) -> Array:
    """Ends of the first panels in s: four even ones, cut at the cusps."""
    even = np.linspace(0.0, 1.0, 5)
    inner = [chart.parameter(cusp) for cusp in cusps]
    inner = [place for place in inner if np.min(np.abs(place - even[[0, -1]])) > 1e-7]
    apart = [place for place in even[1:-1] if all(abs(place - cusp) > 1e-3 for cusp in inner)]
    return np.sort([even[0], even[-1], *apart, *inner])


def _sample_downwards(curve: SpectralCurve, band: Band, above: float) -> tuple[Array, Array, NDArray, float]:
    """Offsets below the top, continuous mass below each, the unknowns there, and log lambda at the topmost.

    Stage by stage, because averages far down are expensive and most laws have no mass there.
    """

    def points(offsets: Array) -> CurvePoints:
        found = _without_point_masses(curve.product, curve.points(band.high - offsets))
        _look_for_gaps(curve, band, above, band.high - offsets, found)
        return found

    reach = band.high - band.low
    stages = [stage for stage in curve.lower_search_range(band.high) if stage < reach]
    if np.isfinite(reach):
        # Nearer to an edge nothing is learned, and a solution is hard to come by.
        stages.append(reach * (1 - (1e-4 if band.low_edge else 1e-9)))
    offsets = np.geomspace(1e-5 * min(reach, stages[0] / 16.0), stages[0], 36)
    found = points(offsets)
    below, unknown = curve.product.continuous_mass - found.mass_above, found.unknown
    log_top = float(found.log_lambda[0])
    for nearer, further in itertools.pairwise(stages):
        if below[-1] <= REMAINING_MASS:
            break
        steps = np.geomspace(nearer, further, 9)[1:]
        found = points(steps)
        more = curve.product.continuous_mass - found.mass_above
        offsets, below = np.concatenate([offsets, steps]), np.concatenate([below, more])
        unknown = np.concatenate([unknown, found.unknown])
    return offsets, below, unknown, log_top


def _without_point_masses(product: FreeProduct, points: CurvePoints) -> CurvePoints:
    """The points with the continuous part of the mass above."""
    mass = points.mass_above
    for place, share in product.atoms:
        mass = mass - share * (place > points.log_lambda)
    return replace(points, mass_above=mass)


def _continuous_below(product: FreeProduct, points: CurvePoints) -> Array:
    """Continuous mass at or below each point."""
    return product.continuous_mass - _without_point_masses(product, points).mass_above
