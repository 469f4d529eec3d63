"""An explicit matrix behind the operator's interface: what the estimators are tested on."""

from __future__ import annotations

import torch
from torch import Tensor

from isometry.errors import InputError


class MatrixOperator:
    """The matrix ``A`` (m, n), or one matrix for each of a batch (B, m, n).

    Attributes are those of :class:`JacobianOperator`: shape, input_shape, output_shape, batch, products.
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.dim() not in (2, 3) or 0 in matrix.shape:
            raise InputError(f"a matrix is (m, n) or (B, m, n) and not empty; got {tuple(matrix.shape)}")
        self.matrix = matrix
        self.batch: int | None = matrix.shape[0] if matrix.dim() == 3 else None
        self.shape = (int(matrix.shape[-2]), int(matrix.shape[-1]))
        self.input_shape, self.output_shape = torch.Size([self.shape[1]]), torch.Size([self.shape[0]])
        self.dtype, self.device = matrix.dtype, matrix.device
        self.products = 0

    def matmat(self, vectors: Tensor) -> Tensor:
        """A v: (k, [B,] n) -> (k, [B,] m)."""
        self.products += vectors.shape[0] * (self.batch or 1)
        return torch.einsum("...mn,k...n->k...m", self.matrix, vectors)

    def rmatmat(self, vectors: Tensor) -> Tensor:
        """A^T u: (k, [B,] m) -> (k, [B,] n)."""
        self.products += vectors.shape[0] * (self.batch or 1)
        return torch.einsum("...mn,k...m->k...n", self.matrix, vectors)
