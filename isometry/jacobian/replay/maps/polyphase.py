"""The transpose of a strided convolution by its polyphase components: one small convolution for each phase.

Position s i + a of the result (phase a, stride s) reads only the taps t for which s divides a + p - t. oneDNN's own
transposed convolution is two to three times as slow on small maps, and on kernels of one tap, of whose results all but
one phase are zero.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle

from .kernel import SMALLEST_CHANNELS_LAST, Geometry, Kernel, swap_channels
from .linear_map import elements


def polyphase_transpose(
    weight: Tensor, geometry: Geometry, source: tuple[int, ...], result: tuple[int, ...]
) -> PolyphaseTranspose | PixelShuffleTranspose | None:
    """The transpose of a strided convolution from (c_in, *size) to (c_out, *size), or None where it is slower."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or set(geometry.dilation) != {1}:
        return None
    stride = geometry.stride
    if (
        len(stride) == 2
        and len(set(stride)) == 1
        and geometry.groups == 1
        and source[0] * stride[0] ** 2 <= 16
    ):
        return PixelShuffleTranspose(weight, geometry, source, result)
    small = elements(result[1:]) < SMALLEST_CHANNELS_LAST
    if small or elements(weight.shape[2:]) == 1:
        return PolyphaseTranspose(weight, geometry, source, result)
    return None


class PolyphaseTranspose:
    """The transpose as one convolution for each phase.

    Parameters
    ----------
    weight, geometry :
        Of the convolution, which has no dilation.
    source, result : tuple of int
        (c, *size) of what enters and what leaves the convolution.
    """

    def __init__(
        self, weight: Tensor, geometry: Geometry, source: tuple[int, ...], result: tuple[int, ...]
    ) -> None:
        self._result = source
        transposed = swap_channels(weight, geometry.groups)
        self._phases = []
        for phase in itertools.product(*_phases_by_axis(weight, geometry, source, result)):
            if not all(axis.taps and axis.length > 0 for axis in phase):
                continue
            kernel = transposed
            for number, axis in enumerate(phase):
                kernel = kernel.index_select(2 + number, torch.tensor(axis.taps, device=weight.device))
            padding = tuple(axis.padding for axis in phase)
            plain = Geometry.plain(len(phase), padding=padding, groups=geometry.groups)
            whole = slice(None)
            self._phases.append(
                (
                    Kernel(kernel, plain, result),
                    (whole, whole, *[slice(axis.first, axis.first + axis.length) for axis in phase]),
                    (whole, whole, *[slice(axis.phase, None, axis.stride) for axis in phase]),
                )
            )
        self._complete = len(self._phases) == elements(geometry.stride)

    def __call__(self, u: Tensor) -> Tensor:
        parts = [(kernel(u)[inside], places) for kernel, inside, places in self._phases]
        like = parts[0][0]
        shape = (like.shape[0], *self._result)
        out = like.new_empty(shape) if self._complete else like.new_zeros(shape)
        for part, places in parts:
            out[places] = part
        return out


class PixelShuffleTranspose:
    """The transpose with all phases as channels of one convolution, put into place by a pixel shuffle.

    It pays where the map has one or three colours, with which a convolution leaves most of a vector register idle.
    Parameters are those of :class:`PolyphaseTranspose`.
    """

    def __init__(
        self, weight: Tensor, geometry: Geometry, source: tuple[int, ...], result: tuple[int, ...]
    ) -> None:
        s = geometry.stride[0]
        axes = _phases_by_axis(weight, geometry, source, result)
        low = [min(axis.low for axis in phases if axis.taps) for phases in axes]
        high = [max(axis.low + len(axis.taps) - 1 for axis in phases if axis.taps) for phases in axes]
        lengths = [phases[0].length for phases in axes]
        kernel = weight.new_zeros(
            (weight.shape[1], s, s, weight.shape[0], *[b - a + 1 for a, b in zip(low, high, strict=True)])
        )
        for rows, columns in itertools.product(*axes):
            for d, t in enumerate(rows.taps, rows.low - low[0]):
                for e, q in enumerate(columns.taps, columns.low - low[1]):
                    kernel[:, rows.phase, columns.phase, :, d, e] = weight[:, :, t, q].T
        padding = tuple(
            max(-a, m - 1 + b - (n - 1), 0) for a, b, m, n in zip(low, high, lengths, result[1:], strict=True)
        )
        inside = (slice(p + a, p + a + m) for a, p, m in zip(low, padding, lengths, strict=True))
        self._inside = (slice(None), slice(None), *inside)
        self._stride, (_, self._height, self._width) = s, source
        self._kernel = Kernel(kernel.flatten(0, 2), Geometry.plain(2, padding=padding), result)

    def __call__(self, u: Tensor) -> Tensor:
        out = self._kernel(u)[self._inside].contiguous()
        return pixel_shuffle(out, self._stride)[:, :, : self._height, : self._width]


@dataclass(frozen=True)
class _Phase:
    """One phase along one axis: position s i + phase reads position i + low + j through tap taps[j].

    ``padding`` on both sides lets a convolution of stride 1 do it; ``length`` of its results, from ``first`` on, are
    those of the phase.
    """

    phase: int
    stride: int
    taps: tuple[int, ...]
    low: int
    length: int
    padding: int

    @property
    def first(self) -> int:
        return self.padding + self.low


def _phases_by_axis(
    weight: Tensor, geometry: Geometry, source: tuple[int, ...], result: tuple[int, ...]
) -> list[list[_Phase]]:
    """The phases of each axis of a convolution without dilation."""
    found = []
    for s, p, k, size, n in zip(
        geometry.stride, geometry.padding, weight.shape[2:], source[1:], result[1:], strict=True
    ):
        phases = []
        for a in range(s):
            taps = tuple(t for t in range(k)[::-1] if (a + p - t) % s == 0)
            low = (a + p - taps[0]) // s if taps else 0
            length = -(-(size - a) // s)
            # A map smaller than what the taps span is padded too, whatever is read of it.
            padding = max(-low, length - 1 + low + len(taps) - 1 - (n - 1), 0, -(-(len(taps) - n) // 2))
            phases.append(_Phase(a, s, taps, low, length, padding))
        found.append(phases)
    return found
