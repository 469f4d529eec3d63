"""`isometry train`: train a vanilla CNN, and store its curves and Jacobian spectra in one file."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isometry.cli.options import TYPED, json_option, out_option, setting_options
from isometry.cli.streams import note, print_json, print_text
from isometry.errors import InputError
from isometry.loading.devices import device_of
from isometry.training.options import (
    MEASUREMENT,
    NETWORK_DEFAULTS,
    NETWORK_OPTIONS,
    TRAINING_OPTIONS,
    TrainingOptions,
    options_from,
)

if TYPE_CHECKING:
    from isometry.nn.models import VanillaCNN
    from isometry.training.data import Dataset
    from isometry.training.record import TrainingRecord

_TRAINING_DEFAULTS = {entry.name: entry.default for entry in fields(TrainingOptions)} | {
    "learning_rate": None
}


@click.command("train")
@click.argument("dataset_name", metavar="[DATA]", default="digits")
@out_option("Curves and spectra go here; the checkpoint beside it, as FILE.h5.checkpoint (and .previous).")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where the files of MNIST or CIFAR-10 lie.",
)
@setting_options(NETWORK_OPTIONS.values(), NETWORK_DEFAULTS)
@setting_options(TRAINING_OPTIONS.values(), _TRAINING_DEFAULTS)
@click.option(
    "--spectrum-every",
    type=click.IntRange(1),
    metavar="N",
    help="Measure the trunk's Jacobian every N steps, at the first test image.",
)
@click.option("--device", metavar="DEVICE", help="cpu or cuda [cuda where there is one].")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint, to the same curve.")
@click.option("--overwrite", is_flag=True, help="Empty FILE.h5 first if it is there.")
@json_option
def train_command(
    dataset_name: str,
    file: Path,
    folder: Path | None,
    seed: int,
    device: str | None,
    spectrum_every: int | None,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a vanilla CNN without normalisation or skip connections, and record its curves.

    Without --sigma-w, --sigma-b and --q-star the network is critical at q* = 1/depth.
    DATA is digits (the default, bundled with scikit-learn), mnist or cifar10 (with --folder), or an .npz file with
    arrays x and y. After a kill, the same command with --resume goes on from the last checkpoint.
    """
    if resume and overwrite:
        raise click.UsageError("--resume goes on with a file and --overwrite empties it: give one of them")
    if not file.parent.is_dir():
        raise click.UsageError(f"there is no folder {str(file.parent)!r} to write {file.name} into")
    from isometry.training import classifier, load_dataset

    if options["depth"] < 1:
        raise InputError(f"--depth must be one layer or more, got {options['depth']}.")
    settings = options_from({**options, "seed": seed})
    dataset = load_dataset(dataset_name, folder)
    network = {name: options[name] for name in NETWORK_OPTIONS if options[name] is not None}
    model = classifier(dataset, **network, seed=seed, device=device_of(device))
    _prepare(file, resume=resume, overwrite=overwrite)
    record = _train(model, dataset, settings, file, spectrum_every, resume)
    if as_json:
        print_json(_summary(record, file))
    else:
        print_text(_table(record))
    note(f"stored as series 'training' in {file}")


def _prepare(file: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse to overwrite another run, before any work."""
    from isometry.errors import StoreError
    from isometry.store import open_store

    if overwrite:
        open_store(file, "w")
        Path(f"{file}.checkpoint").unlink(missing_ok=True)
        Path(f"{file}.checkpoint.previous").unlink(missing_ok=True)
        return
    if resume and not Path(f"{file}.checkpoint").exists():
        note(f"there is no checkpoint {file}.checkpoint yet: the run begins at its first step")
    if not resume and file.exists() and "training" in open_store(file, "r").series_names():
        raise StoreError(
            f"{file} already holds a training run. Go on with it by --resume, replace it by --overwrite, or choose "
            "another file."
        )


def _train(
    model: VanillaCNN,
    dataset: Dataset,
    settings: TrainingOptions,
    file: Path,
    spectrum_every: int | None,
    resume: bool,
) -> TrainingRecord:
    from isometry.training import IsometryCallback, trunk_part
    from isometry.training.loop import train

    typed = click.get_current_context().meta.get(TYPED, "isometry train")
    callbacks: list[IsometryCallback] = []
    if spectrum_every is not None:
        callbacks.append(
            IsometryCallback(
                dataset.test_images[0], every=spectrum_every, store=file, provenance={"command": typed},
                part=trunk_part, resume=resume, **MEASUREMENT,
            )
        )  # fmt: skip
    record = train(
        model, dataset, options=settings, record_path=file, resume=resume, callbacks=callbacks,
        about={"command": typed, "device_name": _device_name(model)},
    )  # fmt: skip
    for callback in callbacks:
        if math.isfinite(callback.overhead):
            share = 100 * callback.overhead
            note(f"{len(callback.spectra)} spectra: recording took {share:.2g} % of the training's own time")
    return record


def _device_name(model: VanillaCNN) -> str:
    import torch

    device = next(model.parameters()).device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _summary(record: TrainingRecord, file: Path) -> dict[str, Any]:
    return {
        "file": str(file),
        "steps": record.steps,
        "seconds": record.seconds[-1] if record.steps else 0.0,
        "loss": record.loss[-1] if record.steps else None,
        "evaluations": [
            {"step": int(step), "train_accuracy": float(on_training), "test_accuracy": float(on_test)}
            for step, on_training, on_test in _evaluations(record)
        ],
    }


def _evaluations(record: TrainingRecord) -> list[tuple[Any, Any, Any]]:
    return list(zip(record.evaluation_step, record.train_accuracy, record.test_accuracy, strict=True))


def _table(record: TrainingRecord) -> str:
    """At most a dozen evaluations, the last one among them."""
    rows = _evaluations(record)
    every = max(1, math.ceil(len(rows) / 12))
    shown = rows[::-1][::every][::-1]
    lines = [f"{'step':>8}  {'loss':>8}  {'train':>7}  {'test':>7}"]
    for step, on_training, on_test in shown:
        loss = record.loss[min(int(step), record.steps - 1)] if record.steps else math.nan
        lines.append(f"{int(step):>8}  {loss:>8.4f}  {on_training:>7.1%}  {on_test:>7.1%}")
    return "\n".join(lines)
