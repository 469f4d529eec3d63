"""The reference: J row by row, by plain autograd alone, without torch.func, vmap or forward mode."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

Dense = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


@pytest.fixture(scope="session")
def dense_jacobian() -> Dense:
    """(function, x) -> dy/dx as an (m, n) matrix."""

    def build(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        x = x.detach().clone().requires_grad_()
        y = function(x).reshape(-1)
        rows = [torch.autograd.grad(y[i], x, retain_graph=True)[0].reshape(-1) for i in range(y.numel())]
        return torch.stack(rows).detach()

    return build
