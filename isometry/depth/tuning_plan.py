"""Which weights set the gain of which block, read off one recorded run. Internal.

The weight of a layer acts on all that leaves it: scaled by a, the tangents behind it are a times as long. So the scale
of each layer between two others sets the running mean square behind it exactly, whatever activations lie before it.
Where paths meet in a sum and one of them carries no weights (x + f(x)), the last weights of the others set the gain of
the branch f. Where all of them carry weights (a projected shortcut), each gets an equal share.

A weight that a normalisation follows has no scale, and one that ends in a gate (sigmoid, softmax) sets no gain.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor, nn

from isometry.depth.value_graph import ValueGraph
from isometry.errors import InputError
from isometry.jacobian import Arrival, RecordedTangents

PRODUCTS = frozenset(
    {"mm", "addmm", "mv", "addmv", "bmm", "baddbmm", "convolution", "_convolution", "_trilinear"}
)
SUMS = frozenset({"add", "sub", "rsub", "lerp", "addcmul", "addmm", "addmv", "addbmm", "baddbmm"})
NORMALISATIONS = frozenset({
    "native_layer_norm", "native_group_norm", "native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm",
    "_native_batch_norm_legit_no_training", "_batch_norm_with_update", "_batch_norm_no_update", "_fused_rms_norm",
})  # fmt: skip
GATES = frozenset(
    {"sigmoid", "hardsigmoid", "_softmax", "softmax", "_safe_softmax", "_log_softmax", "log_softmax"}
)
# Parameters that a weight is computed from and proportional to: weight_norm, and scaled standardised convolutions.
_SCALES = ("weight_g", "parametrizations.weight.original0", "gain")
# A branch with more layers than this one after another is tuned inside as well.
LONGEST_BRANCH = 3

INSIDE = "inside a branch, whose last layer sets its gain"
NORMALISED = "a normalisation follows, so its scale has no effect"
FROZEN = "frozen (requires_grad is False)"
COMPUTED = "its weight is computed by a parametrisation that fixes its scale"
ZERO = "nothing passes its path, which starts at zero"
GATING = "it ends in a gate, which sets no gain"
KEPT = "left as it is by leave="


@dataclass(frozen=True)
class Point:
    """Where a running mean square is measured: at a value, or behind one edge that arrives there, by its number."""

    value: int
    edge: int | None = None


@dataclass(frozen=True)
class Station:
    """Weights with one common factor, and the mean square that it sets.

    Parameters
    ----------
    name : str
        The module of the last of the weights.
    role : {"layer", "branch", "share"}
        A layer that all passes through, f in x + f(x), one of several weighted paths of a sum.
    parameters : tuple of str
        Names of the weights; of a branch with their biases, so that all of f is scaled.
    point : Point
        Of a branch the edge by which x arrives: what is measured are all others relative to it.
    target : float
        ln of the mean square over singular values wanted there; of a branch relative to that of x.
    previous : int or None
        The number of the last station through which all that arrives here has passed; None for the input, and where a
        normalisation lies between.
    values : int
        How many singular values can differ from zero there.
    normalised : bool
        Whether a normalisation follows the sum that a branch ends in.
    """

    name: str
    role: Literal["layer", "branch", "share"]
    parameters: tuple[str, ...]
    point: Point
    target: float
    previous: int | None
    values: int
    normalised: bool = False


@dataclass(frozen=True)
class LeftAlone:
    """A weight that is not scaled, and why."""

    name: str
    reason: str


@dataclass
class Plan:
    """Stations in the order in which they act, and what is left alone.

    ``output_values`` bounds the rank of J; ``last`` is the number of the station whose factor sets the mean square of
    the whole as well, whatever lies behind it.
    """

    stations: list[Station] = field(default_factory=list)
    left: list[LeftAlone] = field(default_factory=list)
    output_values: int = 1
    last: int | None = None

    @property
    def layers(self) -> int:
        """Stations that all passes through, or that paths beside one another hold."""
        return sum(station.role == "layer" for station in self.stations)


def plan_of(
    tangents: RecordedTangents,
    module: nn.Module,
    *,
    frozen: Collection[str],
    aliases: Mapping[str, Collection[str]],
    leave: str | None,
    branch_gain: float,
) -> Plan:
    """The stations of a recorded run.

    Parameters
    ----------
    tangents : RecordedTangents
    module : nn.Module
        The copy of the model that ran.
    frozen : collection of str
        Names of parameters that are not to be changed.
    aliases : mapping
        Name of a parameter -> the other names that the model has for the same tensor.
    leave : str, optional
        Regular expression for whole names of modules or parameters to leave alone.
    branch_gain : float
        c: the mean square of each branch relative to its stream is c^2 over the number of branches.

    Raises
    ------
    InputError
        Nothing can be tuned, or a weight that would be serves two blocks.
    """
    return _Planner(tangents, module, frozen, aliases, leave, branch_gain).plan()


@dataclass(frozen=True)
class _Carrier:
    """A weight at the value that leaves it; without a parameter where its scale is fixed."""

    value: int
    module: str
    parameter: str | None
    normalises: bool = False

    @property
    def name(self) -> str:
        return self.parameter or self.module


class _Planner:
    def __init__(
        self,
        tangents: RecordedTangents,
        module: nn.Module,
        frozen: Collection[str],
        aliases: Mapping[str, Collection[str]],
        leave: str | None,
        branch_gain: float,
    ) -> None:
        self.tangents, self.frozen, self.aliases = tangents, frozen, aliases
        self.graph = ValueGraph(tangents.order, tangents.arrivals)
        self.leaves = _pattern(leave)
        self.branch_gain = branch_gain
        self.parameters = dict(module.named_parameters())
        self.of_memory = {t.untyped_storage().data_ptr(): name for name, t in self.parameters.items()}
        self.norm_modules = frozenset(_normalising_modules(module))
        self.matrix_owners = frozenset(
            name.rpartition(".")[0] for name, tensor in self.parameters.items() if _dimensions(tensor) > 1
        )
        self.left: dict[str, str] = {}
        self.output = tangents.order[-1]
        self.of_output = {self.output, *self.graph.dominators(self.output)}

    def plan(self) -> Plan:
        carriers = [c for value in self.tangents.order[1:] for c in self._carriers(value)]
        weights = {c.value: c for c in carriers if not c.normalises}
        found: list[Station] = []
        inside: dict[int, str] = {}
        sums = [value for value in self.tangents.order[1:] if self._is_sum(value)]
        residual = [(value, *split) for value in sums if (split := self._split(value)) is not None]
        branches = sum(1 for _, stream, _ in residual if stream is not None)
        for value, stream, ends in residual:
            start = self.graph.dominator[value]
            if stream is None:
                # A path that starts at zero, as in SkipInit, has no share yet.
                live = [e for e in ends if self._passes(self.tangents.arrivals[value][e])]
                for edge, last in ends.items():
                    inside |= {c.value: "" for c in last}
                    if edge in live:
                        found += self._station("share", last, Point(value, edge), math.log(1 / len(live)))
                    else:
                        self.left |= {c.name: ZERO for c in last}
                continue
            last = [c for one in ends.values() for c in one]
            relative = math.log(self.branch_gain**2 / branches)
            found += self._station("branch", last, Point(value, stream), relative)
            for edge in ends:
                within = self.graph.between(self.tangents.arrivals[value][edge], start)
                deep = [c for c in weights if c in within]
                if len(deep) <= LONGEST_BRANCH:
                    inside |= dict.fromkeys(deep, INSIDE)
            inside |= {c.value: "" for c in last}
        layers = [c for c in weights.values() if c.value not in inside]
        for carrier in layers:
            if not self._has_effect(carrier.value):
                self.left[carrier.name] = NORMALISED
            elif self._only_gates(carrier.value):
                self.left[carrier.name] = GATING
            else:
                found += self._station("layer", [carrier], Point(carrier.value), 0.0)
        for value, reason in inside.items():
            if reason and value in weights:
                self.left.setdefault(weights[value].name, reason)
        tuned = {name for station in found for name in station.parameters}
        left = [LeftAlone(name, reason) for name, reason in self.left.items() if name not in tuned]
        stations = self._linked(sorted(found, key=lambda s: self.graph.position[s.point.value]))
        self._refuse_nothing(stations, left)
        self._refuse_shared(stations, carriers)
        return Plan(stations, left, self._values(self.output), self._last(stations))

    def _last(self, stations: list[Station]) -> int | None:
        """The last layer that all passes through, where neither a normalisation nor a gate lies behind it."""
        found = [k for k, s in enumerate(stations) if s.role == "layer" and s.point.value in self.of_output]
        if found and self._reaches_output(
            stations[found[-1]].point.value, lambda v, a: a.operation in GATES or self._normalises(v, a)
        ):
            return found[-1]
        return None

    # ---- weights ----------------------------------------------------------------------------------------

    def _carriers(self, value: int) -> Iterator[_Carrier]:
        seen = set()
        for arrival in self.tangents.arrivals[value]:
            carrier = self._carrier(value, arrival)
            if carrier is not None and carrier.name not in seen:
                seen.add(carrier.name)
                yield carrier

    def _carrier(self, value: int, arrival: Arrival) -> _Carrier | None:
        """The weight that acts along an edge, if one does."""
        norm = next((call.name for call in reversed(arrival.calls) if call.name in self.norm_modules), None)
        held = [
            (name, tensor)
            for tensor in self.tangents.held[value]
            if (name := self.of_memory.get(tensor.untyped_storage().data_ptr()))
        ]
        module = arrival.calls[-1].name if arrival.calls else ""
        if norm is not None or arrival.operation in NORMALISATIONS:
            owner = module if norm is None else norm
            names = [f"{owner}.weight".lstrip("."), *(name for name, _ in held if not _is_bias(name))]
            return _Carrier(value, owner, next((n for n in names if n in self.parameters), None), True)
        if arrival.operation not in PRODUCTS or not self.tangents.held[value]:
            return None
        for name, _ in held:
            if _dimensions(self.parameters[name]) > 1 or not _is_bias(name):
                return _Carrier(value, module or name.rpartition(".")[0], name)
        if any(owner == module or owner.startswith(f"{module}.") for owner in self.matrix_owners if module):
            scales = (f"{module}.{scale}" for scale in _SCALES)
            return _Carrier(value, module, next((n for n in scales if n in self.parameters), None))
        return None

    def _station(
        self, role: Literal["layer", "branch", "share"], carriers: list[_Carrier], point: Point, target: float
    ) -> list[Station]:
        """The station of the weights among them that may be changed, or none."""
        names: list[str] = []
        for carrier in carriers:
            reason = self._reason(carrier)
            if reason:
                self.left[carrier.name] = reason
            elif carrier.parameter is not None:
                names.append(carrier.parameter)
        if not names:
            return []
        kept = tuple(dict.fromkeys(names))
        module = next(c.module for c in carriers if c.parameter == kept[-1]) or kept[-1]
        normalised = False
        if role == "branch":
            kept += tuple(bias for name in kept if (bias := self._bias(name)))
            normalised = all(self._normalises(v, a) for v, a in self.graph.leaving[point.value])
            normalised = normalised and bool(self.graph.leaving[point.value])
        return [Station(module, role, kept, point, target, None, self._values(point.value), normalised)]

    def _bias(self, name: str) -> str | None:
        """The bias beside a weight, where it may be changed."""
        suffix = next((s for s in ("weight", *_SCALES) if name.endswith(s)), None)
        bias = f"{name.removesuffix(suffix)}bias" if suffix is not None else ""
        free = bias in self.parameters and bias not in self.frozen and not self.aliases.get(bias)
        return bias if free else None

    def _reason(self, carrier: _Carrier) -> str:
        if carrier.parameter is None:
            return COMPUTED if not carrier.normalises else "a normalisation without a weight of its own"
        names = {carrier.parameter, carrier.module, *self.aliases.get(carrier.parameter, ())}
        if self.leaves is not None and any(self.leaves(name) for name in names):
            return KEPT
        return FROZEN if carrier.parameter in self.frozen else ""

    # ---- paths ------------------------------------------------------------------------------------------

    @staticmethod
    def _passes(arrival: Arrival) -> bool:
        return bool((arrival.log_square > -math.inf).any())

    def _is_sum(self, value: int) -> bool:
        arrivals = self.tangents.arrivals[value]
        return len(arrivals) > 1 and all(a.operation in SUMS for a in arrivals)

    def _split(self, value: int) -> tuple[int | None, dict[int, list[_Carrier]]] | None:
        """The edge of the stream (None if all carry weights), and the last weights before each of the others."""
        start, arrivals = self.graph.dominator[value], self.tangents.arrivals[value]
        ends: dict[int, list[_Carrier]] = {}
        stream = None
        for edge, arrival in enumerate(arrivals):
            carriers, free = self._last_weights(arrival, start, value)
            if free and stream is None:
                stream = edge
            elif carriers and not free:
                ends[edge] = carriers
        if not ends or (stream is None and len(ends) < 2):
            return None
        return stream, ends

    def _last_weights(self, arrival: Arrival, start: int, value: int) -> tuple[list[_Carrier], bool]:
        def search(gates: Collection[str]) -> tuple[list[_Carrier], bool]:
            found = self.graph.before(
                arrival, start, value,
                ends=lambda v, a: self._carrier(v, a) is not None,
                stops=lambda _, a: a.operation in gates,
            )  # fmt: skip
            return [c for v, a in found.found if (c := self._carrier(v, a)) is not None], found.free

        carriers, free = search(GATES)
        # Where all pass a gate, as in x + sigmoid(W x), it is no gate of something else.
        return (carriers, free) if carriers or free else search(())

    def _has_effect(self, value: int) -> bool:
        """Whether a path from here to the output passes no normalisation."""
        return self._reaches_output(value, lambda v, a: self._normalises(v, a))

    def _only_gates(self, value: int) -> bool:
        """Whether it is beside the main path and acts on it through gates alone."""
        return value not in self.of_output and not self._reaches_output(
            value, lambda v, a: a.operation in GATES or self._normalises(v, a)
        )

    def _normalises(self, value: int, arrival: Arrival) -> bool:
        carrier = self._carrier(value, arrival)
        return carrier is not None and carrier.normalises

    def _reaches_output(self, value: int, blocked: Callable[[int, Arrival], bool]) -> bool:
        seen, waiting = {value}, [value]
        while waiting:
            at = waiting.pop()
            if at == self.output:
                return True
            for result, arrival in self.graph.leaving[at]:
                if result not in seen and not blocked(result, arrival):
                    seen.add(result)
                    waiting.append(result)
        return False

    def _values(self, value: int) -> int:
        """A bound of the rank of the Jacobian of a value: all that arrives there has passed its dominators."""
        sizes = self.tangents.sizes
        return min(sizes[one] for one in (value, *self.graph.dominators(value)))

    def _linked(self, stations: list[Station]) -> list[Station]:
        """With the station before each."""
        at = {s.point.value: number for number, s in enumerate(stations) if s.role == "layer"}
        linked = []
        for number, station in enumerate(stations):
            previous = None
            value = station.point.value
            if station.role != "branch":
                # Of a sum, the last common value; else the value before.
                for one in self.graph.dominators(value):
                    if any(self._normalises(value, a) for a in self.tangents.arrivals[value]):
                        break
                    if one in at and at[one] != number:
                        previous = at[one]
                        break
                    value = one
            linked.append(replace(station, previous=previous))
        return linked

    # ---- refusals -----------------------------------------------------------------------------------------

    def _refuse_nothing(self, stations: list[Station], left: list[LeftAlone]) -> None:
        if stations:
            return
        reasons = {one.reason for one in left}
        if not left:
            raise InputError(
                "there is nothing to tune: no matrix or kernel of weights acts between this input and the output"
            )
        names = ", ".join(one.name for one in left[:4]) + (", ..." if len(left) > 4 else "")
        if reasons == {FROZEN}:
            raise InputError(
                f"there is nothing to tune: all weights are frozen ({names}). Set requires_grad_(True) on those that "
                "may be scaled"
            )
        if reasons <= {NORMALISED, INSIDE}:
            raise InputError(
                f"there is nothing to tune: a normalisation follows each of the weights ({names}), so their scale has "
                "no effect"
            )
        listed = "; ".join(f"{one.name}: {one.reason}" for one in left[:4])
        raise InputError(f"there is nothing to tune: {listed}" + ("; ..." if len(left) > 4 else ""))

    def _refuse_shared(self, stations: list[Station], carriers: list[_Carrier]) -> None:
        """Raise where one weight acts in two places, of which at least one would be tuned."""
        places: dict[str, set[int]] = {}
        for carrier in carriers:
            if carrier.parameter is not None:
                places.setdefault(carrier.parameter, set()).add(carrier.value)
        for station in stations:
            for name in station.parameters:
                others = sorted(self.aliases.get(name, ()))
                if len(places.get(name, ())) > 1 or others:
                    where = (
                        f"{name} and {', '.join(others)} are one tensor"
                        if others
                        else (f"{name} is used {len(places[name])} times")
                    )
                    raise InputError(
                        f"shared weights: {where}, and one factor cannot set the gain of several blocks. Untie them, "
                        f"or leave them as they are with leave={re.escape(station.name)!r}"
                    )


def _pattern(leave: str | None) -> Callable[[str], object] | None:
    if leave is None:
        return None
    try:
        return re.compile(leave).fullmatch
    except re.error as error:
        raise InputError(f"leave={leave!r} is no regular expression: {error}") from error


def _is_bias(name: str) -> bool:
    return "bias" in name.rpartition(".")[2]


def _dimensions(tensor: Tensor) -> int:
    """Axes that are longer than 1."""
    return sum(size > 1 for size in tensor.shape)


def _normalising_modules(module: nn.Module) -> Iterator[str]:
    """Modules named for a normalisation that hold no matrix of weights."""
    for name, part in module.named_modules():
        if "norm" in type(part).__name__.lower() and name:
            tensors = list(part.parameters())
            if all(_dimensions(tensor) <= 1 for tensor in tensors) and not any(part.children()):
                yield name
