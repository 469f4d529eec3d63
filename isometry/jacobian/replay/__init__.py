"""The Jacobian of a function at a point as a recorded program of linear maps, replayed on blocks of probes.

:mod:`.recording` writes down one run, :mod:`.rules` says what each operation is as linear maps (:mod:`.maps`,
:mod:`.convolution`, :mod:`.dense`), :mod:`.graph` joins them, :mod:`.program` runs them on blocks, :mod:`.check` holds
the products against torch.func, :mod:`.cuda_graph` launches them at once on a GPU, :mod:`.diagnosis` finds what makes a
product infinite.
"""

from .check import Disagreement
from .diagnosis import first_nonfinite
from .recording import NoRule
from .replayed import Replay, checked_replay, linearise

__all__ = ["Disagreement", "NoRule", "Replay", "checked_replay", "first_nonfinite", "linearise"]
