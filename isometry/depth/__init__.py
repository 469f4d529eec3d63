"""Along the depth of a network: the gain of every block, and the law of the free product of its layers.

Names that are not in `__all__` are internal.
"""

from __future__ import annotations

from isometry.depth.block_gains import measure_blocks
from isometry.depth.layer_prediction import predict_for, predict_from_layers

__all__ = ["measure_blocks", "predict_for", "predict_from_layers"]
