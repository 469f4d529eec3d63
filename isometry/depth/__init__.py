"""Along the depth: the gain of every block, the law of the free product of layers, Lyapunov exponents, and tuning.

Names that are not in `__all__` are internal.
"""

from __future__ import annotations

from isometry.depth.block_gains import measure_blocks
from isometry.depth.critical_init import critical_init_
from isometry.depth.critical_report import CriticalInit
from isometry.depth.layer_prediction import predict_for, predict_from_layers
from isometry.depth.lyapunov import LyapunovExponents, lyapunov_exponents
from isometry.depth.tuning import tune_
from isometry.depth.tuning_report import TuningReport

__all__ = [
    "CriticalInit",
    "LyapunovExponents",
    "TuningReport",
    "critical_init_",
    "lyapunov_exponents",
    "measure_blocks",
    "predict_for",
    "predict_from_layers",
    "tune_",
]
