"""p-values of a comparison: how many networks of the law itself stray as far, each measured as the spectrum was.

Four statistics, each for what the others leave out:

* the distance: sup |F - mean F| of cdfs in shape (each mean square set to one), mean F being that of the replicas: it
  holds the shift of order 1/N that the law of infinite width lacks;
* the mean square: ln m_1;
* the edges: ln s_max and, where it is known, ln s_min, in shape;
* mean square and shape jointly, which stray together (:mod:`isometry.comparison.joint`).

Replicas give mean and standard deviation of each (of the distance's logarithm, of the cube root of the joint T^2), and
Student's t for one more of them gives p: with D replicas (x - mean)/(std sqrt(1 + 1/D)) has D - 1 degrees of freedom.
The smallest of k p-values is held against 1 - (1 - p)^k (Sidak 1967).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtr, stdtrit

from isometry.comparison.joint import Hotelling, levels_of
from isometry.comparison.replicas import Replicas
from isometry.spectrum import Curve, Quadrature, Spectrum

Array = NDArray[np.float64]

LEVEL = 0.05
PLACES = 400
FEWEST_NODES = 3
TINY = 1e-12
# Levels at which a law without nodes is looked at.
LAW_LEVELS = 2000


@dataclass(frozen=True)
class PValues:
    """Shares of right networks that stray as far; nan where unknown.

    Parameters
    ----------
    distance, mean_square, edges : float
    joint : float
        Of mean square and shape together.
    shape : float
        Of the smooth moments of the shape alone, which the joint one contains.
    """

    distance: float
    mean_square: float
    edges: float
    joint: float
    shape: float

    @property
    def smallest(self) -> float:
        """p of the smallest of the first four, as one test."""
        return float(_sidak(self.distance, self.mean_square, self.edges, self.joint))

    @property
    def smallest_in_shape(self) -> float:
        """p of the smaller of distance and smooth moments, as one test."""
        return float(_sidak(self.distance, self.shape))


UNKNOWN = PValues(math.nan, math.nan, math.nan, math.nan, math.nan)


def _sidak(*values: Array | float) -> Array:
    """p of the smallest of several p-values, nan among them left out; nan for none."""
    stacked = np.array(np.broadcast_arrays(*values), float)
    count = np.sum(~np.isnan(stacked), axis=0)
    smallest = np.where(np.isnan(stacked), 1.0, stacked).min(axis=0)
    with np.errstate(divide="ignore"):
        together = -np.expm1(np.maximum(count, 1) * np.log1p(-smallest))
    return np.where(count > 0, together, np.nan)


def sample_of(spectrum: Spectrum) -> Replicas:
    """A spectrum as the tests see it: one draw."""
    d = spectrum.distribution
    if isinstance(d, Quadrature):
        present = d.weights > 0
        with np.errstate(divide="ignore"):
            nodes = np.log(d.nodes_above_floor[present])
        order = np.argsort(nodes)
        mass = (d.weights[present] / (d.n_inputs * d.n_probes))[order]
        nodes, cumulative = nodes[order], np.cumsum(mass)
    else:
        levels = (np.arange(LAW_LEVELS) + 0.5) / LAW_LEVELS
        nodes, cumulative = np.asarray(d.quantile(levels)), (np.arange(LAW_LEVELS) + 1.0) / LAW_LEVELS
    known = spectrum.extremes is not None or isinstance(d, Curve)
    top, bottom = (spectrum.s_max, spectrum.s_min) if known else (math.nan, math.nan)
    numbers = (np.array([d.log_moment(2)]), np.array([_log(top)]), np.array([_log(bottom)]))
    return Replicas(nodes[None], cumulative[None], *numbers, mean_square=None, source="")


def _log(value: float) -> float:
    return math.log(value) if 0 < value < math.inf else math.nan


class Tests:
    """What a spectrum is held against: replicas of the law, or of two measurements.

    Parameters
    ----------
    replicas : Replicas
        As the first spectrum was measured.
    other : (Replicas, Replicas) or None
        A second measurement, as one draw, and replicas as it was measured, where it stands for the law.
    log_floor : float
        ln s below which nothing is compared.
    tolerance : float
        In ln s, within which two places are one.
    """

    def __init__(
        self,
        replicas: Replicas,
        other: tuple[Replicas, Replicas] | None,
        *,
        log_floor: float,
        tolerance: float,
    ) -> None:
        self.replicas, self.other = replicas, other
        self.tolerance = tolerance
        own = _in_shape(replicas)
        pooled = np.concatenate([own, _in_shape(other[1])], axis=1) if other else own
        finite = np.sort(pooled[np.isfinite(pooled)])
        picked = finite
        if finite.size:
            picked = finite[np.unique(np.linspace(0, finite.size - 1, PLACES).astype(int))]
        places = np.unique(np.concatenate([picked, picked - 1.5 * tolerance]))
        center = float(other[0].log_mean_squares[0] if other else np.median(replicas.log_mean_squares))
        self._floor = log_floor - 0.5 * center if math.isfinite(center) else -math.inf
        self.places = places[places >= self._floor]
        self._own = _cdfs(own, replicas.cumulative, self.places, tolerance)
        if other:
            theirs = np.roll(_in_shape(other[1]), 1, axis=0)
            rolled = np.roll(other[1].cumulative, 1, axis=0)
            center_at = _cdfs(theirs, rolled, self.places, tolerance)
            self._center = _cdfs(_in_shape(other[0]), other[0].cumulative, self.places, tolerance)
        else:
            count = replicas.count
            # Each replica against the mean of the others, as the spectrum is against the mean of all.
            center_at = tuple((one.sum(axis=0) - one) / (count - 1) for one in self._own)
            self._center = tuple(one.mean(axis=0, keepdims=True) for one in self._own)
        self.distances = _distance(self._own, center_at)
        self.resolution = 0.25 / replicas.log_nodes.shape[1]
        self._prepare_joint()

    def _prepare_joint(self) -> None:
        self._joint: Hotelling | None = None
        drawn = [_columns(one) for one in (self.replicas, *(self.other[1:] if self.other else ()))]
        if self.replicas.log_nodes.shape[1] < FEWEST_NODES or not np.isfinite(drawn[0][2]).all():
            return
        self._levels = levels_of(drawn, log_floor=self._floor, tolerance=self.tolerance)
        features = self._levels.features(*drawn[0])
        if self.other:
            features = features - np.roll(self._levels.features(*drawn[1]), 1, axis=0)
        # One value of one network, moved past one of another's.
        step = 1.0 / self.replicas.log_nodes.size
        least = np.array([max(2 * self.tolerance, TINY), *[step] * (features.shape[1] - 1)])
        least = np.maximum(least, self.replicas.spread_error * features.std(axis=0))
        self._joint, self._shape = Hotelling(features, least), Hotelling(features[:, 1:], least[1:])

    @property
    def critical_distance(self) -> float:
        """The distance in shape that one right network in twenty exceeds."""
        logs = np.log(np.maximum(self.distances, self.resolution))
        count = logs.size
        return min(1.0, math.exp(logs.mean() + _student(count) * logs.std(ddof=1) * math.sqrt(1 + 1 / count)))

    def p_values(self, sample: Replicas) -> PValues:
        """p of one more spectrum."""
        return PValues(*(float(p[0]) for p in self._p_values(sample)))

    def power(self, other: Replicas) -> float:
        """Share of other replicas that are told from the law at `LEVEL`."""
        return float(np.mean(_sidak(*self._p_values(other)[:4]) < LEVEL))

    def difference(self, other: Replicas) -> tuple[str, float]:
        """The number in which other replicas differ most from the law's on average, and by how many deviations."""
        found = {"mean square": _deviations(self.replicas.log_mean_squares, other.log_mean_squares)}
        for name in ("log_s_maxima", "log_s_minima"):
            label = "s_max" if name == "log_s_maxima" else "s_min"
            shapes = [getattr(one, name) - 0.5 * one.log_mean_squares for one in (self.replicas, other)]
            found[f"{label} in shape"] = _deviations(*shapes)
        if self._joint is not None:
            for index in range(1, self._joint.mean.size):
                found[f"moment {index} of the shape"] = _deviations(
                    *(self._levels.features(*_columns(one))[:, index] for one in (self.replicas, other))
                )
        known = {name: value for name, value in found.items() if not math.isnan(value)}
        return max(known.items(), key=lambda item: item[1]) if known else ("", math.nan)

    def _p_values(self, samples: Replicas) -> tuple[Array, ...]:
        """p of every one of several spectra, as `PValues` has them, (n,) each."""
        return (
            self._p_distance(samples),
            self._p_mean_square(samples),
            self._p_edges(samples),
            *self._p_joint(samples),
        )

    def _p_distance(self, samples: Replicas) -> Array:
        if self.replicas.log_nodes.shape[1] < FEWEST_NODES or not self.places.size:
            return np.full(samples.count, math.nan)
        own = _cdfs(_in_shape(samples), samples.cumulative, self.places, self.tolerance)
        found = np.log(np.maximum(_distance(own, self._center), self.resolution))
        p = _upper(np.log(np.maximum(self.distances, self.resolution)), found, 1e-9)
        return np.where(np.isfinite(samples.log_mean_squares), p, math.nan)

    def _p_mean_square(self, samples: Replicas) -> Array:
        values, least = samples.log_mean_squares, 2 * self.tolerance
        if self.other is None and self.replicas.mean_square is not None:
            mean, std = self.replicas.mean_square
            return np.asarray(2.0 * ndtr(-np.abs(values - mean) / max(std, least)))
        if self.other is None:
            return _two_sided(self.replicas.log_mean_squares, values, least)
        one, two = self.replicas.log_mean_squares, np.roll(self.other[1].log_mean_squares, 1)
        return _two_sided(one - two, values - self.other[0].log_mean_squares, least)

    def _p_edges(self, samples: Replicas) -> Array:
        own = self.replicas
        found = []
        for name in ("log_s_maxima", "log_s_minima"):
            shape = getattr(own, name) - 0.5 * own.log_mean_squares
            place = getattr(samples, name) - 0.5 * samples.log_mean_squares
            if self.other is not None:
                second, drawn = self.other
                shape = shape - np.roll(getattr(drawn, name) - 0.5 * drawn.log_mean_squares, 1)
                place = place - (getattr(second, name) - 0.5 * second.log_mean_squares)
            if np.all(np.isfinite(shape)):
                p = _two_sided(shape, np.where(np.isfinite(place), place, math.nan), 2 * self.tolerance)
                found.append(p)
        return _sidak(*found) if found else np.full(samples.count, math.nan)

    def _p_joint(self, samples: Replicas) -> tuple[Array, Array]:
        """p of mean square and shape together, and of the shape alone."""
        if self._joint is None:
            return (np.full(samples.count, math.nan),) * 2
        features = self._levels.features(*_columns(samples))
        if self.other is not None:
            features = features - self._levels.features(*_columns(self.other[0]))
        return self._joint.p_values(features), self._shape.p_values(features[:, 1:])


def _columns(replicas: Replicas) -> tuple[Array, Array, Array]:
    return replicas.log_nodes, replicas.cumulative, replicas.log_mean_squares


def _deviations(own: Array, other: Array) -> float:
    """Difference of the means in standard deviations of one network; nan where either is unknown."""
    if not (np.isfinite(own).all() and np.isfinite(other).all()):
        return math.nan
    std = float(own.std(ddof=1))
    return abs(float(other.mean() - own.mean())) / std if std > 0 else math.nan


def _in_shape(replicas: Replicas) -> Array:
    mean = replicas.log_mean_squares
    return replicas.log_nodes - 0.5 * np.where(np.isfinite(mean), mean, 0.0)[:, None]


def _cdfs(nodes: Array, cumulative: Array, places: Array, tolerance: float) -> tuple[Array, Array]:
    """Cdfs, (D, G), at the places and a tolerance beyond them."""
    moved = places + tolerance
    found = []
    for at in (places, moved):
        rows = [
            np.append(0.0, mass)[np.searchsorted(row, at, side="right")]
            for row, mass in zip(nodes, cumulative, strict=True)
        ]
        found.append(np.array(rows))
    return found[0], found[1]


def _distance(one: tuple[Array, Array], center: tuple[Array, Array]) -> Array:
    """sup over places of F(t) - G(t + tolerance) and G(t) - F(t + tolerance), (D,)."""
    if not one[0].shape[1]:
        return np.zeros(one[0].shape[0])
    above = (one[0] - center[1]).max(axis=1)
    below = (center[0] - one[1]).max(axis=1)
    return np.maximum(np.maximum(above, below), 0.0)


def _standardised(values: Array, places: Array, least: float) -> Array:
    count = values.size
    std = max(float(values.std(ddof=1)), least) * math.sqrt(1 + 1 / count)
    return (places - float(values.mean())) / std


def _upper(values: Array, places: Array, least: float) -> Array:
    """p of values at least as large."""
    return np.asarray(stdtr(values.size - 1, -_standardised(values, places, least)))


def _two_sided(values: Array, places: Array, least: float) -> Array:
    """p of values at least as far from the mean, either way."""
    return np.asarray(2.0 * stdtr(values.size - 1, -np.abs(_standardised(values, places, least))))


def _student(count: int) -> float:
    """The t that one in twenty exceeds."""
    return float(stdtrit(count - 1, 1.0 - LEVEL))
