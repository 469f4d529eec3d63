"""An orthogonal kernel as factors that can be trained: an orthonormal matrix and projections, and the way back.

With fewer outputs than inputs, or as many, the kernel is K = H * (P_1, 1 - P_1) * (P_2, 1 - P_2) * ..., H with
orthonormal rows, one two-tap factor for each further tap along each axis, in the order of
`isometry.nn.kernels.orthogonal_convolution_kernels` (Xiao et al. 2018, arXiv 1806.05393, Algorithm 1; Li et al. 2019,
arXiv 1911.00937). With more outputs it is the transpose of such a kernel, channels exchanged and taps as they are. A
projection is P = B D B^T, B orthogonal and D of zeros and ones: D, and so the rank, is fixed while B is trained.

Along one axis every orthogonal kernel has such factors (Kautsky and Turcajova 1994); along two, those of Algorithm 1.
The last factor is read off the outermost taps: K_first (1 - P) = 0 and K_last P = 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isometry.nn.kernels import append_two_taps, haar_matrices, projection_bases


@dataclass(frozen=True, eq=False)
class KernelFactors:
    """The factors of kernels (count, rows, columns, *taps), of a gain of 1.

    Parameters
    ----------
    matrix : Tensor
        H, (count, r, c): r and c the smaller and the larger of rows and columns, H H^T = 1.
    bases : Tensor
        B of each factor, (factors, count, c, c).
    kept : Tensor
        The diagonal of D, zeros and ones, (factors, count, c).
    """

    matrix: Tensor
    bases: Tensor
    kept: Tensor


def factor_axes(taps: Sequence[int], *, transposed: bool) -> list[int]:
    """The axis of each two-tap factor, in the order in which they are appended to H.

    With more rows than columns the factors of Algorithm 1, moved to the other side of H, stand in reverse.
    """
    steps = range(1, max(taps, default=1))
    axes = [axis for step, (axis, size) in itertools.product(steps, enumerate(taps)) if step < size]
    return axes[::-1] if transposed else axes


def composed(matrix: Tensor, bases: Tensor, kept: Tensor, taps: Sequence[int], *, transposed: bool) -> Tensor:
    """The kernels (count, rows, columns, *taps) of these factors; the parameters are those of `KernelFactors`.

    Parameters
    ----------
    taps : sequence of int
        Taps along each axis.
    transposed : bool
        Whether there are more rows than columns.
    """
    count, rows, columns = matrix.shape
    kernels = matrix.reshape(count, *([1] * len(taps)), rows, columns)
    for axis, basis, diagonal in zip(factor_axes(taps, transposed=transposed), bases, kept, strict=True):
        kernels = append_two_taps(kernels, (basis * diagonal[:, None, :]) @ basis.mT, axis + 1)
    return kernels.movedim((-1, -2) if transposed else (-2, -1), (1, 2))


def drawn_factors(
    count: int,
    rows: int,
    columns: int,
    taps: Sequence[int],
    *,
    rank: str | int,
    generator: torch.Generator | None = None,
) -> KernelFactors:
    """Factors of the law of `isometry.nn.kernels.orthogonal_convolution_kernels`, float64.

    With more rows than columns the projections stand on the other side of H there; as they are uniform and independent
    of H, the law is the same.
    """
    short, long = min(rows, columns), max(rows, columns)
    matrix = haar_matrices(count, short, long, generator=generator)
    found = [
        projection_bases(count, long, rank=rank, generator=generator)
        for _ in factor_axes(taps, transposed=False)
    ]
    empty = (matrix.new_zeros((0, count, long, long)), matrix.new_zeros((0, count, long)))
    bases, kept = (torch.stack(parts) for parts in zip(*found, strict=True)) if found else empty
    return KernelFactors(matrix, bases, kept)


def factors_of(kernels: Tensor, tolerance: float) -> tuple[KernelFactors, float] | None:
    """The factors of kernels (count, rows, columns, *taps), and their gain.

    Parameters
    ----------
    kernels : Tensor
        float64.
    tolerance : float
        By how much, relative to the gain, an entry may differ from that of the factors.

    Returns
    -------
    (KernelFactors, float) or None
        None where the kernels are not a gain times orthogonal ones, or have no factors in this order.
    """
    rows, columns, taps = kernels.shape[1], kernels.shape[2], tuple(kernels.shape[3:])
    transposed = rows > columns
    channels = kernels.transpose(1, 2) if transposed else kernels
    layout = channels.movedim((1, 2), (-2, -1))
    gain = math.sqrt(float(kernels.square().sum()) / (kernels.shape[0] * min(rows, columns)))
    if not (math.isfinite(gain) and gain > 0):
        return None
    for fewest in (True, False):
        found = _peeled(layout / gain, taps, transposed=transposed, fewest=fewest)
        rebuilt = composed(found.matrix, found.bases, found.kept, taps, transposed=transposed)
        if float((rebuilt - kernels / gain).abs().max()) <= tolerance:
            return found, gain
    return None


def _peeled(layout: Tensor, taps: Sequence[int], *, transposed: bool, fewest: bool) -> KernelFactors:
    """Factors of kernels (count, *taps, r, c), if they have any: the last first.

    Directions that neither outermost tap reads may belong to either side: ``fewest`` leaves them out of P.
    """
    count, channels = layout.shape[0], layout.shape[-1]
    bases, kept = [], []
    for axis in reversed(factor_axes(taps, transposed=transposed)):
        first, last = (layout.select(axis + 1, end).reshape(count, -1, channels) for end in (0, -1))
        # The rows of the one span P and those of the other are orthogonal to it: eigenvalues above and below zero.
        sizes, basis = torch.linalg.eigh(first.mT @ first - last.mT @ last)
        rounding = channels * torch.finfo(layout.dtype).eps
        diagonal = (sizes > (rounding if fewest else -rounding)).to(layout.dtype)
        projection = (basis * diagonal[:, None, :]) @ basis.mT
        stays = layout @ projection.reshape(count, *([1] * len(taps)), channels, channels)
        moves = layout - stays
        size = layout.shape[axis + 1]
        layout = stays.narrow(axis + 1, 0, size - 1) + moves.narrow(axis + 1, 1, size - 1)
        bases.append(basis)
        kept.append(diagonal)
    matrix = layout.reshape(count, *layout.shape[-2:])
    # The nearest matrix with orthonormal rows; where rows are lost the comparison with the kernel fails.
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    empty = (matrix.new_zeros((0, count, channels, channels)), matrix.new_zeros((0, count, channels)))
    if not bases:
        return KernelFactors(left @ right, *empty)
    return KernelFactors(left @ right, torch.stack(bases[::-1]), torch.stack(kept[::-1]))
