"""Random matrices and convolution kernels, many at a time, in float64.

The laws behind the in-place initialisers of `isometry.nn.init` and behind the networks of `isometry.nn.models`:
Haar orthogonal matrices, the delta-orthogonal kernel (Xiao et al. 2018, arXiv 1806.05393, Algorithm 2), the random
orthogonal kernel (ibid., Algorithm 1) and the Gaussian kernel with a variance profile over its taps. A leading axis
counts independent kernels: the groups of one convolution, or the layers of a network 10,000 deep, which are then
drawn with one batched QR factorisation.

Kernels have PyTorch's layout (count, c_out, c_in, *k) and PyTorch's meaning, a cross-correlation:
y(i) = sum_t K_t x(i + t - centre), centre (k - 1)//2 on every axis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from isometry.errors import InputError

RANK_LAWS = ("binomial", "half")


def centre_tap(kernel_size: Sequence[int]) -> tuple[int, ...]:
    """Index of the tap that maps a position to itself: (k - 1)//2, so the left of the two middle taps for even k."""
    return tuple((k - 1) // 2 for k in kernel_size)


def haar_matrices(
    count: int, rows: int, columns: int | None = None, *, generator: torch.Generator | None = None
) -> Tensor:
    """Matrices with orthonormal rows or columns, whichever are fewer, uniform over all such (Haar measure).

    Parameters
    ----------
    count : int
        Number of independent matrices.
    rows, columns : int
        Their shape; square when `columns` is left out.
    generator : torch.Generator, optional
        Source of randomness; the matrices are drawn on its device, else on the CPU from the global seed.

    Returns
    -------
    Tensor
        (count, rows, columns), float64: Q^T Q = 1 where rows >= columns, Q Q^T = 1 where rows <= columns.

    Notes
    -----
    QR of a Gaussian matrix, columns multiplied by the signs of diag R: without the signs the law would depend on the
    convention of the QR routine and not be Haar (Mezzadri 2007, arXiv math-ph/0609050, section 5).
    """
    columns = rows if columns is None else columns
    long, short = max(rows, columns), min(rows, columns)
    gaussian = normal((count, long, short), generator=generator)
    orthonormal, triangular = torch.linalg.qr(gaussian)
    diagonal = triangular.diagonal(dim1=-2, dim2=-1)
    orthonormal = orthonormal * torch.where(diagonal < 0, -1.0, 1.0)[:, None, :]
    return orthonormal if rows >= columns else orthonormal.mT


def delta_orthogonal_kernels(
    count: int,
    channels_out: int,
    channels_in: int,
    kernel_size: Sequence[int],
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Kernels that vanish except for a Haar matrix at the centre tap (Xiao et al. 2018, Algorithm 2).

    Returns
    -------
    Tensor
        (count, c_out, c_in, *k), float64. The matrix has orthonormal columns where c_out >= c_in, rows elsewhere.
    """
    kernels = torch.zeros(
        (count, channels_out, channels_in, *kernel_size), dtype=torch.float64, device=draw_device(generator)
    )
    matrices = haar_matrices(count, channels_out, channels_in, generator=generator)
    centre: tuple[Any, ...] = (..., *centre_tap(kernel_size))
    kernels[centre] = matrices
    return kernels


def random_projections(
    count: int, channels: int, *, rank: str | int = "binomial", generator: torch.Generator | None = None
) -> Tensor:
    """Orthogonal projections of R^c onto uniformly random subspaces.

    Parameters
    ----------
    count, channels : int
        Number of projections, and c.
    rank : {"binomial", "half"} or int
        Dimension of the subspace: Binomial(c, 1/2), each direction kept by a fair coin (the law of the authors'
        TensorFlow code); c//2 always (the largest connected component of the orthogonal convolutions, Li et al. 2019,
        arXiv 1911.00937); or a number from 0 to c.

    Returns
    -------
    Tensor
        (count, c, c), float64, P = P^T = P P.
    """
    basis, kept = projection_bases(count, channels, rank=rank, generator=generator)
    return (basis * kept[:, None, :]) @ basis.mT


def projection_bases(
    count: int, channels: int, *, rank: str | int = "binomial", generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Orthogonal matrices B, (count, c, c), and zeros and ones D, (count, c), of projections B D B^T, float64.

    The parameters are those of `random_projections`.
    """
    check_rank(rank, channels)
    basis = haar_matrices(count, channels, generator=generator)
    if rank == "binomial":
        coins = torch.rand(
            (count, channels), generator=generator, dtype=torch.float64, device=draw_device(generator)
        )
        return basis, (coins < 0.5).to(torch.float64)
    dimension = channels // 2 if rank == "half" else int(rank)
    kept = (torch.arange(channels, device=basis.device) < dimension).to(torch.float64)
    return basis, kept.expand(count, -1)


def orthogonal_convolution_kernels(
    count: int,
    channels_out: int,
    channels_in: int,
    kernel_size: Sequence[int],
    *,
    rank: str | int = "binomial",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Random orthogonal kernels with every tap in use (Xiao et al. 2018, Algorithm 1).

    A Haar matrix times a block convolution of two-tap factors (P, 1 - P), k - 1 of them along each axis, each with a
    projection of its own. A factor maps x(i) to P x(i) + (1 - P) x(i + 1): two orthogonal parts, one of them moved,
    so its norm is that of x.

    Returns
    -------
    Tensor
        (count, c_out, c_in, *k), float64. As an operator on a circular map: orthonormal columns (an isometry) where
        c_out >= c_in, orthonormal rows (a co-isometry) elsewhere.

    Notes
    -----
    The two-dimensional factor B = [[PQ, P(1-Q)], [(1-P)Q, (1-P)(1-Q)]] of the paper is the block convolution of
    (P, 1 - P) down with (Q, 1 - Q) across. Composing the one-dimensional factors in the order
    P_1 Q_1 P_2 Q_2 ... is therefore the algorithm of the paper, it allows a different k on each axis, and it costs
    two matrix products per tap instead of 2^d.
    """
    channels = max(channels_out, channels_in)
    dimensions = len(kernel_size)
    kernels = haar_matrices(count, channels, generator=generator).reshape(
        count, *([1] * dimensions), channels, channels
    )
    for step in range(1, max(kernel_size, default=1)):
        for axis, size in enumerate(kernel_size):
            if step < size:
                projection = random_projections(count, channels, rank=rank, generator=generator)
                kernels = append_two_taps(kernels, projection, axis + 1)
    # The square kernel is orthogonal: any of its columns are an isometry of fewer channels, any rows a co-isometry.
    kernels = kernels[..., :channels_out, :channels_in]
    return kernels.movedim((-2, -1), (1, 2))


def append_two_taps(kernels: Tensor, projection: Tensor, axis: int) -> Tensor:
    """Block convolution of `kernels` (count, *taps, c, c) with the taps (P, 1 - P) along `axis`."""
    spread = projection.reshape(projection.shape[0], *([1] * (kernels.ndim - 3)), *projection.shape[1:])
    stays = kernels @ spread
    moves = kernels - stays
    edge = torch.zeros_like(kernels.narrow(axis, 0, 1))
    return torch.cat((stays, edge), dim=axis) + torch.cat((edge, moves), dim=axis)


def strided_kernels(coarse: Tensor, stride: Sequence[int], kernel_size: Sequence[int]) -> Tensor:
    """Kernels of a strided convolution from kernels that act on patches.

    A map cut into patches of s positions along each axis is a coarser map with s^d times the channels, and cutting is
    orthogonal. A convolution of stride 1 on the patches is a convolution of stride s on the map; this writes its taps.

    Parameters
    ----------
    coarse : Tensor
        (count, c_out, c_in s^d, *m), kernels over patches.
    stride, kernel_size : sequence of int
        s and k per axis, m s <= k; taps that are left over are zero.

    Returns
    -------
    Tensor
        (count, c_out, c_in, *k). The taps in use start at min((k-1)//2, k - m s), so that a single patch begins at the
        centre: with zero padding (k-1)//2 the patches then tile the map from its first position.
    """
    count, channels_out, patch_channels = coarse.shape[:3]
    dimensions = len(kernel_size)
    channels_in = patch_channels // math.prod(stride)
    taps = coarse.shape[3:]
    split = coarse.reshape(count, channels_out, channels_in, *stride, *taps)
    within, across = range(3, 3 + dimensions), range(3 + dimensions, 3 + 2 * dimensions)
    order = [axis for pair in zip(across, within, strict=True) for axis in pair]
    extent = [m * s for m, s in zip(taps, stride, strict=True)]
    fine = split.permute(0, 1, 2, *order).reshape(count, channels_out, channels_in, *extent)
    # By padding, not by writing into zeros: a trainable kernel is differentiated through this, also under vmap.
    before = [min((k - 1) // 2, k - used) for k, used in zip(kernel_size, extent, strict=True)]
    after = [k - used - b for k, used, b in zip(kernel_size, extent, before, strict=True)]
    return functional.pad(
        fine, [edge for pair in zip(before[::-1], after[::-1], strict=True) for edge in pair]
    )


def gaussian_kernels(
    count: int,
    channels_out: int,
    channels_in: int,
    kernel_size: Sequence[int],
    *,
    profile: Tensor | Sequence[float] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Independent Gaussian kernels of variance v_b / c_in at tap b, sum_b v_b = 1 (Xiao et al. 2018, section 2).

    Parameters
    ----------
    profile : array_like, optional
        Variance fractions v, of shape `kernel_size`, or one vector used along every axis (their outer product); None
        is uniform, v_b = 1/prod(k), the usual variance 1/fan_in.

    Returns
    -------
    Tensor
        (count, c_out, c_in, *k), float64.
    """
    kernels = normal((count, channels_out, channels_in, *kernel_size), generator=generator)
    taps = math.prod(kernel_size)
    if profile is None:
        return kernels / math.sqrt(channels_in * taps)
    fractions = variance_profile(profile, kernel_size).to(kernels.device)
    return kernels * (fractions / channels_in).sqrt()


# Position of a mirrored layer -> copies of K0 beside one another (inputs) and below one another (outputs).
MIRRORED_HALVES = {"middle": (2, 2), "first": (1, 2), "last": (2, 1)}


def mirrored_kernels(
    count: int,
    channels_out: int,
    channels_in: int,
    kernel_size: Sequence[int],
    *,
    position: str = "middle",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Looks-linear kernels [[K0, -K0], [-K0, K0]] with a delta-orthogonal K0 of half the channels.

    Balduzzi et al. 2017, arXiv 1702.08591; Burkholz and Dubatovka 2019, arXiv 1806.06362. On x = (u, v) and with
    z = K0 * (u - v) a ReLU gives (relu(z), relu(-z)), whose difference is z again: the next layer sees a linear map.
    A "first" layer reads raw inputs, [[K0], [-K0]], and a "last" one is read out, [K0, -K0].

    Returns
    -------
    Tensor
        (count, c_out, c_in, *k), float64; channel counts that are mirrored are even.
    """
    halves_in, halves_out = MIRRORED_HALVES[position]
    base = delta_orthogonal_kernels(
        count, channels_out // halves_out, channels_in // halves_in, kernel_size, generator=generator
    )
    if halves_in == 2:
        base = torch.cat((base, -base), dim=2)
    return torch.cat((base, -base), dim=1) if halves_out == 2 else base


def variance_profile(profile: Tensor | Sequence[float], kernel_size: Sequence[int]) -> Tensor:
    """Variance fractions over the taps as a float64 tensor of shape `kernel_size`, checked to sum to 1.

    Raises
    ------
    InputError
        When the shape does not fit, a fraction is negative, or the sum is not 1 within 1e-6.
    """
    fractions = torch.as_tensor(profile, dtype=torch.float64).detach().cpu()
    if fractions.ndim == 1 and len(kernel_size) > 1 and all(k == len(fractions) for k in kernel_size):
        axis = fractions
        for _ in range(len(kernel_size) - 1):
            fractions = fractions[..., None] * axis
    if tuple(fractions.shape) != tuple(kernel_size):
        raise InputError(
            f"the variance profile has shape {tuple(fractions.shape)}, the kernel {tuple(kernel_size)}: give one "
            "fraction per tap, or one vector of length k for a kernel with the same k on every axis."
        )
    total = float(fractions.sum())
    if not bool((fractions >= 0).all()) or not math.isclose(total, 1.0, abs_tol=1e-6):
        raise InputError(
            f"a variance profile is fractions of zero or more that sum to 1; this one sums to {total:.6g} with "
            f"smallest {float(fractions.min()):.3g}. Divide it by its sum."
        )
    return fractions


def check_rank(rank: str | int, channels: int) -> None:
    """Raise InputError unless `rank` is a known law or a dimension between 0 and `channels`."""
    if isinstance(rank, bool) or not (rank in RANK_LAWS or (isinstance(rank, int) and 0 <= rank <= channels)):
        raise InputError(
            f"rank must be one of {', '.join(RANK_LAWS)} or a whole number from 0 to {channels} (the channels), "
            f"got {rank!r}."
        )


def draw_device(generator: torch.Generator | None) -> torch.device:
    """Device of the draws: the generator's, else the CPU, so that a seed gives the same network on any device."""
    return torch.device("cpu") if generator is None else generator.device


def normal(shape: Sequence[int], *, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal float64 numbers of the given shape, on the device of the generator (else the CPU)."""
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64, device=draw_device(generator))


def chunks(count: int, elements_each: int, *, limit: int = 2**24) -> list[range]:
    """Consecutive ranges of 0..count-1 whose kernels hold at most `limit` numbers together, at least one each."""
    step = max(1, limit // max(1, elements_each))
    starts = list(itertools.chain(range(0, count, step), [count]))
    return [range(first, last) for first, last in itertools.pairwise(starts)]
