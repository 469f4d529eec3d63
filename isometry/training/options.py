"""How to train: steps, learning rate and its schedule, optimizer, and how often to look."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from isometry.errors import InputError

OPTIMIZERS: Mapping[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}
SCHEDULES = ("constant", "linear", "cosine")


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
        Step biases and first layer in units of sqrt(q*), see `isometry.training.updates`. Only for networks that say
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


def learning_rate(options: TrainingOptions, step: int) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then constant, linear or half a cosine to 0."""
    if step < options.warmup:
        return options.learning_rate * (step + 1) / options.warmup
    share = (step - options.warmup) / max(1, options.steps - options.warmup)
    factor = {"constant": 1.0, "linear": 1.0 - share, "cosine": 0.5 * (1.0 + math.cos(math.pi * share))}
    return options.learning_rate * factor[options.schedule]
