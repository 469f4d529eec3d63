"""Repeating a value along axes, and its transpose, summing over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .entrywise import Identity
from .linear_map import LinearMap, UnfusedMap, elements


class Broadcast(UnfusedMap):
    """A value repeated along axes to a larger shape, by NumPy's rules."""

    aliases = True

    def __init__(self, shape: Sequence[int], to: Sequence[int]) -> None:
        self._from = (-1, *[1] * (len(to) - len(shape)), *shape)
        self._to = tuple(to)
        self._summed = tuple(
            axis for axis, (a, b) in enumerate(zip(self._from[1:], to, strict=True), 1) if a != b
        )

    def matmat(self, v: Tensor, overwrite: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return v.reshape(self._from).expand(-1, *self._to)

    def rmatmat(self, u: Tensor, overwrite: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return u.reshape(-1, *self._to).sum(self._summed)


class Sum(UnfusedMap):
    """Sums over axes."""

    def __init__(self, shape: Sequence[int], axes: Sequence[int]) -> None:
        self._shape = tuple(shape)
        self._axes = tuple(axis + 1 for axis in axes)
        self._summed_shape = tuple(1 if axis in axes else size for axis, size in enumerate(shape))

    def matmat(self, v: Tensor, overwrite: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return v.reshape(-1, *self._shape).sum(self._axes)

    def rmatmat(self, u: Tensor, overwrite: bool) -> Tensor:
        """See :class:`LinearMap`."""
        # Memory of its own: an expanded view cannot be written over.
        return (
            u.reshape(-1, *self._summed_shape)
            .expand(-1, *self._shape)
            .clone(memory_format=torch.contiguous_format)
        )


def broadcast(shape: Sequence[int], to: Sequence[int]) -> LinearMap:
    """The map from a value of one shape to the value of another that it broadcasts to."""
    return Identity() if elements(shape) == elements(to) else Broadcast(shape, to)
