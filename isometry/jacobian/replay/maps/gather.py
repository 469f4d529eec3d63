"""Gathers: maps each of whose results is one entry of the source, or zero."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from .entrywise import Identity
from .linear_map import LinearMap, UnfusedMap

_T = TypeVar("_T")


class Gather(UnfusedMap):
    """w_j = v_{index[j]}, with index -1 for zero.

    Parameters
    ----------
    index : Tensor
        (m,) int64.
    size : int
        Entries n of the source.
    """

    def __init__(self, index: Tensor, size: int) -> None:
        self.index, self.size = index.reshape(-1), size
        self._cache: dict[Any, Any] = {}

    def cached(self, key: Any, compute: Callable[[], _T]) -> _T:
        """The result of ``compute`` for this key, computed once for all layers that share the gather."""
        if key not in self._cache:
            self._cache[key] = compute()
        return self._cache[key]

    @property
    def is_identity(self) -> bool:
        """Whether every entry stays in its place."""
        return self.index.numel() == self.size and bool(
            (self.index == torch.arange(self.size, device=self.index.device)).all()
        )

    def matmat(self, v: Tensor, overwrite: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return self._select(v.reshape(-1, self.size))

    def rmatmat(self, u: Tensor, overwrite: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return self._transpose(u.reshape(-1, self.index.numel()))

    @cached_property
    def _select(self) -> _Selection:
        return _Selection(self.index)

    @cached_property
    def _transpose(self) -> _Selection | _Addition:
        taken = torch.nonzero(self.index >= 0).reshape(-1)
        if taken.numel() == self.size:
            inverse = self.index.new_full((self.size,), -1)
            inverse[self.index[taken]] = taken
            if not bool((inverse < 0).any()):
                return _Selection(inverse)
        return _Addition(self.index, taken, self.size)

    def then(self, after: LinearMap) -> LinearMap | None:
        """See :class:`LinearMap`."""
        if isinstance(after, Gather):
            padded = torch.cat([self.index, self.index.new_full((1,), -1)])
            return gather(padded[after.index], self.size)
        return None


class Scatter(UnfusedMap):
    """w_{index[i]} += v_i, index -1 leaving out: the transpose of a gather.

    Parameters
    ----------
    index : Tensor
        (n,) int64, of places in the result.
    size : int
        Entries m of the result.
    """

    def __init__(self, index: Tensor, size: int) -> None:
        self._transpose = Gather(index, size)

    def matmat(self, v: Tensor, overwrite: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return self._transpose.rmatmat(v, overwrite)

    def rmatmat(self, u: Tensor, overwrite: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return self._transpose.matmat(u, overwrite)


class _Selection:
    """Columns of a (k, n) block, or zero where the index is -1."""

    def __init__(self, index: Tensor) -> None:
        self._index = index.clamp(min=0).to(torch.int32)
        taken = index >= 0
        self._mask = None if bool(taken.all()) else taken

    def __call__(self, v: Tensor) -> Tensor:
        out = v.index_select(1, self._index)
        return out if self._mask is None else out.mul_(self._mask)


class _Addition:
    """Columns of a (k, m) block added to the places of an index; columns with index -1 are left out.

    On a GPU, columns that go to the same place are added one after another, so that sums repeat bit for bit.
    """

    def __init__(self, index: Tensor, taken: Tensor, size: int) -> None:
        self._size = size
        places = index[taken]
        if index.device.type == "cpu":
            rounds = [taken]
        else:
            sorted_places, order = places.sort(stable=True)
            first = torch.searchsorted(sorted_places, sorted_places)
            rank = torch.arange(places.numel(), device=index.device) - first
            rounds = [taken[order[rank == r]] for r in range(int(rank.max()) + 1 if rank.numel() else 0)]
        self._rounds = [
            (columns if columns.numel() < index.numel() else None, index[columns]) for columns in rounds
        ]

    def __call__(self, u: Tensor) -> Tensor:
        out = u.new_zeros((u.shape[0], self._size))
        for columns, places in self._rounds:
            part = u if columns is None else u.index_select(1, columns)
            out.scatter_add_(1, places.expand(u.shape[0], -1), part)
        return out


def gather(index: Tensor, size: int) -> LinearMap:
    """The gather of an index, or the identity where nothing moves."""
    made = Gather(index, size)
    return Identity() if made.is_identity else made
