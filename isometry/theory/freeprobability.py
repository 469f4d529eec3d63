"""The law of the nonzero eigenvalues lambda of J J^T, from the product of its layers' S-transforms.

A `FreeProduct` gives z(t) explicitly; this module follows the real curve Im z = 0 through every band of the
spectrum, puts a grid on it, adds the point masses and the moments, and checks the result against what is known
without it: the total mass, the integral of the density, and the mean. Nothing is sampled and nothing is smoothed;
a check that fails is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isometry.errors import ConvergenceError
from isometry.theory.edges import Band, find_bands
from isometry.theory.leading import LeadingCurve
from isometry.theory.piecewise import PiecewiseCurve, Sample, resolve
from isometry.theory.product import FreeProduct
from isometry.theory.pushforward import law_of_one_layer, single_factor
from isometry.theory.series import log_moments

Array = NDArray[np.float64]

# The grid reaches down until less than this mass is left below it.
REMAINING_MASS = 5e-10
LOOKING_DOWN = (16.0, 24.0, 32.0, 40.0, 48.0, 56.0, 64.0, 100.0, 200.0, 400.0)
MASS_TOLERANCE = 1e-7
MEAN_TOLERANCE = 1e-6
MOMENT_COUNT = 6


@dataclass(frozen=True, eq=False)
class Law:
    """A probability law of lambda > 0, in natural logarithms of lambda.

    Parameters
    ----------
    log_lambda : (G,) array
        Grid of the continuous part, increasing; empty where there is none.
    cdf : (G,) array
        Mass of the continuous part up to each point.
    density : (G,) array
        Mass of the continuous part per unit of log lambda.
    atoms : tuple of (log lambda, mass)
    log_moments : (6,) array
        log E lambda^k, k = 1..6, atoms included.
    log_edges : (float, float)
        Ends of the support. -inf where it reaches down to 0, or where no lower edge shows before the mass left
        below is under 5e-10. Mass below 1e-16, which a Gaussian tail of pre-activations can put beyond an edge, is
        not counted.
    """

    log_lambda: Array
    cdf: Array
    density: Array
    atoms: tuple[tuple[float, float], ...]
    log_moments: Array
    log_edges: tuple[float, float]


@dataclass(frozen=True, eq=False)
class TracedBand:
    """One band resolved: its curve, whether s runs against log lambda, and its exact ends where they are edges."""

    curve: PiecewiseCurve
    reversed: bool
    low_edge: float | None
    high_edge: float | None


def solve(product: FreeProduct, *, points: int = 2000) -> Law:
    """The law of the nonzero eigenvalues of a free product.

    Parameters
    ----------
    product : FreeProduct
    points : int
        Size of the grid.

    Raises
    ------
    ConvergenceError
        When the solver does not converge, or its result does not have the mass or mean it must have.
    """
    moments = log_moments(product, MOMENT_COUNT)
    atom_mass = float(sum(mass for _, mass in product.atoms))
    if atom_mass > 1.0 - 1e-12:
        places = [place for place, _ in product.atoms]
        empty = np.empty(0)
        return Law(empty, empty, empty, product.atoms, moments, (min(places), max(places)))
    single = single_factor(product)
    if single is not None:
        log_lambda, cdf, density, edges = law_of_one_layer(single, product.log_scale, points)
        return Law(log_lambda, cdf, density, product.atoms, moments, edges)
    group = product.leading_group
    if group is None:
        traced = rotated_bands(product, REMAINING_MASS)
    else:
        leading = LeadingCurve(product, group)
        traced = [_trace(leading, band) for band in find_bands(leading)]
        traced = [band for band in traced if band is not None]
    return _assemble(product, traced, moments, points)


def _trace(leading: LeadingCurve, band: Band) -> TracedBand | None:
    """The curve through one band, or None where the band carries no mass that could be seen."""
    product = leading.product

    def remaining(log_radius: Array) -> tuple[Array, Array, float]:
        found = leading.points(log_radius)
        below = continuous_below(product, found.log_lambda, found.mass_above)
        return below, found.unknown, float(found.log_lambda[0])

    reach = min(690.0, band.high - band.low)
    # Look down stage by stage: mostly the lowest radius worth seeing is e^-30 or so, and further down averages get
    # dear, but a slope that vanishes fast puts mass at any depth.
    stages = [stage for stage in LOOKING_DOWN if stage < reach] + [reach * (1 - 1e-9)]
    offsets = np.geomspace(1e-5 * min(reach, 1.0), stages[0], 56)
    below, angles, log_top = remaining(band.high - offsets)
    for nearer, further in zip(stages[:-1], stages[1:], strict=True):
        if below[-1] <= REMAINING_MASS:
            break
        steps = np.geomspace(nearer, further, 9)[1:]
        more, more_angles, _ = remaining(band.high - steps)
        offsets = np.concatenate([offsets, steps])
        below, angles = np.concatenate([below, more]), np.concatenate([angles, more_angles])
    low, low_edge = band.low, band.low_edge
    enough = np.flatnonzero(below <= REMAINING_MASS)
    if enough.size and enough[0] == 0:
        return None
    if enough.size and offsets[enough[0]] < 0.95 * reach:
        # Mass falls roughly like a power of the radius: interpolate its logarithm, and stay on the far side.
        index = int(enough[0])
        low, low_edge = band.high - float(offsets[index]), False
        a, b = np.log(below[index - 1]), np.log(max(below[index], 1e-4 * REMAINING_MASS))
        share = min(max((a - np.log(REMAINING_MASS)) / max(a - b, 1e-9), 0.0), 1.0)
        low = band.high - float(offsets[index - 1] + share * (offsets[index] - offsets[index - 1]))
    elif not np.isfinite(band.low):
        raise ConvergenceError(
            f"the spectrum has {below[-1]:.2g} of its mass below |w| = exp({band.high - reach:.0f}), beyond the range "
            "of floats. Choose a smaller q, or an activation whose slope does not vanish that fast."
        )

    span = band.high - low
    if low_edge and band.high_edge:
        start, backward = np.linspace(0.0, 1.0, 5), False

        def radius(s: Array) -> Array:
            return low + span * np.sin(0.5 * np.pi * s) ** 2

        def place(log_radius: float) -> float:
            return 2.0 / np.pi * float(np.arcsin(np.sqrt((log_radius - low) / span)))
    elif low_edge:
        start, backward = np.linspace(0.0, np.sqrt(span), 5), False

        def radius(s: Array) -> Array:
            return low + s * s

        def place(log_radius: float) -> float:
            return float(np.sqrt(log_radius - low))
    else:
        start, backward = np.linspace(0.0, np.sqrt(span), 5), True

        def radius(s: Array) -> Array:
            return band.high - s * s

        def place(log_radius: float) -> float:
            return float(np.sqrt(band.high - log_radius))

    known = np.concatenate([[band.high], band.high - offsets])[::-1]
    known_angles = np.concatenate([[0.0], angles])[::-1]

    def points(s: Array, guess: NDArray) -> Sample:
        found = leading.points(radius(s), guess)
        return Sample(found.log_lambda, found.density, found.mass_above, found.unknown)

    # A point mass of d inside the band may leave a cusp there (it does where L (1 - p) = 1).
    for value in leading.group.law.values:
        if low < np.log(value) < band.high:
            start = np.unique(np.append(start, place(float(np.log(value)))))

    def edge(log_radius: float) -> float:
        return float(leading.log_z(np.array([np.exp(log_radius)], complex))[0][0].real)

    terms = leading.group.count + float(np.abs(product.exponents).sum())
    curve = resolve(
        points,
        start,
        lambda s: np.interp(radius(s), known, known_angles),
        # log z is a sum over the layers, and its rounding grows with them.
        tolerance=1e-9 + 3e-13 * terms,
        log_top=log_top,
    )
    return TracedBand(
        curve, backward, edge(low) if low_edge else None, edge(band.high) if band.high_edge else None
    )


def continuous_below(product: FreeProduct, log_lambda: Array, mass_above: Array) -> Array:
    """Continuous mass at or below each lambda: what is neither above nor in a point mass below."""
    result = 1.0 - mass_above
    for place, mass in product.atoms:
        result = result - mass * (place <= log_lambda)
    return result


def _assemble(product: FreeProduct, bands: list[TracedBand], moments: Array, points: int) -> Law:
    continuous_mass = 1.0 - sum(mass for _, mass in product.atoms)
    _check_integrals(product, bands, moments, continuous_mass)
    panels = sum(band.curve.left.size for band in bands)
    per_panel = max(4, -(-points // panels))
    # Next to an infinite density the cdf is uncertain by a share of the mass within a relative 1e-9 of lambda.
    blurred = 0.2 * sum(band.curve.narrow_mass for band in bands)
    for _ in range(4):
        log_lambda, cdf, density = _grid(product, bands, np.arange(per_panel + 1) / per_panel)
        middle = _grid(product, bands, (np.arange(per_panel) + 0.5) / per_panel)
        worst = float(np.max(np.abs(_cubic(log_lambda, cdf, density, middle[0]) - middle[1])))
        if worst < 1e-8 + blurred:
            break
        per_panel *= 2
    missing = abs(float(cdf[-1]) - continuous_mass)
    if worst > 1e-6 + blurred or abs(cdf[0]) > MASS_TOLERANCE or missing > MASS_TOLERANCE + blurred:
        raise ConvergenceError(
            f"the predicted spectrum does not hold together: its continuous mass runs from {cdf[0]:.3g} to "
            f"{cdf[-1]:.9g} and should end at {continuous_mass:.9g}; interpolation error {worst:.2g}. "
            "No spectrum is given; please report the ensemble."
        )
    cdf[-1] = continuous_mass
    first = bands[0]
    low = -np.inf if first.low_edge is None else first.low_edge
    places = [place for place, _ in product.atoms]
    return Law(
        log_lambda,
        np.clip(cdf, 0.0, continuous_mass),
        density,
        product.atoms,
        moments,
        (min([low, *places]), max([float(log_lambda[-1]), *places])),
    )


def _grid(product: FreeProduct, bands: list[TracedBand], u: Array) -> tuple[Array, Array, Array]:
    """(log lambda, continuous cdf, density) at the places u of every panel of every band, increasing."""
    columns: list[Array] = []
    for band in bands:
        rows = band.curve.at(u).reshape(3, -1)
        rows[2] = continuous_below(product, rows[0], rows[2])
        if band.reversed:
            rows = rows[:, ::-1]
        if u[0] == 0.0:
            for index, edge in ((0, band.low_edge), (-1, band.high_edge)):
                if edge is not None:
                    rows[0, index], rows[1, index] = edge, 0.0
        columns.append(rows)
    log_lambda, density, cdf = np.concatenate(columns, axis=1)
    # Neighbouring panels share a point, and near a flat end neighbours may round to one value.
    kept = np.flatnonzero(np.diff(np.maximum.accumulate(log_lambda), prepend=-np.inf) > 1e-13)
    log_lambda, density = log_lambda[kept], np.maximum(density[kept], 0.0)
    cdf = np.maximum.accumulate(np.maximum(cdf[kept], 0.0))
    # Any finite number stands for an infinite density; three times the secant keeps the cubic monotone.
    secant = np.diff(cdf) / np.diff(log_lambda)
    limit = 3.0 * np.maximum(np.append(secant, 0.0), np.insert(secant, 0, 0.0))
    return log_lambda, cdf, np.minimum(density, limit)


def _cubic(grid: Array, cdf: Array, density: Array, at: Array) -> Array:
    """The cubic between grid points that has these values and slopes, limited to be monotone."""
    i = np.clip(np.searchsorted(grid, at, side="right") - 1, 0, grid.size - 2)
    width, rise = grid[i + 1] - grid[i], cdf[i + 1] - cdf[i]
    u = np.clip((at - grid[i]) / width, 0.0, 1.0)
    left, right = (np.minimum(density[j] * width, 3 * rise) for j in (i, i + 1))
    return cdf[i] + u * u * (3 - 2 * u) * rise + u * (1 - u) * ((1 - u) * left - u * right)


def product_top(bands: list[TracedBand]) -> float:
    """log of the largest lambda on the curves."""
    return max(float(band.curve.at(np.array([0.0, 1.0]))[0].max()) for band in bands)


def _check_integrals(
    product: FreeProduct, bands: list[TracedBand], moments: Array, continuous_mass: float
) -> None:
    """Mass and mean of the density, integrated along the curve, against what they must be."""

    def total(integrand: Callable[[Array], Array]) -> float:
        return float(
            sum((-1.0 if band.reversed else 1.0) * band.curve.integrate(integrand).sum() for band in bands)
        )

    mass = total(np.ones_like)
    reference = float(moments[0])
    mean = total(lambda log_lambda: np.exp(log_lambda - reference))
    mean += sum(mass * float(np.exp(place - reference)) for place, mass in product.atoms)
    blurred = 0.2 * sum(band.curve.narrow_mass for band in bands)
    scale = float(np.exp(product_top(bands) - reference))
    if (
        abs(mass - continuous_mass) > MASS_TOLERANCE + blurred
        or abs(mean - 1.0) > MEAN_TOLERANCE + blurred * scale
    ):
        raise ConvergenceError(
            f"the predicted density integrates to {mass:.9g}, which should be {continuous_mass:.9g}, and its mean is "
            f"{mean:.9g} times the exact one: the curve is wrong somewhere. No spectrum is given; please report "
            "the ensemble."
        )
