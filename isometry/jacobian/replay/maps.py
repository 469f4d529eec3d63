"""Linear maps of one operation, with their transposes, on blocks of probes.

A block stands for (k, \\*S) where S is the shape of the value; it is kept in any shape of the same row-major order, and
every map asks for its own by ``reshape``. So views cost nothing. With ``owned`` a map may write over what it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

Found = TypeVar("Found")


class LinearMap(Protocol):
    """A matrix A by its products."""

    @property
    def aliases(self) -> bool:
        """Whether a product may share memory with what it was given."""
        ...

    def push(self, v: Tensor, owned: bool) -> Tensor:
        """A v for a block."""
        ...

    def pull(self, u: Tensor, owned: bool) -> Tensor:
        """A^T u for a block."""
        ...

    def then(self, after: LinearMap) -> LinearMap | None:
        """The product ``after`` A as one map, where that is cheaper than two."""
        ...


class Plain:
    """What most maps share: their products are new memory, and they do not join with others."""

    aliases = False

    def then(self, after: LinearMap) -> LinearMap | None:
        """See :class:`LinearMap`."""
        return None


@dataclass(frozen=True)
class Identity:
    """The same numbers, perhaps in another shape."""

    aliases = True

    def push(self, v: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return v

    pull = push

    def then(self, after: LinearMap) -> LinearMap | None:
        """See :class:`LinearMap`."""
        return after


@dataclass(frozen=True, eq=False)
class Multiple(Plain):
    """factor v."""

    factor: float

    def push(self, v: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return v.mul_(self.factor) if owned else v * self.factor

    pull = push

    def then(self, after: LinearMap) -> LinearMap | None:
        """See :class:`LinearMap`."""
        if isinstance(after, Multiple):
            return Multiple(self.factor * after.factor)
        if isinstance(after, Diagonal):
            return Diagonal(self.factor * after.diagonal, after.shape)
        return None


class Diagonal(Plain):
    """d v, entry by entry; d may be smaller along axes on which it does not change.

    Parameters
    ----------
    diagonal : Tensor
        Broadcasts to ``shape``.
    shape : sequence of int
        Of the value.
    """

    def __init__(self, diagonal: Tensor, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        while diagonal.dim() > 0 and diagonal.dim() > len(self.shape):
            diagonal = diagonal[0]
        first = 0
        while first < len(self.shape) - 1 and self.shape[first] == 1:
            first += 1
        self.diagonal = diagonal.reshape(diagonal.shape[max(0, first - len(self.shape) + diagonal.dim()) :])
        self._work = (-1, *self.shape[first:])

    def push(self, v: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        v = v.reshape(self._work)
        # On a GPU it stays where it is: a captured graph reads it there.
        other = self.diagonal.stride() != v.stride()[1:] and self.diagonal.shape == v.shape[1:]
        if other and v.device.type == "cpu":
            # In the layout in which vectors come (channels last after a convolution): a product of two layouts is slow.
            self.diagonal = torch.empty_like(v[0]).copy_(self.diagonal)
        return v.mul_(self.diagonal) if owned else v * self.diagonal

    pull = push

    def then(self, after: LinearMap) -> LinearMap | None:
        """See :class:`LinearMap`."""
        if isinstance(after, Multiple):
            return Diagonal(self.diagonal * after.factor, self.shape)
        if isinstance(after, Diagonal) and after.shape == self.shape:
            return Diagonal(self.diagonal * after.diagonal, self.shape)
        return None


class Broadcast(Plain):
    """A value repeated along axes to a larger shape, as NumPy's rules do."""

    aliases = True

    def __init__(self, shape: Sequence[int], to: Sequence[int]) -> None:
        self._from = (-1, *[1] * (len(to) - len(shape)), *shape)
        self._to = tuple(to)
        self._summed = tuple(
            axis for axis, (a, b) in enumerate(zip(self._from[1:], to, strict=True), 1) if a != b
        )

    def push(self, v: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return v.reshape(self._from).expand(-1, *self._to)

    def pull(self, u: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return u.reshape(-1, *self._to).sum(self._summed)


class Sum(Plain):
    """Sums over axes."""

    def __init__(self, shape: Sequence[int], axes: Sequence[int]) -> None:
        self._shape = tuple(shape)
        self._axes = tuple(axis + 1 for axis in axes)
        self._kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))

    def push(self, v: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return v.reshape(-1, *self._shape).sum(self._axes)

    def pull(self, u: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        # Memory of its own: an expanded view can not be written over.
        return (
            u.reshape(-1, *self._kept).expand(-1, *self._shape).clone(memory_format=torch.contiguous_format)
        )


class Gather(Plain):
    """Every entry of the result is one entry of the source, or zero: w_j = v_{index[j]}, index -1 for zero.

    Parameters
    ----------
    index : Tensor
        (m,) int64.
    size : int
        Entries n of the source.
    """

    def __init__(self, index: Tensor, size: int) -> None:
        self.index, self.size = index.reshape(-1), size
        # What convolutions work out from it (the padding that it is, indices), once for all layers that share it.
        self.worked_out: dict[Any, Any] = {}

    def once(self, key: Any, work: Callable[[], Found]) -> Found:
        """What ``work`` gives, from the first time that it was asked for under this key."""
        if key not in self.worked_out:
            self.worked_out[key] = work()
        return self.worked_out[key]

    @property
    def is_identity(self) -> bool:
        """Whether nothing moves."""
        return self.index.numel() == self.size and bool(
            (self.index == torch.arange(self.size, device=self.index.device)).all()
        )

    def push(self, v: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return self._forward(v.reshape(-1, self.size))

    def pull(self, u: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return self._reverse(u.reshape(-1, self.index.numel()))

    @cached_property
    def _forward(self) -> _Selection:
        return _Selection(self.index)

    @cached_property
    def _reverse(self) -> _Selection | _Addition:
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
    """Columns of a (k, m) block added up where the index says; columns with index -1 are left out.

    On a GPU, columns that go to the same place are added one after another, so that sums repeat bit for bit.
    """

    def __init__(self, index: Tensor, taken: Tensor, size: int) -> None:
        self._size = size
        places = index[taken]
        if index.device.type == "cpu":
            turns = [taken]
        else:
            sorted_places, order = places.sort(stable=True)
            first = torch.searchsorted(sorted_places, sorted_places)
            rank = torch.arange(places.numel(), device=index.device) - first
            turns = [taken[order[rank == r]] for r in range(int(rank.max()) + 1 if rank.numel() else 0)]
        self._turns = [(turn if turn.numel() < index.numel() else None, index[turn]) for turn in turns]

    def __call__(self, u: Tensor) -> Tensor:
        out = u.new_zeros((u.shape[0], self._size))
        for columns, places in self._turns:
            part = u if columns is None else u.index_select(1, columns)
            out.scatter_add_(1, places.expand(u.shape[0], -1), part)
        return out


def broadcast(shape: Sequence[int], to: Sequence[int]) -> LinearMap:
    """A value of one shape as a value of another that it broadcasts to."""
    return Identity() if elements(shape) == elements(to) else Broadcast(shape, to)


def gather(index: Tensor, size: int) -> LinearMap:
    """The gather of an index, or the identity where that is what it is."""
    made = Gather(index, size)
    return Identity() if made.is_identity else made


def diagonal(values: Tensor, shape: Sequence[int]) -> LinearMap:
    """The cheapest map that multiplies by ``values``, which broadcast to ``shape``."""
    if values.numel() > 0:
        # Slopes rarely start and end with the same number; all are looked at where they do.
        first, *_, last = values.reshape(-1)[:: max(values.numel() - 1, 1)].tolist() * 2
        if first == last and bool((values == first).all()):
            return Identity() if first == 1.0 else Multiple(first)
    return Diagonal(values.contiguous(), shape)


class Cast:
    """Another precision."""

    aliases = True

    def __init__(self, source: torch.dtype, result: torch.dtype) -> None:
        self._source, self._result = source, result

    def push(self, v: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return v.to(self._result)

    def pull(self, u: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return u.to(self._source)

    def then(self, after: LinearMap) -> LinearMap | None:
        """See :class:`LinearMap`."""
        return None


def elements(shape: Sequence[int]) -> int:
    """How many entries a value of this shape has."""
    return math.prod(shape)
