"""A circular convolution as what it is in Fourier space: one small matrix for each spatial frequency.

On a grid of n positions with circular padding K * x is block-diagonal in the Fourier basis, khat(f) = sum_b K_b
exp(2 pi i f . b / n) (Xiao et al. 2018, arXiv 1806.05393, section 2.4; Sedghi, Gupta & Long 2019, arXiv 1805.10408,
for the singular values). In the real orthonormal basis of cosines and sines a pair of frequencies f, -f is one real
block, so that both changes of basis and all blocks are plain matrix products. For maps with few positions that is
fewer operations than the convolution itself: 4 c c' n + 2 (c + c') n^2 for one vector against 2 c c' n taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .maps import LinearMap, Plain

# Fewer vectors than this do not pay for reading a matrix for each frequency instead of one for each tap.
FEWEST_BY_FREQUENCY = 4


class FourierConvolution(Plain):
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
        self._size, self._direct = tuple(size), direct
        basis, single, phases = _basis(self._size)
        # khat at the frequencies that stand for their pair, from the few taps there are.
        offsets = torch.cartesian_prod(
            *(
                torch.arange(taps, dtype=torch.float64) * step - before
                for taps, step, before in zip(weight.shape[2:], dilation, padding, strict=True)
            )
        ).reshape(-1, len(self._size))
        angle = (phases @ offsets.T).to(weight.device)
        taps = weight.detach().double().flatten(2).permute(2, 1, 0)
        cosine, sine = (
            torch.tensordot(wave, taps, 1).to(weight.dtype) for wave in (angle.cos(), angle.sin())
        )
        self._basis = basis.to(weight)
        self._forward = _Blocks(cosine[:single], cosine[single:], sine[single:])
        self._reverse = self._forward.transposed()

    @property
    def nbytes(self) -> int:
        """Memory of the blocks."""
        return self._forward.nbytes + self._reverse.nbytes

    def push(self, v: Tensor, owned: bool) -> Tensor:
        """K * x: (k, c_in, *size) -> (k, c_out, *size)."""
        if self._direct is not None and self._vectors(v, self._forward) < FEWEST_BY_FREQUENCY:
            return self._direct.push(v, owned)
        return self._act(v, self._forward)

    def pull(self, u: Tensor, owned: bool) -> Tensor:
        """Its transpose: (k, c_out, *size) -> (k, c_in, *size)."""
        if self._direct is not None and self._vectors(u, self._reverse) < FEWEST_BY_FREQUENCY:
            return self._direct.pull(u, owned)
        return self._act(u, self._reverse)

    def _vectors(self, block: Tensor, blocks: _Blocks) -> int:
        return block.numel() // (blocks.entering * self._basis.shape[0])

    def _act(self, block: Tensor, blocks: _Blocks) -> Tensor:
        positions = self._basis.shape[0]
        # Frequencies first: a transposed factor costs a matrix product nothing, so that no number is moved about.
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

    @property
    def nbytes(self) -> int:
        return self.single.nbytes + self.cosine.nbytes + self.sine.nbytes

    def transposed(self) -> _Blocks:
        """khat(f)^T conjugated; contiguous, which is up to a third faster."""
        turned = (part.transpose(1, 2).contiguous() for part in (self.single, self.cosine, -self.sine))
        return _Blocks(*turned)

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

    By operation counts, and what channels too few to fill the vector units add to either: within 20 % of the times
    measured from 16 to 256 channels on maps of 8 x 8 and 16 x 16. A count and not a timing, so that results repeat.
    """
    c_out, c_in = weight.shape[:2]
    positions = 1
    for length in size:
        positions *= length
    taps = weight[0, 0].numel()
    fewest = min(c_out, c_in)
    direct = 2 * c_in * c_out * taps * (1 + 16 / fewest)
    fourier = (4 * c_in * c_out + 2 * (c_in + c_out) * positions) * (1 + 4 / fewest)
    return fourier < 0.9 * direct


@lru_cache(maxsize=32)
def _basis(size: tuple[int, ...]) -> tuple[Tensor, int, Tensor]:
    """(n, n) real orthonormal Fourier basis as rows, in float64; how many frequencies are alone; their phases.

    Rows: the frequencies that are their own negative, then the cosines of one of each pair, then its sines, so that
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
