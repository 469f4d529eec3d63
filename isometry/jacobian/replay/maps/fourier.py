"""A circular convolution in Fourier space: one small matrix for each spatial frequency.

On a grid of n positions with circular padding K * x is block-diagonal in the Fourier basis, khat(f) = sum_b K_b
exp(2 pi i f . b / n) (Xiao et al. 2018, arXiv 1806.05393, section 2.4; Sedghi, Gupta & Long 2019, arXiv 1805.10408,
for the singular values). In the real orthonormal basis of cosines and sines a pair of frequencies f, -f is one real
block, so that both changes of basis and all blocks are plain matrix products. For maps with few positions that is
fewer operations than the convolution itself: 4 c c' n + 2 (c + c') n^2 for one vector against 2 c c' n taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from isometry.errors import FallbackWarning, warn_caller

from .linear_map import LinearMap, UnfusedMap, elements

# Below this many vectors, reading a matrix for each frequency takes longer than reading one for each tap.
_FEWEST_VECTORS = 4
# By how many units of rounding of |K| |x| the two forms may differ; a wrong phase or sign is off by about 1 / unit.
_UNITS = 1000


class FourierConvolution(UnfusedMap):
    """y(a) = sum_b K_b x(a + dilation b - padding) on a circular grid, and its transpose, on blocks of vectors.

    Parameters
    ----------
    weight : (c_out, c_in, *taps) tensor
        K, along one or two spatial axes. Its type and device are those of the products.
    size : sequence of int
        Positions of the grid along each axis.
    padding : sequence of int
        Positions put before the first along each axis (those after the last follow: the map keeps its size).
    dilation : sequence of int
        Distance of the taps along each axis.
    direct : LinearMap, optional
        The same map by its taps, for blocks too small to pay for reading all frequencies.

    Notes
    -----
    The blocks of both products take 2 c_in c_out n numbers. Both differ from the direct convolution by rounding alone.
    """

    def __init__(
        self,
        weight: Tensor,
        size: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        direct: LinearMap | None = None,
    ) -> None:
        self._weight, self._size, self._direct = weight.detach(), tuple(size), direct
        self._padding, self._dilation = tuple(padding), tuple(dilation)
        self._positions = elements(self._size)

    @property
    def nbytes(self) -> int:
        """Memory that the blocks of both directions take, once they are made."""
        c_out, c_in = self._weight.shape[:2]
        return 2 * c_out * c_in * self._positions * self._weight.element_size()

    def matmat(self, v: Tensor, overwrite: bool) -> Tensor:
        """K * x: (k, c_in, *size) -> (k, c_out, *size)."""
        if self._direct is not None and not self._pays(v, self._weight.shape[1]):
            return self._direct.matmat(v, overwrite)
        return self._product(v, self._blocks)

    def rmatmat(self, u: Tensor, overwrite: bool) -> Tensor:
        """Its transpose: (k, c_out, *size) -> (k, c_in, *size)."""
        if self._direct is not None and not self._pays(u, self._weight.shape[0]):
            return self._direct.rmatmat(u, overwrite)
        return self._product(u, self._transposed_blocks)

    def _pays(self, block: Tensor, channels: int) -> bool:
        vectors = block.numel() // (channels * self._positions)
        return vectors >= _FEWEST_VECTORS and self._agrees

    @cached_property
    def _agrees(self) -> bool:
        """Whether both products agree with those by the taps, which set-up has compared with torch.func."""
        assert self._direct is not None
        generator = torch.Generator().manual_seed(5381)
        size = float(self._weight.double().norm())
        for product, exact, channels in (
            (partial(self._product, blocks=self._blocks), self._direct.matmat, self._weight.shape[1]),
            (
                partial(self._product, blocks=self._transposed_blocks),
                self._direct.rmatmat,
                self._weight.shape[0],
            ),
        ):
            vector = torch.randn((1, channels, *self._size), generator=generator, dtype=torch.float32).to(
                self._weight
            )
            difference = (product(vector) - exact(vector, False).reshape(1, -1, *self._size)).double().norm()
            # Frobenius norm of K times the length of x bounds what is summed, however much of it cancels.
            bound = _UNITS * _unit(self._weight) * size * float(vector.double().norm())
            if not float(difference) <= bound:
                warn_caller(
                    f"a circular convolution by frequencies is off by {float(difference):.1e} (allowed {bound:.1e}): "
                    "it is multiplied tap by tap instead",
                    FallbackWarning,
                )
                return False
        return True

    @cached_property
    def _basis(self) -> Tensor:
        return _basis(self._size)[0].to(self._weight)

    @cached_property
    def _blocks(self) -> _Blocks:
        """The blocks of K, made when first a block of vectors is large enough: they take a fifth of a set-up."""
        single = _basis(self._size)[1]
        cosine, sine = _waves(self._size, tuple(self._weight.shape[2:]), self._padding, self._dilation)
        taps = self._weight.double().flatten(2).permute(2, 1, 0)
        real, imaginary = (
            torch.tensordot(wave.to(taps.device), taps, 1).to(self._weight.dtype) for wave in (cosine, sine)
        )
        return _Blocks(real[:single], real[single:], imaginary[single:])

    @cached_property
    def _transposed_blocks(self) -> _Blocks:
        return self._blocks.transposed()

    def _product(self, block: Tensor, blocks: _Blocks) -> Tensor:
        positions = self._positions
        # Frequencies first: a matrix product takes a transposed factor at no cost, so that nothing is copied.
        waves = (self._basis @ block.reshape(-1, positions).T).view(positions, -1, blocks.entering)
        out = blocks.apply(waves)
        return (out.view(positions, -1).T @ self._basis).view(-1, blocks.leaving, *self._size)


@dataclass(frozen=True, eq=False)
class _Blocks:
    """khat: (single, c, c') for the frequencies on their own, (pairs, c, c') cosine and sine parts of the others."""

    single: Tensor
    cosine: Tensor
    sine: Tensor

    @property
    def entering(self) -> int:
        return self.single.shape[1]

    @property
    def leaving(self) -> int:
        return self.single.shape[2]

    def transposed(self) -> _Blocks:
        """khat(f)^T conjugated; contiguous, which is up to a third faster."""
        parts = (part.transpose(1, 2).contiguous() for part in (self.single, self.cosine, -self.sine))
        return _Blocks(*parts)

    def apply(self, waves: Tensor) -> Tensor:
        """(n, k, c) -> (n, k, c'), as complex numbers on the pairs."""
        out = waves.new_empty(*waves.shape[:2], self.leaving)
        alone, pairs = self.single.shape[0], self.cosine.shape[0]
        real, imaginary = waves[alone : alone + pairs], waves[alone + pairs :]
        out_real, out_imaginary = out[alone : alone + pairs], out[alone + pairs :]
        torch.bmm(waves[:alone], self.single, out=out[:alone])
        torch.bmm(real, self.cosine, out=out_real)
        out_real.baddbmm_(imaginary, self.sine)
        torch.bmm(imaginary, self.cosine, out=out_imaginary)
        out_imaginary.baddbmm_(real, self.sine, alpha=-1.0)
        return out


def fourier_pays(weight: Tensor, size: Sequence[int]) -> bool:
    """Whether the Fourier form is cheaper than the convolution.

    By operation counts, with a term for channels too few to fill the vector units: within 20 % of the times measured
    from 16 to 256 channels on maps of 8 x 8 and 16 x 16. A count and not a timing, so that results repeat.
    """
    c_out, c_in = weight.shape[:2]
    positions = elements(size)
    taps = weight[0, 0].numel()
    fewest = min(c_out, c_in)
    direct = 2 * c_in * c_out * taps * (1 + 16 / fewest)
    fourier = (4 * c_in * c_out + 2 * (c_in + c_out) * positions) * (1 + 4 / fewest)
    return fourier < 0.9 * direct


def _unit(like: Tensor) -> float:
    """The relative rounding of factors, as PyTorch is set now."""
    backends: Any = torch.backends
    rounded = like.dtype == torch.float32 and like.device.type == "cuda"
    return (
        2.0**-10 if rounded and backends.cuda.matmul.fp32_precision == "tf32" else torch.finfo(like.dtype).eps
    )


@lru_cache(maxsize=32)
def _waves(
    size: tuple[int, ...], taps: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Cosine and sine (frequencies, taps) of the phase of each tap, at one frequency of each pair f, -f."""
    offsets = torch.cartesian_prod(
        *(
            torch.arange(count, dtype=torch.float64) * step - before
            for count, step, before in zip(taps, dilation, padding, strict=True)
        )
    ).reshape(-1, len(size))
    angle = _basis(size)[2] @ offsets.T
    return angle.cos(), angle.sin()


@lru_cache(maxsize=32)
def _basis(size: tuple[int, ...]) -> tuple[Tensor, int, Tensor]:
    """(n, n) real orthonormal Fourier basis as rows, in float64; how many frequencies are single; their phases.

    Rows: the frequencies that are their own negative (single), then the cosines of one of each pair, then its sines:
    rows ``single + j`` and ``single + pairs + j`` belong together. Phases: (single + pairs, axes), 2 pi f / size.
    """
    grid = torch.cartesian_prod(*(torch.arange(length) for length in size)).reshape(-1, len(size))
    lengths = torch.tensor(size)
    mirrored = (-grid) % lengths
    strides = torch.tensor([int(lengths[axis + 1 :].prod()) for axis in range(len(size))])
    number, partner = (grid * strides).sum(1), (mirrored * strides).sum(1)
    alone, first = grid[number == partner], grid[number < partner]
    phases = 2 * torch.pi * torch.cat([alone, first]).double() / lengths
    angle = phases @ grid.double().T
    positions = grid.shape[0]
    single = alone.shape[0]
    rows = torch.cat(
        [angle[:single].cos(), *(2**0.5 * wave(angle[single:]) for wave in (torch.cos, torch.sin))]
    )
    return rows / positions**0.5, single, phases
