"""What a linear map of one operation is: its two products on blocks of probes.

A block stands for (k, \\*S) where S is the shape of the value. It is kept in any shape of the same row-major order, and
each map asks for its own by ``reshape``: views cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class LinearMap(Protocol):
    """A matrix A, known by its products."""

    @property
    def aliases(self) -> bool:
        """Whether a product may share memory with the block it was given."""
        ...

    def matmat(self, v: Tensor, overwrite: bool) -> Tensor:
        """A v for a block, which may be written over with ``overwrite``."""
        ...

    def rmatmat(self, u: Tensor, overwrite: bool) -> Tensor:
        """A^T u for a block, which may be written over with ``overwrite``."""
        ...

    def then(self, after: LinearMap) -> LinearMap | None:
        """The product ``after`` A as one map where that is cheaper than two, else None."""
        ...


class UnfusedMap:
    """Base of maps whose products are new memory and which fuse with no other."""

    aliases = False

    def then(self, after: LinearMap) -> LinearMap | None:
        """None: see :class:`LinearMap`."""
        return None


def elements(shape: Sequence[int]) -> int:
    """The number of entries of a value of this shape."""
    return math.prod(shape)
