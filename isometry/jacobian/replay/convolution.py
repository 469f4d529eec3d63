"""Convolutions as linear maps, joined with the padding before them and the channel scaling after them.

The transpose of a convolution with stride 1 is a convolution with the flipped kernel; that of a circular convolution
is circular again. Both directions therefore cost one forward convolution, without its bias. A kernel with a single tap
that is not zero (delta-orthogonal) is a matrix over channels: the other taps are exact zeros and are not multiplied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from .fourier import FourierConvolution, fourier_pays
from .maps import Diagonal, Gather, LinearMap, Multiple, elements, gather


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
        if self.wrapped is not None:
            v = self.wrapped.push(v.reshape(-1, self.wrapped.size), owned)
        return self.geometry.apply(v.reshape(-1, *self.source), self.weight)

    def pull(self, u: Tensor, owned: bool) -> Tensor:
        """See :class:`LinearMap`."""
        weight, geometry, wrap = self._transpose
        if wrap is not None:
            u = wrap.push(u, owned)
            return geometry.apply(u.reshape(-1, self.result[0], *self.source[1:]), weight)
        return geometry.apply(u.reshape(-1, *self.result), weight)

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
        one = _of_one_sample(before, elements(self.source))
        found = None if one is None else _padding(one, self.source)
        if one is None or found is None:
            return None
        kind, pads, size = found
        if kind == "zeros" and all(a == b for a, b in pads):
            padding = tuple(a for a, _ in pads)
            return replace(
                self, geometry=replace(self.geometry, padding=padding), source=(self.source[0], *size)
            )
        if kind == "circular" and set(self.geometry.stride) == {1} and size == self.result[1:]:
            return replace(self, wrapped=one)
        return None

    def at_one_tap(self) -> tuple[LinearMap, LinearMap] | None:
        """(gather, convolution of one tap), where all but one tap of the kernel are exactly zero."""
        g = self.geometry
        taps = elements(self.weight.shape[2:])
        if g.transposed or taps == 1:
            return None
        alive = (self.weight != 0).flatten(2).any(0).any(0)
        if int(alive.sum()) != 1:
            return None
        only = int(alive.nonzero())
        tap = _unravel(only, self.weight.shape[2:])
        kernel = self.weight.flatten(2)[:, :, only]
        kernel = kernel.reshape(*kernel.shape, *[1] * len(tap))
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
        index = torch.where(inside, places, -1).to(self.weight.device)
        ones, zeros = (1,) * len(tap), (0,) * len(tap)
        thin = Convolution(
            kernel.contiguous(),
            Geometry(ones, zeros, ones, False, zeros, g.groups),
            (self.source[0], *self.result[1:]),
            self.result,
        )
        return gather(index, size), thin

    def in_fourier_space(self) -> FourierConvolution | None:
        """The same map by frequencies, where it is circular and that is cheaper."""
        size = self.result[1:]
        if self.wrapped is None or self.geometry.groups != 1 or not fourier_pays(self.weight, size):
            return None
        before, _ = _wraps(self.wrapped, self.source, size)
        return FourierConvolution(self.weight, size, before, self.geometry.dilation, self)

    @cached_property
    def _transpose(self) -> tuple[Tensor, Geometry, Gather | None]:
        g = self.geometry
        reach = tuple(d * (k - 1) for d, k in zip(g.dilation, self.weight.shape[2:], strict=True))
        if g.transposed:
            return self.weight, replace(g, transposed=False, output_padding=(0,) * len(reach)), None
        flat = set(g.stride) == {1} and all(r >= p for r, p in zip(reach, g.padding, strict=True))
        if not flat:
            rest = tuple(
                n - ((m - 1) * s - 2 * p + r + 1)
                for n, m, s, p, r in zip(
                    self.source[1:], self.result[1:], g.stride, g.padding, reach, strict=True
                )
            )
            return self.weight, replace(g, transposed=True, output_padding=rest), None
        grouped = self.weight.unflatten(0, (g.groups, -1)).transpose(1, 2).flatten(0, 1)
        flipped = grouped.flip(tuple(range(2, grouped.dim()))).contiguous()
        if self.wrapped is None:
            return (
                flipped,
                replace(g, padding=tuple(r - p for r, p in zip(reach, g.padding, strict=True))),
                None,
            )
        # y_i = sum_t K_t x_{i + t d - b} on a circle, so x'_j = sum_t K_t^T u_{j - t d + b}: flipped, b becomes r - b.
        before, _ = _wraps(self.wrapped, self.source, self.result[1:])
        index = torch.arange(elements(self.result), device=self.weight.device).reshape(self.result)
        for axis, (b, r, n) in enumerate(zip(before, reach, self.result[1:], strict=True)):
            reads = torch.arange(b - r, n + b, device=index.device) % n
            index = index.index_select(1 + axis, reads)
        return flipped, g, Gather(index, elements(self.result))


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
