"""A convolution ready to run: its geometry, its kernel in the fastest layout, and the circular padding before it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .linear_map import elements

# Positions of a map: measured at 16 and 64 probes, 8 x 8 gains by channels last and 4 x 4 loses.
SMALLEST_CHANNELS_LAST = 64


@dataclass(frozen=True)
class Geometry:
    """The options of ``aten.convolution``, one number for each spatial axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    @classmethod
    def plain(cls, axes: int, *, padding: tuple[int, ...] | None = None, groups: int = 1) -> Geometry:
        """Stride and dilation 1."""
        ones, zeros = (1,) * axes, (0,) * axes
        return cls(ones, padding or zeros, ones, False, zeros, groups)

    def convolve(self, v: Tensor, weight: Tensor) -> Tensor:
        """The convolution of a batch, without a bias."""
        return torch.ops.aten.convolution.default(
            v,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
        )


def without_idle_taps(
    weight: Tensor, geometry: Geometry, source: tuple[int, ...], result: tuple[int, ...]
) -> tuple[Tensor, Geometry]:
    """The kernel without outer taps that read nothing but padding, as many on either side, and its geometry.

    On a map of one position a kernel of 7 x 7 has one tap left. ``source`` and ``result`` are the sizes of the maps.
    """
    g = geometry
    if g.transposed or not any(g.padding):
        return weight, geometry
    kept, padding = [slice(None), slice(None)], list(g.padding)
    axes = zip(weight.shape[2:], source, result, g.stride, g.padding, g.dilation, strict=True)
    for axis, (taps, n, m, s, p, d) in enumerate(axes):
        # Position i of the result reads position i s + t d - p of the source by tap t.
        idle = 0
        while (
            idle < (taps - 1) // 2
            and (m - 1) * s + idle * d < p
            and (taps - 1 - idle) * d - p >= n
            and padding[axis] >= d
        ):
            idle, padding[axis] = idle + 1, padding[axis] - d
        kept.append(slice(idle, taps - idle))
    if tuple(padding) == g.padding:
        return weight, geometry
    return weight[tuple(kept)], replace(g, padding=tuple(padding))


@dataclass(frozen=True, eq=False)
class CircularPadding:
    """The positions that a circularly padded map reads, and how many positions the map has.

    In the channels-last layout ``index`` holds positions; else entries, channel by channel.
    """

    index: Tensor
    area: int

    @classmethod
    def of(cls, positions: Tensor, area: int, channels: int, *, channels_last: bool) -> CircularPadding:
        """The same positions in each channel."""
        if not channels_last:
            first = area * torch.arange(channels, device=positions.device)[:, None]
            positions = (positions + first).reshape(-1)
        return cls(positions.to(torch.int32), area)


class Kernel:
    """A convolution on blocks, in the layout in which it is fastest.

    Parameters
    ----------
    weight : Tensor
        (c_out, c_in/groups, *taps), or (c_in, c_out/groups, *taps) if transposed.
    geometry : Geometry
    source : tuple of int
        (c, *size) of what it is applied to, after the circular padding.
    padding : CircularPadding, optional
        Applied before, in the layout that :func:`channels_last_pays` gives.
    """

    def __init__(
        self,
        weight: Tensor,
        geometry: Geometry,
        source: tuple[int, ...],
        padding: CircularPadding | None = None,
    ) -> None:
        self._geometry, self._source = geometry, source
        self._channels_last = channels_last_pays(weight, source)
        self._weight = weight.contiguous(
            memory_format=torch.channels_last if self._channels_last else torch.contiguous_format
        )
        self._padding = padding

    def __call__(self, v: Tensor) -> Tensor:
        if self._padding is not None:
            v = self._padded(v, self._padding.index, self._padding.area)
        v = v.reshape(-1, *self._source)
        # PyTorch convolves in the layout of its input.
        return self._geometry.convolve(v if self._channels_last else v.contiguous(), self._weight)

    def _padded(self, v: Tensor, index: Tensor, area: int) -> Tensor:
        c, *size = self._source
        if not self._channels_last:
            return v.reshape(-1, c * area).index_select(1, index)
        if v.dim() == 4 and v.shape[1] == c:
            rows = v.permute(0, 2, 3, 1).reshape(-1, area, c)
        else:
            rows = v.reshape(-1, c, area).transpose(1, 2)
        return rows.index_select(1, index).view(-1, *size, c).permute(0, 3, 1, 2)


def channels_last_pays(weight: Tensor, source: tuple[int, ...]) -> bool:
    """Whether oneDNN convolves faster with channels last: by 10 to 20 % for float32, but not on small maps."""
    return (
        weight.dim() == 4
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and elements(source[1:]) >= SMALLEST_CHANNELS_LAST
    )


def swap_channels(weight: Tensor, groups: int) -> Tensor:
    """(c_out, c_in/groups, *taps) -> (c_in, c_out/groups, *taps)."""
    if groups == 1:
        return weight.transpose(0, 1)
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
