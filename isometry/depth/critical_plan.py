"""The gains of the layers of a network of any structure: what `critical_init_` is going to do. Internal.

A layer of gain g has rows of norm g (in mean square): it multiplies the mean square of what it is given, and that of
tangents, by g^2 (Poole et al. 2016, arXiv 1606.05340). An activation multiplies that of tangents by E phi'^2, and the
layer before it makes up for it: g^2 E phi'(g z)^2 = 1 for inputs of mean square 1 (He et al. 2015, arXiv 1502.01852:
g^2 = 2 for ReLU). A layer before no activation, as a head, has gain 1.

A sum x + f(x) multiplies by 1 + gamma^2 chi_f, and D of them by exp(c^2) for gamma = c / sqrt(D) and chi_f = 1, however
many they are (Tarnowski et al. 2019, arXiv 1809.08848; Hayou et al. 2021, Stable ResNet, arXiv 2010.12859). Where f
ends in an activation of mean mu > 0, as ReLU, the means of D branches add up to D gamma mu, a direction of its own
that J stretches: gamma is then at most c / (D mu). Or the last layer of f is zero: gamma = 0 (Zhang, Dauphin and Ma
2019, Fixup, arXiv 1901.09321; De and Smith 2020, SkipInit, arXiv 2002.10444). A normalisation undoes the scale of the
layers before it; gamma is then that of its own weights (Goyal et al. 2017, arXiv 1706.02677).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from isometry.depth.activation_gains import LARGEST_GAIN, second_moments, unit_gain
from isometry.depth.flow_structure import INPUT, FlowStructure, PathSum
from isometry.theory.activations import Activation, get_activation
from isometry.theory.gaussian import gaussian_average

_DENSE = frozenset({"mm", "addmm", "mv", "addmv", "matmul", "linear"})


@dataclass
class PlannedLayer:
    """One weight.

    Parameters
    ----------
    weight : str
        Name of the parameter.
    role : str
        In words.
    gain : float
        Of its rows, the gain of the branch left out.
    branch_gain : float
        1 but for the last layer of a branch.
    activated : bool
        Whether an activation follows.
    packed : bool
        Whether its outputs are queries, keys and values, or gates and values, one after another.
    is_matrix : bool
        Whether all of it is used as one dense matrix.
    inputs_first : bool
        Whether the first axis of the matrix counts inputs.
    bias : str
        Parameter of one axis that the same operation adds, "" where there is none.
    """

    weight: str
    role: str = "layer"
    gain: float = 1.0
    branch_gain: float = 1.0
    activated: bool = False
    packed: bool = False
    is_matrix: bool = False
    inputs_first: bool = False
    bias: str = ""


@dataclass
class Plan:
    """Gains of the layers by the name of their weights, those of normalisations' weights, and what is left alone."""

    layers: dict[str, PlannedLayer] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    found: Counter[str] = field(default_factory=Counter)


def is_chain(structure: FlowStructure, *, functions: bool = False) -> bool:
    """Whether the run is one layer or activation after another; or function of no name, with ``functions``."""
    allowed = {"input", "layer", "linear", "activation", "inside"} | ({"function"} if functions else set())
    return not structure.sums and set(structure.kind) <= allowed


def plan_of(
    structure: FlowStructure,
    *,
    activation: str | Activation | None,
    sigma_w: float | None,
    residual: str,
    branch_gain: float,
    input_mean_square: float | None,
) -> Plan:
    """The gains of all layers of a run.

    Parameters
    ----------
    structure : FlowStructure
    activation : str, Activation or None
        phi of every activation; None reads each off the recording.
    sigma_w : float, optional
        Gain of layers before an activation, instead of the one above.
    residual : {"scaled", "zero"}
        The gain of branches: c / sqrt(D), or zero.
    branch_gain : float
        c.
    input_mean_square : float, optional
        Of the input, which the first layers then bring to 1.
    """
    return _Planner(structure, activation, sigma_w, residual, branch_gain, input_mean_square).plan


class _Planner:
    def __init__(
        self,
        structure: FlowStructure,
        activation: str | Activation | None,
        sigma_w: float | None,
        residual: str,
        branch_gain: float,
        input_mean_square: float | None,
    ) -> None:
        self.structure, self.override, self.sigma_w = structure, activation, sigma_w
        self.residual, self.branch_gain = residual, branch_gain
        self.plan = Plan()
        self.at = {node: self._new_layer(node) for node in structure.layers}
        self.streams = {path.start for path in structure.sums if path.kind in ("residual", "shortcut")}
        self.gates: set[int] = set()
        if input_mean_square is not None:
            for node, layer in self.at.items():
                if structure.traced(structure.sources(node)[0], is_node=True, stop=INPUT) == INPUT:
                    layer.gain /= math.sqrt(input_mean_square)
        self._attention()
        self._gated_products()
        self._activations()
        self._normalisations()
        self._branches()
        joins = structure.kind.count("join")
        if joins:
            self.plan.found["concatenation"] = joins
        averages = [
            node for node, kind in enumerate(structure.kind) if kind == "linear" and self._averages(node)
        ]
        for node in averages:
            self.plan.left[self._where(node)] = (
                "an average over positions divides the mean square of J by their number, and that of signals by less: "
                "the layer behind it keeps the gain 1"
            )

    def _new_layer(self, node: int) -> PlannedLayer:
        operation = self.structure.operation(node)
        use = next(use for use in operation.parameters if len(use.shape) > 1)
        found = self.plan.layers.get(use.name)
        if found is None:
            (source,) = operation.sources
            bias = next((other.name for other in operation.parameters if len(other.shape) == 1), "")
            found = self.plan.layers[use.name] = PlannedLayer(
                use.name,
                packed=use.name.endswith("in_proj_weight"),
                is_matrix=use.is_whole and len(use.shape) == 2 and operation.name in _DENSE,
                # x W has the inputs of W first, W x the outputs.
                inputs_first=use.is_transposed == (use.position < source),
                bias=bias,
            )
        return found

    def _averages(self, node: int) -> bool:
        name = self.structure.operation(node).name
        return name == "mean" or "avg_pool" in name

    # ---- attention and gates ------------------------------------------------------------------------------

    def _attention(self) -> None:
        s = self.structure
        for node, kind in enumerate(s.kind):
            if kind == "attention":
                self.plan.found["attention"] += 1
                behind = s.traced(node, is_node=True, through=("linear", "norm", "attention"))
                if behind in self.at:
                    self.at[behind].role, self.at[behind].packed = "query, key, value", True
            elif kind == "softmax":
                scores = s.traced(s.sources(node)[0], is_node=True)
                if s.kind[scores] == "product":
                    self.gates.add(scores)
                    for source in s.sources(scores):
                        self._name(source, "query or key")
                for product in s.reached(node):
                    if s.kind[product] == "product":
                        self.plan.found["attention"] += 1
                        self.gates.add(product)
                        for source in s.sources(product):
                            if s.traced(source, is_node=True) != node:
                                self._name(source, "value")

    def _name(self, node: int, role: str) -> None:
        layer = self.at.get(
            self.structure.traced(node, is_node=True, through=("linear", "norm", "activation"))
        )
        if layer is not None and layer.role == "layer":
            layer.role = role
        elif layer is not None and layer.role != role:
            layer.role, layer.packed = "query, key, value", True

    def _gated_products(self) -> None:
        """Products of two paths: v phi(h) multiplies tangents by E phi^2 + E phi'^2, for v and h of variance 1."""
        s = self.structure
        for node, kind in enumerate(s.kind):
            if kind != "product" or node in self.gates:
                continue
            self.plan.found["gated product"] += 1
            sources = list(s.operation(node).sources.values())
            sides = [s.traced(value) for value in sources]
            moments = [self._moments(side) for side in sides]
            if s.operation(node).name == "glu":
                moments = [(1.0, 1.0), second_moments("sigmoid")]
            layers = []
            for side in sides:
                if s.kind[side] in ("activation", "function"):
                    self.gates.add(side)
                    side = s.traced(side, is_node=True, through=("linear", "activation", "function"))
                if side in self.at:
                    layers.append(side)
            for layer in layers:
                packed = (len(layers) == 2 and layers[0] == layers[1]) or s.operation(node).name == "glu"
                self.at[layer].role = "gate and value" if packed else "gate or value"
                self.at[layer].packed = packed
            if layers and not any(self._has_known_size(layer) for layer in layers):
                self.plan.left[self._where(node)] = (
                    "a product of layers whose input has passed no normalisation or sum: it squares the size of what "
                    "it is given, and no gain keeps both signals and gradients; put a normalisation before it"
                )
            (value, slope), (other, other_slope) = moments[0], moments[-1]
            size = slope * other + value * other_slope
            for following in self._following(node):
                following.gain /= math.sqrt(size)

    def _has_known_size(self, layer: int) -> bool:
        s = self.structure
        before = s.traced(s.sources(layer)[0], is_node=True, through=("linear", "affine"), stop=INPUT)
        return s.kind[before] in ("input", "norm", "sum")

    def _moments(self, node: int) -> tuple[float, float]:
        """E phi^2 and E phi'^2 of a node, 1 and 1 where it is no activation."""
        phi = self._phi(node) if self.structure.kind[node] in ("activation", "function") else None
        return (1.0, 1.0) if phi is None else second_moments(phi)

    def _following(self, node: int) -> list[PlannedLayer]:
        return [self.at[reached] for reached in self.structure.reached(node) if reached in self.at]

    # ---- activations and normalisations --------------------------------------------------------------------

    def _phi(self, node: int) -> str | Activation | None:
        return self.override if self.override is not None else self.structure.activation.get(node)

    def _activations(self) -> None:
        s = self.structure
        skips = {path.node: path.start for path in s.sums if path.kind in ("residual", "shortcut")}
        for node, kind in enumerate(s.kind):
            if kind not in ("activation", "function") or node in self.gates:
                continue
            phi = self._phi(node)
            known = None if phi is None else self._gain_before(phi)
            gain = 1.0 if known is None else known
            where = self._where(node)
            if phi is None:
                self.plan.left[where] = (
                    f"a function that the theory has no name for ({s.operation(node).name}): gain 1, or "
                    "pass activation= for all"
                )
            elif known is None:
                text = phi if isinstance(phi, str) else phi.name
                self.plan.left[where] = (
                    f"no gain up to {LARGEST_GAIN:g} keeps gradients through {text}: gain 1"
                )
            before = s.traced(s.sources(node)[0], is_node=True, through=("linear", "affine"))
            if before in self.at:
                layer = self.at[before]
                if not layer.activated:
                    # Of phi(a h) the layer makes up for a as well.
                    layer.gain *= gain / (s.factor(s.sources(node)[0], before) or 1.0)
                layer.activated = True
            elif s.kind[before] == "sum" and s.kind[skips.get(before, INPUT)] in ("activation", "function"):
                # What it is given is x + f(x) with an x that has passed it already.
                self.plan.found["activation behind a residual sum"] += 1
            elif node in self.streams:
                self.plan.found["activation behind a residual sum"] += 1
            else:
                for following in self._following(node):
                    following.gain *= gain

    def _gain_before(self, phi: str | Activation) -> float | None:
        return self.sigma_w if self.sigma_w is not None else unit_gain(phi)

    def _where(self, node: int) -> str:
        operation = self.structure.operation(node)
        name = operation.calls[-1].name if operation.calls else ""
        return name or f"{operation.name} in the model's forward"

    def _normalisations(self) -> None:
        s = self.structure
        norms = s.kind.count("norm") + s.kind.count("affine")
        if norms:
            self.plan.found["normalisation"] = norms
        for node, layer in self.at.items():
            reached = s.reached(node)
            if layer.role == "layer" and reached and all(s.kind[at] in ("norm", "affine") for at in reached):
                layer.role = "layer before a normalisation"

    # ---- sums of paths --------------------------------------------------------------------------------------

    def _branches(self) -> None:
        s = self.structure
        together = Counter(path.parent for path in s.sums if path.kind in ("residual", "shortcut"))
        for path in s.sums:
            self.plan.found[f"{path.kind} sum"] += 1
            if path.kind in ("residual", "shortcut"):
                value, count = path.branches[0], together[path.parent]
                wanted = self.branch_gain / math.sqrt(count)
                mean = self._mean_at_the_end(path, value, wanted)
                if mean > 0:
                    wanted = min(wanted, self.branch_gain / (count * mean))
                self._scale_branch(path, value, wanted / (path.factors[0] or 1.0), self.residual == "zero")
            elif path.kind == "parallel":
                for value in path.branches:
                    self._scale_branch(path, value, math.sqrt(0.5), False)
            else:
                self.plan.left[self._where(path.node)] = "a sum whose shares are set by a gate"

    def _mean_at_the_end(self, path: PathSum, value: int, gain: float) -> float:
        """|E phi(gain g z)| / gain where a branch ends in an activation, else 0; g is the gain before it."""
        end = self.structure.traced(value, stop=path.start)
        is_activation = end != path.start and self.structure.kind[end] in ("activation", "function")
        phi = self._phi(end) if is_activation else None
        if phi is None:
            return 0.0
        known = get_activation(phi)
        variance = (gain * (self._gain_before(phi) or 1.0)) ** 2
        return abs(gaussian_average(known.function, variance, kinks=known.kinks)) / gain

    def _scale_branch(self, path: PathSum, value: int, wanted: float, zero: bool) -> None:
        """Give the branch that ends at a value this gain, by its last layer or its last normalisation's weights."""
        s = self.structure
        scale: str | None = None
        for node in s.dominators(s.producer[value], path.start):
            kind = s.kind[node]
            if kind == "linear" and s.operation(node).name == "mul" and s.operation(node).parameters:
                scale = s.operation(node).parameters[0].name
            if kind == "layer":
                found, dead = [node], self._has_no_slope_at_zero(node, value)
                break
            if kind in ("norm", "affine"):
                named = [use.name for use in s.operation(node).parameters] or ([scale] if scale else [])
                if not named:
                    self.plan.left[self._where(path.node)] = (
                        f"its branch ends in a normalisation without weights ({self._where(node)}), which sets its size"
                    )
                    return
                self.plan.norms[named[0]] = 0.0 if zero else min(1.0, wanted)
                self.plan.found["branch that ends in a normalisation"] += 1
                return
            if kind not in ("linear", "activation", "function"):
                found, dead = self._last_layers(node, path.start), True
                break
        else:
            return
        if not found:
            self.plan.left[self._where(path.node)] = "no layer of the branch sets its size alone"
            return
        for node in found:
            layer = self.at[node]
            own = s.tail_factor(value, node) if len(found) == 1 else 1.0
            # A factor that the model has already (LayerScale, x + 0.1 f(x)) is not added to.
            gain = min(1.0, wanted / own) if own > 0 else 1.0
            if zero and not dead:
                gain = 0.0
            elif zero:
                self.plan.left[layer.weight] = "not zero, for the branch would then get no gradients: scaled"
            layer.branch_gain *= self._weight_factor(layer, node, value, gain)
            if path.kind != "parallel":
                layer.role = "last of a branch" if layer.role in ("layer", "last of a branch") else layer.role

    def _weight_factor(self, layer: PlannedLayer, node: int, value: int, gain: float) -> float:
        """By what to multiply weights for this gain: an activation behind them has another slope at smaller h."""
        s = self.structure
        behind = [
            at for at in s.dominators(s.producer[value], node) if s.kind[at] in ("activation", "function")
        ]
        phi = self._phi(behind[-1]) if behind and layer.activated and self.sigma_w is None else None
        usual, smaller = (None, None) if phi is None else (unit_gain(phi), unit_gain(phi, gain**2))
        return gain if usual is None or smaller is None else smaller / usual

    def _has_no_slope_at_zero(self, layer: int, value: int) -> bool:
        """Whether something between a layer and the end of its branch has slope 0 where the layer is zero."""
        s = self.structure
        for node in s.dominators(s.producer[value], layer):
            if s.kind[node] in ("activation", "function"):
                phi = self._phi(node)
                # Of a kink PyTorch takes the left slope.
                if phi is None or float(get_activation(phi).derivative(np.full(1, -1e-9))[0]) == 0:
                    return True
        return False

    def _last_layers(self, node: int, start: int) -> list[int]:
        """The last layers on every path to a node, of a product those of one factor."""
        s = self.structure
        found, seen, waiting = [], {start}, [node]
        while waiting:
            at = waiting.pop()
            if at in seen:
                continue
            seen.add(at)
            if at in self.at:
                if not self.at[at].packed:
                    found.append(at)
                continue
            sources = s.sources(at)
            if s.kind[at] == "product":
                plain = [p for p in sources if not self._is_gate(p)]
                sources = (plain or sources)[:1]
            elif s.kind[at] in ("norm", "softmax"):
                continue
            waiting += sources
        return found

    def _is_gate(self, node: int) -> bool:
        return self.structure.kind[self.structure.traced(node, is_node=True)] in (
            "activation",
            "function",
            "softmax",
        )
