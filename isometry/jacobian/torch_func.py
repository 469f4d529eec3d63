"""J v and J^T u of a function at a point by torch.func and autograd, in every combination, the fastest first.

J v is a forward-mode product (``torch.func.jvp``), J^T u a reverse-mode product (``torch.func.vjp``, its graph
kept between calls); ``vmap`` applies either to a whole block. Where an operation lacks what that needs, J v comes from
double backward (J^T u is linear in u, so its own reverse product is J v), probes go one at a time, or plain autograd
takes over, which knows what torch.func does not: custom functions in the old style, gradient checkpointing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from .numerics import forward_mode_turn

Function = Callable[[Tensor], Tensor]
Product = Callable[[Tensor], Tensor]
"""A block of vectors (k, ...) to a block of vectors."""


class Candidate(NamedTuple):
    """The warning where it is taken (None: none), a function that makes the product, and whether it takes blocks."""

    note: str | None
    make: Callable[[], Product]
    batched: bool


def rmatmat_candidates(function: Function, point: Tensor) -> list[Candidate]:
    """J^T u: (k, *output) -> (k, *input)."""

    def by_vjp() -> Product:
        product = vjp(function, point)[1]
        return lambda u: product(u)[0]

    def by_autograd() -> Product:
        z, value = _with_graph(function, point)
        return lambda u: _gradient(value, z, u)

    def by_batched_autograd() -> Product:
        z, value = _with_graph(function, point)
        return lambda u: _gradient(value, z, u, batched=True)

    return [
        Candidate(None, lambda: vmap(by_vjp()), True),
        Candidate("torch.func cannot differentiate this model: plain autograd", by_batched_autograd, True),
        Candidate(
            "vmap has no rule for the reverse pass of this model: probes go one at a time",
            lambda: _one_by_one(by_vjp()),
            False,
        ),
        Candidate(
            "torch.func cannot differentiate this model: plain autograd, one probe at a time",
            lambda: _one_by_one(by_autograd()),
            False,
        ),
    ]


def matmat_candidates(function: Function, point: Tensor, value: Tensor) -> list[Candidate]:
    """J v: (k, *input) -> (k, *output); ``value`` is function(point)."""

    def by_jvp() -> Product:
        def product(v: Tensor) -> Tensor:
            with forward_mode_turn():
                return jvp(function, (point,), (v,))[1]

        return product

    def by_double_vjp() -> Product:
        def transposed(u: Tensor) -> Tensor:
            return vjp(function, point)[1](u)[0]

        product = vjp(transposed, torch.zeros_like(value))[1]
        return lambda v: product(v)[0]

    def by_double_autograd() -> Product:
        z, out = _with_graph(function, point)
        with torch.enable_grad():
            u = torch.zeros_like(out, requires_grad=True)
            transposed = torch.autograd.grad(out, z, u, create_graph=True, materialize_grads=True)[0]
        return lambda v: _gradient(transposed, u, v)

    reason = "batched forward mode fails on an operation of this model: J v comes from double backward"
    single = "vmap has no rule for an operation of this model: probes go one at a time"
    return [
        Candidate(None, lambda: vmap(by_jvp()), True),
        Candidate(reason, lambda: vmap(by_double_vjp()), True),
        Candidate(single, lambda: _one_by_one(by_jvp()), False),
        Candidate(f"{reason}, one probe at a time", lambda: _one_by_one(by_double_vjp()), False),
        Candidate(
            f"{reason} by plain autograd, one probe at a time",
            lambda: _one_by_one(by_double_autograd()),
            False,
        ),
    ]


def _with_graph(function: Function, point: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        z = point.detach().clone().requires_grad_()
        value = function(z)
    if not value.requires_grad:
        raise RuntimeError(
            "the output is cut off from the input: autograd recorded no operation between them"
        )
    return z, value


def _gradient(value: Tensor, z: Tensor, u: Tensor, *, batched: bool = False) -> Tensor:
    if not value.requires_grad:
        raise RuntimeError("a derivative of this model has no derivative of its own")
    return torch.autograd.grad(
        value, z, u, retain_graph=True, materialize_grads=True, is_grads_batched=batched
    )[0]


def _one_by_one(product: Product) -> Product:
    return lambda block: torch.stack([product(vector) for vector in block])
