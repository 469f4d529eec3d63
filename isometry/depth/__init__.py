"""Along the depth: the gain of every block, the law of the free product of layers, and Lyapunov exponents.

Names that are not in `__all__` are internal.
"""

from __future__ import annotations

from isometry.depth.block_gains import measure_blocks
from isometry.depth.layer_prediction import predict_for, predict_from_layers
from isometry.depth.lyapunov import LyapunovExponents, lyapunov_exponents

__all__ = ["LyapunovExponents", "lyapunov_exponents", "measure_blocks", "predict_for", "predict_from_layers"]
