"""`PenaltyCallback`: adds the gradient of `isometry_penalty` to that of the loss, in any loop."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from isometry.errors import InputError
from isometry.training.recorder import evaluating


class PenaltyCallback:
    """Trains a network towards loss + weight * `isometry.isometry_penalty`.

    Parameters
    ----------
    x : Tensor, or a tuple, list, dict or dataclass of tensors
        Input at which the singular values are taken, as `isometry.isometry_penalty` takes it.
    weight : float
        Of the penalty, 0 or more.
    every : int
        Steps between gradients of the penalty, each ``every`` times as large, so that their mean is the same.
    part : callable, optional
        ``part(model, x)`` gives the function and the point of the penalty; `trunk_part` takes the trunk of a reference
        network.
    seed : int
        Of the probes; each step has probes of its own.
    **options
        Further arguments of `isometry.isometry_penalty`: ``probes``, ``spread``, ``batched``, ...

    Attributes
    ----------
    values : dict of int to float
        The penalty, without its weight, by step.

    Raises
    ------
    InputError
        When `weight` or `every` is no such number.

    Notes
    -----
    In `isometry.training.train` and Lightning the gradient is added after the backward pass of the loss and before
    gradients are clipped. In a loop of your own call ``on_gradients(model, step)`` there. The network is evaluated in
    evaluation mode and is afterwards in the mode it was in.

    Examples
    --------
    >>> model = nn.Linear(3, 3)
    >>> callback = PenaltyCallback(torch.ones(3), weight=0.1, probes=2)
    >>> callback.on_gradients(model, 0)
    >>> model.weight.grad is not None, sorted(callback.values)
    (True, [0])
    """

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        """A new callback; the one for Lightning where the program has imported Lightning."""
        if cls is PenaltyCallback and {"lightning.pytorch", "pytorch_lightning"} & set(sys.modules):
            from isometry.training.lightning import LightningPenalty

            return super().__new__(LightningPenalty)
        return super().__new__(cls)

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
