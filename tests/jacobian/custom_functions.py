"""Functions with derivatives of their own, right or wrong on purpose, as models bring them."""

from __future__ import annotations

import torch
from torch import Tensor


def sine(reverse: float = 1.0) -> type[torch.autograd.Function]:
    """sin, with a right derivative in forward mode and ``reverse`` times the right one in reverse mode.

    No operation of PyTorch's: products are those of torch.func.
    """

    class Sine(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(z: Tensor) -> Tensor:
            return z.sin()

        @staticmethod
        def setup_context(ctx, inputs, output) -> None:
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx, u: Tensor) -> Tensor:
            return reverse * ctx.saved_tensors[0].cos() * u

        @staticmethod
        def jvp(ctx, v: Tensor) -> Tensor:
            return ctx.saved_tensors[0].cos() * v

    return Sine
