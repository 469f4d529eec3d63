"""The Jacobian of a function at a point as recorded linear maps, replayed on blocks of probes. Internal.

:mod:`.recording` writes one run to a :mod:`.tape` (writes in place by :mod:`.memory`), :mod:`.rules` give the linear
:mod:`.maps` of each operation, :mod:`.graph` connects them, :mod:`.fusion` and :mod:`.cheaper_convolutions` make them
fewer and cheaper, :mod:`.program` runs them on blocks, :mod:`.cuda_graph` launches them at once on a GPU, :mod:`.check`
compares the products with torch.func, :mod:`.diagnosis` finds the operation that makes a product infinite.
"""

from .check import Disagreement
from .diagnosis import first_nonfinite, module_names
from .replayed import Replay, checked_replay, linearise
from .tape import NoRule

__all__ = [
    "Disagreement",
    "NoRule",
    "Replay",
    "checked_replay",
    "first_nonfinite",
    "linearise",
    "module_names",
]
