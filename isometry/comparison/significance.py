"""p-values of a comparison: how many networks of the law itself stray as far, each measured as the spectrum was.

Three statistics, each for what the others leave out:

* the distance: sup |F - mean F| of cdfs in shape (each mean square set to one), mean F being that of the replicas: it
  holds the shift of order 1/N that the law of infinite width lacks;
* the mean square: ln m_1;
* the edges: ln s_max and, where it is known, ln s_min, in shape.

Replicas give mean and standard deviation of each (of the distance's logarithm), and Student's t for one more of them
gives p: with D replicas (x - mean)/(std sqrt(1 + 1/D)) has D - 1 degrees of freedom. The smallest of k p-values is held
against 1 - (1 - p)^k (Sidak 1967).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtr, stdtrit

from isometry.comparison.replicas import Replicas
from isometry.spectrum import Curve, Quadrature, Spectrum

Array = NDArray[np.float64]

LEVEL = 0.05
PLACES = 400
# Levels at which a law without nodes is looked at.
LAW_LEVELS = 2000


@dataclass(frozen=True)
class PValues:
    """Shares of right networks that stray as far; nan where unknown.

    Parameters
    ----------
    distance, mean_square, edges : float
    """

    distance: float
    mean_square: float
    edges: float

    @property
    def smallest(self) -> float:
        """p of the smallest of them, as one test."""
        known = [p for p in (self.distance, self.mean_square, self.edges) if not math.isnan(p)]
        return sidak(known)


def sidak(values: list[float]) -> float:
    """p of the smallest of several p-values; nan for none."""
    if not values:
        return math.nan
    smallest = min(values)
    return -math.expm1(len(values) * math.log1p(-smallest)) if smallest < 1.0 else 1.0


@dataclass(frozen=True, eq=False)
class Sample:
    """One spectrum as the tests see it: ln s with cumulative masses, ln m_1, ln s_max and ln s_min (nan if unknown)."""

    log_nodes: Array
    cumulative: Array
    log_mean_square: float
    log_s_max: float
    log_s_min: float


def sample_of(spectrum: Spectrum) -> Sample:
    """A spectrum as the tests see it."""
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
    return Sample(nodes, cumulative, d.log_moment(2), _log(top), _log(bottom))


def _log(value: float) -> float:
    return math.log(value) if 0 < value < math.inf else math.nan


class Tests:
    """What a spectrum is held against: replicas of the law, or of two measurements.

    Parameters
    ----------
    replicas : Replicas
        As the first spectrum was measured.
    other : (Sample, Replicas) or None
        A second measurement and replicas as it was measured, where it stands for the law.
    log_floor : float
        ln s below which nothing is compared.
    tolerance : float
        In ln s, within which two places are one.
    """

    def __init__(
        self,
        replicas: Replicas,
        other: tuple[Sample, Replicas] | None,
        *,
        log_floor: float,
        tolerance: float,
    ) -> None:
        self.replicas, self.other = replicas, other
        self.log_floor, self.tolerance = log_floor, tolerance
        own = _in_shape(replicas)
        pooled = np.concatenate([own, _in_shape(other[1])], axis=1) if other else own
        finite = np.sort(pooled[np.isfinite(pooled)])
        picked = finite
        if finite.size:
            picked = finite[np.unique(np.linspace(0, finite.size - 1, PLACES).astype(int))]
        places = np.unique(np.concatenate([picked, picked - 1.5 * tolerance]))
        center = other[0].log_mean_square if other else float(np.median(replicas.log_mean_squares))
        self.places = places[places >= log_floor - 0.5 * center] if math.isfinite(center) else places
        self._own = _cdfs(own, replicas.cumulative, self.places, tolerance)
        if other:
            theirs = np.roll(_in_shape(other[1]), 1, axis=0)
            rolled = np.roll(other[1].cumulative, 1, axis=0)
            center_at = _cdfs(theirs, rolled, self.places, tolerance)
            self._center = _cdfs(
                (other[0].log_nodes - 0.5 * other[0].log_mean_square)[None], other[0].cumulative[None],
                self.places, tolerance,
            )  # fmt: skip
        else:
            count = replicas.count
            # Each replica against the mean of the others, as the spectrum is against the mean of all.
            center_at = tuple((one.sum(axis=0) - one) / (count - 1) for one in self._own)
            self._center = tuple(one.mean(axis=0, keepdims=True) for one in self._own)
        self.distances = _distance(self._own, center_at)
        self.resolution = 0.25 / replicas.log_nodes.shape[1]

    @property
    def critical_distance(self) -> float:
        """The distance in shape that one right network in twenty exceeds."""
        logs = np.log(np.maximum(self.distances, self.resolution))
        count = logs.size
        return min(1.0, math.exp(logs.mean() + _student(count) * logs.std(ddof=1) * math.sqrt(1 + 1 / count)))

    def distance(self, sample: Sample) -> float:
        """Distance in shape from the mean of the replicas, or from the other measurement."""
        nodes = (sample.log_nodes - 0.5 * sample.log_mean_square)[None]
        own = _cdfs(nodes, sample.cumulative[None], self.places, self.tolerance)
        return float(_distance(own, self._center)[0])

    def p_values(self, sample: Sample) -> PValues:
        """p of one more spectrum."""
        return PValues(self._p_distance(sample), self._p_mean_square(sample), self._p_edges(sample))

    def _p_distance(self, sample: Sample) -> float:
        if self.replicas.log_nodes.shape[1] < 3 or not self.places.size:
            return math.nan
        if not math.isfinite(sample.log_mean_square):
            return math.nan
        logs = np.log(np.maximum(self.distances, self.resolution))
        return _upper(logs, math.log(max(self.distance(sample), self.resolution)), 1e-9)

    def _p_mean_square(self, sample: Sample) -> float:
        value, least = sample.log_mean_square, 2 * self.tolerance
        if math.isnan(value):
            return math.nan
        if self.other is None and self.replicas.mean_square is not None:
            mean, std = self.replicas.mean_square
            return 2.0 * float(ndtr(-abs(value - mean) / max(std, least)))
        if self.other is None:
            return _two_sided(self.replicas.log_mean_squares, value, least)
        one, two = self.replicas.log_mean_squares, np.roll(self.other[1].log_mean_squares, 1)
        return _two_sided(one - two, value - self.other[0].log_mean_square, least)

    def _p_edges(self, sample: Sample) -> float:
        own = self.replicas
        found = []
        for edges, value, theirs, its in (
            (own.log_s_maxima, sample.log_s_max, "log_s_maxima", "log_s_max"),
            (own.log_s_minima, sample.log_s_min, "log_s_minima", "log_s_min"),
        ):
            shape = edges - 0.5 * own.log_mean_squares
            place = value - 0.5 * sample.log_mean_square
            if not (np.all(np.isfinite(shape)) and math.isfinite(place)):
                continue
            if self.other is not None:
                second, drawn = self.other
                shape = shape - np.roll(getattr(drawn, theirs) - 0.5 * drawn.log_mean_squares, 1)
                place = place - (getattr(second, its) - 0.5 * second.log_mean_square)
            if np.all(np.isfinite(shape)) and math.isfinite(place):
                found.append(_two_sided(shape, place, 2 * self.tolerance))
        return sidak(found)

    def power(self, other: Replicas) -> float:
        """Share of other replicas that are told from the law at `LEVEL`."""
        told = [self.p_values(sample).smallest < LEVEL for sample in samples_of(other)]
        return float(np.mean(told))


def samples_of(replicas: Replicas) -> list[Sample]:
    """Every replica as a spectrum."""
    columns = (replicas.log_nodes, replicas.cumulative, replicas.log_mean_squares, replicas.log_s_maxima,
               replicas.log_s_minima)  # fmt: skip
    return [Sample(a, b, float(c), float(d), float(e)) for a, b, c, d, e in zip(*columns, strict=True)]


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


def _standardised(values: Array, value: float, least: float) -> float:
    count = values.size
    std = max(float(values.std(ddof=1)), least) * math.sqrt(1 + 1 / count)
    return (value - float(values.mean())) / std


def _upper(values: Array, value: float, least: float) -> float:
    """p of a value at least as large."""
    return float(stdtr(values.size - 1, -_standardised(values, value, least)))


def _two_sided(values: Array, value: float, least: float) -> float:
    """p of a value at least as far from the mean, either way."""
    return 2.0 * float(stdtr(values.size - 1, -abs(_standardised(values, value, least))))


def _student(count: int) -> float:
    """The t that one in twenty exceeds."""
    return float(stdtrit(count - 1, 1.0 - LEVEL))
