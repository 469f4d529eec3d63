"""J v and J^T u of a function at a point, by every backend PyTorch has, the fastest first.

J v is a forward-mode product (``torch.func.jvp``), J^T u a reverse-mode product (``torch.func.vjp``, its graph
kept between calls); ``vmap`` applies either to a whole block. Where an operation lacks what that needs, J v comes from
double backward (J^T u is linear in u, so its own reverse product is J v), probes go one at a time, or plain autograd
takes over, which knows what torch.func does not: custom functions in the old style, gradient checkpointing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

Function = Callable[[Tensor], Tensor]
Product = Callable[[Tensor], Tensor]
"""A block of vectors (k, ...) to a block of vectors."""
Backends = list[tuple[str | None, Callable[[], Product]]]
"""The warning where this backend is taken (None: none), and what makes the product."""


def reverse_backends(function: Function, point: Tensor) -> Backends:
    """J^T u: (k, *output) -> (k, *input)."""

    def graph() -> Product:
        pull = vjp(function, point)[1]
        return lambda u: pull(u)[0]

    def recorded() -> Product:
        z, value = _recorded(function, point)
        return lambda u: _pulled(value, z, u)

    return [
        (None, lambda: vmap(graph())),
        (
            "vmap has no rule for the reverse pass of this model: probes go one at a time",
            lambda: _loop(graph()),
        ),
        (
            "torch.func cannot differentiate this model: plain autograd, one probe at a time",
            lambda: _loop(recorded()),
        ),
    ]


def forward_backends(function: Function, point: Tensor, value: Tensor) -> Backends:
    """J v: (k, *input) -> (k, *output); ``value`` is function(point)."""

    def push() -> Product:
        return lambda v: jvp(function, (point,), (v,))[1]

    def double() -> Product:
        def transposed(u: Tensor) -> Tensor:
            return vjp(function, point)[1](u)[0]

        pull = vjp(transposed, torch.zeros_like(value))[1]
        return lambda v: pull(v)[0]

    def recorded_twice() -> Product:
        z, out = _recorded(function, point)
        with torch.enable_grad():
            u = torch.zeros_like(out, requires_grad=True)
            transposed = torch.autograd.grad(out, z, u, create_graph=True, materialize_grads=True)[0]
        return lambda v: _pulled(transposed, u, v)

    reason = "batched forward mode fails on an operation of this model: J v comes from double backward"
    single = "vmap has no rule for an operation of this model: probes go one at a time"
    return [
        (None, lambda: vmap(push())),
        (reason, lambda: vmap(double())),
        (single, lambda: _loop(push())),
        (f"{reason}, one probe at a time", lambda: _loop(double())),
        (f"{reason} by plain autograd, one probe at a time", lambda: _loop(recorded_twice())),
    ]


def _recorded(function: Function, point: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        z = point.detach().clone().requires_grad_()
        value = function(z)
    if not value.requires_grad:
        raise RuntimeError(
            "the output is cut off from the input: autograd recorded no operation between them"
        )
    return z, value


def _pulled(value: Tensor, z: Tensor, u: Tensor) -> Tensor:
    if not value.requires_grad:
        raise RuntimeError("a derivative of this model has no derivative of its own")
    return torch.autograd.grad(value, z, u, retain_graph=True, materialize_grads=True)[0]


def _loop(product: Product) -> Product:
    return lambda block: torch.stack([product(vector) for vector in block])
