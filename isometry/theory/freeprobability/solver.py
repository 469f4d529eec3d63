"""The law of the nonzero eigenvalues lambda of J J^T, from the product of its layers' S-transforms. Internal.

A `FreeProduct` gives z(t) explicitly; this module follows the real curve Im z = 0 through every band of the
spectrum, puts a grid on it, adds the point masses and the moments, and checks the result against the exact
total mass and mean. Nothing is sampled and nothing is smoothed; a check that fails is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from isometry.errors import ConvergenceError
from isometry.spectrum.monotone_cubic import monotone_cubic
from isometry.theory.freeprobability.bands import (
    InnerGapError,
    ResolvedBand,
    SpectralCurve,
    resolve_band,
)
from isometry.theory.freeprobability.edges import find_bands
from isometry.theory.freeprobability.leading import LeadingCurve
from isometry.theory.freeprobability.product import FreeProduct
from isometry.theory.freeprobability.product_curve import ProductCurve
from isometry.theory.freeprobability.pushforward import (
    law_of_one_layer,
    law_of_one_rotation,
    single_factor,
    single_rotation,
)
from isometry.theory.freeprobability.real_edges import outer_band
from isometry.theory.freeprobability.series import log_moments
from isometry.theory.freeprobability.skip_edges import skip_band
from isometry.theory.freeprobability.skip_equations import SkipEquations

Array = NDArray[np.float64]

MASS_TOLERANCE = 1e-7
MEAN_TOLERANCE = 1e-6
MOMENT_COUNT = 6
# Continuous mass beside point masses below which no curve is made.
UNSEEN_MASS = 1e-9
# Error of the cdf from rounding, above which a law is reported as a point mass.
LARGEST_NOISE = 1e-6


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
    # From here on relative to the mean, so that a law of width 1e-8 at a mean of 1e300 keeps its digits.
    mean = float(moments[0])
    relative = replace(product, atoms=tuple((place - mean, mass) for place, mass in product.atoms))
    law = _solve_relative(relative, moments - mean * np.arange(1, MOMENT_COUNT + 1), points)
    log_lambda = law.log_lambda + mean
    kept = np.diff(log_lambda, prepend=-np.inf) > 0
    return Law(
        log_lambda[kept],
        law.cdf[kept],
        law.density[kept],
        tuple((place + mean, mass) for place, mass in law.atoms),
        moments,
        (law.log_edges[0] + mean, law.log_edges[1] + mean),
    )


def _solve_relative(product: FreeProduct, moments: Array, points: int) -> Law:
    """The law of lambda over its mean."""
    atom_mass = float(sum(mass for _, mass in product.atoms))
    if atom_mass > 1.0 - UNSEEN_MASS:
        return _point_law(product.atoms, moments)
    width = product.width
    noise = _noise(product, width)
    if not product.atoms and noise > LARGEST_NOISE:
        # So isometric that double precision cannot resolve the shape: all at the mean.
        return _point_law(((0.0, 1.0),), moments)
    single = single_factor(product)
    if single is not None:
        log_lambda, cdf, density, edges = law_of_one_layer(single, points)
        return Law(log_lambda, cdf, density, product.atoms, moments, edges)
    rotation = single_rotation(product)
    if rotation is not None:
        log_lambda, cdf, density, edges = law_of_one_rotation(rotation, points)
        return Law(log_lambda, cdf, density, product.atoms, moments, edges)
    group = product.leading_group
    curve: SpectralCurve
    if group is None:
        curve = ProductCurve(product)
        bands = [skip_band(SkipEquations(product)) if product.skip_layers else outer_band(product)]
    else:
        curve = LeadingCurve(product, group)
        bands = find_bands(curve)
    resolved: list[ResolvedBand] = []
    while bands:
        # From the top down, so that each band knows how much mass lies above it.
        band = bands.pop()
        above = resolved[0].mass_above_bottom if resolved else 0.0
        try:
            found = resolve_band(curve, band, above, lowest=not bands, noise=noise, width=width)
        except InnerGapError as gap:
            bands += gap.parts
            continue
        resolved = resolved if found is None else [found, *resolved]
    if not resolved and 1.0 - atom_mass < 1e-6:
        return _point_law(product.atoms, moments)
    if not resolved:
        raise ConvergenceError(
            f"no band was found for {1.0 - atom_mass:.3g} of the mass. No spectrum is given; please report the "
            "ensemble."
        )
    return _assemble(product, resolved, moments, points, noise)


def _point_law(atoms: tuple[tuple[float, float], ...], moments: Array) -> Law:
    places, empty = [place for place, _ in atoms], np.empty(0)
    return Law(empty, empty, empty, atoms, moments, (min(places), max(places)))


def _noise(product: FreeProduct, width: float) -> float:
    """Error of the cdf from rounding: of d beside the spread of its narrowest law, or of w where there is no law."""
    if product.skip_layers:
        # t is of the order of one over the width, and known to rounding in log(-t/(1 + t)).
        return 3e-14 / width
    if not product.groups:
        # w is one to all but a few digits.
        return 1e-21 / width**2
    spreads = [math.sqrt(group.law.relative_variance) for group in product.groups if width < 0.1]
    return max((1e-15 / max(spread, 1e-300) for spread in spreads), default=0.0)


def _assemble(
    product: FreeProduct, bands: list[ResolvedBand], moments: Array, points: int, rounding: float
) -> Law:
    continuous_mass = product.continuous_mass
    _check_integrals(product, bands, continuous_mass, rounding)
    panels = sum(band.curve.left.size for band in bands)
    per_panel = max(4, -(-points // panels))
    blurred = sum(band.blurred for band in bands) + 3.0 * rounding
    for _ in range(4):
        log_lambda, cdf, density = _grid(product, bands, np.arange(per_panel + 1) / per_panel)
        middle = _grid(product, bands, (np.arange(per_panel) + 0.5) / per_panel)
        worst = float(np.max(np.abs(monotone_cubic(log_lambda, cdf, density, middle[0]) - middle[1])))
        if worst < 1e-8 + blurred:
            break
        per_panel *= 2
    missing = abs(float(cdf[-1]) - continuous_mass)
    if worst > 1e-6 + blurred or abs(cdf[0]) > MASS_TOLERANCE or missing > MASS_TOLERANCE + blurred:
        raise ConvergenceError(
            f"the predicted spectrum is inconsistent: its continuous mass runs from {cdf[0]:.3g} to "
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


def _grid(product: FreeProduct, bands: list[ResolvedBand], u: Array) -> tuple[Array, Array, Array]:
    """(log lambda, continuous cdf, density) at the places u of every panel of every band, increasing."""
    columns: list[Array] = []
    for band in bands:
        values = band.curve.at(u)
        rows = values.reshape(3, -1)
        if u[0] == 0.0:
            # Neighbouring panels share a point.
            rows = np.concatenate([values[:, :, :-1].reshape(3, -1), values[:, -1, -1:]], axis=1)
        rows[2] = product.continuous_mass - rows[2]
        if u[0] == 0.0:
            for index, edge in ((0, band.low_edge), (-1, band.high_edge)):
                if edge is not None:
                    rows[0, index], rows[1, index] = edge, 0.0
        columns.append(rows)
    log_lambda, density, cdf = np.concatenate(columns, axis=1)
    # Near a flat end neighbours may round to one value.
    kept = np.flatnonzero(np.diff(np.maximum.accumulate(log_lambda), prepend=-np.inf) > 1e-15)
    log_lambda, density = log_lambda[kept], np.maximum(density[kept], 0.0)
    cdf = np.maximum.accumulate(np.maximum(cdf[kept], 0.0))
    # Any finite number stands for an infinite density; three times the secant keeps the cubic monotone.
    secant = np.diff(cdf) / np.diff(log_lambda)
    limit = 3.0 * np.maximum(np.append(secant, 0.0), np.insert(secant, 0, 0.0))
    return log_lambda, cdf, np.minimum(density, limit)


def _check_integrals(
    product: FreeProduct, bands: list[ResolvedBand], continuous_mass: float, rounding: float
) -> None:
    """Raise unless mass and mean of the density, integrated along the curve, are the exact ones."""

    def total(integrand: Callable[[Array], Array]) -> float:
        return float(sum(band.curve.integrate(integrand).sum() for band in bands))

    mass = total(np.ones_like)
    mean = total(np.exp) + sum(share * math.exp(place) for place, share in product.atoms)
    # Next to an infinite density the curve is a difference of large terms.
    noise = 0.05 * sum(band.blurred for band in bands) + 3.0 * rounding
    top = max(float(band.curve.at(np.array([0.0, 1.0]))[0].max()) for band in bands)
    mean_tolerance = MEAN_TOLERANCE + noise * float(np.exp(min(top, 700.0)))
    if abs(mass - continuous_mass) > MASS_TOLERANCE + noise or abs(mean - 1.0) > mean_tolerance:
        raise ConvergenceError(
            f"the predicted density integrates to {mass:.9g}, which should be {continuous_mass:.9g}, and its mean is "
            f"{mean:.9g} times the exact one: the curve is wrong somewhere. No spectrum is given; please report "
            "the ensemble."
        )
