"""Products with fixed matrices from either side, alone or in batches."""

from __future__ import annotations

import torch
from torch import Tensor

from .linear_map import UnfusedMap


class RightProduct(UnfusedMap):
    """v M of a value (rows, p) with a matrix M (p, q)."""

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix

    def matmat(self, v: Tensor, overwrite: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return v.reshape(-1, self._matrix.shape[0]) @ self._matrix

    def rmatmat(self, u: Tensor, overwrite: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return u.reshape(-1, self._matrix.shape[1]) @ self._matrix.T


class LeftProduct(UnfusedMap):
    """M v of a value (p, columns) with a matrix M (q, p): one matrix product for each probe."""

    def __init__(self, matrix: Tensor, columns: int) -> None:
        self._matrix, self._columns = matrix, columns

    def matmat(self, v: Tensor, overwrite: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return self._product(v, self._matrix)

    def rmatmat(self, u: Tensor, overwrite: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return self._product(u, self._matrix.T)

    def _product(self, v: Tensor, matrix: Tensor) -> Tensor:
        block = v.reshape(-1, matrix.shape[1], self._columns)
        return torch.bmm(matrix.expand(block.shape[0], -1, -1), block)


class _BatchedProduct(UnfusedMap):
    """Base of products with one matrix M_b for each element b of a batch; subclasses say from which side."""

    def __init__(self, matrices: Tensor, vectors: int) -> None:
        self._matrices, self._vectors = matrices, vectors

    def matmat(self, v: Tensor, overwrite: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return self._product(v, self._matrices)

    def rmatmat(self, u: Tensor, overwrite: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return self._product(u, self._matrices.transpose(1, 2))

    def _product(self, v: Tensor, matrices: Tensor) -> Tensor:
        raise NotImplementedError


class BatchedRightProduct(_BatchedProduct):
    """v_b M_b of a value (b, rows, p) with matrices M (b, p, q)."""

    def _product(self, v: Tensor, matrices: Tensor) -> Tensor:
        b, p, q = matrices.shape
        # The probes join the rows: one product for each b, whatever the number of probes.
        block = v.reshape(-1, b, self._vectors, p)
        probes = block.shape[0]
        rows = block.transpose(0, 1).reshape(b, probes * self._vectors, p)
        return torch.bmm(rows, matrices).view(b, probes, self._vectors, q).transpose(0, 1)


class BatchedLeftProduct(_BatchedProduct):
    """M_b v_b of a value (b, p, columns) with matrices M (b, q, p)."""

    def _product(self, v: Tensor, matrices: Tensor) -> Tensor:
        b, q, p = matrices.shape
        block = v.reshape(-1, b, p, self._vectors)
        probes = block.shape[0]
        columns = block.permute(1, 2, 0, 3).reshape(b, p, probes * self._vectors)
        return torch.bmm(matrices, columns).view(b, q, probes, self._vectors).permute(2, 0, 1, 3)
