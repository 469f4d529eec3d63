"""Models and outputs without a Jacobian worth measuring are refused, with a message that names the cause."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from isometry.errors import ModelError, NonFiniteError


def refuse_training_mode(module: nn.Module | None) -> None:
    """Raise ModelError where a module in training mode is random or couples samples: it has no one Jacobian."""
    if module is None:
        return
    for name, part in module.named_modules():
        if not part.training:
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


def refuse_random(first: Tensor, second: Tensor) -> None:
    """Raise ModelError where two evaluations at one point differ in any bit."""
    if not torch.equal(first, second):
        raise ModelError(
            "two evaluations of the model at the same input differ: it draws random numbers (dropout by function, "
            "sampling, noise) or keeps a state. Call model.eval(), or fix what it draws, before measuring"
        )
