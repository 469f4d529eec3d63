"""Scales of the weights of one copy of a model, step by step, until every station is at its target. Internal.

One step takes each station to where it would be at its target if those before it were at theirs: exact for what is
proportional to a weight, as all that leaves a layer is. Steps change activations, so the model is recorded anew after
each; block b depends on the blocks before it alone, so the first ones settle first.

Behind inputs far larger than an activation can take (tanh at 30) no mean square of 1 can be kept: the tangents would be
as long as the signals, and these saturate. There the layers are held at a lower mean square, at which the signal has
mean square 1, and the last layer makes up for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isometry.depth.tuning_plan import Plan, Point, Station
from isometry.depth.tuning_report import TunedWeights
from isometry.depth.value_graph import ValueGraph
from isometry.errors import ConvergenceError, InputError, ModelError, NonFiniteError
from isometry.jacobian import JacobianOperator, RecordedTangents, push_tangents
from isometry.progress import Progress

Array = NDArray[np.float64]
LN10 = math.log(10)
# ln of the largest factor of one step.
_LARGEST_STEP = 7.0
# An activation that lets less than a tenth of the mean square of tangents pass saturates; ln.
_SATURATED = math.log(0.1)
# How far, in ln, the layers before may be from their target when the signal behind them is judged.
_SETTLED = 0.1


class Solver:
    """Recordings of one copy of a model while its weights are scaled."""

    def __init__(self, operator: JacobianOperator, probes: int, seed: int) -> None:
        self._operator, self._probes, self._seed = operator, probes, seed
        found = operator.evaluation.module
        if found is None:
            raise ModelError(
                "a scripted model has no modules whose weights can be followed: tune the module that was scripted"
            )
        self.module = found
        self._parameters = dict(found.named_parameters())
        self._originals: dict[str, Tensor] = {}
        self._drops: dict[int, float] = {}
        self._plan = Plan()
        self._solved: list[float] = []
        self.sweeps = 0
        self.first = self.tangents = self._recorded()
        self._graph = ValueGraph(self.tangents.order, self.tangents.arrivals)
        if not math.isfinite(self.tangents.log_frobenius(self.tangents.order[-1])):
            self._refuse_dead()

    def solve(
        self, plan: Plan, tolerance: float, sweeps: int, progress: Progress, *, signal: float | None = None
    ) -> list[float]:
        """ln of the factor of each station, from the weights as they were.

        With ``signal``, the first layers are held where the mean square of their signal is that.
        """
        self._plan, self._drops = plan, {}
        logs = [0.0] * len(plan.stations)
        off: list[float] = []
        for sweep in range(sweeps):
            if sweep or self.sweeps > 1:
                self._set(logs)
                self.tangents = self._recorded()
            if signal is not None and sweep == 0:
                self._lower_first(math.log(signal))
            self._lower()
            off = [self._off(number, log) for number, log in enumerate(logs)]
            progress(sweep + 1, sweeps, "")
            if all(abs(value) <= tolerance for value in off):
                self._solved = list(logs)
                return logs
            self._step(logs)
        worst = max(range(len(off)), key=lambda k: abs(off[k]))
        station = plan.stations[worst]
        raise ConvergenceError(
            f"no convergence in {self.sweeps} sweeps: the mean square behind {station.name!r} "
            f"({', '.join(station.parameters)}) is still {math.exp(min(off[worst], 700.0)):.3g} times what it should "
            "be. The model is as it was. Leave that block as it is by leave=, allow more sweeps= or a larger "
            "tolerance=, or give inputs of the size that it will see"
        )

    def _recorded(self) -> RecordedTangents:
        tangents = push_tangents(self._operator, self._probes, self._seed)
        self.sweeps += 1
        if self.sweeps > 1 and tangents.order != self.first.order:
            raise ModelError(
                "the model takes another path through its code when its weights are scaled, so that its blocks cannot "
                "be followed"
            )
        if any(bool((squares != squares).any()) for squares in tangents.log_squares.values()):
            raise NonFiniteError(
                "a Jacobian product holds NaN or inf while the weights are scaled. The model is as it was"
            )
        return tangents

    def _refuse_dead(self) -> None:
        tangents, last = self.tangents, self.tangents.order[-1]
        main = [*reversed(self._graph.dominators(last)), last]
        dead = next((value for value in main if not math.isfinite(tangents.log_frobenius(value))), last)
        calls = tangents.arrivals[dead][0].calls if tangents.arrivals.get(dead) else ()
        where = next((call for call in reversed(calls) if call.name), None)
        block = f"{where.name!r} ({where.kind})" if where is not None else "its output"
        raise InputError(
            f"chi is undefined: nothing passes {block} at these inputs, where the Jacobian is zero (dead units, or "
            "weights that are zero). Give other inputs, or set its weights anew"
        )

    # ---- steps --------------------------------------------------------------------------------------------

    def _off(self, number: int, log: float) -> float:
        """ln of how far a mean square is above its target; a branch below it is where it may be."""
        station = self._plan.stations[number]
        if station.role != "branch":
            return self._above(number)
        off = _excess(self.tangents, station)
        return max(off, 0.0) if log == 0.0 or off == -math.inf else off

    def _above(self, number: int) -> float:
        station = self._plan.stations[number]
        return _value(self.tangents, station) - station.target + self._lowered(number)

    def _lowered(self, number: int) -> float:
        """By how much the targets up to a station are lowered; not that of the last, which makes up for it."""
        total, at = 0.0, None if number == self._plan.last else number
        while at is not None:
            total += self._drops.get(at, 0.0)
            at = self._plan.stations[at].previous
        return total

    def _lower(self) -> None:
        """Lower the target of a layer whose signal saturates its activation, once those before it are settled."""
        for number, station in enumerate(self._plan.stations):
            if station.role != "layer" or number in self._drops or number == self._plan.last:
                continue
            settled = station.previous is None or abs(self._above(station.previous)) < _SETTLED
            signal = self._saturating_signal(station) if settled else 0.0
            if signal > 0:
                self._drops[number] = max(signal - self._above(number), 0.0)

    def _lower_first(self, log_signal: float) -> None:
        """Set the targets of the layers that nothing lies before, of a chain that goes on, by the signal wanted."""
        for number, station in enumerate(self._plan.stations):
            first = station.role == "layer" and station.previous is None and number != self._plan.last
            if first and (signal := self._signal(station.point.value)) > 0:
                self._drops[number] = math.log(signal) - log_signal - self._above(number)

    def _signal(self, value: int) -> float:
        """The mean square of the entries of a value."""
        return self.tangents.signals.get(value, 0.0) / (self.tangents.sizes[value] * self.tangents.samples)

    def _saturating_signal(self, station: Station) -> float:
        """ln of the mean square of the signal, where an activation behind it lets little of the tangents pass."""
        tangents, value = self.tangents, station.point.value
        while len(leaving := self._graph.leaving[value]) == 1 and len(tangents.arrivals[leaving[0][0]]) == 1:
            then = leaving[0][0]
            loss = tangents.log_frobenius(then) - tangents.log_frobenius(value)
            if abs(loss) > 1e-6 or math.isnan(loss):
                signal = self._signal(value)
                return math.log(signal) if loss < _SATURATED and signal > 1 else 0.0
            # A bias, or another shape.
            value = then
        return 0.0

    def _step(self, logs: list[float]) -> None:
        """Move the factors to where each station would be at its target, those before it being at theirs."""
        for number, station in enumerate(self._plan.stations):
            if station.role == "branch":
                logs[number] = min(logs[number] + _branch_step(self.tangents, station), 0.0)
                continue
            change = -self._above(number)
            if station.previous is not None:
                change += self._above(station.previous)
            # The mean square is quadratic in the factor. Where nothing arrives, the layers before come first.
            if math.isfinite(change):
                logs[number] += min(max(0.5 * change, -_LARGEST_STEP), _LARGEST_STEP)

    def _set(self, logs: Sequence[float]) -> None:
        factors = {
            parameter: math.exp(log)
            for station, log in zip(self._plan.stations, logs, strict=True)
            for parameter in station.parameters
        }
        with torch.no_grad():
            for parameter, factor in factors.items():
                tensor = self._parameters[parameter]
                original = self._originals.setdefault(parameter, tensor.clone())
                tensor.copy_(original * factor)

    # ---- what came of it ------------------------------------------------------------------------------------

    def entries(self, plan: Plan, logs: Sequence[float]) -> list[TunedWeights]:
        """The stations with their factors, before and after.

        What the last layer was scaled by since the model was recorded counts in the square.
        """
        found = []
        for station, log, solved in zip(plan.stations, logs, self._solved, strict=True):
            numbers = [self._numbers(tangents, plan, station) for tangents in (self.first, self.tangents)]
            (chi, error, running), (chi_after, error_after, running_after) = numbers
            since = math.exp(2 * (log - solved))
            found.append(
                TunedWeights(
                    station.name, station.role, station.parameters, math.exp(log) if log else 1.0,
                    chi, error, since * chi_after, since * error_after, running,
                    running_after + math.log10(since),
                )
            )  # fmt: skip
        return found

    @staticmethod
    def _numbers(tangents: RecordedTangents, plan: Plan, station: Station) -> tuple[float, float, float]:
        """chi of a station with its standard error, and log10 of the running mean square."""
        log, squares, reference = _value(tangents, station), *_squares(tangents, station)
        if station.role == "branch":
            running = tangents.log_frobenius(station.point.value) - math.log(station.values)
        else:
            running = log
            if station.previous is not None:
                before = plan.stations[station.previous]
                log, reference = log - _value(tangents, before), _squares(tangents, before)[0]
        chi = math.exp(min(log, 700.0))
        return chi, chi * tangents.stderr(squares, reference), running / LN10


def _squares(tangents: RecordedTangents, station: Station) -> tuple[Array, Array | None]:
    """ln of the squared lengths of the probes at a station, and those they are relative to."""
    point: Point = station.point
    if point.edge is None:
        return tangents.log_squares[point.value], None
    arrival = tangents.arrivals[point.value][point.edge]
    return (
        (arrival.log_others, arrival.log_square) if station.role == "branch" else (arrival.log_square, None)
    )


def _value(tangents: RecordedTangents, station: Station) -> float:
    """ln of the mean square at a station; of a branch relative to its stream."""
    squares, reference = _squares(tangents, station)
    log = tangents.log_mean(squares)
    if reference is not None:
        return log - tangents.log_mean(reference)
    return log - math.log(tangents.samples) - math.log(station.values)


@dataclass(frozen=True)
class _Sum:
    """||x + t f||^2 / ||x||^2 = 1 + 2 t cross + t^2 square, of a branch that is scaled by t."""

    square: float
    cross: float

    @property
    def growth(self) -> float:
        return self.square + 2 * self.cross

    def factor(self, limit: float) -> float:
        """The t > 0 with the growth of that limit; infinite where nothing grows."""
        if self.square <= 0:
            return math.inf
        # limit / (cross + sqrt(...)), which does not cancel.
        return limit / (self.cross + math.sqrt(self.cross**2 + self.square * limit))


def _sums(tangents: RecordedTangents, station: Station) -> tuple[_Sum, _Sum | None]:
    """The sum that a branch ends in: of tangents, and of signals where a normalisation divides by those."""
    arrivals = tangents.arrivals[station.point.value]
    stream = tangents.log_mean(arrivals[station.point.edge or 0].log_square)
    square = math.exp(min(_value(tangents, station), 700.0))
    whole = tangents.log_mean(tangents.log_squares[station.point.value]) - stream
    of_tangents = _Sum(square, 0.5 * (math.expm1(min(whole, 700.0)) - square))
    sources = [arrival.source for arrival in arrivals]
    parts = [tangents.signals.get(source, math.nan) for source in (*sources, station.point.value)]
    if (
        not station.normalised
        or len(arrivals) != 2
        or not (all(map(math.isfinite, parts)) and min(parts) > 0)
    ):
        return of_tangents, None
    x, f = parts[station.point.edge or 0], parts[1 - (station.point.edge or 0)]
    return of_tangents, _Sum(f / x, 0.5 * (parts[2] - x - f) / x)


def _excess(tangents: RecordedTangents, station: Station) -> float:
    """ln of the largest of what a branch adds, over what it may add; -inf where it adds nothing."""
    of_tangents, of_signals = _sums(tangents, station)
    found = [of_tangents.square, of_tangents.growth, *([of_signals.growth] if of_signals is not None else [])]
    return math.log(max(found)) - station.target if max(found) > 0 else -math.inf


def _branch_step(tangents: RecordedTangents, station: Station) -> float:
    """ln of the factor that takes a branch to what it may add; exact where scaling its last weights scales it."""
    limit = math.exp(station.target)
    of_tangents, of_signals = _sums(tangents, station)
    if not of_tangents.square > 0:
        return 0.0
    factors = [math.sqrt(limit / of_tangents.square), of_tangents.factor(limit)]
    if of_signals is not None:
        factors.append(of_signals.factor(limit))
    return min(max(math.log(min(factors)), -_LARGEST_STEP), _LARGEST_STEP)
