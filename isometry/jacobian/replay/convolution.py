"""Convolutions as linear maps, joined with the padding before them and the channel scaling after them.

The transpose of a convolution with stride 1 is a convolution with the flipped kernel; that of a circular convolution
is circular again. Both directions therefore cost one forward convolution, without its bias. A kernel with a single tap
that is not zero (delta-orthogonal) is a matrix over channels: the other taps are exact zeros and are not multiplied.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle

from .dense import LeftProduct
from .fourier import FourierConvolution, fourier_pays
from .maps import Diagonal, Gather, LinearMap, Multiple, elements, gather

# Positions of a map: measured at 16 and 64 probes, 8 x 8 gains by it and 4 x 4 loses.
_SMALLEST_CHANNELS_LAST = 64


@dataclass(frozen=True)
class Geometry:
    """Stride and so on, per axis, as ``aten.convolution`` takes them."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    def apply(self, v: Tensor, weight: Tensor) -> Tensor:
        """The convolution without a bias."""
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


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution of maps of fixed size.

    Parameters
    ----------
    weight : Tensor
        (c_out, c_in/groups, *k), or (c_in, c_out/groups, *k) if transposed.
    geometry : Geometry
    source, result : tuple of int
        (c_in, *size) and (c_out, *size).
    wrapped : Gather, optional
        A circular padding before it, of maps of the size that leaves: the transpose is then of the same kind.
    """

    weight: Tensor
    geometry: Geometry
    source: tuple[int, ...]
    result: tuple[int, ...]
    wrapped: Gather | None = None

    aliases = False

    def push(self, v: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return self._forward(v)

    def pull(self, u: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return self._reverse(u)

    def then(self, after: LinearMap) -> LinearMap | None:
        """Channel factors go into the kernel."""
        if isinstance(after, Multiple):
            return replace(self, weight=self.weight * after.factor)
        if isinstance(after, Diagonal) and not self.geometry.transposed:
            factors = _per_channel(after, self.result)
            if factors is not None:
                return replace(self, weight=self.weight * factors.reshape(-1, *[1] * (self.weight.dim() - 1)))
        return None

    def after_gather(self, before: Gather) -> LinearMap | None:
        """This convolution with a gather in front of it as one map, where the gather pads its maps."""
        if self.wrapped is not None or self.geometry.transposed or any(self.geometry.padding):
            return None
        found = _recognised(before, self.source)
        if found is None:
            return None
        one, kind, pads, size = found
        if kind == "zeros" and all(a == b for a, b in pads):
            padding = tuple(a for a, _ in pads)
            return replace(
                self, geometry=replace(self.geometry, padding=padding), source=(self.source[0], *size)
            )
        if kind == "circular" and set(self.geometry.stride) == {1} and size == self.result[1:]:
            return replace(self, wrapped=one)
        return None

    def at_one_tap(self, moves: dict[Any, LinearMap]) -> tuple[LinearMap, LinearMap] | None:
        """(gather, matrix over channels), where all but one tap of the kernel are exactly zero.

        ``moves`` keeps the gathers: many layers move their maps in the same way.
        """
        g = self.geometry
        taps = elements(self.weight.shape[2:])
        if g.transposed or taps == 1:
            return None
        alive = (self.weight != 0).reshape(-1, taps).any(0).tolist()
        if sum(alive) != 1:
            return None
        only = alive.index(True)
        tap = _unravel(only, self.weight.shape[2:])
        kernel = self.weight.flatten(2)[:, :, only].contiguous()
        key = (tap, g, self.source, self.result, self.wrapped)
        if key not in moves:
            moves[key] = self._reads(tap)
        if g.groups == 1:
            # As matrices: a convolution of one tap takes two to nine times as long, from 1 to 64 probes of small maps.
            return moves[key], LeftProduct(kernel, elements(self.result[1:]))
        ones, zeros = (1,) * len(tap), (0,) * len(tap)
        thin = Convolution(
            kernel.reshape(*kernel.shape, *ones),
            Geometry(ones, zeros, ones, False, zeros, g.groups),
            (self.source[0], *self.result[1:]),
            self.result,
        )
        return moves[key], thin

    def _reads(self, tap: tuple[int, ...]) -> LinearMap:
        """What each position of the result reads through one tap: a gather of the source."""
        g = self.geometry
        if self.wrapped is None:
            places = torch.arange(elements(self.source)).reshape(self.source)
            size = elements(self.source)
        else:
            places, size = self.wrapped.index.cpu().reshape(self.source), self.wrapped.size
        # Position i of the result reads position i s + t d - p of the source, which may lie outside.
        inside = torch.ones(self.result[1:], dtype=torch.bool)
        for axis, (t, s, p, d) in enumerate(zip(tap, g.stride, g.padding, g.dilation, strict=True)):
            reads = torch.arange(self.result[1 + axis]) * s + t * d - p
            fits = (reads >= 0) & (reads < self.source[1 + axis])
            places = places.index_select(1 + axis, reads.clamp(0, self.source[1 + axis] - 1))
            shape = [1] * len(tap)
            shape[axis] = -1
            inside = inside & fits.reshape(shape)
        return gather(torch.where(inside, places, -1).to(self.weight.device), size)

    def in_fourier_space(self) -> FourierConvolution | None:
        """The same map by frequencies, where it is circular and that is cheaper."""
        size = self.result[1:]
        if self.wrapped is None or self.geometry.groups != 1 or not fourier_pays(self.weight, size):
            return None
        before = _wrapped_before(self.wrapped, self.source, size)
        return FourierConvolution(self.weight, size, before, self.geometry.dilation, self)

    @cached_property
    def _forward(self) -> Kernel:
        if self.wrapped is None:
            return Kernel(self.weight, self.geometry, self.source)
        index = self.wrapped.index[: elements(self.source[1:])]
        return Kernel(self.weight, self.geometry, self.source, self._wrap(self.source, "read", lambda: index))

    @cached_property
    def _reverse(self) -> Kernel | Phases | ShuffledPhases:
        g = self.geometry
        reach = tuple(d * (k - 1) for d, k in zip(g.dilation, self.weight.shape[2:], strict=True))
        if g.transposed:
            plain = replace(g, transposed=False, output_padding=(0,) * len(reach))
            return Kernel(self.weight, plain, self.result)
        if set(g.stride) != {1} or any(p > r for r, p in zip(reach, g.padding, strict=True)):
            special = self._by_phases()
            if special is not None:
                return special
            rest = tuple(
                n - ((m - 1) * s - 2 * p + r + 1)
                for n, m, s, p, r in zip(
                    self.source[1:], self.result[1:], g.stride, g.padding, reach, strict=True
                )
            )
            return Kernel(self.weight, replace(g, transposed=True, output_padding=rest), self.result)
        flipped = _transposed_channels(self.weight, g.groups).flip(tuple(range(2, self.weight.dim())))
        if self.wrapped is None:
            padding = tuple(r - p for r, p in zip(reach, g.padding, strict=True))
            return Kernel(flipped, replace(g, padding=padding), self.result)
        # y_i = sum_t K_t x_{i + t d - b} on a circle, so x'_j = sum_t K_t^T u_{j - t d + b}: flipped, b becomes r - b.
        size = self.result[1:]
        before = _wrapped_before(self.wrapped, self.source, size)
        padded = (self.result[0], *(n + r for n, r in zip(size, reach, strict=True)))

        def read_by_the_transpose() -> Tensor:
            index = torch.arange(elements(size), device=self.weight.device).reshape(size)
            for axis, (b, r, n) in enumerate(zip(before, reach, size, strict=True)):
                reads = torch.arange(b - r, n + b, device=index.device) % n
                index = index.index_select(axis, reads)
            return index.reshape(-1)

        return Kernel(flipped, g, padded, self._wrap(padded, ("read back", reach), read_by_the_transpose))

    def _wrap(self, source: tuple[int, ...], kind: Any, index: Callable[[], Tensor]) -> Wrap:
        """A wrapping that all layers share which are wrapped by the same gather."""
        assert self.wrapped is not None
        area = self.wrapped.size // self.source[0]
        last = _channels_last(self.weight, source)
        return self.wrapped.once(
            (kind, source, self.source, last), lambda: Wrap.of(index(), area, source[0], channels_last=last)
        )

    def _by_phases(self) -> Phases | ShuffledPhases | None:
        """The transpose with a stride where oneDNN's own is slow."""
        g = self.geometry
        if self.weight.device.type != "cpu" or self.weight.dtype != torch.float32 or set(g.dilation) != {1}:
            return None
        square = len(g.stride) == 2 and len(set(g.stride)) == 1 and g.groups == 1
        if square and self.source[0] * g.stride[0] ** 2 <= 16:
            return ShuffledPhases(self)
        small = elements(self.result[1:]) < _SMALLEST_CHANNELS_LAST
        return Phases(self) if small or elements(self.weight.shape[2:]) == 1 else None


@dataclass(frozen=True, eq=False)
class Wrap:
    """Positions (or entries, channel by channel) that a wrapped map reads, and how many positions the map has."""

    index: Tensor
    area: int

    @classmethod
    def of(cls, positions: Tensor, area: int, channels: int, *, channels_last: bool) -> Wrap:
        """The same positions in each channel."""
        if not channels_last:
            first = area * torch.arange(channels, device=positions.device)[:, None]
            positions = (positions + first).reshape(-1)
        return cls(positions.to(torch.int32), area)


class Kernel:
    """A convolution ready to run, in the layout in which it is fastest.

    Parameters
    ----------
    weight, geometry :
        As of :class:`Convolution`.
    source : tuple of int
        (c, *size) of what it is applied to, after the wrapping.
    wrap : Wrap, optional
        What the wrapped map reads, in the layout of ``_channels_last``.
    """

    def __init__(
        self,
        weight: Tensor,
        geometry: Geometry,
        source: tuple[int, ...],
        wrap: Wrap | None = None,
    ) -> None:
        self._geometry, self._source = geometry, source
        self._channels_last = _channels_last(weight, source)
        self._weight = weight.contiguous(
            memory_format=torch.channels_last if self._channels_last else torch.contiguous_format
        )
        self._wrap = wrap

    def __call__(self, v: Tensor) -> Tensor:
        if self._wrap is not None:
            v = self._wrapped(v, self._wrap.index, self._wrap.area)
        v = v.reshape(-1, *self._source)
        # The layout of what comes in decides in which one PyTorch convolves.
        return self._geometry.apply(v if self._channels_last else v.contiguous(), self._weight)

    def _wrapped(self, v: Tensor, index: Tensor, area: int) -> Tensor:
        c, *size = self._source
        if not self._channels_last:
            return v.reshape(-1, c * area).index_select(1, index)
        if v.dim() == 4 and v.shape[1] == c:
            rows = v.permute(0, 2, 3, 1).reshape(-1, area, c)
        else:
            rows = v.reshape(-1, c, area).transpose(1, 2)
        return rows.index_select(1, index).view(-1, *size, c).permute(0, 3, 1, 2)


def _channels_last(weight: Tensor, source: tuple[int, ...]) -> bool:
    """oneDNN convolves channels-last float32 maps 10 to 20 % faster, but small ones up to three times as slow."""
    return (
        weight.dim() == 4
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and elements(source[1:]) >= _SMALLEST_CHANNELS_LAST
    )


class Phases:
    """The transpose of a convolution with stride s as one small convolution for each phase a of positions s i + a.

    Such a position reads only the taps t for which s divides a + p - t. oneDNN's own transposed convolution is
    two to three times as slow on small maps and on kernels of one tap, of whose results all but one phase are zero.
    """

    def __init__(self, convolution: Convolution) -> None:
        self._result = convolution.source
        weight = _transposed_channels(convolution.weight, convolution.geometry.groups)
        axes = _phases(convolution)
        self._phases = []
        for phase in itertools.product(*axes):
            if not all(axis.taps and axis.length > 0 for axis in phase):
                continue
            kernel = weight
            for number, axis in enumerate(phase):
                kernel = kernel.index_select(2 + number, torch.tensor(axis.taps, device=weight.device))
            ones, zeros = (1,) * len(phase), (0,) * len(phase)
            padding = tuple(axis.padding for axis in phase)
            geometry = Geometry(ones, padding, ones, False, zeros, convolution.geometry.groups)
            whole = slice(None)
            self._phases.append(
                (
                    Kernel(kernel, geometry, convolution.result),
                    (whole, whole, *[slice(axis.first, axis.first + axis.length) for axis in phase]),
                    (whole, whole, *[slice(axis.phase, None, axis.stride) for axis in phase]),
                )
            )
        self._covers = len(self._phases) == elements(convolution.geometry.stride)

    def __call__(self, u: Tensor) -> Tensor:
        parts = [(kernel(u)[inside], places) for kernel, inside, places in self._phases]
        like = parts[0][0]
        shape = (like.shape[0], *self._result)
        out = like.new_empty(shape) if self._covers else like.new_zeros(shape)
        for part, places in parts:
            out[places] = part
        return out


class ShuffledPhases:
    """The same with all phases as channels of one convolution, whose results are then shuffled into place.

    It pays where the map has one or three colours, with which a convolution leaves most of a vector register idle.
    """

    def __init__(self, convolution: Convolution) -> None:
        s, weight = convolution.geometry.stride[0], convolution.weight
        axes = _phases(convolution)
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
            max(-a, m - 1 + b - (n - 1), 0)
            for a, b, m, n in zip(low, high, lengths, convolution.result[1:], strict=True)
        )
        inside = (slice(p + a, p + a + m) for a, p, m in zip(low, padding, lengths, strict=True))
        self._inside = (slice(None), slice(None), *inside)
        self._stride, (_, self._height, self._width) = s, convolution.source
        geometry = Geometry((1, 1), padding, (1, 1), False, (0, 0), 1)
        self._kernel = Kernel(kernel.flatten(0, 2), geometry, convolution.result)

    def __call__(self, u: Tensor) -> Tensor:
        out = self._kernel(u)[self._inside].contiguous()
        return pixel_shuffle(out, self._stride)[:, :, : self._height, : self._width]


@dataclass(frozen=True)
class _Phase:
    """What positions s i + phase read along one axis: position i + low + j through tap taps[j].

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


def _phases(convolution: Convolution) -> list[list[_Phase]]:
    """The phases of each axis of a convolution without dilation."""
    g, found = convolution.geometry, []
    taps_of_axes = convolution.weight.shape[2:]
    for s, p, k, size, n in zip(
        g.stride, g.padding, taps_of_axes, convolution.source[1:], convolution.result[1:], strict=True
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


def _transposed_channels(weight: Tensor, groups: int) -> Tensor:
    """(c_out, c_in/groups, *k) -> (c_in, c_out/groups, *k)."""
    if groups == 1:
        return weight.transpose(0, 1)
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


_Recognised = tuple[Gather, str, tuple[tuple[int, int], ...], tuple[int, ...]]


def _recognised(before: Gather, padded: tuple[int, ...]) -> _Recognised | None:
    """The gather of one sample, and what padding it is; looked at once for all layers that share it."""

    def look() -> _Recognised | None:
        one = _of_one_sample(before, elements(padded))
        found = None if one is None else _padding(one, padded)
        return None if one is None or found is None else (one, *found)

    return before.once(("padding", padded), look)


def _of_one_sample(before: Gather, padded: int) -> Gather | None:
    """The gather of one sample, where that of a batch does the same to each."""
    samples = before.index.numel() // padded
    if samples * padded != before.index.numel() or samples == 0 or before.size % samples:
        return None
    if samples == 1:
        return before
    size = before.size // samples
    index = before.index.view(samples, padded)
    offset = size * torch.arange(samples, device=index.device)[:, None]
    same = torch.where(index[0] >= 0, index[0] + offset, -1)
    return Gather(index[0].clone(), size) if torch.equal(same, index) else None


def _unravel(flat: int, shape: Sequence[int]) -> tuple[int, ...]:
    out: list[int] = []
    for size in reversed(shape):
        out.append(flat % size)
        flat //= size
    return tuple(reversed(out))


def _per_channel(scale: Diagonal, result: tuple[int, ...]) -> Tensor | None:
    """(c,) factors where a diagonal is the same all over each channel of maps (c, *size)."""
    d, shape = scale.diagonal, scale.shape
    if shape[len(shape) - len(result) :] != result or elements(shape) != elements(result):
        return None
    if d.dim() < len(result):
        return None if d.dim() or len(result) == 1 else d.reshape(1).expand(result[0])
    if elements(d.shape) not in (1, result[0]) or d.shape[d.dim() - len(result)] != d.numel():
        return None
    return d.reshape(-1).expand(result[0])


def _wrapped_before(before: Gather, padded: tuple[int, ...], size: tuple[int, ...]) -> tuple[int, ...]:
    """How far a circular padding reaches before the first position, per axis; looked at once for each gather."""
    return before.once(("reach", padded, size), lambda: _wraps(before, padded, size))[0]


def _wraps(
    before: Gather, padded: tuple[int, ...], size: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How far a circular padding reaches to either side, per axis."""
    origin = before.index.reshape(padded)[0]
    first = _unravel(int(origin.reshape(-1)[0]), size)
    pads = tuple((n - f) % n for f, n in zip(first, size, strict=True))
    return pads, tuple(p - n - b for p, n, b in zip(padded[1:], size, pads, strict=True))


def _padding(
    before: Gather, padded: tuple[int, ...]
) -> tuple[str, tuple[tuple[int, int], ...], tuple[int, ...]] | None:
    """Whether a gather pads maps (c, *size) to ``padded``: by zeros or around the circle, by how much, and the size."""
    if before.index.numel() != elements(padded) or before.size % padded[0]:
        return None
    index = before.index.reshape(padded)
    area = before.size // padded[0]
    inside = index[0] >= 0
    if bool(inside.all()):
        size = _circle(index[0], area)
        if size is None:
            return None
        pads, after = _wraps(before, padded, size)
        if any(b < 0 or a < 0 for b, a in zip(pads, after, strict=True)):
            return None
        expected = torch.arange(before.size, device=index.device).reshape(padded[0], *size)
        for axis, (b, a, n) in enumerate(zip(pads, after, size, strict=True)):
            expected = expected.index_select(1 + axis, torch.arange(-b, n + a, device=index.device) % n)
        return (
            ("circular", tuple(zip(pads, after, strict=True)), size) if torch.equal(expected, index) else None
        )
    corners = torch.nonzero(inside)
    if corners.numel() == 0:
        return None
    low, high = corners.min(0).values.tolist(), corners.max(0).values.tolist()
    size = tuple(b - a + 1 for a, b in zip(low, high, strict=True))
    if elements(size) != area:
        return None
    expected = index.new_full(padded, -1)
    block = tuple(slice(a, b + 1) for a, b in zip([0, *low], [padded[0] - 1, *high], strict=True))
    expected[block] = torch.arange(before.size, device=index.device).reshape(padded[0], *size)
    if not torch.equal(expected, index):
        return None
    return (
        "zeros",
        tuple((a, n - 1 - b) for a, b, n in zip(low, high, padded[1:], strict=True)),
        size,
    )


def _circle(index: Tensor, area: int) -> tuple[int, ...] | None:
    """The size of the map that a wrapped one was made of, from how far apart its neighbours lie."""
    axes = index.dim()
    strides = []
    for axis in range(axes):
        steps = index.diff(dim=axis).reshape(-1)
        # Away from the seam a step is the stride of the axis: the commonest one. A map of one row has no step.
        strides.append(int(steps[steps > 0].min()) if bool((steps > 0).any()) else 0)
    size: list[int] = []
    left = area
    for axis in range(axes):
        # Strides of a row-major map: the product of the sizes of the axes behind.
        behind = strides[axis] if strides[axis] > 0 else None
        if axis == axes - 1:
            behind = 1
        if behind is None:
            # One row only: its size is 1.
            size.append(1)
            continue
        if left % behind:
            return None
        size.append(left // behind)
        left = behind
    return tuple(size) if elements(size) == area else None
