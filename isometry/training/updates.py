"""One update of the weights, in the units of the network. Internal.

A bias b and the first layer of a network at signal variance q* are of size sqrt(q*), and the loss depends on
b / sqrt(q*); at q* = 1/depth their gradient is therefore sqrt(depth) times that of an orthogonal weight, and would
dominate plain gradient descent at depth 10,000. With ``signal_units`` (the default) such a parameter
theta = sqrt(q*) u is stepped through u: grad u = sqrt(q*) grad theta. Gradient norms are then those of u too, grow as
sqrt(depth), and the number of steps hardly depends on depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from isometry.errors import InputError
from isometry.training.options import OPTIMIZERS, TrainingOptions


def signal_scales(model: nn.Module) -> dict[str, float]:
    """Units, by parameter name, of the parameters whose natural size is that of the signal, sqrt(q*).

    They are the biases of stem and trunk, and the weight of the stem's first layer, which turns images of mean square
    1 into pre-activations of variance q*. Empty for a model without a positive ``q_star``.
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


def make_optimizer(
    model: nn.Module, parameters: Sequence[Tensor], options: TrainingOptions
) -> tuple[torch.optim.Optimizer, list[tuple[list[Tensor], float]]]:
    """Optimizer with one group for each unit; its step size is group["unit"] times the learning rate."""
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
    optimizer = getattr(torch.optim, OPTIMIZERS[options.optimizer])(groups, **arguments)
    return optimizer, [(members, unit) for unit, members in by_unit.items() if unit != 1.0]


def make_update(
    model: nn.Module,
    parameters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    scales: Sequence[tuple[list[Tensor], float]],
    options: TrainingOptions,
    on_gradients: Callable[[], None] | None = None,
) -> Callable[[Tensor, Tensor, float], tuple[float, float, float]]:
    """Function of (images, labels, learning rate): one update; returns loss, number right and gradient norm.

    ``on_gradients`` is called when the gradients of the loss are there, and may add to them.
    """
    if on_gradients is not None and options.cuda_graph:
        raise InputError(
            "cuda_graph= replays a fixed step: callbacks that add to gradients need cuda_graph=False."
        )

    def differentiate(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = model(images)
        loss = functional.cross_entropy(logits, labels)
        loss.backward()
        if on_gradients is not None:
            on_gradients()
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
            # A NaN step would destroy the weights.
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
            ):  # Libraries select kernels and allocate in the first calls, which must not be captured.
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
