"""`WandbWriter`: the numbers of a spectrum and a histogram of its values in a run of Weights & Biases.

    run = wandb.init(project="depth")
    callback = isometry.IsometryCallback(x, every=100, writer=WandbWriter(run))

The package ``wandb`` is imported when a writer is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isometry.errors import InputError

STEP = "isometry/training_step"


class WandbWriter:
    """Writes to a run of Weights & Biases: one row for each measured spectrum, against the training's step.

    The run's own step counts its rows, and a row for an earlier one would be dropped; so the training step is a metric
    of its own, ``isometry/training_step``, over which ``isometry/...`` is plotted.

    Parameters
    ----------
    run : wandb.Run, optional
        As ``wandb.init`` returns it; the active one when left out.

    Raises
    ------
    InputError
        When ``wandb`` is not installed, or no run is active.
    """

    def __init__(self, run: Any = None) -> None:
        try:
            self._wandb: Any = import_module("wandb")
        except ImportError as error:
            raise InputError(f"Weights & Biases is not installed ({error}): pip install wandb.") from error
        self.run = run if run is not None else self._wandb.run
        if self.run is None:
            raise InputError("no run is active: call wandb.init(...) before, or give its run.")
        self.run.define_metric(STEP)
        self.run.define_metric("isometry/*", step_metric=STEP)

    def write(self, scalars: Mapping[str, float], log10_s: NDArray[np.float64], step: int) -> None:
        """One row: the numbers, and a histogram of log10 s where there are values."""
        row: dict[str, Any] = {**scalars, STEP: step}
        if log10_s.size:
            row["isometry/log10_s"] = self._wandb.Histogram(log10_s)
        self.run.log(row)
