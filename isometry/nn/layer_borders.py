"""Whether an orthogonal kernel makes its layer orthogonal: padding, stride and dilation of a convolution module.

A convolution of stride s by an orthogonal kernel is an isometry on maps without borders. On a map of n positions, for
every n that s divides,

- its columns are orthonormal where every output that reads the map is there: zeros beyond the border, or a circle;
- its rows are where no output reads beyond the border, or on a circle.

On a circle each position is to be an output once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from isometry.errors import InputError
from isometry.nn.layers import ConvolutionLayer

_ORDINARY = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class LayerGeometry:
    """How a convolution module applies its kernel.

    Parameters
    ----------
    groups : int
    kernel_size, strides, dilations : tuple of int
        Per axis.
    padding : tuple of (int, int)
        Positions added before and after, per axis.
    padding_mode : str
        Of `torch.nn.Conv2d`.
    transposed : bool
    output_padding : tuple of int
        Of a transposed convolution.
    """

    groups: int
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    padding_mode: str
    transposed: bool
    output_padding: tuple[int, ...]


def layer_geometry(module: Any) -> LayerGeometry:
    """The geometry of a convolution module of PyTorch, or of a `ConvolutionLayer`.

    Raises
    ------
    InputError
        For any other module, and for one whose weight has no shape yet.
    """
    if isinstance(getattr(module, "weight", None), nn.UninitializedParameter):
        raise InputError(f"{type(module).__name__} has no weight yet: run the model on an input once before.")
    if isinstance(module, ConvolutionLayer):
        size = module.kernel_size
        ones, wrapped = (1,) * len(size), tuple(((k - 1) // 2, k // 2) for k in size)
        return LayerGeometry(1, size, ones, ones, wrapped, "circular", False, (0,) * len(size))
    if not isinstance(module, _ORDINARY + _TRANSPOSED):
        hint = (
            " For a dense layer use torch.nn.utils.parametrizations.orthogonal."
            if isinstance(module, nn.Linear)
            else " Call this on each convolution of a model: the modules of model.modules()."
        )
        raise InputError(
            f"orthogonal_conv parametrizes torch.nn.Conv1d, 2d, 3d, their transposes and ConvolutionLayer; got a "
            f"{type(module).__name__}.{hint}"
        )
    size, dilations = tuple(module.kernel_size), tuple(module.dilation)
    if module.padding == "same":
        reach = [d * (k - 1) for k, d in zip(size, dilations, strict=True)]
        padding = tuple((total // 2, total - total // 2) for total in reach)
    elif isinstance(module.padding, str):
        padding = ((0, 0),) * len(size)
    else:
        padding = tuple((int(p), int(p)) for p in module.padding)
    return LayerGeometry(
        module.groups, size, tuple(module.stride), dilations, padding, module.padding_mode,
        isinstance(module, _TRANSPOSED), tuple(module.output_padding),
    )  # fmt: skip


def orthonormal_sides(layer: LayerGeometry, taps: tuple[int, ...]) -> tuple[bool, bool]:
    """Whether the operator has orthonormal columns, and rows, if its kernel has: on every map that the stride divides.

    Parameters
    ----------
    layer : LayerGeometry
        Of a transposed convolution columns and rows are those of the operator itself.
    taps : tuple of int
        Patches of ``stride`` positions that the kernel uses along each axis, as
        `isometry.nn.kernels.strided_kernels` places them.
    """
    columns = rows = True
    for axis, patches in enumerate(taps):
        along = _transposed_axis if layer.transposed else _axis
        of_columns, of_rows = along(layer, axis, patches)
        columns, rows = columns and of_columns, rows and of_rows
    return columns, rows


def _support(layer: LayerGeometry, axis: int, patches: int) -> tuple[int, int, int]:
    """First and last position that the kernel reads, and the extent of all its taps, in positions of the map."""
    k, s, d = layer.kernel_size[axis], layer.strides[axis], layer.dilations[axis]
    start = min((k - 1) // 2, k - patches * s)
    return d * start, d * (start + patches * s - 1), d * (k - 1) + 1


def _axis(layer: LayerGeometry, axis: int, patches: int) -> tuple[bool, bool]:
    s, (before, after) = layer.strides[axis], layer.padding[axis]
    lowest, highest, extent = _support(layer, axis, patches)
    if s > 1 and layer.dilations[axis] > 1:
        return False, False  # patches with holes do not tile the map
    # Outputs on n positions: n/s + surplus. Their last one reads up to n + s (surplus - 1) - before + highest.
    surplus = math.floor((before + after - extent) / s) + 1
    if layer.padding_mode == "circular":
        return surplus == 0, surplus <= 0
    covered = before > highest - s and s * surplus - before + lowest >= 0
    inside = before <= lowest and s * (surplus - 1) - before + highest < 0
    return (covered if layer.padding_mode == "zeros" else covered and inside), inside


def _transposed_axis(layer: LayerGeometry, axis: int, patches: int) -> tuple[bool, bool]:
    """As the adjoint of a convolution that reads the map which this one makes; so rows and columns are exchanged."""
    s, p, more = layer.strides[axis], layer.padding[axis][0], layer.output_padding[axis]
    lowest, highest, extent = _support(layer, axis, patches)
    if s > 1 and layer.dilations[axis] > 1:
        return False, False
    covered = p > highest - s and s + p + lowest >= extent + more
    inside = p <= lowest and highest + p < extent + more
    return inside, covered
