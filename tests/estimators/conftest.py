"""Matrices with chosen singular values, and the measure that a probe sees of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class Known:
    """A = U diag(chosen) V^T with Haar U and V, rounded to its dtype; all descending, zeros included.

    ``s`` are the singular values of the rounded matrix: the truth. They differ from the chosen ones by rounding.
    """

    a: Tensor
    u: Tensor
    v: Tensor
    chosen: np.ndarray
    s: np.ndarray

    @property
    def short_vectors(self) -> Tensor:
        """Singular vectors on the shorter side, where probes start."""
        return self.v if self.a.shape[0] >= self.a.shape[1] else self.u


def orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float64, generator=generator))
    return q * torch.sign(torch.diagonal(r))


@pytest.fixture(scope="session")
def known() -> Callable[..., Known]:
    """(singular values, shape, dtype, seed) -> a matrix with these singular values, to rounding."""

    def build(
        s: np.ndarray,
        shape: tuple[int, int] | None = None,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
    ) -> Known:
        s = np.asarray(-np.sort(-np.asarray(s, float)))
        m, n = shape or (s.size, s.size)
        generator = torch.Generator().manual_seed(seed)
        u, v = orthonormal(m, s.size, generator), orthonormal(n, s.size, generator)
        a = (u * torch.from_numpy(s) @ v.T).to(dtype)
        # Scaled, because a dense SVD of a matrix of size 1e-200 would underflow.
        scale = s[0] or 1.0
        return Known(a, u, v, s, np.linalg.svd(a.double().numpy() / scale, compute_uv=False) * scale)

    return build
