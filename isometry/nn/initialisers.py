"""Initialisers of single weight tensors, in place, in the manner of `torch.nn.init`.

Every function takes a weight in PyTorch's layout, (c_out, c_in/groups, *k) for a convolution,
(c_in, c_out/groups, *k) for a transposed one (``transposed=True``) and (N_out, N_in) for a dense layer, fills it under
no_grad from numbers drawn in float64, and returns it. The centre of a kernel is the tap (k-1)//2 on every axis, also
for even k (where most PyTorch copies of delta-orthogonal use k//2, TensorFlow and JAX (k-1)//2).

When is an exact isometry possible, ||K * x|| = gain ||x|| for all x?

=====================  ========================================================================================
channels               c_in <= c_out; with stride s and d axes c_in s^d <= c_out. Else the best is a *co-isometry*
                       (orthonormal rows: c_out singular values per position equal to gain, the rest of the input
                       is lost), which has to be asked for.
padding                circular for `orthogonal_conv_`; any for `delta_orthogonal_` at stride 1.
stride                 one that divides the map, and k >= s.
=====================  ========================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from isometry.errors import InputError
from isometry.nn import kernels as laws
from isometry.nn.weights import (
    channels_of,
    check_gain,
    check_isometry,
    check_kernel,
    check_weight,
    fill_weight,
)


def orthogonal_(weight: Tensor, gain: float = 1.0, *, generator: torch.Generator | None = None) -> Tensor:
    """Fill a dense weight (N_out, N_in) with gain times a Haar orthogonal matrix.

    W^T W = gain^2 where N_out >= N_in; W W^T = gain^2 where the layer shrinks.

    Parameters
    ----------
    weight : Tensor
        (N_out, N_in), any floating dtype and device.
    gain : float
        Every singular value of the matrix.
    generator : torch.Generator, optional
        Source of randomness, else the global CPU seed of torch.

    Returns
    -------
    Tensor
        `weight`.

    Raises
    ------
    InputError
        When the weight is not a matrix: flattening a kernel to one does not make its convolution orthogonal.

    References
    ----------
    Mezzadri 2007, arXiv math-ph/0609050; Saxe et al. 2013, arXiv 1312.6120.
    """
    check_weight(weight)
    check_gain(gain)
    if weight.ndim != 2:
        raise InputError(
            f"orthogonal_ fills matrices, this weight has shape {tuple(weight.shape)}. The convolution of a flattened "
            "orthogonal kernel is not orthogonal: use delta_orthogonal_ or orthogonal_conv_."
        )
    return fill_weight(weight, gain * laws.haar_matrices(1, *weight.shape, generator=generator)[0])


def delta_orthogonal_(
    weight: Tensor,
    gain: float = 1.0,
    *,
    groups: int = 1,
    stride: int | Sequence[int] = 1,
    transposed: bool = False,
    co_isometry: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill a convolution kernel with zeros but for gain times a Haar matrix at its centre (Algorithm 2).

    At stride 1 the convolution is then gain times an isometry under circular and zero padding alike, for it is a
    1x1 convolution. At the critical point of an activation the gain is sigma_w (not sigma_w^2).

    Parameters
    ----------
    weight : Tensor
        (c_out, c_in/groups, *k), one, two or three axes of taps; (c_in, c_out/groups, *k) if transposed.
    gain : float
        Every singular value of the operator.
    groups : int
        Groups of the convolution; each gets a matrix of its own.
    stride : int or sequence of int
        Stride s of the convolution. Above 1 the centre alone would drop positions: the Haar matrix then spans a
        patch of s taps per axis, the patches tile the map, and the operator is an isometry where c_out >= c_in s^d on
        maps that s divides (under zero padding too, if it is (k-1)//2).
    transposed : bool
        Whether the weight is that of a transposed convolution, the adjoint of an ordinary one.
    co_isometry : bool
        Whether fewer outputs than inputs are allowed: orthonormal rows instead of columns.
    generator : torch.Generator, optional
        Source of randomness, else the global CPU seed of torch.

    Returns
    -------
    Tensor
        `weight`.

    Raises
    ------
    InputError
        When the channels make an isometry impossible and no co-isometry was asked for, when groups do not divide the
        channels, or when the stride is longer than the kernel.

    References
    ----------
    Xiao et al. 2018, arXiv 1806.05393, Algorithm 2.
    """
    strides = check_kernel(weight, gain, groups=groups, stride=stride)
    check_isometry(weight, groups, strides, transposed=transposed, co_isometry=co_isometry)
    # The centre (k-1)//2 is where a single-tap patch goes, see strided_kernels; so stride 1 needs no case of its own.
    return _fill_orthogonal(
        weight,
        gain,
        groups,
        strides,
        (1,) * len(strides),
        lambda count, rows, columns, taps: laws.delta_orthogonal_kernels(
            count, rows, columns, taps, generator=generator
        ),
    )


def orthogonal_conv_(
    weight: Tensor,
    gain: float = 1.0,
    *,
    rank: str | int = "binomial",
    groups: int = 1,
    stride: int | Sequence[int] = 1,
    transposed: bool = False,
    padding_mode: str = "circular",
    co_isometry: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill a convolution kernel with a random orthogonal kernel that uses all its taps (Algorithm 1).

    Under circular padding every singular value of the convolution is gain.

    Parameters
    ----------
    weight : Tensor
        (c_out, c_in/groups, *k), one, two or three axes of taps; (c_in, c_out/groups, *k) if transposed.
    gain : float
        Every singular value of the operator.
    rank : {"binomial", "half"} or int
        Rank of the random projections: Binomial(c, 1/2) as in the authors' code; c//2, the largest connected component
        of orthogonal convolutions (Li et al. 2019, arXiv 1911.00937); or a number, where 0 or c only shifts the map.
        c is the larger of the two channel counts of a group (of input patches, if strided).
    groups : int
        Groups of the convolution; each gets a kernel of its own.
    stride : int or sequence of int
        Stride s of the convolution: the kernel acts on patches of s^d c_in channels and k//s taps, an isometry where
        c_out >= c_in s^d on maps that s divides.
    transposed : bool
        Whether the weight is that of a transposed convolution.
    padding_mode : {"circular"}
        Padding of the layer. Anything but "circular" raises, for the border is then cut off (with zeros on a 7x7 map
        and 3x3 taps a quarter of the singular values is not 1).
    co_isometry : bool
        Whether fewer outputs than inputs are allowed: orthonormal rows instead of columns.
    generator : torch.Generator, optional
        Source of randomness, else the global CPU seed of torch.

    Returns
    -------
    Tensor
        `weight`.

    Raises
    ------
    InputError
        As `delta_orthogonal_`; also for an unknown rank law, and for padding that is not circular.

    References
    ----------
    Xiao et al. 2018, arXiv 1806.05393, Algorithm 1; Kautsky and Turcajova 1994 for the factors.
    """
    strides = check_kernel(weight, gain, groups=groups, stride=stride)
    if padding_mode != "circular" and any(k > 1 for k in weight.shape[2:]):
        raise InputError(
            f"padding_mode={padding_mode!r}: a kernel with several taps is orthogonal on a circle only, for the "
            'others cut its border off. Use delta_orthogonal_, or padding_mode="circular".'
        )
    check_isometry(weight, groups, strides, transposed=transposed, co_isometry=co_isometry)
    taps = tuple(k // s for k, s in zip(weight.shape[2:], strides, strict=True))
    laws.check_rank(rank, max(weight.shape[0] // groups, weight.shape[1] * math.prod(strides)))
    return _fill_orthogonal(
        weight,
        gain,
        groups,
        strides,
        taps,
        lambda count, rows, columns, taps: laws.orthogonal_convolution_kernels(
            count, rows, columns, taps, rank=rank, generator=generator
        ),
    )


def gaussian_(
    weight: Tensor,
    sigma_w: float = 1.0,
    *,
    profile: Tensor | Sequence[float] | None = None,
    groups: int = 1,
    transposed: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill a dense weight or a kernel with independent N(0, sigma_w^2 / fan_in) numbers.

    Parameters
    ----------
    weight : Tensor
        (N_out, N_in), (c_out, c_in/groups, *k), or (c_in, c_out/groups, *k) if transposed.
    sigma_w : float
        Standard deviation (not variance) times sqrt(fan_in); fan_in = prod(k) c_in/groups.
    profile : array_like, optional
        Variance fractions v over the taps, of shape k, or one vector for every axis; they sum to 1, and the entries at
        tap b get variance sigma_w^2 v_b groups/c_in. None is uniform.
    groups : int
        Groups of the convolution.
    transposed : bool
        Whether the weight is that of a transposed convolution. With stride s only one in s^d of its taps reaches each
        output, so multiply sigma_w by s^(d/2) to keep the variance of a signal.
    generator : torch.Generator, optional
        Source of randomness, else the global CPU seed of torch.

    Returns
    -------
    Tensor
        `weight`.

    Raises
    ------
    InputError
        When sigma_w is negative or the profile does not fit the kernel.

    References
    ----------
    Xiao et al. 2018, arXiv 1806.05393, sections 2 and 3 (uniform and non-uniform kernels).
    """
    check_weight(weight)
    if not (math.isfinite(sigma_w) and sigma_w >= 0):
        raise InputError(f"sigma_w must be a finite number of zero or more, got {sigma_w!r}.")
    taps = tuple(weight.shape[2:])
    if profile is not None and not taps:
        raise InputError("a variance profile is over the taps of a kernel; a dense weight has none.")
    inputs, outputs = channels_of(weight, groups, transposed=transposed)
    drawn = laws.gaussian_kernels(groups, outputs, inputs, taps, profile=profile, generator=generator)
    if transposed:
        drawn = drawn.transpose(1, 2)
    return fill_weight(weight, sigma_w * drawn.reshape(weight.shape))


def _fill_orthogonal(
    weight: Tensor,
    gain: float,
    groups: int,
    strides: tuple[int, ...],
    taps: tuple[int, ...],
    law: Callable[[int, int, int, tuple[int, ...]], Tensor],
) -> Tensor:
    """Fill with a law of kernels over patches. A transposed weight is laid out as the convolution it is adjoint to."""
    coarse = law(groups, weight.shape[0] // groups, weight.shape[1] * math.prod(strides), taps)
    fine = laws.strided_kernels(coarse, strides, tuple(weight.shape[2:]))
    return fill_weight(weight, gain * fine.reshape(weight.shape))
