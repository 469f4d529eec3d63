"""`LightningCallback` and `LightningPenalty`: our callbacks as a ``Callback`` of Lightning.

Imported only by programs that have imported Lightning, which has two names: ``lightning.pytorch`` and
``pytorch_lightning``.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from importlib import import_module
from typing import Any

from torch import nn

from isometry.errors import InputError
from isometry.training.penalty import PenaltyGradient
from isometry.training.recorder import SpectrumRecorder, histogram_samples, write_histogram
from isometry.training.wandb import WandbWriter

_MODULES = ("lightning.pytorch", "pytorch_lightning")


def _callback_classes() -> tuple[type, ...]:
    """The ``Callback`` classes of the Lightning packages that are loaded; of any that is installed where none is."""
    if not any(name in sys.modules for name in _MODULES):
        # A process that a trainer has started unpickles its callbacks before it imports Lightning.
        for name in _MODULES:
            with suppress(ImportError):
                import_module(name)
                break
    loaded = (sys.modules.get(name) for name in _MODULES)
    found = (getattr(module, "Callback", None) for module in loaded)
    return tuple(dict.fromkeys(one for one in found if isinstance(one, type)))


class LightningCallback(SpectrumRecorder, *_callback_classes()):  # type: ignore[misc]
    """Measures in Lightning's training loop, and logs to the trainer's loggers; see `isometry.IsometryCallback`."""

    def on_train_batch_start(self, trainer: Any, module: nn.Module, batch: Any, batch_idx: int) -> None:
        """Lightning's hook before every training batch."""
        self._in_lightning(trainer, module, batch)

    def on_train_end(self, trainer: Any, module: nn.Module) -> None:
        """Lightning's hook after the last one."""
        self._in_lightning(trainer, module, None)

    def _in_lightning(self, trainer: Any, module: nn.Module, batch: Any) -> None:
        step = trainer.global_step
        # With accumulated gradients several batches belong to one step; of several processes one measures.
        if step in self.spectra or not getattr(trainer, "is_global_zero", True):
            return
        spectrum = self.on_step(module, step, batch)
        if spectrum is None:
            return
        scalars = self.scalars(spectrum)
        for logger in getattr(trainer, "loggers", ()):
            logger.log_metrics(scalars, step=step)
            writer = getattr(logger, "experiment", None)
            if hasattr(writer, "add_histogram"):
                write_histogram(writer, spectrum, step)
            elif hasattr(writer, "define_metric"):
                WandbWriter(writer).write({}, histogram_samples(spectrum), step)
        logged = time.perf_counter()
        self.seconds, self._ended = self.seconds + logged - self._ended, logged


class LightningPenalty(PenaltyGradient, *_callback_classes()):  # type: ignore[misc]
    """Adds the gradient of the penalty in Lightning's training loop; see `isometry.training.PenaltyCallback`."""

    def on_after_backward(self, trainer: Any, module: nn.Module) -> None:
        """Lightning's hook between a backward pass and the clipping of gradients."""
        if getattr(getattr(trainer, "precision_plugin", None), "scaler", None) is not None:
            raise InputError(
                "precision 16-mixed scales the gradients of the loss, to which that of the penalty cannot be added: "
                "take precision='bf16-mixed' or '32-true'."
            )
        # With accumulated gradients several backward passes belong to one step.
        if trainer.global_step not in self.values:
            self.on_gradients(module, trainer.global_step)
