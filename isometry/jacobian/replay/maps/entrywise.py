"""Maps that act on each entry by itself: identity, multiple, diagonal, cast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .linear_map import LinearMap, UnfusedMap


@dataclass(frozen=True)
class Identity:
    """The same numbers, perhaps in another shape."""

    aliases = True

    def matmat(self, v: Tensor, overwrite: bool) -> Tensor:
        """``v`` itself."""
        return v

    rmatmat = matmat

    def then(self, after: LinearMap) -> LinearMap | None:
        """``after`` itself."""
        return after


@dataclass(frozen=True, eq=False)
class Multiple(UnfusedMap):
    """factor v."""

    factor: float

    def matmat(self, v: Tensor, overwrite: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return v.mul_(self.factor) if overwrite else v * self.factor

    rmatmat = matmat

    def then(self, after: LinearMap) -> LinearMap | None:
        """See :class:`LinearMap`."""
        if isinstance(after, Multiple):
            return Multiple(self.factor * after.factor)
        if isinstance(after, Diagonal):
            return Diagonal(self.factor * after.diagonal, after.shape)
        return None


class Diagonal(UnfusedMap):
    """d v, entry by entry; d may have size 1 along axes on which it does not change.

    Parameters
    ----------
    diagonal : Tensor
        d; broadcasts to ``shape``.
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
        self._block_shape = (-1, *self.shape[first:])

    def matmat(self, v: Tensor, overwrite: bool) -> Tensor:
        """See :class:`LinearMap`."""
        v = v.reshape(self._block_shape)
        # On a GPU it stays where it is: a captured graph reads it there.
        other = self.diagonal.stride() != v.stride()[1:] and self.diagonal.shape == v.shape[1:]
        if other and v.device.type == "cpu":
            # In the layout in which vectors come (channels last after a convolution): a product of two layouts is slow.
            self.diagonal = torch.empty_like(v[0]).copy_(self.diagonal)
        return v.mul_(self.diagonal) if overwrite else v * self.diagonal

    rmatmat = matmat

    def then(self, after: LinearMap) -> LinearMap | None:
        """See :class:`LinearMap`."""
        if isinstance(after, Multiple):
            return Diagonal(self.diagonal * after.factor, self.shape)
        if isinstance(after, Diagonal) and after.shape == self.shape:
            return Diagonal(self.diagonal * after.diagonal, self.shape)
        return None


def diagonal(values: Tensor, shape: Sequence[int]) -> LinearMap:
    """The cheapest map that multiplies by ``values``, which broadcast to ``shape``."""
    if values.numel() > 0:
        # Slopes rarely start and end with the same number; all are compared where they do.
        first, *_, last = values.reshape(-1)[:: max(values.numel() - 1, 1)].tolist() * 2
        if first == last and bool((values == first).all()):
            return Identity() if first == 1.0 else Multiple(first)
    return Diagonal(values.contiguous(), shape)
