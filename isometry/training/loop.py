"""`train`: a training loop that records its curves and resumes after a kill.

A batch is a function of (seed, step) alone and the checkpoint holds all state, so a resumed run equals an uninterrupted
one bit for bit, on the same machine and number of threads.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from isometry.errors import InputError, NonFiniteError
from isometry.progress import Progress, progress_listener
from isometry.training.checkpoint import load_checkpoint, save_checkpoint
from isometry.training.data import Dataset
from isometry.training.options import TrainingOptions, learning_rate
from isometry.training.record import TrainingRecord, curve_names, record_from, write_record
from isometry.training.updates import make_optimizer, make_update

# Images per forward pass of an evaluation.
_EVALUATION_BATCH = 512


class Callback(Protocol):
    """Called at every step with the model after `step` updates, 0 before the first."""

    def on_step(self, model: nn.Module, step: int) -> object: ...


def train(
    model: nn.Module,
    dataset: Dataset,
    *,
    options: TrainingOptions | None = None,
    record_path: str | Path | None = None,
    checkpoint_path: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: Progress | bool | None = None,
    about: Mapping[str, Any] | None = None,
) -> TrainingRecord:
    """Train the model in place and return its curves.

    Parameters
    ----------
    model : torch.nn.Module
        Classifier: images (B, channels, height, width), or (B, pixels) of `Dataset.flat`, to logits (B, num_classes).
        It trains on the device and in the dtype of its parameters.
    dataset : Dataset
        From `isometry.training.data.load_dataset`.
    options : TrainingOptions, optional
        How to train.
    record_path : path, optional
        HDF5 file of spectra whose series ``training`` takes the curves, at every checkpoint and at the end.
    checkpoint_path : path, optional
        File of the state of the run; by default `record_path` with ``.checkpoint`` added.
    resume : bool
        Continue from the checkpoint, if there is one. Otherwise a checkpoint is overwritten.
    callbacks : sequence
        Objects with ``on_step(model, step)``, called at every step, step 0 and the last included; where they have
        ``on_gradients(model, step)``, it is called after the backward pass and may add to the gradients.
    progress : callable or bool, optional
        As for `isometry.measure`: a bar on a terminal by default, False for none.
    about : mapping, optional
        Further plain values for the record.

    Returns
    -------
    TrainingRecord
        Loss, batch accuracy and gradient norm of every step, accuracies at the evaluations.

    Raises
    ------
    NonFiniteError
        When loss or gradient is NaN or infinite; the message names the step and the last good checkpoint.
    InputError
        When options contradict each other or the checkpoint.
    """
    options = TrainingOptions() if options is None else options
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise InputError("this model has no parameters that require gradients: there is nothing to train.")
    if checkpoint_path is None and record_path is not None:
        checkpoint_path = f"{record_path}.checkpoint"
    device, dtype = parameters[0].device, parameters[0].dtype
    images, labels, test_images, test_labels = (
        tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
        for tensor in (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels)
    )
    optimizer, scales = make_optimizer(model, parameters, options)
    plan = _plan(model, dataset, options)
    start, curves = _begun(checkpoint_path, model, optimizer, plan, options, resume=resume)
    description = {**plan, **_surroundings(device), **(about or {})}
    adding = [callback.on_gradients for callback in callbacks if hasattr(callback, "on_gradients")]
    updates = start

    def add_gradients() -> None:
        for add in adding:
            add(model, updates)

    update = make_update(model, parameters, optimizer, scales, options, add_gradients if adding else None)
    saved_at = start or None
    began = time.monotonic() - (curves["seconds"][-1] if curves["seconds"] else 0.0)

    def finish() -> TrainingRecord:
        record = record_from(curves, description)
        if record_path is not None:
            write_record(record_path, record)
        return record

    def look(step: int) -> None:
        if step % options.evaluate_every == 0 or step == options.steps:
            with _mode(model, training=False):
                some = slice(options.train_images)
                curves["evaluation_step"].append(step)
                curves["train_accuracy"].append(accuracy(model, images[some], labels[some]))
                curves["test_accuracy"].append(accuracy(model, test_images, test_labels))
        for callback in callbacks:
            callback.on_step(model, step)

    with _mode(model, training=True), progress_listener(progress, "training") as report:
        batches = _batches(len(labels), options.batch, options.seed, start)
        for step in range(start, options.steps):
            look(step)
            chosen = next(batches).to(device)
            rate, updates = learning_rate(options, step), step
            loss, right, norm = update(images[chosen], labels[chosen], rate)
            entries = (loss, right / len(chosen), norm, rate, time.monotonic() - began)
            for name, value in zip(curve_names()[:5], entries, strict=True):
                curves[name].append(value)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                finish()
                raise NonFiniteError(_divergence(step, loss, norm, checkpoint_path, saved_at))
            done = step + 1
            due = done % options.checkpoint_every == 0 or done == options.steps
            if due and checkpoint_path is not None and _is_sound(model, test_images):
                save_checkpoint(checkpoint_path, model, optimizer, plan, done, curves)
                saved_at = done
                finish()
            report(done, options.steps, _text(curves, done))
        look(options.steps)
    return finish()


def _begun(
    path: str | Path | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    plan: Mapping[str, Any],
    options: TrainingOptions,
    *,
    resume: bool,
) -> tuple[int, dict[str, list[float]]]:
    """Steps made and their curves: those of the checkpoint, whose state model and optimizer take, or none."""
    if resume and path is None:
        raise InputError("resume needs the place of the checkpoint: give record_path or checkpoint_path.")
    if not resume or path is None or not Path(path).exists():
        return 0, {name: [] for name in curve_names()}
    start, curves = load_checkpoint(path, model, optimizer, plan)
    if start > options.steps:
        raise InputError(
            f"{path} is {start} steps into its run, beyond the {options.steps} asked for; ask for more, or start anew "
            "under another name."
        )
    return start, curves


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images whose largest logit is that of their label; the model's mode is left as it is."""
    right = 0
    with torch.no_grad():
        for part, answers in zip(
            images.split(_EVALUATION_BATCH), labels.split(_EVALUATION_BATCH), strict=True
        ):
            right += int((model(part).argmax(dim=-1) == answers).sum())
    return right / len(labels)


def _batches(count: int, batch: int, seed: int, start: int) -> Iterator[Tensor]:
    """Indices of the batch of step `start` and of every one after it; an epoch's last short batch is left out."""
    size = min(batch, count)
    per_epoch = count // size
    for epoch in itertools.count(start // per_epoch):
        # One generator for each epoch, so that a resumed run need not repeat earlier draws.
        order = torch.randperm(
            count, generator=torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**64)
        )
        first = start % per_epoch if epoch == start // per_epoch else 0
        for position in range(first, per_epoch):
            yield order[position * size : (position + 1) * size]


def _is_sound(model: nn.Module, images: Tensor) -> bool:
    """Whether the weights and the logits of a few images are finite."""
    with torch.no_grad(), _mode(model, training=False):
        norm = torch.nn.utils.get_total_norm([p.detach() for p in model.parameters()])
        return bool(torch.isfinite(norm)) and bool(torch.isfinite(model(images[:16])).all())


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """The model in training or evaluation mode, and after the ``with`` block in the one it was in."""
    was_training = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(was_training)


def _text(curves: Mapping[str, list[float]], done: int) -> str:
    text = f"step {done}: loss {curves['loss'][-1]:.3g}"
    return text + f", test accuracy {curves['test_accuracy'][-1]:.1%}" if curves["test_accuracy"] else text


def _divergence(step: int, loss: float, norm: float, path: str | Path | None, saved_at: int | None) -> str:
    kept = (
        f"The last good state, after {saved_at} updates, is kept in {path}."
        if saved_at is not None
        else "No checkpoint had been written yet."
    )
    return (
        f"training diverged at step {step}: loss {loss:g}, gradient norm {norm:g}. {kept} Try a smaller learning_rate, "
        "clip_norm=1, or a critical orthogonal network, whose gradients neither vanish nor explode."
    )


def _plan(model: nn.Module, dataset: Dataset, options: TrainingOptions) -> dict[str, Any]:
    """Options, data and network of the run; a checkpoint with another plan is refused."""
    ensemble = getattr(model, "ensemble", None)
    return {
        "options": asdict(options),
        "dataset": repr(dataset),
        "model": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "ensemble": None if ensemble is None else ensemble.to_dict(),
    }


def _surroundings(device: torch.device) -> dict[str, Any]:
    return {
        "device": device.type,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
