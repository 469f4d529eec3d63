"""Training runs: a loop that resumes, its data and options, its record, and spectra measured on the way.

Names are loaded when they are first used: `isometry.training.options`, which the help of the command line reads, does
without torch.

Names that are not in `__all__` are internal.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isometry.training.callbacks import IsometryCallback, PenaltyCallback
    from isometry.training.data import Dataset, load_dataset
    from isometry.training.loop import accuracy, train
    from isometry.training.network import classifier
    from isometry.training.options import TrainingOptions
    from isometry.training.record import TrainingRecord, read_record, write_record
    from isometry.training.recorder import trunk_part
    from isometry.training.wandb import WandbWriter

_HOMES = {
    "Dataset": "data",
    "IsometryCallback": "callbacks",
    "PenaltyCallback": "callbacks",
    "TrainingOptions": "options",
    "TrainingRecord": "record",
    "WandbWriter": "wandb",
    "accuracy": "loop",
    "classifier": "network",
    "load_dataset": "data",
    "read_record": "record",
    "train": "loop",
    "trunk_part": "recorder",
    "write_record": "record",
}

__all__ = [
    "Dataset",
    "IsometryCallback",
    "PenaltyCallback",
    "TrainingOptions",
    "TrainingRecord",
    "WandbWriter",
    "accuracy",
    "classifier",
    "load_dataset",
    "read_record",
    "train",
    "trunk_part",
    "write_record",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
