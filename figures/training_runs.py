"""What the scripts that train share: runs that are kept and resumed.

A run works in a file of its own under ``out/runs`` (with its checkpoint), so that a killed script goes on where it
stopped; what a figure needs is then gathered into one small file, from which alone the figure is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from stage import ROOT
from torch import nn

from isometry.training.data import Dataset
from isometry.training.loop import TrainingOptions, accuracy, train
from isometry.training.record import TrainingRecord, read_record, write_record


def run(
    name: str,
    build: Callable[[], nn.Module],
    dataset: Dataset,
    options: TrainingOptions,
    *,
    into: Path | None = None,
    series: str = "",
    about: dict[str, Any] | None = None,
    curve_images: int | None = None,
) -> TrainingRecord:
    """The record of a run: finished before, gone on with, or begun; gathered into `into` as `series`, if asked for.

    ``curve_images`` test images, the first ones, make the curve; the accuracy on all of them is measured after the last
    step and kept in the record's ``about`` as ``test_accuracy_all``, with its number ``test_images_all``.
    """
    # The signals of a deep Gaussian network die away into denormal numbers, with which a processor computes a
    # hundred times more slowly; as zeros they are no less dead.
    torch.set_flush_denormal(True)
    folder = ROOT / "out" / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.h5"
    record = read_record(path) if path.exists() else None
    if record is None or "test_accuracy_all" not in record.about:
        machine = {"machine": "2 CPU cores, float32", "threads": torch.get_num_threads()}
        few = slice(curve_images)
        model = build()
        record = train(
            model, replace(dataset, test_images=dataset.test_images[few], test_labels=dataset.test_labels[few]),
            options=options, record_path=path, resume=True, about={**machine, **(about or {})},
            callbacks=[Announcer(name, options.evaluate_every)],
        )  # fmt: skip
        right = accuracy(model, dataset.test_images, dataset.test_labels)
        whole = {"test_accuracy_all": right, "test_images_all": len(dataset.test_labels)}
        record = replace(record, about={**record.about, **whole})
        write_record(path, record)
        Path(f"{path}.checkpoint").unlink(missing_ok=True)
    if into is not None:
        write_record(into, record, name=series)
    print(f"{name}: {record} in {record.seconds[-1] if record.steps else 0:.0f} s", flush=True)
    return record


class Announcer:
    """Prints a line now and then, for a log file."""

    def __init__(self, name: str, every: int) -> None:
        self.name, self.every = name, every

    def on_step(self, model: nn.Module, step: int) -> None:
        """Say how far it is."""
        if step and step % self.every == 0:
            print(f"{self.name}: step {step}", flush=True)
