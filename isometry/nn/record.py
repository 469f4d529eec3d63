"""What a training run leaves behind: its curves, in the group ``training`` of an HDF5 file.

The group stands beside the spectra that were measured on the way, in the same file. It is written into a copy that then
takes the place of the file in one move, so that a run killed at any moment leaves a whole file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isometry.errors import StoreError

GROUP = "training"
VERSION = 1

_MEANING = {
    "loss": "cross-entropy of the step's batch before its update, nats, one per step",
    "batch_accuracy": "share of the step's batch that was classified correctly before its update",
    "gradient_norm": "Euclidean norm of the gradient before clipping, in the units it is clipped in, one per step",
    "learning_rate": "learning rate of the step",
    "seconds": "wall time since the run began, resumed parts added, at the end of the step, seconds",
    "evaluation_step": "number of updates made before the evaluation",
    "train_accuracy": "share of the (first) training images classified correctly",
    "test_accuracy": "share of the test images classified correctly",
}
_INTEGER = ("evaluation_step",)


def _empty() -> NDArray[np.float64]:
    return np.zeros(0)


@dataclass(frozen=True)
class TrainingRecord:
    """Curves of one training run.

    Attributes
    ----------
    loss, batch_accuracy, gradient_norm, learning_rate, seconds : (steps,) arrays
        One entry per step: cross-entropy in nats and accuracy of its batch before the update, gradient norm before
        clipping, learning rate, wall time so far in seconds.
    evaluation_step, train_accuracy, test_accuracy : (evaluations,) arrays
        Accuracies (shares of 1) after that many updates.
    about : dict
        What was run: options, data set, network, device, versions; plain JSON types.
    """

    loss: NDArray[np.float64] = field(default_factory=_empty)
    batch_accuracy: NDArray[np.float64] = field(default_factory=_empty)
    gradient_norm: NDArray[np.float64] = field(default_factory=_empty)
    learning_rate: NDArray[np.float64] = field(default_factory=_empty)
    seconds: NDArray[np.float64] = field(default_factory=_empty)
    evaluation_step: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    train_accuracy: NDArray[np.float64] = field(default_factory=_empty)
    test_accuracy: NDArray[np.float64] = field(default_factory=_empty)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Number of steps made."""
        return len(self.loss)

    def __repr__(self) -> str:
        if len(self.test_accuracy) == 0:
            return f"TrainingRecord({self.steps} steps, not evaluated)"
        return (
            f"TrainingRecord({self.steps} steps, train accuracy {self.train_accuracy[-1]:.1%}, "
            f"test accuracy {self.test_accuracy[-1]:.1%})"
        )


def curve_names() -> tuple[str, ...]:
    """Names of the arrays of a record, in order."""
    return tuple(entry.name for entry in fields(TrainingRecord) if entry.name != "about")


def record_from(curves: Mapping[str, Any], about: Mapping[str, Any]) -> TrainingRecord:
    """Record of lists, arrays or tensors of numbers named as in `curve_names`."""
    arrays = {
        name: np.asarray(curves[name], dtype=np.int64 if name in _INTEGER else np.float64)
        for name in curve_names()
    }
    return TrainingRecord(**arrays, about=dict(about))


def write_record(path: str | Path, record: TrainingRecord, *, group: str = GROUP) -> None:
    """Write the record into `group` of an HDF5 file, in place of one that is there; all else in the file stays.

    Raises
    ------
    StoreError
        When the file cannot be written, or is there and is not HDF5.
    """
    import h5py

    path = Path(path)
    # The same folder, so that the last move is within one file system and therefore atomic.
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if path.exists():
            shutil.copyfile(path, draft)
        with h5py.File(draft, "a") as file:
            if group in file:
                del file[group]
            _fill(file.create_group(group), record)
        os.replace(draft, path)
    except OSError as error:
        raise StoreError(f"the training record cannot be written to {path}: {error}.") from error
    finally:
        draft.unlink(missing_ok=True)


def _fill(target: Any, record: TrainingRecord) -> None:
    target.attrs["kind"] = "training"
    target.attrs["version"] = VERSION
    target.attrs["about"] = json.dumps(record.about, sort_keys=True)
    for name in curve_names():
        dataset = target.create_dataset(name, data=getattr(record, name))
        dataset.attrs["meaning"] = _MEANING[name]
    for names, scale in ((("evaluation_step",), "evaluation"), (curve_names()[:5], "step")):
        for name in names:
            target[name].dims[0].label = scale


def read_record(path: str | Path, *, group: str = GROUP) -> TrainingRecord:
    """The record in `group` of an HDF5 file.

    Raises
    ------
    StoreError
        When the file cannot be read, has no such group, or was written by a newer version.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if group not in file or file[group].attrs.get("kind") != "training":
                raise StoreError(
                    f"{path} has no training record {group!r}; it holds {', '.join(file) or 'nothing'}."
                )
            source = file[group]
            version = int(source.attrs["version"])
            if version > VERSION:
                raise StoreError(
                    f"{path} has a training record of version {version}, newer than {VERSION}, the newest this "
                    "isometry reads: update isometry."
                )
            curves = {name: source[name][...] for name in curve_names()}
            about = json.loads(source.attrs["about"])
    except StoreError:
        raise
    except (OSError, KeyError, ValueError) as error:
        raise StoreError(f"no training record can be read from {path}: {error}.") from error
    return record_from(curves, about)
