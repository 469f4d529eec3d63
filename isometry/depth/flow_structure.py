"""What stands between the layers of a recorded run: activations, normalisations, products, sums of paths. Internal.

An operation d *dominates* another one where every path from the input to that one passes through d. The immediate
dominators form a tree (Lowry and Medlock 1969); without cycles one pass in order finds it. The operations between a sum
and its immediate dominator d are the paths that it joins: x + f(x) where one of them leaves the numbers of x = d as
they are. Where no layer lies between, the joined paths are one function of d, as in the formula of a hand-written GELU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from isometry.jacobian import Dataflow, DataflowOperation

_SUMS = frozenset({"add", "sub", "rsub", "lerp"})
_JOINS = frozenset({"cat", "stack", "memory", "index_put", "copy", "where", "maximum", "minimum"})
_MATRIX_PRODUCTS = frozenset(
    {"mm", "addmm", "mv", "addmv", "bmm", "baddbmm", "matmul", "linear", "convolution", "_convolution", "_trilinear"}
)  # fmt: skip
_NORMALISATIONS = frozenset({
    "native_layer_norm", "native_group_norm", "native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm",
    "_native_batch_norm_legit_no_training", "_batch_norm_with_update", "_batch_norm_no_update", "_fused_rms_norm",
    "instance_norm", "linalg_vector_norm",
})  # fmt: skip
_SOFTMAX = frozenset({"_softmax", "softmax", "_safe_softmax", "_log_softmax"})
# They leave the numbers as they are, average or select them, or multiply them by constants.
_LINEAR = frozenset({
    "clone", "view", "_unsafe_view", "reshape", "_reshape_alias", "transpose", "t", "permute", "unsqueeze", "squeeze",
    "expand", "select", "slice", "split", "split_with_sizes", "unbind", "chunk", "alias", "detach", "contiguous",
    "_to_copy", "flatten", "unflatten", "index_select", "index", "gather", "constant_pad_nd", "pad", "roll", "flip",
    "unfold", "im2col", "col2im", "mean", "sum", "neg", "mul", "div", "add", "sub", "rsub", "lerp", "cumsum",
    "masked_fill", "where",
    "native_dropout", "memory", "diagonal", "repeat", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "movedim",
    "cat", "stack", "copy", "index_put", "lift_fresh", "max_pool1d", "max_pool2d", "max_pool2d_with_indices",
    "max_pool3d_with_indices", "adaptive_max_pool2d", "as_strided", "view_as", "tril", "triu", "narrow",
    "slice_scatter", "select_scatter", *_MATRIX_PRODUCTS,
})  # fmt: skip
_LINEAR_FAMILIES = (
    "avg_pool", "_adaptive_avg_pool", "adaptive_avg_pool", "upsample_", "_upsample_", "reflection_pad",
    "replication_pad",
)  # fmt: skip
_REDUCTIONS = frozenset(
    {"mean", "sum", "var", "var_mean", "std", "std_mean", "linalg_vector_norm", "norm", "amax"}
)
_PARTS = frozenset({"split", "split_with_sizes", "chunk", "unbind", "select", "slice", "narrow"})
_PLAIN_NAMES = frozenset({
    "relu", "tanh", "sigmoid", "gelu", "silu", "mish", "erf", "sin", "hardswish", "hardsigmoid", "softplus",
})  # fmt: skip
_RENAMED = {"hardswish": "hard_swish", "hardsigmoid": "hard_sigmoid"}

INPUT = 0


@dataclass(frozen=True)
class PathSum:
    """A sum of two paths from ``start``, with layers on at least one of them.

    Parameters
    ----------
    node, start : int
        The sum and its immediate dominator.
    kind : {"residual", "shortcut", "gated", "parallel"}
        x + f(x); P x + f(x), where only layers without activations lie on the path of P; g(x) x + f(x), as in a highway
        network; any other.
    branches : tuple of int
        The values that enter it, without x or P x.
    factors : tuple of float
        By which the sum multiplies each of the branches, over that of the skip.
    shortcut : int or None
        The value P x.
    parent : int or None
        The innermost sum on one of whose paths it lies.
    """

    node: int
    start: int
    kind: str
    branches: tuple[int, ...]
    factors: tuple[float, ...]
    shortcut: int | None
    parent: int | None = None


class FlowStructure:
    """The operations of one run with their kinds. Nodes are operations, from 1 in order; 0 is the input.

    Attributes
    ----------
    kind : list of str
        Of each node: "input", "layer" (a product with a parameter of two axes or more), "linear", "activation",
        "function" (any other that is not linear), "norm", "affine" (batch-norm in evaluation mode), "softmax", "sum",
        "product", "join", "attention" (a function with a softmax), "inside" (a part of a node that counts as one
        function of its dominator).
    activation : dict
        Node -> name of its activation, None where it has none that the theory knows.
    sums : list of PathSum
        In order.
    """

    def __init__(self, flow: Dataflow) -> None:
        self.operations = flow.operations
        self.producer = {INPUT: 0}
        for node, operation in enumerate(flow.operations, start=1):
            self.producer.update(dict.fromkeys(operation.results, node))
        self.output = self.producer[flow.output]
        self.kind = ["input"]
        # The kinds as they were before a later node counted them among its parts.
        self._uncovered = ["input"]
        self.activation: dict[int, str | None] = {}
        self.dominator = [INPUT]
        self.sums: list[PathSum] = []
        for node, operation in enumerate(flow.operations, start=1):
            self.dominator.append(self._dominator(operation))
            self.kind.append(self._kind_of_one(node, operation))
            if len(set(operation.sources.values())) > 1:
                self.kind[node] = self._kind_of_several(node, operation)
            self._uncovered.append(self.kind[node])
        self.sums = [self._with_parent(number) for number in range(len(self.sums))]

    def operation(self, node: int) -> DataflowOperation:
        """The operation of a node other than the input."""
        return self.operations[node - 1]

    def sources(self, node: int) -> list[int]:
        """The nodes that feed a node, each once; of one that counts as a function of its dominator, that alone."""
        if node == INPUT:
            return []
        if self._counts_as_one(node):
            return [self.dominator[node]]
        return list(dict.fromkeys(self.producer[value] for value in self.operation(node).sources.values()))

    @cached_property
    def users(self) -> dict[int, list[int]]:
        """The nodes that a node feeds, functions of one value counted as one node."""
        found: dict[int, list[int]] = {node: [] for node in range(len(self.kind))}
        for node, kind in enumerate(self.kind):
            if kind != "inside":
                for source in self.sources(node):
                    found[source].append(node)
        return found

    @property
    def layers(self) -> list[int]:
        """The nodes that are layers, in order."""
        return [node for node, kind in enumerate(self.kind) if kind == "layer"]

    def between(self, start: int, node: int) -> set[int]:
        """The nodes on paths from ``start``, which dominates it, to a node; without ``start``, with the node."""
        found: set[int] = set()
        waiting = [node]
        while waiting:
            at = waiting.pop()
            if at != start and at not in found:
                found.add(at)
                waiting += self.sources(at)
        return found

    def traced(
        self,
        value_or_node: int,
        *,
        is_node: bool = False,
        through: tuple[str, ...] = ("linear",),
        stop: int = -1,
    ) -> int:
        """The first node at or before a value that is not of the kinds ``through``, or ``stop``."""
        node = value_or_node if is_node else self.producer[value_or_node]
        while node != stop and self.kind[node] in through and len(self.sources(node)) == 1:
            (node,) = self.sources(node)
        return node

    def reached(self, node: int, *, through: tuple[str, ...] = ("linear",)) -> list[int]:
        """The nodes of other kinds that the result of a node reaches through nodes of these kinds."""
        found, seen, waiting = [], set(), list(self.users[node])
        while waiting:
            at = waiting.pop()
            if at in seen:
                continue
            seen.add(at)
            if self.kind[at] in through:
                waiting += self.users[at]
            else:
                found.append(at)
        return sorted(found)

    def dominators(self, node: int, stop: int) -> Iterator[int]:
        """A node and those that dominate it, the nearest first, down to ``stop``, which is left out."""
        while node not in (stop, INPUT):
            yield node
            node = self.dominator[node]

    # ---- kinds -----------------------------------------------------------------------------------------

    def _dominator(self, operation: DataflowOperation) -> int:
        common, *others = (self.producer[value] for value in operation.sources.values())
        for other in others:
            while common != other:
                if common > other:
                    common = self.dominator[common]
                else:
                    other = self.dominator[other]
        return common

    def _counts_as_one(self, node: int) -> bool:
        several = len(set(self.operation(node).sources.values())) > 1
        return several and self.kind[node] in ("linear", "activation", "function", "norm", "attention")

    def _kind_of_one(self, node: int, operation: DataflowOperation) -> str:
        name = operation.name
        if name in _MATRIX_PRODUCTS and any(len(use.shape) > 1 for use in operation.parameters):
            return "layer"
        if name in _NORMALISATIONS:
            return "affine" if _is_fixed_batch_norm(operation) else "norm"
        if name in _SOFTMAX:
            return "softmax"
        if name == "glu":
            return "product"
        if len(operation.sources) > 1 and name not in _SUMS | _JOINS:
            # x x.
            self.activation[node] = None
            return "function"
        if name in _LINEAR or name.startswith(_LINEAR_FAMILIES):
            # A number over x is no multiple of it.
            return "linear" if name != "div" or 0 in operation.sources else "function"
        self.activation[node] = activation_of(operation)
        return "activation" if self.activation[node] is not None else "function"

    def _kind_of_several(self, node: int, operation: DataflowOperation) -> str:
        start = self.dominator[node]
        inside = self._region(start, node)
        self.activation.pop(node, None)
        kinds = {self._uncovered[at] for at in inside}
        if "layer" in kinds:
            if operation.name in _SUMS:
                self.sums.append(self._path_sum(node, operation, start))
                return "sum"
            return "join" if operation.name in _JOINS else "product"
        is_product = operation.name not in _SUMS | _JOINS
        if is_product and "softmax" not in kinds and self._takes_parts(start, inside):
            return "product"
        for at in inside:
            self.kind[at] = "inside"
        if "softmax" in kinds:
            return "attention"
        if not is_product and kinds <= {"linear"}:
            return "linear"
        if is_product and ("norm" in kinds or any(self.operation(at).name in _REDUCTIONS for at in inside)):
            return "norm"
        self.activation[node] = self._hand_written(operation, inside)
        return "function" if self.activation[node] is None else "activation"

    def _takes_parts(self, start: int, inside: set[int]) -> bool:
        """Whether a product multiplies parts of one value with one another, as a GLU does behind one layer."""
        return any(self.operation(at).name in _PARTS for at in (start, *inside) if at != INPUT)

    def _region(self, start: int, node: int) -> set[int]:
        """The nodes strictly between, by all their sources."""
        found: set[int] = set()
        waiting = [self.producer[value] for value in self.operation(node).sources.values()]
        while waiting:
            at = waiting.pop()
            if at != start and at not in found:
                found.add(at)
                waiting += [self.producer[value] for value in self.operation(at).sources.values()]
        return found

    def _hand_written(self, operation: DataflowOperation, inside: set[int]) -> str | None:
        """The name of x sigmoid(x), of x (1 + erf(x / sqrt 2)) / 2 and its forms, of mish or of x / (1 + |x|)."""
        if operation.name == "div" and {self.operation(at).name for at in inside} == {"abs", "add"}:
            return "softsign"
        if operation.name != "mul":
            return None
        known = {self.activation.get(at) for at in inside} - {None}
        cubes = any(self.operation(at).name == "pow" and 3 in self.operation(at).settings for at in inside)
        factor = math.prod(_own_factor(self.operation(at)) for at in inside)
        if known == {"sigmoid"} and len(inside) <= 2:
            return "silu" if factor == 1 else "gelu" if abs(factor - 1.702) < 0.01 else None
        if known == {"erf"} or (known == {"tanh"} and cubes):
            return "gelu"
        return "mish" if known == {"tanh", "softplus"} else None

    # ---- sums -------------------------------------------------------------------------------------------

    def _path_sum(self, node: int, operation: DataflowOperation, start: int) -> PathSum:
        values = list(dict.fromkeys(operation.sources.values()))
        factor = dict.fromkeys(values, 1.0)
        for position, number in operation.factors.items():
            factor[operation.sources[position]] = abs(number)
        plain = [v for v in values if self._leads_straight(v, start)]
        if not plain:
            # x + f(x) + g(x), added one after another.
            plain = [v for v in values if self._leads_through_sums(v, start)]
        linear = [v for v in values if self._leads_straight(v, start, ("linear", "layer", "affine", "norm"))]
        if len(plain) == 1:
            kind, skip, shortcut = "residual", plain[0], None
        elif len(linear) == 1:
            kind, skip, shortcut = "shortcut", linear[0], linear[0]
        else:
            kind = "gated" if any(self._is_gated(v, start) for v in values) else "parallel"
            return PathSum(node, start, kind, tuple(values), (1.0,) * len(values), None)
        rest = tuple(value for value in values if value != skip)
        by = factor[skip] * self.factor(self.producer[skip], start)
        return PathSum(
            node, start, kind, rest, tuple(factor[v] / by if by else factor[v] for v in rest), shortcut
        )

    def _leads_straight(self, value: int, start: int, through: tuple[str, ...] = ("linear",)) -> bool:
        return self.traced(value, through=through, stop=start) == start

    def _leads_through_sums(self, value: int, start: int) -> bool:
        """Whether a value is x, or a residual sum of x = the result of ``start`` and others."""
        node = self.traced(value, stop=start)
        known = {path.node: path for path in self.sums if path.kind == "residual"}
        while node in known and node != start:
            node = known[node].start
        return node == start

    def _is_gated(self, value: int, start: int) -> bool:
        node = self.traced(value, stop=start)
        if node == start or self.kind[node] != "product":
            return False
        return any(self._leads_straight(v, start) for v in self.operation(node).sources.values())

    def factor(self, node: int, start: int) -> float:
        """The product of the constants on a straight path from ``start`` to a node."""
        product = 1.0
        while node != start and len(self.sources(node)) == 1:
            if self.kind[node] == "linear":
                product *= _own_factor(self.operation(node))
            (node,) = self.sources(node)
        return product

    def tail_factor(self, value: int, layer: int) -> float:
        """The product of the constants (LayerScale, SkipInit) on the chain of dominators from a layer to a value."""
        product = 1.0
        for node in self.dominators(self.producer[value], layer):
            if self.kind[node] == "linear":
                product *= _own_factor(self.operation(node))
        return product

    def _with_parent(self, number: int) -> PathSum:
        own = self.sums[number]
        around = [
            other
            for other in self.sums
            if other.start < own.node < other.node
            and other.start <= own.start
            and any(own.node in self.between(other.start, self.producer[v]) for v in other.branches)
        ]
        parent = min(around, key=lambda other: len(self.between(other.start, other.node)), default=None)
        return PathSum(
            own.node, own.start, own.kind, own.branches, own.factors, own.shortcut,
            None if parent is None else parent.node,
        )  # fmt: skip


def _own_factor(operation: DataflowOperation) -> float:
    return next(iter(operation.factors.values()), 1.0) if len(operation.sources) == 1 else 1.0


def _is_fixed_batch_norm(operation: DataflowOperation) -> bool:
    if "batch_norm" not in operation.name or (
        "legit" in operation.name and "no_training" not in operation.name
    ):
        return False
    training = next((a for a in operation.settings if isinstance(a, bool)), False)
    return not training


def activation_of(operation: DataflowOperation) -> str | None:
    """The name in `isometry.theory.activations` of an elementwise operation with its settings; None for any other."""
    name = operation.name
    numbers = [float(a) for a in operation.settings if isinstance(a, int | float) and not isinstance(a, bool)]
    if name in _PLAIN_NAMES:
        return None if name == "softplus" and numbers[:1] not in ([], [1.0]) else _RENAMED.get(name, name)
    if name == "celu":
        return "celu" if all(number == 1 for number in numbers) else None
    if name == "leaky_relu":
        return f"leaky_relu({numbers[0] if numbers else 0.01!r})"
    if name == "_prelu_kernel" and operation.parameters:
        return f"leaky_relu({operation.parameters[0].root_mean_square!r})"
    if name == "elu":
        return {(): "elu", (1.0,): "elu"}.get(
            tuple(numbers), "selu" if len(numbers) > 1 and numbers[1] > 1.04 else None
        )
    if name in ("hardtanh", "clamp"):
        ends = tuple(numbers) if numbers else (-1.0, 1.0)
        return {(-1.0, 1.0): "hard_tanh", (0.0, 6.0): "relu6", (0.0,): "relu"}.get(ends)
    if name in ("clamp_min", "threshold") and all(number == 0 for number in numbers):
        return "relu"
    return None
