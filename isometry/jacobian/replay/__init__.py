"""The Jacobian of a function at a point as recorded linear maps, replayed on blocks of probes. Internal.

:mod:`.recording` writes one run to a :mod:`.tape` (writes in place by :mod:`.memory`), :mod:`.rules` give the linear
:mod:`.maps` of each operation, :mod:`.graph` connects them, :mod:`.fusion` and :mod:`.cheaper_convolutions` make them
fewer and cheaper, :mod:`.program` runs them on blocks, :mod:`.cuda_graph` launches them at once on a GPU, :mod:`.check`
compares the products with torch.func, :mod:`.diagnosis` finds the operation that makes a product infinite.
:mod:`.cuts` splits the graph into a product, and :mod:`.module_calls` tells which modules a segment ran in.
"""

from .check import Disagreement
from .cuts import Segment, joined
from .diagnosis import first_nonfinite, module_names
from .graph import Edge, Graph
from .module_calls import ModuleCall
from .recorded_segments import RecordedSegments, recorded_graph, recorded_operations, recorded_segments
from .replayed import Replay, checked_replay, linearise, replay_of
from .tape import NoRule, Operation, flat_tensors

__all__ = [
    "Disagreement", "Edge", "Graph", "ModuleCall", "NoRule", "Operation", "RecordedSegments", "Replay", "Segment",
    "checked_replay", "first_nonfinite", "flat_tensors", "joined", "linearise", "module_names", "recorded_graph",
    "recorded_operations", "recorded_segments", "replay_of",
]  # fmt: skip
