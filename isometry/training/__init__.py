"""Training runs that record their Jacobian spectra: the loop, data sets, callbacks, checkpoints and curves."""

from __future__ import annotations

from isometry.training.callbacks import IsometryCallback
from isometry.training.loop import train
from isometry.training.options import TrainingOptions

__all__ = ["IsometryCallback", "TrainingOptions", "train"]
