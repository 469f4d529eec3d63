"""Train a classifier step by step, record what it does, and go on after a kill as if nothing had happened.

Steps are made in the network's own units. A bias b and the first layer of a network at signal variance q* are of
size sqrt(q*), and the loss depends on b / sqrt(q*); at q* = 1/depth their gradient is therefore sqrt(depth) times that
of an orthogonal weight, and plain gradient descent at depth 10,000 would move little else. With ``signal_units`` (the
default) such a parameter theta = sqrt(q*) u is stepped through u: grad u = sqrt(q*) grad theta. Gradient norms are then
those of u too, and the number of steps hardly depends on depth.

A batch is a function of (seed, step) alone and every state lies in the checkpoint, so a resumed run is the same run,
bit for bit, on the same machine and number of threads.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from isometry.errors import InputError, NonFiniteError
from isometry.nn.checkpoint import load_checkpoint, save_checkpoint
from isometry.nn.data import Dataset
from isometry.nn.record import TrainingRecord, curve_names, record_from, write_record
from isometry.progress import Progress, progress_bar, silent

OPTIMIZERS: Mapping[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}
SCHEDULES = ("constant", "linear", "cosine")
# Images that go through the network at once when it is only evaluated.
_EVALUATION_BATCH = 512


class Callback(Protocol):
    """What is told of every step: the model after `step` updates, 0 before the first."""

    def on_step(self, model: nn.Module, step: int) -> object: ...


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Parameters
    ----------
    steps : int
        Number of updates.
    learning_rate : float
        Of the first step after the warm-up.
    batch : int
        Images of a step; an epoch's order is drawn anew from (seed, epoch).
    optimizer : {"sgd", "adam", "adamw", "rmsprop"}
        By name; `momentum` is that of SGD and RMSprop.
    momentum, weight_decay : float
        0.9 and 0.
    schedule : {"constant", "linear", "cosine"}
        How the learning rate goes on after `warmup` steps that raise it linearly: not at all, or down to 0.
    warmup : int
        Number of steps until the learning rate is reached.
    clip_norm : float, optional
        The gradient is scaled down to this norm where it is longer; None leaves it.
    signal_units : bool
        Step biases and first layer in units of sqrt(q*), see `isometry.nn.training`. Only for networks that say
        their q_star.
    evaluate_every : int
        Steps between evaluations; there is one before the first step and one after the last in any case.
    train_images : int, optional
        So many training images, the first ones, are used to evaluate the training accuracy; None for all.
    checkpoint_every : int
        Steps between checkpoints.
    seed : int
        Of the order of the images.
    cuda_graph : bool
        On a CUDA device: forward and backward pass and clipping as one CUDA graph, which saves the launches of a
        deep network's thousands of small kernels. The batch must then not be larger than the training set.
    """

    steps: int = 200
    learning_rate: float = 1e-3
    batch: int = 64
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup: int = 0
    clip_norm: float | None = 1.0
    signal_units: bool = True
    evaluate_every: int = 10
    train_images: int | None = 512
    checkpoint_every: int = 10
    seed: int = 0
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        for name, least in (
            ("steps", 0), ("batch", 1), ("warmup", 0), ("evaluate_every", 1), ("checkpoint_every", 1), ("seed", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} must be a whole number of {least} or more, got {value!r}.")
        if self.train_images is not None and self.train_images < 1:
            raise InputError(f"train_images must be one or more, or None for all; got {self.train_images!r}.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InputError(f"learning_rate must be a finite number above zero, got {self.learning_rate!r}.")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise InputError(
                f"clip_norm must be above zero, or None for no clipping; got {self.clip_norm!r}."
            )
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum must be at least 0 and below 1, got {self.momentum!r}.")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise InputError(f"weight_decay must be zero or more, got {self.weight_decay!r}.")
        for name, known in (("optimizer", tuple(OPTIMIZERS)), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}.")


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
        Classifier of (B, channels, height, width) or, if its first layer is dense, whatever its forward makes of
        that; gives logits (B, num_classes). It trains on the device and in the type of its parameters.
    dataset : Dataset
        From `isometry.nn.data.load_dataset`.
    options : TrainingOptions, optional
        How to train.
    record_path : path, optional
        HDF5 file of spectra whose series ``training`` takes the curves, at every checkpoint and at the end.
    checkpoint_path : path, optional
        Where the state of the run is kept; `record_path` with ``.checkpoint`` added when left out.
    resume : bool
        Go on from the checkpoint, where there is one. Without it a checkpoint is overwritten.
    callbacks : sequence
        Objects with ``on_step(model, step)``, told of every state, also of the first (step 0) and the last.
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
    if resume and checkpoint_path is None:
        raise InputError("resume needs the place of the checkpoint: give record_path or checkpoint_path.")
    device, dtype = parameters[0].device, parameters[0].dtype
    images, labels, test_images, test_labels = (
        tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
        for tensor in (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels)
    )
    optimizer, scales = _make_optimizer(model, parameters, options)
    plan = _plan(model, dataset, options)
    curves: dict[str, list[float]] = {name: [] for name in curve_names()}
    start = 0
    if resume and checkpoint_path is not None and Path(checkpoint_path).exists():
        start, curves = load_checkpoint(checkpoint_path, model, optimizer, plan)
    description = {**plan, **_surroundings(device), **(about or {})}
    was_training = model.training
    model.train()
    update = _make_update(model, parameters, optimizer, scales, options)
    saved_at = start if start else None
    began = time.monotonic() - (curves["seconds"][-1] if curves["seconds"] else 0.0)

    def finish() -> TrainingRecord:
        record = record_from(curves, description)
        if record_path is not None:
            write_record(record_path, record)
        return record

    def look(step: int) -> None:
        if step % options.evaluate_every == 0 or step == options.steps:
            with _evaluating(model):
                some = slice(options.train_images)
                curves["evaluation_step"].append(step)
                curves["train_accuracy"].append(accuracy(model, images[some], labels[some]))
                curves["test_accuracy"].append(accuracy(model, test_images, test_labels))
        for callback in callbacks:
            callback.on_step(model, step)

    with _progress(progress) as report:
        batches = _batches(len(labels), options.batch, options.seed, start)
        for step in range(start, options.steps):
            look(step)
            chosen = next(batches).to(device)
            rate = learning_rate(options, step)
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
    model.train(was_training)
    return finish()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images whose largest logit is that of their label; the model's mode is left as it is."""
    right = 0
    with torch.no_grad():
        for part, answers in zip(
            images.split(_EVALUATION_BATCH), labels.split(_EVALUATION_BATCH), strict=True
        ):
            right += int((model(part).argmax(dim=-1) == answers).sum())
    return right / len(labels)


def learning_rate(options: TrainingOptions, step: int) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then constant, linear or half a cosine to 0."""
    if step < options.warmup:
        return options.learning_rate * (step + 1) / options.warmup
    share = (step - options.warmup) / max(1, options.steps - options.warmup)
    factor = {"constant": 1.0, "linear": 1.0 - share, "cosine": 0.5 * (1.0 + math.cos(math.pi * share))}
    return options.learning_rate * factor[options.schedule]


def signal_scales(model: nn.Module) -> dict[str, float]:
    """Units, by parameter name, of the parameters whose natural size is that of the signal, sqrt(q*).

    They are the biases of stem and trunk, and the weight of the stem's first layer, which turns images of mean square
    1 into pre-activations of variance q*. Empty for a model that states no ``q_star``, or none above zero.
    """
    q_star = getattr(model, "q_star", None)
    if q_star is None or not q_star > 0:
        return {}
    unit = math.sqrt(q_star)
    scales = {}
    for part in ("stem", "trunk"):
        module = getattr(model, part, None)
        if isinstance(module, nn.Module):
            named = [name for name, _ in module.named_parameters()]
            first = named[:1] if part == "stem" else []
            scales.update(
                {f"{part}.{name}": unit for name in named if name.endswith("bias") or name in first}
            )
    return scales


def _make_optimizer(
    model: nn.Module, parameters: Sequence[Tensor], options: TrainingOptions
) -> tuple[torch.optim.Optimizer, list[tuple[list[Tensor], float]]]:
    """Optimizer with one group for each unit; group["unit"] times the learning rate is what it steps by."""
    units = signal_scales(model) if options.signal_units else {}
    by_unit: dict[float, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            by_unit.setdefault(units.get(name, 1.0), []).append(parameter)
    # theta = unit * u: the decay of u by w per step is that of theta by w / unit times the group's learning rate.
    groups = [
        {"params": members, "unit": unit, "weight_decay": options.weight_decay / unit}
        for unit, members in by_unit.items()
    ]
    arguments: dict[str, Any] = {"lr": options.learning_rate}
    if options.optimizer in ("sgd", "rmsprop"):
        arguments["momentum"] = options.momentum
    optimizer = OPTIMIZERS[options.optimizer](groups, **arguments)
    return optimizer, [(members, unit) for unit, members in by_unit.items() if unit != 1.0]


def _make_update(
    model: nn.Module,
    parameters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    scales: Sequence[tuple[list[Tensor], float]],
    options: TrainingOptions,
) -> Callable[[Tensor, Tensor, float], tuple[float, float, float]]:
    """Function of (images, labels, learning rate): one update; gives loss, number right and gradient norm."""

    def differentiate(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = model(images)
        loss = functional.cross_entropy(logits, labels)
        loss.backward()
        for members, unit in scales:
            torch._foreach_mul_([p.grad for p in members if p.grad is not None], unit)
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if options.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, options.clip_norm, norm)
        right = (logits.detach().argmax(dim=-1) == labels).sum()
        return loss.detach(), right, norm

    compute: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] = differentiate
    if options.cuda_graph:
        compute = _captured(differentiate, parameters, optimizer)

    def update(images: Tensor, labels: Tensor, rate: float) -> tuple[float, float, float]:
        if not options.cuda_graph:
            optimizer.zero_grad(set_to_none=True)
        loss, right, norm = (float(value) for value in compute(images, labels))
        if math.isfinite(loss) and math.isfinite(norm):
            # A step along NaN would spoil the weights that are still good.
            for group in optimizer.param_groups:
                group["lr"] = rate * group["unit"]
            optimizer.step()
        return loss, right, norm

    return update


def _captured(
    differentiate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]],
    parameters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """`differentiate` as a CUDA graph, captured at the first call; the optimizer's step stays outside it."""
    if parameters[0].device.type != "cuda":
        raise InputError(f"cuda_graph needs the model on a CUDA device; it is on {parameters[0].device}.")
    captured: list[Any] = []

    def compute(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not captured:
            place, answers = images.clone(), labels.clone()
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(
                stream
            ):  # Libraries choose and allocate here, which a capture must not see.
                for _ in range(3):
                    optimizer.zero_grad(set_to_none=True)
                    differentiate(place, answers)
            torch.cuda.current_stream().wait_stream(stream)
            optimizer.zero_grad(set_to_none=True)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                results = differentiate(place, answers)
            captured.extend((graph, place, answers, results))
        graph, place, answers, results = captured
        place.copy_(images)
        answers.copy_(labels)
        graph.replay()
        return results

    return compute


def _batches(count: int, batch: int, seed: int, start: int) -> Iterator[Tensor]:
    """Indices of the batch of step `start` and of every one after it; an epoch's last short batch is left out."""
    size = min(batch, count)
    per_epoch = count // size
    for epoch in itertools.count(start // per_epoch):
        # One generator for each epoch, so that a resumed run need not draw what came before.
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        first = start % per_epoch if epoch == start // per_epoch else 0
        for position in range(first, per_epoch):
            yield order[position * size : (position + 1) * size]


def _is_sound(model: nn.Module, images: Tensor) -> bool:
    """Whether the weights, and what the model makes of a few images, are finite: then they may be kept."""
    with torch.no_grad(), _evaluating(model):
        norm = torch.nn.utils.get_total_norm([p.detach() for p in model.parameters()])
        return bool(torch.isfinite(norm)) and bool(torch.isfinite(model(images[:16])).all())


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _progress(progress: Progress | bool | None) -> Any:
    if progress is False:
        return nullcontext(silent)
    return progress_bar("training") if progress is None or progress is True else nullcontext(progress)


def _text(curves: Mapping[str, list[float]], done: int) -> str:
    text = f"step {done}: loss {curves['loss'][-1]:.3g}"
    return text + f", test accuracy {curves['test_accuracy'][-1]:.1%}" if curves["test_accuracy"] else text


def _divergence(step: int, loss: float, norm: float, path: str | Path | None, saved_at: int | None) -> str:
    kept = (
        f"The last good state, after {saved_at} updates, is kept in {path}; resume from it with other options."
        if saved_at is not None
        else "No checkpoint had been written yet."
    )
    return (
        f"training diverged at step {step}: loss {loss:g}, gradient norm {norm:g}. {kept} Try a smaller learning_rate, "
        "clip_norm=1, or a critical orthogonal network, whose gradients neither vanish nor explode."
    )


def _plan(model: nn.Module, dataset: Dataset, options: TrainingOptions) -> dict[str, Any]:
    """What fixes the run; a checkpoint of another plan is refused."""
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
