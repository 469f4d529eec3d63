"""The law of d = phi'(sqrt(q) x)^2, x standard normal, the entries of one layer's D^2. Internal.

Free probability needs of an activation only averages over this law,

    h(w) = E 1/(w - d),    m(w) = E d/(w - d) = w h(w) - 1,    Phi(w) = E log(1 - d/w),

for w in the upper half-plane, down to the real axis, where 1/(w - d) has poles next to the line of
integration. Where the activation is linear by pieces d takes finitely many values and the averages are sums;
elsewhere `panel_tree` cuts the line so that a Gauss-Legendre rule is exact at any distance of the poles.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special
from scipy.optimize import brentq, minimize_scalar

from isometry.errors import TheoryError
from isometry.theory.activations import Activation
from isometry.theory.freeprobability.law_averages import Averages, LawAverages
from isometry.theory.freeprobability.multiple_zeros import without_noise
from isometry.theory.freeprobability.panels import UNBOUNDED, PanelRule
from isometry.theory.gaussian import gaussian_average

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

# d this far below its largest value counts as zero, its units as dead: E 1/(w - d) must stay in the range of floats.
DEAD = 1e-260
# Share of the units that are not dead, and of E d, below which a value of d is left out.
UNSEEN = 1e-11
# Magnifications by 16 in the search for a bound of phi'.
ZOOMS = 9
# Where the Gaussian weight may be cut: the shortest of these that loses nothing is taken.
REACHES = (9.0, 13.0, 17.0, 21.0, 25.0, 29.0, 33.0, 37.0)


@dataclass(frozen=True, eq=False)
class SlopeLaw:
    """A law of d >= 0: point masses, and a continuous part carried by panels of the Gaussian line.

    Parameters
    ----------
    values, masses : (A,) arrays
        Point masses of d > 0, increasing in value.
    zero_mass : float
        Mass at d = 0.
    continuous : PanelRule or None
        The rest.
    """

    values: Array
    masses: Array
    zero_mass: float = 0.0
    continuous: PanelRule | None = None

    @property
    def nonzero_mass(self) -> float:
        """P(d > 0): the rank of D per unit of width."""
        # Few units that are not dead are known to more digits than the dead ones leave.
        return 1.0 - self.zero_mass if self.continuous is not None else float(self.masses.sum())

    @property
    def is_constant(self) -> bool:
        """Whether d takes one value only (a linear layer)."""
        return self.continuous is None and self.zero_mass == 0.0 and self.values.size == 1

    @property
    def is_two_point(self) -> bool:
        """Whether d is 0 or one value: then S of D^2 is rational, (1 + x)/(p + x)/value."""
        return self.continuous is None and self.values.size == 1

    @property
    def support(self) -> list[tuple[float, float]]:
        """Closed intervals that carry the mass of d > 0, increasing and disjoint (points for point masses)."""
        intervals = [(float(value), float(value)) for value in self.values]
        if self.continuous is not None:
            intervals += self.continuous.ranges
        merged: list[tuple[float, float]] = []
        for low, high in sorted(intervals):
            if merged and low <= merged[-1][1] * (1 + 1e-12):
                merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
            else:
                merged.append((low, high))
        return merged

    @cached_property
    def mean(self) -> float:
        """E d."""
        return float(self.moments(1)[0])

    @cached_property
    def relative_variance(self) -> float:
        """Var d/(E d)^2, without cancellation."""
        result = self.zero_mass + float(self.masses @ (self.values / self.mean - 1.0) ** 2)
        if self.continuous is not None:
            result += float(self.continuous.average(lambda d: (d / self.mean - 1.0)[..., None] ** 2)[0])
        return result

    @cached_property
    def _averages(self) -> LawAverages:
        return LawAverages((self,))

    def averages(self, w: ComplexArray, *, logarithm: bool = False) -> Averages:
        """Averages at (n,) points w of the closed upper half-plane, off the support where w is real."""
        return self._averages(w, np.zeros(w.shape, int), logarithm=logarithm)

    def moments(self, count: int) -> Array:
        """mu_k = E d^k for k = 1..count, (count,)."""
        powers = np.arange(1, count + 1)
        result = (self.values[:, None] ** powers).T @ self.masses
        if self.continuous is not None:
            result = result + self.continuous.average(lambda d: d[..., None] ** powers)
        return result


def point_masses(values: ArrayLike, masses: ArrayLike) -> SlopeLaw:
    """The law with these point masses; equal values are joined, the value 0 is kept apart."""
    positions, index = np.unique(np.asarray(values, float), return_inverse=True)
    joined = np.bincount(index, weights=np.asarray(masses, float))
    joined = joined / joined.sum()
    present = (positions > 0) & (joined > 0)
    return SlopeLaw(positions[present], joined[present], zero_mass=float(joined[positions == 0].sum()))


def slope_law(activation: Activation, q: float) -> SlopeLaw:
    """The law of phi'(sqrt(q) x)^2.

    Parameters
    ----------
    activation : Activation
    q : float
        Variance of the pre-activations; 0 makes d the constant phi'(0)^2.

    Raises
    ------
    TheoryError
        When phi' vanishes almost everywhere, so that no signal passes at all; or when it is unbounded next to a kink.
    NonFiniteError
        When E phi'^2 diverges.
    """
    scale = math.sqrt(q)
    if scale == 0.0:
        constant = float(activation.derivative(np.zeros(1))[0]) ** 2
        return _checked(point_masses([constant], [1.0]), activation, q)
    kinks = np.array(activation.kinks, float) / scale
    bounds = np.concatenate([[-np.inf], kinks, [np.inf]])
    if activation.slopes is not None:
        return _checked(_shown(np.square(activation.slopes), _interval_masses(bounds)), activation, q)
    _refuse_unbounded(activation, q)
    reach = _reach(activation, scale)
    values, masses, pieces, dead = [], [], [], 0.0
    for low, high in itertools.pairwise(bounds):
        probe = np.linspace(max(low, -reach), min(high, reach), 4001)[1:-1]
        if low >= reach or high <= -reach:
            continue
        d = np.square(activation.derivative(scale * probe))
        if np.ptp(d) <= 4e-15 * np.max(d):
            values.append(float(np.median(d)))
            masses.append(float(_interval_masses(np.array([low, high]))[0]))
        else:
            alive = _alive(activation, scale, probe, d)
            ends = (alive[0] if alive[0] > probe[0] else low, alive[1] if alive[1] < probe[-1] else high)
            whole, kept = (float(_interval_masses(np.array(pair))[0]) for pair in ((low, high), ends))
            dead += whole - kept
            pieces.append((max(ends[0], -reach), min(ends[1], reach)))
    atoms = point_masses(values, masses) if values else None
    share = float(np.sum(masses))
    if not pieces:
        assert atoms is not None
        return _checked(atoms, activation, q)
    if len(pieces) == 1 and abs(sum(pieces[0])) < 1e-9 and _is_even(activation, scale, pieces[0][1]):
        pieces, fold = [(0.0, pieces[0][1])], 2.0
    else:
        fold = 1.0
    cuts = [np.array([low, *_turning_points(activation, scale, low, high), high]) for low, high in pieces]
    rule = PanelRule.build(_slope_squared(activation, scale, cuts), cuts, fold=fold)
    law = SlopeLaw(
        np.empty(0) if atoms is None else atoms.values,
        np.empty(0) if atoms is None else atoms.masses * share,
        zero_mass=dead + (0.0 if atoms is None else atoms.zero_mass * share),
        continuous=rule,
    )
    return _checked(law, activation, q)


def _shown(squares: Array, masses: Array) -> SlopeLaw:
    """The law of these values, but for those so rare that neither their mass nor their part of E d shows."""
    alive = masses * (squares > 0.0)
    share = np.maximum(
        alive / max(float(alive.sum()), 1e-300), squares * masses / max(float(squares @ masses), 1e-300)
    )
    return point_masses(squares, np.where((share > UNSEEN) | (squares == 0.0), masses, 0.0))


def _refuse_unbounded(activation: Activation, q: float) -> None:
    """Raise where E phi'^2 diverges, or where phi' grows without bound towards a kink or its largest value."""
    gaussian_average(lambda h: np.square(activation.derivative(h)), q, kinks=activation.kinks)
    grid = math.sqrt(q) * np.linspace(-REACHES[0], REACHES[0], 1001)
    with np.errstate(all="ignore"):
        highest = float(grid[np.nanargmax(np.abs(activation.derivative(grid)))])
        for place in (*activation.kinks, highest):
            sizes, width = [0.0], grid[1] - grid[0]
            for _ in range(ZOOMS):
                # An even number of points, so that none is the place itself.
                points = place + width * np.linspace(-1.0, 1.0, 42)
                values = np.abs(activation.derivative(points))
                sizes.append(float(np.max(values)))
                place, width = float(points[np.argmax(values)]), width / 16.0
            grows = np.diff(sizes[-4:]) > 0.01 * np.array(sizes[-4:-1])
            if np.all(grows) or not np.all(np.isfinite(sizes)):
                raise TheoryError(UNBOUNDED)


def _slope_squared(activation: Activation, scale: float, cuts: list[Array]) -> Callable[[Array], Array]:
    """d(x) = phi'(sqrt(q) x)^2 as a function of arrays, with its multiple zeros free of noise."""

    def slope(x: Array) -> Array:
        return activation.derivative(scale * x)

    # A piece ends at a kink or at zero, where phi' may vanish too, or in a tail.
    inner = {0.0, *(kink / scale for kink in activation.kinks)}
    zeros = sorted({float(place) for cut in cuts for place in (*cut[1:-1], *(inner & set(cut.tolist())))})
    points = np.concatenate([np.linspace(cut[0], cut[-1], 2001) for cut in cuts])
    largest = float(np.max(np.abs(slope(points))))
    smooth = without_noise(slope, zeros, (float(cuts[0][0]), float(cuts[-1][-1])), largest)
    return lambda x: np.square(smooth(x))


def _alive(activation: Activation, scale: float, probe: Array, d: Array) -> tuple[float, float]:
    """The stretch of the probe inside which d stays within the range of floats: units in the tails outside are dead."""
    seen = np.flatnonzero(d > DEAD * np.max(d))
    if _interval_masses(np.array([probe[seen[0]], probe[seen[-1]]]))[0] > 0 and (
        _interval_masses(np.array([-np.inf, probe[seen[0]]]))[0]
        + _interval_masses(np.array([probe[seen[-1]], np.inf]))[0]
        < 1e-13
    ):
        return float(probe[0]), float(probe[-1])

    def excess(x: float) -> float:
        value = float(activation.derivative(np.array([scale * x]))[0]) ** 2
        return math.log(max(value, 1e-320)) - math.log(DEAD * float(np.max(d)))

    ends = [float(probe[0]), float(probe[-1])]
    if seen[0] > 0:
        ends[0] = float(brentq(excess, probe[seen[0] - 1], probe[seen[0]], xtol=1e-13))
    if seen[-1] < probe.size - 1:
        ends[1] = float(brentq(excess, probe[seen[-1]], probe[seen[-1] + 1], xtol=1e-13))
    return ends[0], ends[1]


def _checked(law: SlopeLaw, activation: Activation, q: float) -> SlopeLaw:
    if law.nonzero_mass <= 0 or not law.moments(1)[0] > 0:
        raise TheoryError(
            f"phi' of {activation.name!r} vanishes at every pre-activation of variance q = {q:.6g}: the Jacobian "
            "is zero. Choose a variance at which the activation is not constant."
        )
    return law


def _interval_masses(bounds: Array) -> Array:
    """Gaussian mass of the intervals between increasing bounds, each with full relative accuracy."""
    low, high = bounds[:-1], bounds[1:]
    # Both ends on the right: a difference of lower tails would cancel, so mirror it.
    mirrored = low > 0
    a, b = np.where(mirrored, -high, low), np.where(mirrored, -low, high)
    return special.ndtr(b) - special.ndtr(a)


def _reach(activation: Activation, scale: float) -> float:
    """Where the Gaussian may be cut without loss in E 1/(w - d), also for small w, where d is small far out."""
    x = np.linspace(-REACHES[-1], REACHES[-1], 1481)
    d = np.square(activation.derivative(scale * x))
    log_share = -0.5 * x * x - np.log(np.maximum(d, 1e-40))
    plain = -0.5 * x * x
    for reach in REACHES:
        outside = np.abs(x) >= reach
        if np.max(log_share[outside]) < np.max(log_share) - 40 and np.max(plain[outside]) < -40:
            return reach
    return REACHES[-1]


def _is_even(activation: Activation, scale: float, reach: float) -> bool:
    x = np.linspace(0.0, reach, 301)
    right, left = activation.derivative(scale * x), activation.derivative(-scale * x)
    return bool(np.all(np.abs(right - left) <= 4e-16 * np.max(np.abs(right))))


def _turning_points(activation: Activation, scale: float, low: float, high: float) -> list[float]:
    """Zeros and extrema of phi' inside (low, high).

    At a zero d vanishes like a square, and panels must be able to end there; at an extremum d reaches the end of
    its range, which edges of the spectrum are searched against.
    """
    x = np.linspace(low, high, 2001)
    slope = activation.derivative(scale * x)

    def at(value: float) -> float:
        return float(activation.derivative(np.array([scale * value]))[0])

    points = [
        float(brentq(at, x[left], x[left + 1], xtol=1e-15))
        for left in np.flatnonzero(np.sign(slope[:-1]) * np.sign(slope[1:]) < 0)
    ]
    largest = float(np.max(np.abs(slope)))
    rise = np.diff(slope)
    for middle in np.flatnonzero(rise[:-1] * rise[1:] < 0) + 1:
        sign = -1.0 if rise[middle - 1] > 0 else 1.0
        # Wiggles of rounding in a flat tail are no extrema.
        if max(abs(rise[middle - 1]), abs(rise[middle])) > 1e-13 * largest:
            found = minimize_scalar(
                lambda value, sign=sign: sign * at(value),
                bounds=(x[middle - 1], x[middle + 1]), method="bounded", options={"xatol": 1e-9},
            )  # fmt: skip
            points.append(float(found.x))
    # A zero that the grid hits, unless it belongs to a tail that underflows.
    points += [
        float(x[index])
        for index in np.flatnonzero((slope[1:-1] == 0) & (slope[:-2] != 0) & (slope[2:] != 0)) + 1
    ]
    ordered = np.unique(points)
    return [float(point) for point in ordered[np.diff(ordered, prepend=-np.inf) > 1e-9]]
