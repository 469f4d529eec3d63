"""Adding probes and steps to a stochastic measurement until it reaches its goal. Internal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from isometry.errors import InputError
from isometry.measurement.lanczos_run import LanczosRun
from isometry.measurement.stopping import MIN_PROBES, Goal, QuantityError, first_steps


class _OutOfTime(Exception):
    """The seconds of the budget are over."""


@dataclass(frozen=True)
class Limits:
    """Most probes and most steps; ``exact`` products cost the exact method, inf where it is out of the question."""

    probes: int
    steps: int
    exact: float = math.inf


@dataclass(frozen=True)
class _Round:
    """Probes and steps to go on to; ``cut`` where the budget pays for fewer than were wanted.

    ``least_cost`` is what is at least still to be spent on each input until the goal is reached.
    """

    probes: int
    steps: int
    cut: bool = False
    least_cost: float = 0.0


def extend_until(
    goal: Goal,
    run: LanczosRun,
    limits: Limits,
    *,
    began: float,
    on_round: Callable[[int, int], None] = lambda *_: None,
) -> str:
    """Add probes and steps to ``run`` until the goal is reached; returns why it stopped.

    ``on_round`` is called with the probes and steps of every round after the first, before it.

    Returns
    -------
    str
        "rtol": reached. "budget": products or seconds are spent. "probes", "steps", "memory": no more of those may be
        added. "rounding": the rest of the error is rounding. "exact": the exact method reaches the goal for less than
        what is still to be spent.
    """

    seconds = goal.seconds

    def check_time() -> None:
        if seconds is not None and time.perf_counter() - began > seconds:
            raise _OutOfTime

    now = _affordable(goal, run, min(MIN_PROBES, limits.probes), first_steps(goal, limits.steps))
    while True:
        try:
            run.extend(now.probes, now.steps, on_step=check_time)
        except _OutOfTime:
            return "budget"
        error = goal.error_of(run.spectrum())
        if goal.reached(error):
            return "rtol"
        if now.cut:
            return "budget"
        wanted = _next_round(goal, run, limits, error)
        if isinstance(wanted, str):
            return wanted
        left = math.inf if goal.products is None else goal.products - run.products
        if goal.rtol is not None and limits.exact <= min(left, run.inputs * wanted.least_cost):
            return "exact"
        now = _affordable(goal, run, wanted.probes, wanted.steps)
        if (now.probes, now.steps) == (run.probes, run.steps):
            return "budget"
        on_round(now.probes, now.steps)


def _next_round(goal: Goal, run: LanczosRun, limits: Limits, error: QuantityError) -> _Round | str:
    """More probes or more steps, whichever limits the error; the reason where none may be added."""
    ratio = error.size / goal.rtol if goal.rtol is not None else math.inf
    if error.limited_by == "rounding":
        return "rounding"
    # A cdf whose Krylov spaces are all invariant has no truncation error that steps could reduce.
    if error.limited_by == "probes" or (run.finished and goal.quantity == "cdf"):
        return _more_probes(run, limits, ratio)
    return _more_steps(run, limits, ratio, geometric=goal.quantity != "cdf")


def _more_probes(run: LanczosRun, limits: Limits, ratio: float) -> _Round | str:
    """The error falls as 1 / sqrt(probes)."""
    if run.probes == limits.probes:
        return "probes"
    probes = _grown(run.probes, 1.1 * ratio**2, limits.probes)
    if not run.make_room(probes, run.steps):
        return "memory"
    return _Round(probes, run.steps, least_cost=2 * run.steps * run.probes * (ratio**2 - 1))


def _more_steps(run: LanczosRun, limits: Limits, ratio: float, *, geometric: bool) -> _Round | str:
    """The masses of a cdf, and with them its bounds, fall as 1 / steps.

    Residuals fall geometrically and are bounds at every step: testing them again soon costs little and biases nothing.
    """
    if run.finished or run.steps == limits.steps:
        return "steps"
    if geometric:
        steps = min(run.steps + max(2, run.steps // 8), limits.steps)
    else:
        steps = _grown(run.steps, 1.1 * ratio, limits.steps)
    if run.fixed or not run.make_room(run.probes, steps):
        return "memory"
    return _Round(
        run.probes, steps, least_cost=2 * run.probes * run.steps * (0.5 if geometric else ratio - 1)
    )


def _grown(number: int, factor: float, most: int) -> int:
    """``number`` times the factor, between 1.25 and 2, as a multiple of 8."""
    return min(8 * math.ceil(number * min(max(factor, 1.25), 2.0) / 8), most)


def _affordable(goal: Goal, run: LanczosRun, probes: int, steps: int) -> _Round:
    """As many of the probes and steps as the remaining products pay for."""
    if goal.products is None:
        return _Round(probes, steps)
    each = (goal.products - run.products) // (2 * run.inputs)
    if run.probes == 0:
        # Rather all probes with fewer steps than few probes with many.
        paid = min(probes, each)
        if paid < 1:
            raise InputError(
                f"a budget of {goal.products} products does not pay for one step of one probe of each input, which "
                f"takes {2 * run.inputs}"
            )
        enough = min(steps, each // paid)
        return _Round(paid, enough, cut=(paid, enough) != (probes, steps))
    new = probes - run.probes
    if new > 0:
        paid = min(new, each // steps)
        return _Round(run.probes + paid, steps, cut=paid < new)
    enough = min(steps, run.steps + each // run.probes)
    return _Round(probes, enough, cut=enough < steps)
