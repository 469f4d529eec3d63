"""Which gathers pad the maps of a convolution, by zeros or circularly, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .gather import Gather
from .linear_map import elements


@dataclass(frozen=True, eq=False)
class Padding:
    """A padding of maps (c, *size).

    Parameters
    ----------
    kind : "zeros" or "circular"
    extents : tuple of (int, int)
        Positions added before and after each axis.
    size : tuple of int
        Of the maps before padding.
    gather : Gather
        The padding of a single sample.
    """

    kind: Literal["zeros", "circular"]
    extents: tuple[tuple[int, int], ...]
    size: tuple[int, ...]
    gather: Gather


def padding_of(gather: Gather, padded: tuple[int, ...]) -> Padding | None:
    """The padding to maps (c, *size) that a gather is, or None; found once for all layers that share the gather."""

    def find() -> Padding | None:
        one = _of_one_sample(gather, elements(padded))
        if one is None or one.index.numel() != elements(padded) or one.size % padded[0]:
            return None
        index = one.index.reshape(padded)
        return _circular(one, index) if bool((index[0] >= 0).all()) else _zeros(one, index)

    return gather.cached(("padding", padded), find)


def circular_start(gather: Gather, padded: tuple[int, ...], size: tuple[int, ...]) -> tuple[int, ...]:
    """How many positions a circular padding puts before the first, along each axis."""
    extents = gather.cached(("extents", padded, size), lambda: _circular_extents(gather, padded, size))
    return tuple(before for before, _ in extents)


def unravel(flat: int, shape: Sequence[int]) -> tuple[int, ...]:
    """The index along each axis of a row-major position."""
    out: list[int] = []
    for size in reversed(shape):
        out.append(flat % size)
        flat //= size
    return tuple(reversed(out))


def _of_one_sample(gather: Gather, padded: int) -> Gather | None:
    """The gather of one sample where that of a batch does the same to each."""
    samples = gather.index.numel() // padded
    if samples * padded != gather.index.numel() or samples == 0 or gather.size % samples:
        return None
    if samples == 1:
        return gather
    size = gather.size // samples
    index = gather.index.view(samples, padded)
    offset = size * torch.arange(samples, device=index.device)[:, None]
    same = torch.where(index[0] >= 0, index[0] + offset, -1)
    return Gather(index[0].clone(), size) if torch.equal(same, index) else None


def _circular(gather: Gather, index: Tensor) -> Padding | None:
    padded = tuple(index.shape)
    size = _size_of_circle(index[0], gather.size // padded[0])
    if size is None:
        return None
    extents = _circular_extents(gather, padded, size)
    if any(before < 0 or after < 0 for before, after in extents):
        return None
    expected = torch.arange(gather.size, device=index.device).reshape(padded[0], *size)
    for axis, ((before, after), n) in enumerate(zip(extents, size, strict=True)):
        expected = expected.index_select(1 + axis, torch.arange(-before, n + after, device=index.device) % n)
    return Padding("circular", extents, size, gather) if torch.equal(expected, index) else None


def _zeros(gather: Gather, index: Tensor) -> Padding | None:
    padded = tuple(index.shape)
    inside = torch.nonzero(index[0] >= 0)
    if inside.numel() == 0:
        return None
    low, high = inside.min(0).values.tolist(), inside.max(0).values.tolist()
    size = tuple(b - a + 1 for a, b in zip(low, high, strict=True))
    if elements(size) != gather.size // padded[0]:
        return None
    expected = index.new_full(padded, -1)
    block = tuple(slice(a, b + 1) for a, b in zip([0, *low], [padded[0] - 1, *high], strict=True))
    expected[block] = torch.arange(gather.size, device=index.device).reshape(padded[0], *size)
    if not torch.equal(expected, index):
        return None
    extents = tuple((a, n - 1 - b) for a, b, n in zip(low, high, padded[1:], strict=True))
    return Padding("zeros", extents, size, gather)


def _circular_extents(
    gather: Gather, padded: tuple[int, ...], size: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """Positions that a circular padding adds before and after each axis."""
    first = unravel(int(gather.index[0]), size)
    starts = ((n - f) % n for f, n in zip(first, size, strict=True))
    return tuple((before, p - n - before) for before, p, n in zip(starts, padded[1:], size, strict=True))


def _size_of_circle(index: Tensor, area: int) -> tuple[int, ...] | None:
    """The size of the map that a circularly padded one was made of, from how far apart its neighbours lie."""
    size: list[int] = []
    left = area
    for axis in range(index.dim()):
        # Away from the seam a step is the stride of the axis, the product of the sizes of the axes behind. A map of one
        # row has no step: its size is 1.
        steps = index.diff(dim=axis).reshape(-1)
        steps = steps[steps > 0]
        if axis == index.dim() - 1:
            stride = 1
        elif steps.numel():
            stride = int(steps.min())
        else:
            size.append(1)
            continue
        if left % stride:
            return None
        size.append(left // stride)
        left = stride
    return tuple(size) if elements(size) == area else None
