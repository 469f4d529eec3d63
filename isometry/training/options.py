"""How to train: steps, learning rate and its schedule, optimizer, and how often to evaluate.

The fields of `TrainingOptions` are the one table of training settings: grid keys and options of ``isometry train`` are
derived from them. Nothing here imports torch: the help of the command line reads this module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from isometry.errors import InputError
from isometry.nn.options import NETWORKS, Option, either

# By name, classes of torch.optim.
OPTIMIZERS: Mapping[str, str] = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop"}
SCHEDULES = ("constant", "linear", "cosine")


def _setting(default: Any, kind: type, help: str, metavar: str = "", **more: Any) -> Any:
    """A field of `TrainingOptions` with all that is known of it."""
    return field(default=default, metadata={"type": kind, "help": help, "metavar": metavar, **more})


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
        The learning rate after `warmup` steps that raise it linearly: constant, or falling to 0.
    warmup : int
        Number of steps until the learning rate is reached.
    clip_norm : float, optional
        The gradient is scaled down to this norm where it is longer; None leaves it.
    signal_units : bool
        Step biases and first layer in units of sqrt(q*), see `isometry.training.updates`. Only for networks that
        have a ``q_star``.
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

    steps: int = _setting(200, int, "Updates.", "N", least=0)
    learning_rate: float = _setting(
        1e-3, float, "Learning rate [0.2 / sqrt(depth)].", "RATE", least=0, above=True
    )
    batch: int = _setting(64, int, "Images of a step.", "B", least=1)
    optimizer: str = _setting("sgd", str, f"{either(OPTIMIZERS)}.", "NAME", choices=tuple(OPTIMIZERS))
    momentum: float = _setting(0.9, float, "Of sgd and rmsprop.", "M", least=0)
    weight_decay: float = _setting(0.0, float, "Decay of the weights per step.", "W", least=0)
    schedule: str = _setting("constant", str, f"{either(SCHEDULES)}.", "NAME", choices=SCHEDULES)
    warmup: int = _setting(0, int, "Steps of linear warm-up.", "N", least=0)
    clip_norm: float | None = _setting(1.0, float, "Longest gradient; 0 for no clipping.", "G", least=0)
    signal_units: bool = _setting(True, bool, "Step biases and first layer in units of sqrt(q*).")
    evaluate_every: int = _setting(10, int, "Steps between evaluations.", "N", least=1)
    train_images: int | None = _setting(512, int, "Images of the training accuracy.", "N", least=1)
    checkpoint_every: int = _setting(10, int, "Steps between checkpoints.", "N", least=1)
    seed: int = _setting(0, int, "Of weights and order.", "N", least=0)
    cuda_graph: bool = _setting(False, bool, "The step as one CUDA graph.")

    def __post_init__(self) -> None:
        for option in TRAINING_OPTIONS.values():
            _check(option, getattr(self, option.name))
        if not self.momentum < 1:
            raise InputError(f"momentum must be at least 0 and below 1, got {self.momentum!r}.")
        if self.clip_norm == 0:
            raise InputError(
                f"clip_norm must be above zero, or None for no clipping; got {self.clip_norm!r}."
            )


def _check(option: Option, value: Any) -> None:
    """Raise InputError unless the value is one that the option takes, or None where None is a value of it."""
    name, least = option.name, option.least or 0
    if value is None and name in ("clip_norm", "train_images"):
        return
    if option.choices and value not in option.choices:
        raise InputError(f"{name} must be one of {', '.join(option.choices)}, got {value!r}.")
    if option.type is int and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise InputError(f"{name} must be a whole number of {least} or more, got {value!r}.")
    if option.type is float:
        fits = value > least if option.above else value >= least
        if not fits or (math.isinf(value) and name != "clip_norm"):
            words = "above zero" if option.above else "of zero or more"
            raise InputError(f"{name} must be a finite number {words}, got {value!r}.")


TRAINING_OPTIONS: Mapping[str, Option] = {
    entry.name: Option(entry.name, **entry.metadata) for entry in fields(TrainingOptions)
}

# The settings of the network that `isometry.training.classifier` builds, and their defaults where a text asks for it.
NETWORK_OPTIONS: Mapping[str, Option] = {
    name: option
    for name, option in NETWORKS["vanilla-cnn"].options.items()
    if name in ("depth", "channels", "activation", "init", "sigma_w", "sigma_b", "q_star", "kernel_size")
}
NETWORK_DEFAULTS: Mapping[str, Any] = {
    "depth": 100, "channels": 8, "activation": "tanh", "init": "delta_orthogonal", "kernel_size": 3,
}  # fmt: skip


# The measurement of a spectrum during a run.
MEASUREMENT: Mapping[str, Any] = {"probes": 8, "steps": 30}


def learning_rate(options: TrainingOptions, step: int) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then constant, linear or half a cosine to 0."""
    if step < options.warmup:
        return options.learning_rate * (step + 1) / options.warmup
    share = (step - options.warmup) / max(1, options.steps - options.warmup)
    factor = {"constant": 1.0, "linear": 1.0 - share, "cosine": 0.5 * (1.0 + math.cos(math.pi * share))}
    return options.learning_rate * factor[options.schedule]


def options_from(values: Mapping[str, Any]) -> TrainingOptions:
    """Options out of the settings of a command line or a grid, those of the network among them.

    The default learning rate is 0.2 / sqrt(depth): the gradient of a critical network grows as sqrt(depth) in the units
    of its steps. A clip norm of 0 stands for None.
    """
    given = {name: values[name] for name in TRAINING_OPTIONS if name in values}
    given["learning_rate"] = given.get("learning_rate") or 0.2 / math.sqrt(values["depth"])
    if given.get("clip_norm") == 0:
        given["clip_norm"] = None
    return TrainingOptions(**given)
