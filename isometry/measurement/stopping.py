"""What a measurement is to reach, and how far it is from that: the goal, and the error of its quantity.

The stopping rule tests the error that is reported, so it stops too early where that error is underestimated. Three
things keep this bias small. The interval of the mean square follows from the law of the probes and not from their
spread (`isometry.spectrum.probe_means`), and its farther end is what counts. There are at least 8 probes. And their
number grows by a quarter or more between two tests (:mod:`.adaptive`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np

from isometry.errors import InputError
from isometry.measurement.convergence import worst_residual
from isometry.spectrum import Spectrum

EXTREME_QUANTITIES = ("top", "s_max")
QUANTITIES = ("mean_square", "cdf", *EXTREME_QUANTITIES)
# The spread of fewer probes is too poor an estimate of their error.
MIN_PROBES = 8
# Steps before the first test, where steps are added.
_FIRST_STEPS = 16
# Where no number of probes reaches the goal.
MAX_PROBES = 4096
_CONFIDENCE = 0.95
# Places at which the width of a band is evaluated.
_PLACES = 512
# Units of rounding of s_max up to which nodes are one value: 8 of each, and as much again for the band about it.
_SAME = 64
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Goal:
    """What a measurement is to reach, and what it may cost. It takes ``rtol``, ``budget`` or both.

    Parameters
    ----------
    quantity : {"mean_square", "cdf", "top", "s_max"}
        What ``rtol`` bounds. "mean_square": the distance to the farther end of its 95 % interval, relative. "cdf": the
        largest distance of the cdf from its simultaneous 95 % band, from the floor upwards. "top" and "s_max": the
        largest residual of all reported top values, or of s_max, relative.
    rtol : float, optional
        Probes and steps are added until the error of the quantity is at most this. Without it the budget is spent.
    budget : int or str, optional
        Products that may be spent, or seconds as "60s" ("5min", "2h").

    Raises
    ------
    InputError
        A quantity, error or budget that is none.
    """

    quantity: str = "mean_square"
    rtol: float | None = None
    budget: int | str | None = None

    def __post_init__(self) -> None:
        if self.quantity not in QUANTITIES:
            raise InputError(f"quantity is one of {', '.join(QUANTITIES)}; got {self.quantity!r}")
        if self.rtol is not None and not 0 < self.rtol < 1:
            raise InputError(f"rtol is a relative error between 0 and 1; got {self.rtol}")
        _budget(self.budget)

    @classmethod
    def of(cls, rtol: float | None, quantity: str | None, budget: int | str | None) -> Goal | None:
        """The goal that the options of `measure` state; None where they state none."""
        goal = cls(quantity or "mean_square", rtol, budget)
        if rtol is None and budget is None:
            if quantity is not None:
                raise InputError(f"quantity={quantity!r} says what rtol or budget is about: give one of them")
            return None
        return goal

    @property
    def products(self) -> int | None:
        """Jacobian products that may be spent, if the budget is a number of them."""
        return _budget(self.budget)[0]

    @property
    def seconds(self) -> float | None:
        """Wall time that may be spent, if the budget is one."""
        return _budget(self.budget)[1]

    @property
    def adds_steps(self) -> bool:
        """Whether steps improve the quantity. Each probe has its own mean square exactly after any number of steps."""
        return self.quantity != "mean_square"

    def error_of(self, spectrum: Spectrum, *, top: int | None = None) -> QuantityError:
        """The error of the quantity in that spectrum; of an exact one, with all its values, of the leading ``top``."""
        return _ERRORS[self.quantity](spectrum, top)

    def reached(self, error: QuantityError) -> bool:
        """Whether the error is at most ``rtol``."""
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
class QuantityError:
    """The error of a quantity, and what limits it: too few "probes", too few "steps", or "rounding"."""

    size: float
    limited_by: str


def _mean_square_error(spectrum: Spectrum, top: int | None) -> QuantityError:
    """The distance to the farther end of the 95 % interval, relative. Steps do not matter: the mean square is exact."""
    # Relative to the largest node: the squares themselves may leave the range of floats.
    mean = spectrum.distribution.moment_mean(1)[1]
    low, high = mean.interval(_CONFIDENCE)
    farther = max(mean.mean - low, high - mean.mean)
    return QuantityError(farther / mean.mean if farther > 0 else 0.0, "probes")


def _cdf_error(spectrum: Spectrum, top: int | None) -> QuantityError:
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
        spectrum.cdf_band(places, _CONFIDENCE, simultaneous=True),
        spectrum.cdf_bounds(places),
    ):
        sizes.append(float(np.maximum(upper - cdf, cdf - lower).max()))
    return QuantityError(sizes[0], "steps" if sizes[1] > 0.5 * sizes[0] else "probes")


def _residual_error(spectrum: Spectrum, top: int | None, count: int | None = None) -> QuantityError:
    """The largest residual of the leading values, relative to each."""
    e, d = spectrum.extremes, spectrum.quadrature
    assert e is not None, "a measurement"
    size = worst_residual(spectrum, count, top=top)
    if not d.errors.random:
        return QuantityError(size, "rounding")
    if np.isnan(e.top[:, :count]).any() and not d.resolved.all():
        return QuantityError(math.inf, "steps")
    rounding = 8 * d.errors.eps * e.top[:, :1]
    below = np.nan_to_num(e.top_residual[:, :count]) <= 2 * rounding
    return QuantityError(size, "rounding" if below.all() else "steps")


_ERRORS: Mapping[str, Callable[[Spectrum, int | None], QuantityError]] = {
    "mean_square": _mean_square_error,
    "cdf": _cdf_error,
    "top": _residual_error,
    "s_max": partial(_residual_error, count=1),
}


def first_steps(goal: Goal | None, steps: int) -> int:
    """Steps of the first round, where ``steps`` is the most that may be taken."""
    return min(_FIRST_STEPS, steps) if goal is not None and goal.adds_steps else steps


def stop_record(
    reason: str | None, goal: Goal | None, spectrum: Spectrum, *, top: int | None = None
) -> dict[str, Any]:
    """The record of why a measurement stopped, as plain values; ``reason`` is None where an exact one ended."""
    found: dict[str, Any] = {"reason": reason or "exact"}
    if goal is None:
        return found
    error = goal.error_of(spectrum, top=top)
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
        # What that pays for depends on the machine: such a result does not repeat.
        found["budget"] = f"{goal.seconds:g} s"
    return found
