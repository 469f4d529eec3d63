"""Singular values of a convolution as an operator on a map of given size, not of its flattened kernel.

Circular padding makes the operator block-circulant: a Fourier transform splits it into one c_out x c_in matrix per
frequency, whose singular values are the operator's (Sedghi, Gupta and Long 2019, arXiv 1805.10408, theorem 6). A stride
folds s^d input frequencies onto each output frequency and widens the matrix to c_out x c_in s^d. Any other padding goes
through the Jacobian operator of the layer, dense.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from isometry.errors import InputError
from isometry.estimators.exact import exact
from isometry.jacobian import JacobianOperator
from isometry.nn.kernels import centre_tap

PADDING_MODES = ("circular", "zeros", "reflect", "replicate")
_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
# Largest dense matrix; its SVD takes minutes.
DENSE_BYTES = 4 * 2**30


def conv_singular_values(
    weight: Tensor,
    input_size: int | Sequence[int],
    padding_mode: str = "circular",
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | None = None,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    transposed: bool = False,
) -> Tensor:
    """All singular values of a convolution (without its bias) on maps of `input_size`, largest first.

    Parameters
    ----------
    weight : Tensor
        (c_out, c_in/groups, *k), one to three axes of taps; (c_in, c_out/groups, *k) if transposed.
    input_size : int or sequence of int
        Size of the map that the layer reads, per axis (one number for all).
    padding_mode : {"circular", "zeros", "reflect", "replicate"}
        What lies beyond the border.
    stride, dilation : int or sequence of int
        Of the layer, per axis.
    padding : int or sequence of int, optional
        Positions added on both sides. None keeps the size at stride 1: d (k-1)//2 before and the rest of d (k-1)
        after, so that the tap (k-1)//2 reads the position itself.
    groups : int
        Of the layer.
    transposed : bool
        Whether the layer is a transposed convolution: the adjoint of a convolution from maps of its output size,
        input_size * stride (or, with explicit padding, (input_size - 1) stride - 2 padding + dilation (k-1) + 1).

    Returns
    -------
    Tensor
        (min(m, n),) float64, on the CPU, descending, for an operator of n inputs and m outputs. The zeros that a
        rectangular shape forces are not among them.

    Raises
    ------
    InputError
        When the kernel, the map and the options do not fit together, or a dense matrix would not fit into memory.

    Notes
    -----
    Circular padding that keeps the size, with a stride that divides the map, costs one SVD of a c_out x c_in s^d matrix
    per frequency (half of them: a real kernel has conjugate pairs). Everything else costs the SVD of the dense matrix.

    References
    ----------
    Sedghi, Gupta and Long 2019, arXiv 1805.10408.

    Examples
    --------
    >>> shift_or_not = torch.tensor([[[0.5, 0.5]]])  # y(i) = (x(i) + x(i + 1)) / 2
    >>> conv_singular_values(shift_or_not, 4)  # |cos(pi f / 4)|
    tensor([1.0000, 0.7071, 0.7071, 0.0000], dtype=torch.float64)
    """
    if not isinstance(weight, Tensor) or weight.ndim not in (3, 4, 5) or not weight.is_floating_point():
        raise InputError(
            "weight must be a floating-point kernel of shape (c_out, c_in/groups, *k), one to three taps axes."
        )
    if padding_mode not in PADDING_MODES:
        raise InputError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {padding_mode!r}.")
    if groups < 1 or weight.shape[0] % groups:
        raise InputError(f"groups must divide the first axis of the weight, {weight.shape[0]}; got {groups}.")
    axes = weight.ndim - 2
    kernel_size = tuple(weight.shape[2:])
    size = _per_axis("input_size", input_size, axes, least=1)
    strides = _per_axis("stride", stride, axes, least=1)
    dilations = _per_axis("dilation", dilation, axes, least=1)
    explicit = None if padding is None else _per_axis("padding", padding, axes, least=0)
    reach = tuple(d * (k - 1) for d, k in zip(dilations, kernel_size, strict=True))
    before = tuple(d * c for d, c in zip(dilations, centre_tap(kernel_size), strict=True))
    after = tuple(r - b for r, b in zip(reach, before, strict=True))
    if transposed:
        if explicit is None:
            size = tuple(n * s for n, s in zip(size, strides, strict=True))
        else:
            size = tuple(
                (n - 1) * s - 2 * p + r + 1 for n, s, p, r in zip(size, strides, explicit, reach, strict=True)
            )
    if explicit is not None:
        before = after = explicit
    if any(n < 1 or n + b + a <= r for n, b, a, r in zip(size, before, after, reach, strict=True)):
        raise InputError(
            f"a kernel of {kernel_size} taps, dilation {dilations}, does not fit on a map of {size} with padding "
            f"{before} before and {after} after."
        )
    kernel = weight.detach().to("cpu", torch.float64)
    grouped = kernel.reshape(groups, kernel.shape[0] // groups, *kernel.shape[1:])
    keeps_size = all(b + a == r for b, a, r in zip(before, after, reach, strict=True))
    divides = all(n % s == 0 for n, s in zip(size, strides, strict=True))
    if padding_mode == "circular" and keeps_size and divides:
        values = _circular(grouped, size, strides, dilations)
    else:
        pads = tuple(zip(before, after, strict=True))
        values = _dense(grouped, size, strides, dilations, pads, padding_mode)
    return values.sort(descending=True).values


def _circular(
    kernels: Tensor, size: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> Tensor:
    """Singular values by frequency; kernels (groups, c_out, c_in, *k). Shifts, so the centre too, do not matter."""
    groups, channels_out, channels_in = kernels.shape[:3]
    axes = len(size)
    wrapped = kernels.new_zeros((groups, channels_out, channels_in, *size))
    # Taps may fall on the same position of a small circle, where they add up.
    positions = [
        (torch.arange(k) * d) % n for k, d, n in zip(kernels.shape[3:], dilations, size, strict=True)
    ]
    flat = positions[0]
    for position, n in zip(positions[1:], size[1:], strict=True):
        flat = (flat[:, None] * n + position).flatten()
    wrapped.flatten(3).index_add_(3, flat, kernels.flatten(3))
    transform = torch.fft.fftn(wrapped, dim=tuple(range(3, 3 + axes)))
    # Output frequency f depends on the input frequencies f + j n/s: split every axis into (s, n/s).
    coarse = tuple(n // s for n, s in zip(size, strides, strict=True))
    split = [length for s, n in zip(strides, coarse, strict=True) for length in (s, n)]
    transform = transform.reshape(groups, channels_out, channels_in, *split)
    aliases = [3 + 2 * axis for axis in range(axes)]
    frequencies = [4 + 2 * axis for axis in range(axes)]
    blocks = transform.permute(0, *frequencies, 1, 2, *aliases)
    blocks = blocks.reshape(groups, math.prod(coarse), channels_out, channels_in * math.prod(strides))
    # A real kernel has the same singular values at f and -f.
    index = torch.arange(math.prod(coarse)).reshape(coarse)
    mirror = index
    for axis in range(axes):
        mirror = mirror.roll(-1, dims=axis).flip(axis)
    index, mirror = index.flatten(), mirror.flatten()
    kept = index[index <= mirror]
    counts = torch.where(kept == mirror[kept], 1, 2)
    # With unitary transforms on both sides, sampling every s-th position costs a factor s^(-d/2).
    values = torch.linalg.svdvals(blocks[:, kept]) / math.sqrt(math.prod(strides))
    return values.repeat_interleave(counts, dim=1).flatten()


def _dense(
    kernels: Tensor,
    size: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    pads: tuple[tuple[int, int], ...],
    padding_mode: str,
) -> Tensor:
    """Singular values of the layer's Jacobian, one group after another."""
    channels_out, channels_in = kernels.shape[1:3]
    convolve = _CONVOLUTIONS[len(size)]
    outputs = [
        (n + sum(pad) - d * (k - 1) - 1) // s + 1
        for n, s, d, k, pad in zip(size, strides, dilations, kernels.shape[3:], pads, strict=True)
    ]
    entries = channels_out * math.prod(outputs) * channels_in * math.prod(size)
    if 8 * entries > DENSE_BYTES:
        raise InputError(
            f"without a Fourier transform this needs a dense matrix of {8 * entries / 2**30:.1f} GiB "
            f"({channels_out * math.prod(outputs)} x {channels_in * math.prod(size)}). Take a smaller map, or "
            "isometry.measure on the layer for its distribution."
        )
    values = []
    for kernel in kernels:

        def layer(x: Tensor, kernel: Tensor = kernel) -> Tensor:
            return convolve(_pad(x, pads, padding_mode), kernel, stride=strides, dilation=dilations)

        point = torch.zeros((channels_in, *size), dtype=torch.float64)
        spectrum = exact(JacobianOperator(layer, point, check=False))
        values.append(torch.from_numpy(spectrum.singular_values))
    return torch.cat(values)


def _pad(x: Tensor, pads: tuple[tuple[int, int], ...], padding_mode: str) -> Tensor:
    """Unbatched map (c, *size) padded on every axis, by index, so that every mode works at every size."""
    for axis, (before, after) in enumerate(pads, start=1):
        size = x.shape[axis]
        position = torch.arange(-before, size + after)
        if padding_mode == "circular":
            x = x.index_select(axis, position % size)
        elif padding_mode == "replicate":
            x = x.index_select(axis, position.clamp(0, size - 1))
        elif padding_mode == "reflect":
            if max(before, after) >= size:
                raise InputError(
                    f"reflection needs padding below the size of the map; got {(before, after)} for {size} positions."
                )
            inside = position.abs()
            x = x.index_select(axis, torch.minimum(inside, 2 * (size - 1) - inside))
        else:
            flat = [0, 0] * (x.ndim - 1 - axis) + [before, after]
            x = functional.pad(x, flat)
    return x


def _per_axis(name: str, value: int | Sequence[int], axes: int, *, least: int) -> tuple[int, ...]:
    entries = (value,) * axes if isinstance(value, int) else tuple(int(entry) for entry in value)
    if len(entries) != axes or any(entry < least for entry in entries):
        raise InputError(
            f"{name} must be a whole number of {least} or more, or {axes} of them (one per axis); got {value!r}."
        )
    return entries
