"""The skip of a residual block: the edge by which a x enters the sum a x + f(x) that a graph of linear maps computes.

a is the same at every point: 1, a number, or numbers entry by entry, as in x * 0.5 + f(x) or torch.lerp(x, f(x), t). A
factor that depends on x, as in a highway network, is none.
"""

from __future__ import annotations

from collections import Counter

from .graph import Edge, Graph
from .maps import Diagonal, Identity, Multiple

# Operations of two tensors whose derivatives do not depend on either.
_SUMS = frozenset(
    {"add", "sub", "rsub", "lerp", "addcmul", "addcdiv", "addmm", "addmv", "addbmm", "baddbmm", "addr"}
)
# Operations that multiply by what does not depend on x, where x enters them once.
_SCALINGS = _SUMS | {"mul", "div", "neg"}


def skip_of(graph: Graph) -> Edge | None:
    """The edge by which a x enters the sum, of several the first with a = 1; None where there is no such sum."""
    arriving = Counter(edge.result for edge in graph.edges)
    leaving = Counter(edge.source for edge in graph.edges)
    multiples = {graph.input}
    for edge in graph.edges:
        if edge.source in multiples and arriving[edge.result] == 1 and _scales(edge):
            multiples.add(edge.result)
    # Values that go nowhere but into the output, as they are or scaled.
    parts = {graph.output}
    found: list[Edge] = []
    for edge in reversed(graph.edges):
        if edge.result not in parts:
            continue
        is_sum = arriving[edge.result] > 1
        if is_sum and (
            edge.operation not in _SUMS or not isinstance(edge.map, Identity | Multiple | Diagonal)
        ):
            continue
        if is_sum and edge.source in multiples:
            found.append(edge)
        elif leaving[edge.source] == 1 and (is_sum or _scales(edge)):
            parts.add(edge.source)
    plain = [edge for edge in found if isinstance(edge.map, Identity)]
    return next(iter(plain[::-1] or found[::-1]), None)


def _scales(edge: Edge) -> bool:
    is_entrywise = isinstance(edge.map, Multiple | Diagonal) and edge.operation in _SCALINGS
    return isinstance(edge.map, Identity) or is_entrywise
