"""Models and outputs without a Jacobian worth measuring are refused, with a message that names the cause."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from isometry.errors import ModelError, NonFiniteError

from .perturbation import TIMES_SENSITIVITY, length_of_difference
from .rounding import length


def refuse_training_mode(module: nn.Module | None) -> None:
    """Raise ModelError where a module in training mode is random or couples samples: it has no one Jacobian."""
    if module is None:
        return
    for name, part in module.named_modules():
        if not getattr(part, "training", False):
            continue
        where = f"module {name!r} ({type(part).__name__})"
        if isinstance(part, _NormBase) and (part.track_running_stats or "Batch" in type(part).__name__):
            raise ModelError(
                f"{where} is in training mode: its statistics couple the samples of a batch and it changes its buffers "
                "as it runs. Call model.eval() before measuring"
            )
        if isinstance(part, _DropoutNd) and part.p > 0:
            raise ModelError(
                f"{where} is in training mode: it draws a new mask at every call, so J v and J^T u would belong to "
                "different matrices. Call model.eval() before measuring"
            )
        if isinstance(part, nn.RReLU):
            raise ModelError(
                f"{where} is in training mode: it draws new slopes. Call model.eval() before measuring"
            )
        if isinstance(part, nn.RNNBase) and part.dropout > 0 and part.num_layers > 1:
            raise ModelError(f"{where} is in training mode with dropout. Call model.eval() before measuring")
        if isinstance(part, nn.MultiheadAttention) and part.dropout > 0:
            raise ModelError(f"{where} is in training mode with dropout. Call model.eval() before measuring")


def refuse_nonfinite_output(value: Tensor, module: nn.Module | None, run: Callable[[], object]) -> None:
    """Raise NonFiniteError where the output holds NaN or inf, naming the first module with one in another ``run``."""
    if bool(torch.isfinite(value).all()):
        return
    first: list[str] = []
    handles = []

    def watcher(name: str) -> Callable[[nn.Module, object, object], None]:
        def watch(part: nn.Module, _: object, out: object) -> None:
            if not first and isinstance(out, Tensor) and not bool(torch.isfinite(out).all()):
                first.append(
                    f"{name!r} ({type(part).__name__})" if name else f"the {type(part).__name__} itself"
                )

        return watch

    if module is not None:
        for name, part in module.named_modules():
            handles.append(part.register_forward_hook(watcher(name)))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    where = f"; the first module that makes one is {first[0]}" if first else ""
    raise NonFiniteError(
        f"the model's output holds NaN or inf{where}. Check the weights and the scale of the input, or measure in "
        "float64 (dtype=torch.float64)"
    )


def refuse_random(first: Tensor, second: Tensor, sensitivity: Callable[[], float], *, draws: bool) -> None:
    """Raise ModelError where two evaluations at one point differ by more than rounding.

    Another order of summation, which a kernel may choose as it runs, moves the output by some multiples of its
    sensitivity to rounding; more than that is not rounding.

    Parameters
    ----------
    first, second : Tensor
    sensitivity : callable
        By how much rounding moves the output, in the norm; called only where the two differ.
    draws : bool
        Whether the model draws random numbers. A deep network may amplify rounding to the size of the output; where
        it draws, that is no excuse.
    """
    if torch.equal(first, second):
        return
    difference, size, allowed = math.inf, length(first), 0.0
    if first.shape == second.shape and torch.equal(torch.isfinite(first), torch.isfinite(second)):
        difference = length_of_difference(first, second)
        moved = torch.finfo(first.dtype).eps * size if draws else sensitivity()
        allowed = TIMES_SENSITIVITY * moved
    if difference <= allowed:
        return
    size = size or 1.0
    cause = (
        "it draws random numbers (dropout by function, sampling, noise)"
        if draws
        else "it keeps a state from one call to the next, or draws random numbers (sampling, noise)"
    )
    raise ModelError(
        f"two evaluations of the model at the same input differ by {difference / size:.1e} of the output, and rounding "
        f"explains {allowed / size:.1e} at most: {cause}. Call model.eval(), or fix what it draws, before measuring"
    )
