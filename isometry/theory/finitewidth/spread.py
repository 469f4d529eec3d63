"""`finite_width`: how far networks of a given width stray from the law of infinite width. Cached.

Three sources, each where it holds:

* mean and spread of ln m_1 by the recursion of :mod:`.slope_chain`, in closed form;
* networks drawn at the very width, where a set of them costs no more than `BUDGET` seconds;
* wider ones: what their slopes do to the law, by the closed response of :mod:`.response` to slopes drawn at the very
  width (which needs no matrix), plus what directions add, taken from networks drawn as wide as the budget allows and
  scaled by the order it has: 1/N for masses and moments, N^(-2/3) for an edge.

All draws are seeded, so an answer is the same each time.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isometry.errors import InputError
from isometry.spectrum import Curve
from isometry.theory.ensemble import Ensemble
from isometry.theory.finitewidth.response import Response, responses
from isometry.theory.finitewidth.sampling import (
    DENSE,
    FIRST_LOOK,
    KEPT_SHARE,
    NARROWEST,
    SMALLEST_RATIO,
    Kernel,
    sample,
    sample_chain,
    widths_of,
)
from isometry.theory.finitewidth.slope_chain import LINEAR_VARIANCE, LogNormal, layers_of, log_mean_square

Array = NDArray[np.float64]

# Seconds on one core of 2020s make, by the cost model of `_cost`; the draws are so many whatever the machine.
BUDGET = 2.0
MOST_DRAWS = 240
LEAST_DRAWS = 50
CHAIN_DRAWS = 240
# Where nothing scales down: so many draws at least, and no network that takes longer than this.
FEWEST_DRAWS = 24
LONGEST_DRAW = 2.5
# Beyond this variance of ln m_1 the recursion of order 1/N is not trusted, nor are differences scaled by their order.
LARGEST_CLOSED_VARIANCE = 0.1
LARGEST_SCALED_VARIANCE = 0.3
# ... or, where nothing else is affordable, beyond this one.
LAST_SCALED_VARIANCE = 1.0
# Standard deviations of moments of the shape, scaled from narrower networks, against draws at the width.
SCALED_SPREAD_ERROR = 0.25
LEVELS = 129
MOST_VALUES = 2000
REPORTED_LEVELS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
SEED = 0
# Places so near in ln s are one: a point mass is where it is to rounding.
SAME_PLACE = 1e-9


@dataclass(frozen=True, eq=False)
class FiniteWidth:
    """Networks of one width about their law.

    Parameters
    ----------
    width : int
        Units of the narrowest layer, or channels.
    log_mean_square, log_s_max : LogNormal
        ln of the mean square and of the largest singular value: mean and standard deviation over networks.
    log_values : (D, M) array
        ln s of D networks drawn, each increasing, -inf below rounding.
    log_mean_squares, log_s_maxima, log_s_minima : (D,) arrays
        Of the same networks; nan where they are unknown, as those of a map of which only a part was drawn.
    closed_mean_square : bool
        Whether `log_mean_square` is the closed form, not that of the draws.
    spread_error : float
        Relative error, about, of standard deviations over the draws where they are scaled from narrower networks; else
        zero.
    source : str
        How the draws were made, as a sentence.
    seconds : float
    """

    width: int
    log_mean_square: LogNormal
    log_s_max: LogNormal
    log_values: Array = field(repr=False)
    log_mean_squares: Array = field(repr=False)
    log_s_maxima: Array = field(repr=False)
    log_s_minima: Array = field(repr=False)
    closed_mean_square: bool
    spread_error: float
    source: str
    seconds: float

    @property
    def draws(self) -> int:
        """Number of networks drawn."""
        return int(self.log_values.shape[0])

    def to_dict(self) -> dict[str, Any]:
        """Means, deviations, quantile bands and their source, as plain JSON values."""
        with np.errstate(invalid="ignore"):
            own = np.array(
                [np.quantile(row, REPORTED_LEVELS, method="inverted_cdf") for row in self.log_values]
            )
        own.sort(axis=0)
        # One more network is below the k-th of D in k/(D + 1) of cases; outwards where that falls between two.
        low, middle = max(math.floor(0.025 * (self.draws + 1)) - 1, 0), (self.draws - 1) // 2
        bands = own[[low, middle, self.draws - 1 - low]]
        return {
            "log_mean_square": {"mean": self.log_mean_square.mean, "std": self.log_mean_square.std},
            "log_s_max": None
            if math.isnan(self.log_s_max.mean)
            else {"mean": self.log_s_max.mean, "std": self.log_s_max.std},
            "log_s_quantiles": {
                f"{level:g}": [float(value) if math.isfinite(value) else None for value in column]
                for level, column in zip(REPORTED_LEVELS, bands.T, strict=True)
            },
            "closed_mean_square": self.closed_mean_square,
            "draws": self.draws,
            "source": self.source,
        }

    def cdf_draws(self, log_s: ArrayLike) -> Array:
        """The cdf of every network at (k,) places ln s, (D, k)."""
        places = np.atleast_1d(np.asarray(log_s, float))
        return (
            np.array([np.searchsorted(row, places + SAME_PLACE, side="right") for row in self.log_values])
            / (self.log_values.shape[1])
        )

    def cdf_band(self, s: ArrayLike, *, confidence: float = 0.95) -> tuple[Array, Array]:
        """Quantiles over networks of the cdf at (k,) places s: lower and upper, (k,) each, pointwise."""
        if not 0.0 < confidence < 1.0:
            raise InputError(f"confidence lies between 0 and 1; got {confidence!r}")
        with np.errstate(divide="ignore"):
            cdf = self.cdf_draws(np.log(np.atleast_1d(np.asarray(s, float))))
        tail = 0.5 * (1.0 - confidence)
        lower, upper = np.quantile(cdf, [tail, 1.0 - tail], axis=0, method="weibull")
        return lower, upper


def finite_width(
    ensemble: Ensemble,
    curve: Curve,
    width: int | None = None,
    *,
    positions: tuple[int, ...] = (),
    profile: tuple[tuple[float, ...], ...] | None = None,
) -> FiniteWidth:
    """How far networks of a width stray from their law.

    Parameters
    ----------
    ensemble : Ensemble
    curve : Curve
        Its law at infinite width.
    width : int, optional
        Units of a layer, or channels of a convolution; None takes the ensemble's own widths.
    positions : tuple of int
        The map of a convolution; () for a dense network.
    profile : tuple of tuple of float, optional
        Variance profile of a convolution's Gaussian kernel; None is a delta kernel.

    Raises
    ------
    InputError
        Where the widths do not describe a network.
    """
    if ensemble.q0 is not None:
        # Inputs of one mean square to rounding share their draws.
        ensemble = replace(ensemble, q0=float(f"{ensemble.q0:.6g}"))
    kernel = Kernel(tuple(int(one) for one in positions), profile) if positions else DENSE
    widths = widths_of(ensemble, width)
    return _cached(ensemble, widths, kernel, _Law(curve, ensemble))


@dataclass(frozen=True)
class _Law:
    """A curve that hashes as the ensemble it is the law of."""

    curve: Curve = field(compare=False)
    ensemble: Ensemble


@lru_cache(maxsize=64)
def _cached(ensemble: Ensemble, widths: tuple[int, ...], kernel: Kernel, law: _Law) -> FiniteWidth:
    affordable = _affordable_map(ensemble, widths, kernel)
    if affordable != kernel:
        # The largest of many positions is not that of a few.
        part = _cached(ensemble, widths, affordable, law)
        unknown = np.full(part.draws, math.nan)
        return replace(
            part,
            log_s_max=LogNormal(math.nan, math.nan),
            log_s_maxima=unknown,
            log_s_minima=unknown,
            source=f"{part.source}, a part of the map, whose edges are not those of the whole",
        )
    began = time.process_time()
    cost = _cost(ensemble, widths, kernel, law.curve)
    if cost * LEAST_DRAWS <= BUDGET:
        return _direct(ensemble, widths, kernel, law.curve, int(min(BUDGET / cost, MOST_DRAWS)), began)
    most = LARGEST_SCALED_VARIANCE if cost <= LONGEST_DRAW else LAST_SCALED_VARIANCE
    narrow = _narrow(ensemble, widths, kernel, most)
    if narrow is not None:
        return _scaled(ensemble, widths[0], narrow, law.curve, began)
    if cost > LONGEST_DRAW:
        raise InputError(
            f"one network of width {min(widths)} and depth {ensemble.depth} takes about {cost:.0f} s to draw, and no "
            "formula covers it: finite-width predictions are for narrower ones, or dense square ones whose depth is "
            "below their width."
        )
    return _direct(ensemble, widths, kernel, law.curve, FEWEST_DRAWS, began)


def _narrow(ensemble: Ensemble, widths: tuple[int, ...], kernel: Kernel, most: float) -> int | None:
    """The width of networks whose differences from the response scale to those of the wide one; None where none do.

    ``most`` is the variance of ln m_1 up to which they do.
    """
    if len(set(widths)) > 1 or kernel.positions or ensemble.residual is not None or ensemble.readout:
        return None
    narrow = _affordable(ensemble, widths[0])
    if narrow == widths[0]:
        return None
    closed = log_mean_square(ensemble, (narrow,) * (ensemble.depth + 1))
    return narrow if closed is not None and closed.std**2 <= most else None


def _affordable_map(ensemble: Ensemble, widths: tuple[int, ...], kernel: Kernel) -> Kernel:
    """The map, or a smaller one of which a set of networks is within the budget.

    Positions share their weights, so that a few of them stray from the law nearly as many do.
    """
    while kernel.count > 1 and _cost(ensemble, widths, kernel) * LEAST_DRAWS > BUDGET:
        taps = (1, 1) if kernel.profile is None else (len(kernel.profile), len(kernel.profile[0]))
        rows, columns = (
            max(-(-size // 2), least) for size, least in zip(kernel.positions, taps, strict=True)
        )
        if (rows, columns) == kernel.positions:
            break
        kernel = Kernel((rows, columns), kernel.profile)
    return DENSE if kernel.count == 1 and kernel.profile is None else kernel


def _cost(ensemble: Ensemble, widths: tuple[int, ...], kernel: Kernel, curve: Curve | None = None) -> float:
    """Seconds that one draw takes, about: products, Haar matrices and the SVD; with the law, of columns in sight."""
    size, least = max(kernel.count, 1), min(widths)
    columns = np.full(len(widths) - 1, float(widths[0]))
    if curve is not None and not kernel.positions and ensemble.residual is None and least >= NARROWEST:
        # ln s of layers that are alike spreads in proportion to their number.
        number = np.arange(1, len(widths))
        places = np.asarray(curve.log_ends[1] + math.log(SMALLEST_RATIO) * (len(widths) - 1) / number)
        share = np.minimum(1.0, 1.2 * (1.0 - curve.cdf(places)) + 4.0 / least)
        columns = np.where((number < FIRST_LOOK) | (share > KEPT_SHARE), columns, share * columns)
    seconds = 0.0
    for law, before, after, count in zip(
        ensemble.layer_weights, widths[:-1], widths[1:], columns, strict=True
    ):
        if kernel.profile is not None:
            taps = sum(len(row) for row in kernel.profile)
            seconds += taps * size**2 * before * widths[0] * (1e-10 * after + 4e-9)
        elif count < widths[0]:
            seconds += 1.2e-4 + after * count * (2.5e-8 + 4e-10 * count)
        else:
            seconds += 1.2e-8 * before * after + 5e-11 * size * before * after * widths[0]
            seconds += 1.5e-10 * max(before, after) * min(before, after) ** 2 * (law == "orthogonal")
    blocks, rank = (size, min(columns[-1], widths[-1]))
    if kernel.profile is not None:
        blocks, rank = 1, size * rank
    return float(seconds + 1.6e-10 * blocks * rank**3 + 1e-5 * len(widths))


def log_mean(log_values: Array) -> Array:
    """ln of the mean of s^2 along the last axis."""
    top = log_values.max(axis=-1)
    return np.asarray(np.log(np.mean(np.exp(2.0 * (log_values - top[..., None])), axis=-1)) + 2.0 * top)


def _fitted(values: Array) -> LogNormal:
    return LogNormal(float(values.mean()), float(values.std(ddof=1)))


def _closed_mean_square(
    ensemble: Ensemble, widths: tuple[int, ...], kernel: Kernel, curve: Curve
) -> LogNormal | None:
    """Mean and spread of ln m_1 by the recursion of order 1/N, where it holds."""
    closed = log_mean_square(ensemble, widths) if not kernel.positions else None
    if closed is None or closed.std**2 > LARGEST_CLOSED_VARIANCE:
        return None
    return LogNormal(curve.log_moment(2) + closed.mean, closed.std)


def _direct(
    ensemble: Ensemble, widths: tuple[int, ...], kernel: Kernel, curve: Curve, draws: int, began: float
) -> FiniteWidth:
    """Networks drawn at the very width."""
    values = np.array([one.log_values for one in sample(ensemble, min(widths), draws, kernel=kernel)])
    passed = np.isfinite(values[:, -1])
    values = values[passed]
    if values.shape[0] < 2:
        raise InputError(f"no signal passes the {ensemble.depth} layers of networks {min(widths)} wide.")
    mean_squares = log_mean(values)
    closed = _closed_mean_square(ensemble, widths, kernel, curve)
    return FiniteWidth(
        min(widths),
        closed or _fitted(mean_squares),
        _fitted(values[:, -1]),
        values,
        mean_squares,
        values[:, -1],
        values[:, 0],
        closed is not None,
        0.0,
        f"{draws} networks drawn at this width{_on_map(kernel)}, seed {SEED}{_without(passed)}",
        time.process_time() - began,
    )


def _scaled(ensemble: Ensemble, width: int, narrow: int, curve: Curve, began: float) -> FiniteWidth:
    """The response to slopes drawn at the very width, and the rest from narrower networks."""
    count = max(int(BUDGET / _cost(ensemble, (narrow,) * (ensemble.depth + 1), DENSE)), FEWEST_DRAWS)
    layers = layers_of(ensemble)
    q = np.where(np.isnan(layers.q), 1.0, np.maximum(layers.q, LINEAR_VARIANCE))
    levels = 0.5 - 0.5 * np.cos(np.linspace(0.0, math.pi, LEVELS))[1:-1]
    places = np.unique(np.asarray(curve.quantile(levels)))
    places = places[np.isfinite(places)]
    law = curve.cdf(places)
    found: list[tuple[NDArray[np.bool_], Response]] = []
    for activation in dict.fromkeys(layers.activations):
        own = np.array([one == activation for one in layers.activations])
        for value, response in responses(curve, activation, q[own], places).items():
            found.append((own & (q == value), response))

    def linear(h: Array) -> tuple[Array, float, float]:
        """Response of the cdf, of ln s_max and of ln m_1 to the slopes of one network."""
        total: list[Array | float] = [np.zeros(places.size), 0.0, 0.0]
        for chosen, response in found:
            share = response.counts(h[chosen]).sum(axis=0)
            for index, part in enumerate((response.cdf, 0.5 * response.edge, response.mean)):
                total[index] = total[index] + share @ part
        return total[0], float(total[1]), float(total[2])  # type: ignore[return-value]

    rest = []
    top = curve.log_ends[1]
    # Below it narrow networks hold rounding, and nothing is known.
    floor = -math.inf
    for one in sample(ensemble, narrow, count, seed=SEED, keep_pre_activations=True):
        if not np.isfinite(one.log_values[-1]):
            continue
        assert one.pre_activations is not None
        cdf, edge, mean = linear(one.pre_activations)
        own = np.searchsorted(one.log_values, places + SAME_PLACE, side="right") / narrow
        floor = max(floor, float(one.log_values[-1]) + math.log(SMALLEST_RATIO))
        rest.append(
            (
                narrow / width * (own - law - cdf),
                (narrow / width) ** (2.0 / 3.0) * (one.log_values[-1] - top - edge),
                narrow / width * (float(log_mean(one.log_values)) - curve.log_moment(2) - mean),
            )
        )
    size = min(width, MOST_VALUES)
    uniform = (np.arange(size) + 0.5) / size
    table = np.linspace(0.0, 1.0, 20 * size + 1)
    quantiles = np.asarray(curve.quantile(table))
    values, maxima, mean_squares = [], [], []
    for index, h in enumerate(sample_chain(ensemble, width, CHAIN_DRAWS, seed=SEED)):
        cdf, edge, mean = linear(h)
        cdf_rest, edge_rest, mean_rest = rest[index % len(rest)]
        moved = cdf + cdf_rest
        # F + delta F = u where F = u - delta F; taken at the level moved once, as delta F is.
        shift = np.interp(uniform, law, moved, right=0.0)
        shift = np.interp(uniform - shift, law, moved, right=0.0)
        place = np.clip(uniform - shift, 0.0, 1.0)
        drawn = np.sort(quantiles[np.rint(place * (table.size - 1)).astype(int)])
        drawn[drawn < floor] = -np.inf
        if curve.zero_mass > 0:
            # The rank is that of the layer with the fewest units of any slope.
            active = min(
                np.mean(phi.derivative(row) != 0) for phi, row in zip(layers.activations, h, strict=True)
            )
            zeros = round((1.0 - min(float(active), 1.0)) * size)
            least = drawn[np.isfinite(drawn)][0]
            drawn[:zeros] = -np.inf
            drawn[zeros:] = np.maximum(drawn[zeros:], least)
        values.append(drawn)
        maxima.append(top + edge + edge_rest)
        mean_squares.append(curve.log_moment(2) + mean + mean_rest)
    closed = _closed_mean_square(ensemble, (width,) * (ensemble.depth + 1), DENSE, curve)
    return FiniteWidth(
        width,
        closed or _fitted(np.array(mean_squares)),
        _fitted(np.array(maxima)),
        np.array(values),
        np.array(mean_squares),
        np.array(maxima),
        np.full(len(values), np.nan),
        closed is not None,
        SCALED_SPREAD_ERROR,
        f"the response to {CHAIN_DRAWS} draws of the slopes at this width, and {len(rest)} networks {narrow} wide for "
        f"the directions, seed {SEED}",
        time.process_time() - began,
    )


def _without(passed: NDArray[np.bool_]) -> str:
    return "" if passed.all() else f"; {np.sum(~passed)} of them pass no signal and are left out"


def _on_map(kernel: Kernel) -> str:
    return "" if not kernel.positions else f" on a map of {kernel.positions[0]} x {kernel.positions[1]}"


def _affordable(ensemble: Ensemble, width: int) -> int:
    """The largest width, in steps of an eighth, of which `LEAST_DRAWS` networks are within the budget.

    Never less than `NARROWEST`: orders in 1/N are no law of narrow networks.
    """
    narrow = width
    while (
        narrow > NARROWEST and _cost(ensemble, (narrow,) * (ensemble.depth + 1), DENSE) * LEAST_DRAWS > BUDGET
    ):
        narrow = max(int(narrow * 0.875), NARROWEST)
    return narrow
