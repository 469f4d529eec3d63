"""What must hold before a Jacobian is worth measuring, and the message where it does not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from isometry.errors import ModelError, NonFiniteError


def refuse_training_mode(module: nn.Module | None) -> None:
    """Raise where a module behaves differently in training mode than any one Jacobian can express."""
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
    """Raise where the output holds NaN or inf, naming the first module that made one."""
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
    """Raise where two evaluations at one point differ."""
    if not torch.equal(first, second):
        raise ModelError(
            "two evaluations of the model at the same input differ: it draws random numbers (dropout by function, "
            "sampling, noise) or keeps a state. Call model.eval(), or fix what it draws, before measuring"
        )


def refuse_coupled_samples(product: Callable[[Tensor], Tensor], point: Tensor, seed: int = 0) -> None:
    """Raise where a tangent in some samples of a batch moves the outputs of others.

    Parameters
    ----------
    product : callable
        Tangents (1, B, *input_shape) -> (1, B, *output_shape).
    point : (B, *input_shape) tensor
    """
    size = point.shape[0]
    if size < 2:
        return
    generator = torch.Generator().manual_seed(seed)
    tangent = torch.randn(point.shape, generator=generator, dtype=torch.float64).to(point)
    number = torch.arange(size, device=point.device)
    # Any two samples differ in some binary digit of their numbers, so that one mask moves one and not the other.
    digits = [(number >> digit) & 1 == 1 for digit in range((size - 1).bit_length())]
    for moved in (side for chosen in digits for side in (chosen, ~chosen)):
        mask = moved.reshape(-1, *[1] * (point.dim() - 1))
        out = product((tangent * mask)[None])[0]
        if bool((out[~moved] != 0).any()):
            raise ModelError(
                "the model couples the samples of a batch (a change in one moves the output of another), so no sample "
                "has a Jacobian of its own. Call model.eval() if batch statistics do it; or leave batched=True out "
                "to measure the one big Jacobian of the whole batch"
            )
