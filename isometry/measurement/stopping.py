"""When a measurement may stop: the error of the quantity asked for, the budget, and what to add until then.

The stopping rule looks at the very error that is reported, so it prefers runs that happen to look better than they are.
Three things keep that small. The error of the mean square is the larger of two: Student's interval from the spread of
the probes, and the one from the variance that probes on the sphere have, 2 (m_2 - m_1^2) / (n + 2) of the moments of
J^T J (m_2 is known to the probes far better than their own spread). There are at least 8 probes. And they grow by a
quarter or more between two looks.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from isometry.errors import InputError
from isometry.measurement.convergence import worst_residual
from isometry.spectrum import Spectrum
from isometry.spectrum.probe_intervals import student_quantile

if TYPE_CHECKING:
    from isometry.measurement.lanczos_run import Sampling

EDGES = ("top", "s_max")
QUANTITIES = ("mean_square", "cdf", *EDGES)
# Fewer probes have too rough an idea of their own spread.
LEAST_PROBES = 8
# Steps that values at the edge are first looked at with, and the masses of a cdf.
FIRST_STEPS = 16
# A stop for what no number of probes reaches.
MOST_PROBES = 4096
CONFIDENCE = 0.95
# Places at which the width of a band is looked at.
_PLACES = 512
# Units of rounding of s_max up to which nodes are one value: 8 of each, and as much again for the band about it.
_SAME = 64
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Goal:
    """What a measurement is to reach and what it may cost.

    Parameters
    ----------
    quantity : {"mean_square", "cdf", "top", "s_max"}
    rtol : float, optional
        What the error of the quantity is to fall to; without it the budget is spent.
    products : int, optional
        Jacobian products that may be spent.
    seconds : float, optional
        Wall time that may be spent.
    top : int, optional
        How many of the values of an exact measurement "top" is about.
    """

    quantity: str
    rtol: float | None = None
    products: int | None = None
    seconds: float | None = None
    top: int | None = None

    @classmethod
    def of(
        cls, rtol: float | None, quantity: str | None, budget: int | str | None, top: int | None = None
    ) -> Goal | None:
        """The goal that the options of `measure` state, checked; None where they state none."""
        if quantity is not None and quantity not in QUANTITIES:
            raise InputError(f"quantity is one of {', '.join(QUANTITIES)}; got {quantity!r}")
        if rtol is None and budget is None:
            if quantity is not None:
                raise InputError(f"quantity={quantity!r} says what rtol or budget is about: give one of them")
            return None
        if rtol is not None and not 0 < rtol < 1:
            raise InputError(f"rtol is a relative error between 0 and 1; got {rtol}")
        products, seconds = _budget(budget)
        return cls(quantity or "mean_square", rtol, products, seconds, top)

    def error_of(self, spectrum: Spectrum) -> Error:
        """How well the spectrum knows the quantity."""
        return _ERRORS[self.quantity](spectrum, self.top)

    def reached(self, error: Error) -> bool:
        """Whether that is as well as was asked."""
        return self.rtol is not None and error.size <= self.rtol


def _budget(budget: int | str | None) -> tuple[int | None, float | None]:
    if budget is None:
        return None, None
    if isinstance(budget, Integral) and not isinstance(budget, bool):
        if budget < 1:
            raise InputError(f"a budget is at least one product; got {budget}")
        return int(budget), None
    match = (
        re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(s|min|h)\s*", str(budget)) if isinstance(budget, str) else None
    )
    if match is None or not float(match[1]) > 0:
        raise InputError(
            f"a budget is a number of products (20000) or a time ('60s', '5min', '2h'); got {budget!r}"
        )
    return None, float(match[1]) * _UNITS[match[2]]


@dataclass(frozen=True)
class Error:
    """The error of a quantity, and what makes it smaller: "probes" or "steps"; "rounding" where nothing does."""

    size: float
    cure: str


def _mean_square_error(spectrum: Spectrum, top: int | None) -> Error:
    """Half the width of the 95 % interval, relative. Steps do not matter: each probe has its mean square exactly."""
    d, probes, inputs = spectrum.quadrature, spectrum.n_probes, spectrum.n_inputs
    # Relative to the largest node: the squares themselves may leave the range of floats.
    squares, fourths = d.row_moments(2)[1], d.row_moments(4)[1].mean(1)
    mean, of_the_spread = float(squares.mean()), spectrum.standard_error(squares)
    if mean == 0 or not d.errors.random:
        return Error(0.0, "probes")
    if probes == 1:
        return Error(math.inf if of_the_spread != 0 else 0.0, "probes")
    # Of random signs and of orthogonal groups this is an upper bound, but for a factor 1 + 2 / n.
    variance = np.maximum(fourths - squares.mean(1) ** 2, 0.0) * 2 / (d.dimension + 2)
    of_the_sphere = math.sqrt(float(variance.sum()) / probes) / inputs
    quantile = student_quantile(0.5 + CONFIDENCE / 2, inputs * (probes - 1))
    return Error(quantile * max(of_the_spread, of_the_sphere) / mean, "probes")


def _cdf_error(spectrum: Spectrum, top: int | None) -> Error:
    """The largest distance between the cdf and the ends of its simultaneous 95 % band, from the floor upwards."""
    d = spectrum.quadrature
    nodes = np.unique(d.nodes[(d.weights > 0) & (d.nodes > spectrum.floor)])
    if nodes.size == 0:
        # Everything is zero to rounding; above the floor that is known as well as anything.
        nodes = np.array([2 * spectrum.floor or 1.0])
    # cdf and band are constant between neighbouring nodes.
    edges = np.concatenate([[max(spectrum.floor, nodes[0] / 2)], nodes, [2 * nodes[-1]]])
    # Nodes that are one value to rounding: what is between them is neither below nor above it.
    apart = np.diff(edges) > _SAME * d.errors.eps * nodes[-1]
    places = (np.sqrt(edges[1:]) * np.sqrt(edges[:-1]))[apart]
    places = places[np.unique(np.linspace(0, places.size - 1, _PLACES).astype(int))]
    cdf = spectrum.cdf(places)
    sizes = []
    for lower, upper in (
        spectrum.cdf_band(places, CONFIDENCE, simultaneous=True),
        spectrum.cdf_bounds(places),
    ):
        sizes.append(float(np.maximum(upper - cdf, cdf - lower).max()))
    return Error(sizes[0], "steps" if sizes[1] > 0.5 * sizes[0] else "probes")


def _edge_error(spectrum: Spectrum, top: int | None, count: int | None = None) -> Error:
    """The largest residual of the leading values, relative to each."""
    e, d = spectrum.extremes, spectrum.quadrature
    assert e is not None, "a measurement"
    size = worst_residual(spectrum, count, top=top)
    if not d.errors.random:
        return Error(size, "rounding")
    if np.isnan(e.top[:, :count]).any() and not d.resolved.all():
        return Error(math.inf, "steps")
    rounding = 8 * d.errors.eps * e.top[:, :1]
    below = np.nan_to_num(e.top_residual[:, :count]) <= 2 * rounding
    return Error(size, "rounding" if below.all() else "steps")


_ERRORS: Mapping[str, Callable[[Spectrum, int | None], Error]] = {
    "mean_square": _mean_square_error,
    "cdf": _cdf_error,
    "top": _edge_error,
    "s_max": partial(_edge_error, count=1),
}


class OutOfTime(Exception):
    """The seconds of the budget are over."""


@dataclass
class Limits:
    """Most probes and most steps; ``exact`` products cost the exact method, inf where it is out of the question."""

    probes: int
    steps: int
    exact: float = math.inf


def reach(goal: Goal, sampling: Sampling, limits: Limits, *, began: float) -> str:
    """Add probes and steps to ``sampling`` until the goal is reached; returns the reason why it stopped.

    Returns
    -------
    str
        "rtol": reached. "budget": products or seconds are over. "probes", "steps", "memory": no more of those may be
        added. "rounding": nothing more is to be had in this precision. "exact": the exact method reaches the goal for
        less than what is still to be spent.
    """
    probes = min(LEAST_PROBES, limits.probes)
    steps = limits.steps if goal.quantity == "mean_square" else min(FIRST_STEPS, limits.steps)
    probes, steps, short = _within(goal, sampling, probes, steps)

    def watch() -> None:
        if goal.seconds is not None and time.perf_counter() - began > goal.seconds:
            raise OutOfTime

    while True:
        try:
            sampling.extend(probes, steps, watch=watch)
        except OutOfTime:
            return "budget"
        error = goal.error_of(sampling.spectrum())
        if goal.reached(error):
            return "rtol"
        if short:
            return "budget"
        if error.cure == "rounding":
            return "rounding"
        cure = (
            "probes" if sampling.finished and error.cure == "steps" and goal.quantity == "cdf" else error.cure
        )
        ratio = error.size / goal.rtol if goal.rtol is not None else math.inf
        if cure == "probes":
            if probes == limits.probes:
                return "probes"
            # The error falls as 1 / sqrt(probes).
            least_cost = 2 * steps * probes * (ratio**2 - 1)
            probes = _more(probes, 1.1 * ratio**2, limits.probes)
            if not sampling.make_room(probes, steps):
                return "memory"
        else:
            if sampling.finished or steps == limits.steps:
                return "steps"
            # The masses of a cdf, and with them its bounds, fall as 1 / steps. Residuals fall geometrically, and are
            # bounds at every step: looking again soon costs little and biases nothing.
            edge = goal.quantity in EDGES
            least_cost = 2 * probes * steps * (0.5 if edge else ratio - 1)
            steps = (
                min(steps + max(2, steps // 8), limits.steps)
                if edge
                else _more(steps, 1.1 * ratio, limits.steps)
            )
            if sampling.fixed or not sampling.make_room(probes, steps):
                return "memory"
        left = math.inf if goal.products is None else goal.products - sampling.products
        if goal.rtol is not None and limits.exact <= min(left, sampling.inputs * least_cost):
            return "exact"
        if goal.products is not None:
            probes, steps, short = _within(goal, sampling, probes, steps)
            if (probes, steps) == (sampling.probes, sampling.steps):
                return "budget"


def _more(number: int, factor: float, most: int) -> int:
    """``number`` times the factor, between 1.25 and 2, as a multiple of 8."""
    return min(8 * math.ceil(number * min(max(factor, 1.25), 2.0) / 8), most)


def _within(goal: Goal, sampling: Sampling, probes: int, steps: int) -> tuple[int, int, bool]:
    """As many of the probes and steps as the products that are left pay for, and whether that is fewer."""
    if goal.products is None:
        return probes, steps, False
    each = (goal.products - sampling.products) // (2 * sampling.inputs)
    new = probes - sampling.probes
    if sampling.probes == 0:
        # Rather all probes with fewer steps than few probes with many.
        fitting = min(probes, each)
        if fitting < 1:
            raise InputError(
                f"a budget of {goal.products} products does not pay for one step of one probe of each input, which "
                f"takes {2 * sampling.inputs}"
            )
        enough = min(steps, each // fitting)
        return fitting, enough, (fitting, enough) != (probes, steps)
    if new > 0:
        fitting = min(new, each // steps)
        return sampling.probes + fitting, steps, fitting < new
    enough = min(steps, sampling.steps + each // sampling.probes)
    return probes, enough, enough < steps


def summary(reason: str | None, goal: Goal | None, spectrum: Spectrum) -> dict[str, Any]:
    """What is recorded of why a measurement stopped, None for the end of an exact one: plain values."""
    found: dict[str, Any] = {"reason": reason or "exact"}
    if goal is None:
        return found
    error = goal.error_of(spectrum)
    if goal.reached(error) and reason in ("budget", None):
        found["reason"] = "rtol"
    found["quantity"] = goal.quantity
    if math.isfinite(error.size):
        found["error"] = error.size
    if goal.rtol is not None:
        found["rtol"] = goal.rtol
    if goal.products is not None:
        found["budget"] = f"{goal.products} products"
    if goal.seconds is not None:
        # How far that reaches depends on the machine: such a result does not repeat.
        found["budget"] = f"{goal.seconds:g} s"
    return found
