"""Checks of the arguments of an initialiser, and the filling of its weight. Internal."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from isometry.errors import InputError


def check_kernel(weight: Tensor, gain: float, *, groups: int, stride: int | Sequence[int]) -> tuple[int, ...]:
    """Strides per axis; InputError where kernel, gain, groups or stride are not valid."""
    check_weight(weight)
    check_gain(gain)
    if weight.ndim not in (3, 4, 5):
        raise InputError(
            f"a convolution kernel has shape (c_out, c_in/groups, *k) with one to three axes of taps; got "
            f"{tuple(weight.shape)}. For a dense weight use orthogonal_."
        )
    check_groups(weight, groups)
    kernel_size = tuple(weight.shape[2:])
    strides = (stride,) * len(kernel_size) if isinstance(stride, int) else tuple(stride)
    if len(strides) != len(kernel_size) or any(s < 1 for s in strides):
        raise InputError(f"stride must be one number, or {len(kernel_size)}, of at least 1; got {stride!r}.")
    if any(s > k for s, k in zip(strides, kernel_size, strict=True)):
        raise InputError(
            f"stride {strides} is longer than the kernel {kernel_size}: positions between the taps are never read, "
            "so no weight makes this an isometry. Use a kernel of at least the stride, or pass stride=1 "
            "to fill the taps anyway."
        )
    return strides


def check_isometry(
    weight: Tensor, groups: int, strides: tuple[int, ...], *, transposed: bool, co_isometry: bool
) -> None:
    """Raise InputError where inputs would be lost and no co-isometry was asked for."""
    outputs, inputs = weight.shape[0] // groups, weight.shape[1] * math.prod(strides)
    if transposed:
        outputs, inputs = inputs, outputs
    if inputs > outputs and not co_isometry:
        per = (
            ""
            if math.prod(strides) == 1
            else f" (channels times the {math.prod(strides)} positions of a patch)"
        )
        group = "" if groups == 1 else " per group"
        raise InputError(
            f"{inputs} inputs do not fit into {outputs} outputs{group}{per} without loss, so no isometry exists: pass "
            "co_isometry=True for orthonormal rows (the part of the input that is kept, keeps its norm), or widen."
        )


def channels_of(weight: Tensor, groups: int, *, transposed: bool) -> tuple[int, int]:
    """(inputs, outputs) of one group of the layer; InputError where the groups do not divide it."""
    check_groups(weight, groups)
    first, second = weight.shape[0] // groups, weight.shape[1]
    return (first, second) if transposed else (second, first)


def check_weight(weight: Tensor) -> None:
    """Raise InputError unless the weight is real, floating-point, of two axes or more, and not empty."""
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.ndim < 2:
        what = (
            f"{tuple(weight.shape)} {weight.dtype}" if isinstance(weight, Tensor) else type(weight).__name__
        )
        raise InputError(
            f"an initialiser fills a real floating-point weight of two axes or more, got {what}."
        )
    if weight.numel() == 0:
        raise InputError(f"the weight is empty: its shape is {tuple(weight.shape)}.")


def check_gain(gain: float) -> None:
    """Raise InputError unless the gain is a finite number of zero or more."""
    if not (math.isfinite(gain) and gain >= 0):
        raise InputError(f"gain must be a finite number of zero or more, got {gain!r}.")


def check_groups(weight: Tensor, groups: int) -> None:
    """Raise InputError unless the groups divide the first axis of the weight."""
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1 or weight.shape[0] % groups:
        raise InputError(
            f"groups must be a whole number that divides the first axis of the weight, {weight.shape[0]}; "
            f"got {groups!r}."
        )


def fill_weight(weight: Tensor, values: Tensor) -> Tensor:
    """The weight, filled in place with the values."""
    with torch.no_grad():
        return weight.copy_(values)
