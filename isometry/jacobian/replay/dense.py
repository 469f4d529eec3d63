"""Matrix products, normalisations, softmax and pooling as linear maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .maps import Plain


class RightProduct(Plain):
    """v M of a value (rows, p) with a matrix M (p, q)."""

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix

    def push(self, v: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return v.reshape(-1, self._matrix.shape[0]) @ self._matrix

    def pull(self, u: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return u.reshape(-1, self._matrix.shape[1]) @ self._matrix.T


class LeftProduct(Plain):
    """M v of a value (p, columns) with a matrix M (q, p): one product of matrices for each probe."""

    def __init__(self, matrix: Tensor, columns: int) -> None:
        self._matrix, self._columns = matrix, columns

    def push(self, v: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return self._product(v, self._matrix)

    def pull(self, u: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return self._product(u, self._matrix.T)

    def _product(self, v: Tensor, matrix: Tensor) -> Tensor:
        block = v.reshape(-1, matrix.shape[1], self._columns)
        return torch.bmm(matrix.expand(block.shape[0], -1, -1), block)


class BatchedRight(Plain):
    """v_b M_b of a value (b, rows, p) with matrices M (b, p, q)."""

    def __init__(self, matrices: Tensor, rows: int) -> None:
        self._matrices, self._rows = matrices, rows

    def push(self, v: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return self._product(v, self._matrices)

    def pull(self, u: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return self._product(u, self._matrices.transpose(1, 2))

    def _product(self, v: Tensor, matrices: Tensor) -> Tensor:
        b, p, q = matrices.shape
        # The probes join the rows: one product for each b, whatever the number of probes.
        block = v.reshape(-1, b, self._rows, p)
        probes = block.shape[0]
        rows = block.transpose(0, 1).reshape(b, probes * self._rows, p)
        return torch.bmm(rows, matrices).view(b, probes, self._rows, q).transpose(0, 1)


class BatchedLeft(Plain):
    """M_b v_b of a value (b, p, columns) with matrices M (b, q, p)."""

    def __init__(self, matrices: Tensor, columns: int) -> None:
        self._matrices, self._columns = matrices, columns

    def push(self, v: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return self._product(v, self._matrices)

    def pull(self, u: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return self._product(u, self._matrices.transpose(1, 2))

    def _product(self, v: Tensor, matrices: Tensor) -> Tensor:
        b, q, p = matrices.shape
        block = v.reshape(-1, b, p, self._columns)
        probes = block.shape[0]
        columns = block.permute(1, 2, 0, 3).reshape(b, p, probes * self._columns)
        return torch.bmm(matrices, columns).view(b, q, probes, self._columns).permute(2, 0, 1, 3)


class Softmax(Plain):
    """p (v - sum p v) along one axis, p = softmax; symmetric."""

    def __init__(self, probabilities: Tensor, axis: int) -> None:
        self._p, self._axis = probabilities, axis + 1

    def push(self, v: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        scaled = v.reshape(-1, *self._p.shape) * self._p
        return scaled.sub_(self._p * scaled.sum(self._axis, keepdim=True))

    pull = push


class LogSoftmax(Plain):
    """v - sum p v along one axis, p = softmax; transposed u - p sum u."""

    def __init__(self, probabilities: Tensor, axis: int) -> None:
        self._p, self._axis = probabilities, axis + 1

    def push(self, v: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        v = v.reshape(-1, *self._p.shape)
        return v - (v * self._p).sum(self._axis, keepdim=True)

    def pull(self, u: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        u = u.reshape(-1, *self._p.shape)
        return u - self._p * u.sum(self._axis, keepdim=True)


class Standardise(Plain):
    """(v - mean v - z mean(z v)) / s: the derivative of z = (x - mean x) / s over some axes; symmetric."""

    def __init__(self, standardised: Tensor, inverse_scale: Tensor, axes: Sequence[int]) -> None:
        self._z, self._inverse = standardised, inverse_scale
        self._axes = tuple(axis + 1 for axis in axes)

    def push(self, v: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        v = v.reshape(-1, *self._z.shape)
        out = v - v.mean(self._axes, keepdim=True)
        out.sub_(self._z * (v * self._z).mean(self._axes, keepdim=True))
        return out.mul_(self._inverse)

    pull = push


class Folded(Plain):
    """A linear operation on (batch, ...), which takes probes as further samples of its batch, and its backward one."""

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        backward: Callable[[Tensor, tuple[int, ...]], Tensor],
        source: Sequence[int],
        result: Sequence[int],
    ) -> None:
        self._forward, self._backward = forward, backward
        self._source, self._result = tuple(source), tuple(result)

    def push(self, v: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return self._forward(v.reshape(-1, *self._source))

    def pull(self, u: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        u = u.reshape(-1, *self._result)
        return self._backward(u, (u.shape[0], *self._source))


class Cumulative(Plain):
    """Running sums along one axis."""

    def __init__(self, shape: Sequence[int], axis: int) -> None:
        self._shape, self._axis = tuple(shape), axis + 1

    def push(self, v: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return v.reshape(-1, *self._shape).cumsum(self._axis)

    def pull(self, u: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return u.reshape(-1, *self._shape).flip(self._axis).cumsum(self._axis).flip(self._axis)
