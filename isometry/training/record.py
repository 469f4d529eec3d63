"""`TrainingRecord`: the curves of a training run, stored as two series in a file of spectra.

``NAME`` has a row for every step, ``NAME evaluation`` one for every evaluation, in the file of the spectra measured
during the run. Each series is replaced as a whole, so a run killed at any moment leaves a valid file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isometry.errors import StoreError

NAME = "training"

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
_UNITS = {"loss": "nat", "gradient_norm": "nat", "seconds": "s"}
_INTEGER = ("evaluation_step",)
# The first ones have an entry for every step, the others one for every evaluation.
_PER_STEP = 5


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
        Options, data set, network, device and versions; plain JSON types.
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
    arrays: dict[str, Any] = {
        name: np.asarray(curves[name], dtype=np.int64 if name in _INTEGER else np.float64)
        for name in curve_names()
    }
    return TrainingRecord(**arrays, about=dict(about))


def write_record(path: str | Path, record: TrainingRecord, *, name: str = NAME) -> None:
    """Write the record into a file of spectra, replacing one of that name.

    Raises
    ------
    StoreError
        When the file cannot be written, or is there and is no file of spectra.
    """
    from isometry.store import open_store  # h5py is loaded where a file is wanted

    store = open_store(path, "a")
    per_step, per_evaluation = curve_names()[:_PER_STEP], curve_names()[_PER_STEP:]
    tables: tuple[tuple[str, str, NDArray[Any], tuple[str, ...], dict[str, Any]], ...] = (
        (name, "step", np.arange(record.steps), per_step, record.about),
        (evaluation_name(name), "", record.evaluation_step, per_evaluation, {}),
    )
    for table, index, steps, columns, about in tables:
        values: dict[str, Any] = {index: steps} if index else {}
        values.update({column: getattr(record, column) for column in columns})
        store.add_series(
            table,
            values,
            about,
            units={column: _UNITS.get(column, "1") for column in values},
            descriptions={column: _MEANING.get(column, "step, counted from 0") for column in values},
            overwrite=True,
        )


def read_record(path: str | Path, *, name: str = NAME) -> TrainingRecord:
    """The record of that name in a file of spectra.

    Raises
    ------
    StoreError
        When the file cannot be read, has no such record, or was written by a newer version.
    """
    from isometry.store import open_store

    store = open_store(path, "r")
    steps, evaluations = store.series(name), store.series(evaluation_name(name))
    missing = [column for column in curve_names()[:_PER_STEP] if column not in steps.columns]
    if missing:
        raise StoreError(f"the series {name!r} of {path} is no training record: it has no {missing[0]!r}.")
    curves = {
        column: (steps if number < _PER_STEP else evaluations)[column]
        for number, column in enumerate(curve_names())
    }
    return record_from(curves, steps.attributes)


def evaluation_name(name: str = NAME) -> str:
    """Name of the series of accuracies that belongs to the record `name`."""
    return f"{name} evaluation"
