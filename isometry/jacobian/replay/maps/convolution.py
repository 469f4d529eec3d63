"""Convolutions as linear maps, fused with the padding before them and the channel factors after them.

The transpose of a convolution with stride 1 is a convolution with the flipped kernel; that of a circular convolution
is circular again. Both directions therefore cost one forward convolution, without its bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .entrywise import Diagonal, Multiple
from .fourier import FourierConvolution, fourier_pays
from .gather import Gather, gather
from .kernel import CircularPadding, Geometry, Kernel, channels_last_pays, swap_channels
from .linear_map import LinearMap, elements
from .matrix_products import LeftProduct
from .padding import circular_start, padding_of, unravel
from .polyphase import PixelShuffleTranspose, PolyphaseTranspose, polyphase_transpose

# Numbers of the kernels that are looked at together.
_TOGETHER = 2**24


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution of maps of fixed size.

    Parameters
    ----------
    weight : Tensor
        (c_out, c_in/groups, *taps), or (c_in, c_out/groups, *taps) if transposed.
    geometry : Geometry
    source, result : tuple of int
        (c_in, *size) and (c_out, *size); ``source`` is the size after the circular padding.
    circular : Gather, optional
        A circular padding before it, of maps of the size of the result: the transpose is then of the same kind.
    """

    weight: Tensor
    geometry: Geometry
    source: tuple[int, ...]
    result: tuple[int, ...]
    circular: Gather | None = None

    aliases = False

    def matmat(self, v: Tensor, overwrite: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return self._kernel(v)

    def rmatmat(self, u: Tensor, overwrite: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return self._transposed_kernel(u)

    # ---- fusing ------------------------------------------------------------------------------------

    def then(self, after: LinearMap) -> LinearMap | None:
        """This convolution with factors of the channels multiplied into its kernel."""
        if isinstance(after, Multiple):
            return replace(self, weight=self.weight * after.factor)
        if isinstance(after, Diagonal) and not self.geometry.transposed:
            factors = _channel_factors(after, self.result)
            if factors is not None:
                return replace(self, weight=self.weight * factors.reshape(-1, *[1] * (self.weight.dim() - 1)))
        return None

    def after_gather(self, before: Gather) -> LinearMap | None:
        """This convolution after a gather as one map, where the gather pads its maps."""
        if self.circular is not None or self.geometry.transposed or any(self.geometry.padding):
            return None
        found = padding_of(before, self.source)
        if found is None:
            return None
        if found.kind == "zeros" and all(a == b for a, b in found.extents):
            geometry = replace(self.geometry, padding=tuple(a for a, _ in found.extents))
            return replace(self, geometry=geometry, source=(self.source[0], *found.size))
        if found.kind == "circular" and set(self.geometry.stride) == {1} and found.size == self.result[1:]:
            return replace(self, circular=found.gather)
        return None

    # ---- cheaper forms -----------------------------------------------------------------------------

    def as_single_tap(
        self, only: int, matrix: Tensor, gathers: dict[Any, LinearMap]
    ) -> tuple[LinearMap, LinearMap]:
        """(gather, matrix over channels) where all taps of the kernel but one are zero.

        Parameters
        ----------
        only : int
            The number of that tap.
        matrix : Tensor
            (c_out, c_in/groups): the kernel there.
        gathers : dict
            Cache of the gathers, which many layers share.
        """
        g = self.geometry
        tap = unravel(only, self.weight.shape[2:])
        key = (tap, g, self.source, self.result, self.circular)
        if key not in gathers:
            gathers[key] = self._gather_of_tap(tap)
        if g.groups == 1:
            # As matrices: a convolution of one tap takes two to nine times as long, from 1 to 64 probes of small maps.
            return gathers[key], LeftProduct(matrix, elements(self.result[1:]))
        single = Convolution(
            matrix.reshape(*matrix.shape, *[1] * len(tap)),
            Geometry.plain(len(tap), groups=g.groups),
            (self.source[0], *self.result[1:]),
            self.result,
        )
        return gathers[key], single

    def _gather_of_tap(self, tap: tuple[int, ...]) -> LinearMap:
        """The entries of the source that each position of the result reads through one tap."""
        g = self.geometry
        if self.circular is None:
            places = torch.arange(elements(self.source)).reshape(self.source)
            size = elements(self.source)
        else:
            places, size = self.circular.index.cpu().reshape(self.source), self.circular.size
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

    def as_fourier(self) -> FourierConvolution | None:
        """The same map frequency by frequency where it is circular and that is cheaper, else None."""
        size = self.result[1:]
        if self.circular is None or self.geometry.groups != 1 or not fourier_pays(self.weight, size):
            return None
        before = circular_start(self.circular, self.source, size)
        return FourierConvolution(self.weight, size, before, self.geometry.dilation, self)

    # ---- the two products --------------------------------------------------------------------------

    @cached_property
    def _kernel(self) -> Kernel:
        if self.circular is None:
            return Kernel(self.weight, self.geometry, self.source)
        positions = self.circular.index[: elements(self.source[1:])]
        padding = self._circular_padding(self.source, "direct", lambda: positions)
        return Kernel(self.weight, self.geometry, self.source, padding)

    @cached_property
    def _transposed_kernel(self) -> Kernel | PolyphaseTranspose | PixelShuffleTranspose:
        g = self.geometry
        reach = tuple(d * (k - 1) for d, k in zip(g.dilation, self.weight.shape[2:], strict=True))
        if g.transposed:
            plain = replace(g, transposed=False, output_padding=(0,) * len(reach))
            return Kernel(self.weight, plain, self.result)
        if set(g.stride) != {1} or any(p > r for r, p in zip(reach, g.padding, strict=True)):
            return polyphase_transpose(self.weight, g, self.source, self.result) or self._strided_transpose(
                reach
            )
        flipped = swap_channels(self.weight, g.groups)
        if elements(self.weight.shape[2:]) > 1:
            flipped = flipped.flip(tuple(range(2, self.weight.dim())))
        if self.circular is not None:
            return self._circular_transpose(flipped, reach, self.circular)
        padding = tuple(r - p for r, p in zip(reach, g.padding, strict=True))
        return Kernel(flipped, replace(g, padding=padding), self.result)

    def _strided_transpose(self, reach: tuple[int, ...]) -> Kernel:
        """PyTorch's transposed convolution, with the positions that no tap reads as output padding."""
        g = self.geometry
        rest = tuple(
            n - ((m - 1) * s - 2 * p + r + 1)
            for n, m, s, p, r in zip(
                self.source[1:], self.result[1:], g.stride, g.padding, reach, strict=True
            )
        )
        return Kernel(self.weight, replace(g, transposed=True, output_padding=rest), self.result)

    def _circular_transpose(self, flipped: Tensor, reach: tuple[int, ...], circular: Gather) -> Kernel:
        """A circular convolution with the flipped kernel.

        y_i = sum_t K_t x_{i + t d - b} on a circle, so x'_j = sum_t K_t^T u_{j - t d + b}: flipped, b becomes r - b.
        """
        size = self.result[1:]
        before = circular_start(circular, self.source, size)
        padded = (self.result[0], *(n + r for n, r in zip(size, reach, strict=True)))

        def positions() -> Tensor:
            index = torch.arange(elements(size), device=self.weight.device).reshape(size)
            for axis, (b, r, n) in enumerate(zip(before, reach, size, strict=True)):
                reads = torch.arange(b - r, n + b, device=index.device) % n
                index = index.index_select(axis, reads)
            return index.reshape(-1)

        padding = self._circular_padding(padded, ("transposed", reach), positions)
        return Kernel(flipped, self.geometry, padded, padding)

    def _circular_padding(
        self, source: tuple[int, ...], kind: Any, positions: Callable[[], Tensor]
    ) -> CircularPadding:
        """The padding of a kernel, computed once for all layers that share the gather."""
        assert self.circular is not None
        area = self.circular.size // self.source[0]
        last = channels_last_pays(self.weight, source)
        return self.circular.cached(
            (kind, source, self.source, last),
            lambda: CircularPadding.of(positions(), area, source[0], channels_last=last),
        )


def single_taps(convolutions: Sequence[Convolution]) -> dict[int, tuple[int, Tensor]]:
    """id of each convolution whose kernel has one tap that is not exactly zero -> its number and the kernel there.

    Delta-orthogonal kernels are such. Kernels of one shape are looked at together: ten thousand of them one by one take
    as long as a forward pass.
    """
    alike: dict[Any, list[Convolution]] = {}
    for convolution in convolutions:
        weight = convolution.weight
        if not convolution.geometry.transposed and weight.dim() > 2 and elements(weight.shape[2:]) > 1:
            alike.setdefault((weight.shape, weight.dtype, weight.device), []).append(convolution)
    found: dict[int, tuple[int, Tensor]] = {}
    for (shape, *_), group in alike.items():
        # One channel tells of nearly every kernel that it has more taps.
        channel = torch.stack([each.weight[0, 0] for each in group]).flatten(1)
        counts = channel.count_nonzero(dim=1).tolist()
        likely = [each for each, count in zip(group, counts, strict=True) if count <= 1]
        size = max(1, _TOGETHER // max(1, elements(shape)))
        for start in range(0, len(likely), size):
            found.update(_single_taps(likely[start : start + size]))
    return found


def _single_taps(convolutions: Sequence[Convolution]) -> dict[int, tuple[int, Tensor]]:
    weights = torch.stack([each.weight for each in convolutions]).flatten(3)
    nonzero = (weights != 0).flatten(1, 2).any(1)
    single = (nonzero.sum(1) == 1).tolist()
    places = nonzero.to(torch.uint8).argmax(1)
    matrices = weights[torch.arange(len(weights), device=weights.device), :, :, places].contiguous().unbind(0)
    rows = zip(convolutions, single, places.tolist(), matrices, strict=True)
    return {id(each): (place, matrix) for each, is_single, place, matrix in rows if is_single}


def _channel_factors(scale: Diagonal, result: tuple[int, ...]) -> Tensor | None:
    """(c,) factors where a diagonal is the same all over each channel of maps (c, *size)."""
    d, shape = scale.diagonal, scale.shape
    if shape[len(shape) - len(result) :] != result or elements(shape) != elements(result):
        return None
    if d.dim() < len(result):
        return None if d.dim() or len(result) == 1 else d.reshape(1).expand(result[0])
    if elements(d.shape) not in (1, result[0]) or d.shape[d.dim() - len(result)] != d.numel():
        return None
    return d.reshape(-1).expand(result[0])
