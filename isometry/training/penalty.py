"""`PenaltyGradient`: adds the gradient of `isometry_penalty` to that of the loss.

What `isometry.training.callbacks.PenaltyCallback` does in every loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from isometry.errors import InputError
from isometry.training.recorder import evaluating


class PenaltyGradient:
    """The parameters are those of `isometry.training.callbacks.PenaltyCallback`."""

    def __init__(
        self,
        x: Any,
        *,
        weight: float = 0.01,
        every: int = 1,
        part: Callable[[nn.Module, Tensor], tuple[Any, Tensor]] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise InputError(f"weight must be a finite number of zero or more, got {weight!r}.")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise InputError(f"every must be a whole number of steps, one or more; got {every!r}.")
        self.x, self.weight, self.every, self.part, self.seed = x, float(weight), every, part, seed
        self.options = options
        self.values: dict[int, float] = {}

    def on_step(self, model: nn.Module, step: int) -> None:
        """Nothing: the penalty acts on gradients."""

    def on_gradients(self, model: nn.Module, step: int) -> None:
        """Add the gradient of the penalty to the parameters' ``grad``, if it is due at this step.

        Raises
        ------
        ModelError, InputError, NonFiniteError
            As `isometry.isometry_penalty`; the gradients are then as they were.
        """
        if step % self.every or not self.weight:
            return
        from isometry.measurement import isometry_penalty

        with evaluating(model), torch.enable_grad():
            function, point = (model, self.x) if self.part is None else self.part(model, self.x)
            penalty = isometry_penalty(function, point, seed=self.seed + step, **self.options)
            (self.weight * self.every * penalty).backward()
        self.values[step] = float(penalty.detach())
