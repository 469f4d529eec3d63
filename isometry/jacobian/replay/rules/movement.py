"""Operations that move entries about: views, indexing, padding, sorting, maxima over windows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isometry.jacobian.replay.maps import (
    Gather,
    Identity,
    LinearMap,
    Scatter,
    broadcast,
    diagonal,
    elements,
    gather,
)
from isometry.jacobian.replay.tape import NoRule, Operation, map_tensors

from .registry import Link, argument, only_argument, output, rule, tensors


@rule(
    "view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "alias", "clone", "lift_fresh",
    "view_copy", "contiguous",
)  # fmt: skip
def _reshaped(operation: Operation) -> list[Link]:
    """The same entries in the same row-major order."""
    if only_argument(operation).dtype != operation.output.dtype:
        raise NoRule(f"{operation.function} (as another type of number)")
    return [Link(0, 0, (Identity(),))]


@rule(
    "permute", "transpose", "t", "expand", "slice", "select", "cat", "stack", "split", "split_with_sizes",
    "unsafe_split", "unbind", "flip", "roll", "repeat", "index_select", "gather", "index", "take", "tril", "triu",
    "diagonal",
    "slice_scatter", "select_scatter", "diagonal_scatter", "unfold", "im2col", "pixel_shuffle", "pixel_unshuffle",
    "channel_shuffle", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "where", "constant_pad_nd",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
    "replication_pad3d", "masked_fill", "masked_select", "scatter", "copy", "diag_embed", "rot90",
    "repeat_interleave", "narrow_copy", "index_fill", "index_copy", "embedding", "fill",
    "_pack_padded_sequence",
    shared=True,
)  # fmt: skip
def _movement(operation: Operation) -> list[Link]:
    """A gather for each argument and output, found by running the operation on the numbers of the entries.

    Every entry of an output is then an entry of an argument, or constant.
    """
    if argument(operation, "accumulate", False) or argument(operation, "reduce") is not None:
        raise NoRule(f"{operation.function} (that adds up)")
    arguments = tensors(operation)
    first: dict[int, int] = {}
    count = 0
    for position in operation.sources:
        first[position] = count
        count += arguments[position].numel()

    def numbered(position: int, tensor: Tensor) -> Tensor:
        if position in operation.sources:
            return _numbers(tensor, first[position])
        return torch.zeros_like(tensor, dtype=torch.float64) if tensor.is_floating_point() else tensor

    args, kwargs = map_tensors(operation.args, operation.kwargs, numbered)
    args, kwargs = _without_constants(operation, args, kwargs)
    moved = operation.functional()(*args, **kwargs)
    out = []
    for result, numbers in enumerate(moved if isinstance(moved, list | tuple) else (moved,)):
        if result not in operation.results:
            continue
        index = numbers.reshape(-1).to(torch.int64) - 1
        for position, start in first.items():
            size = arguments[position].numel()
            mine = torch.where((index >= start) & (index < start + size), index - start, -1)
            if arguments[position].dtype != output(operation, result).dtype:
                raise NoRule(f"{operation.function} (of two precisions)")
            if bool((mine >= 0).any()):
                out.append(Link(position, result, (gather(mine, size),)))
    return out


def _numbers(tensor: Tensor, first: int) -> Tensor:
    """The entries' numbers, from ``first`` + 1 on, in the layout of ``tensor``; zero stands for a constant.

    In float64, which every operation takes; whole numbers are exact in it up to 2^53.
    """
    numbers = torch.arange(1 + first, 1 + first + tensor.numel(), dtype=torch.float64, device=tensor.device)
    numbers = numbers.view(tensor.shape)
    if tensor.is_contiguous():
        return numbers
    # A view asks for the strides that it had.
    dense = torch.empty_like(tensor, dtype=torch.float64)
    return dense.copy_(numbers) if dense.stride() == tensor.stride() else numbers


def _without_constants(
    operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with each number that the operation fills with replaced by zero, which stands for a constant."""
    filled = list(args)
    for position, parameter in enumerate(operation.function._schema.arguments):
        if parameter.name in ("value", "src", "other", "self"):
            if position < len(filled) and isinstance(filled[position], int | float):
                filled[position] = 0.0
            if isinstance(kwargs.get(parameter.name), int | float):
                kwargs = {**kwargs, parameter.name: 0.0}
    return tuple(filled), kwargs


@rule("as_strided", "as_strided_copy")
def _as_strided(operation: Operation) -> list[Link]:
    """A gather through the memory that the argument lies in."""
    x = only_argument(operation)
    size, stride = argument(operation, "size"), argument(operation, "stride")
    offset = argument(operation, "storage_offset")
    offset = x.storage_offset() if offset is None else offset
    entries = x.untyped_storage().nbytes() // x.element_size()
    memory = torch.arange(entries, device=x.device)
    held = memory.new_full((entries,), -1)
    held[memory.as_strided(x.shape, x.stride(), x.storage_offset()).reshape(-1)] = memory[: x.numel()]
    taken = held[memory.as_strided(size, stride, offset).reshape(-1)]
    if bool((taken < 0).any()):
        raise NoRule(f"{operation.function} (memory beside its argument)")
    return [Link(0, 0, (gather(taken, x.numel()),))]


@rule("scatter_add", "scatter_reduce", "index_add", "index_put", "_index_put_impl", "_unsafe_index_put")
def _added_to_places(operation: Operation) -> list[Link]:
    """The first tensor as it is, and each entry of the values added to one of its places."""
    if operation.name.endswith(("index_put", "put_impl")) and not argument(operation, "accumulate", False):
        return _movement(operation)
    if operation.name == "scatter_reduce" and (
        argument(operation, "reduce") != "sum" or not argument(operation, "include_self", True)
    ):
        raise NoRule(f"{operation.function} (of another kind than sums)")
    given = tensors(operation)
    at = len(given) - 1
    x, values = given[0], given[at]
    if set(operation.sources) - {0, at}:
        raise NoRule(f"{operation.function} (with parameters that depend on the input)")
    places = torch.arange(x.numel(), device=x.device).view(x.shape)
    maps: tuple[LinearMap, ...] = ()
    if operation.name.startswith("scatter"):
        index = argument(operation, "index")
        target = places.gather(argument(operation, "dim"), index) if x.dim() else places.expand(index.shape)
        corner = torch.arange(values.numel(), device=x.device).view(values.shape)
        maps = (gather(corner[tuple(slice(size) for size in index.shape)].reshape(-1), values.numel()),)
    elif operation.name == "index_add":
        index = argument(operation, "index")
        target = (
            places.index_select(argument(operation, "dim"), index) if x.dim() else places.expand(index.shape)
        )
        alpha = torch.tensor(float(argument(operation, "alpha", 1)), dtype=torch.float64)
        maps = () if alpha == 1 else (diagonal(alpha, ()),)
    else:
        target = torch.ops.aten.index(places, argument(operation, "indices"))
        maps = (broadcast(values.shape, target.shape),)
    out = [Link(0, 0, (Identity(),))] if 0 in operation.sources else []
    if at in operation.sources:
        out.append(Link(at, 0, (*maps, Scatter(target.reshape(-1), x.numel()))))
    return out


@rule("max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool3d")
def _max_pool(operation: Operation) -> list[Link]:
    x = only_argument(operation)
    values, index = operation.output[0], operation.output[1]
    # Indices count within a channel; the axes before the pooled ones are channels.
    axes = 3 if "3d" in operation.name else 2
    area = elements(x.shape[x.dim() - axes :])
    channels = torch.arange(x.numel() // area, device=x.device) * area
    flat = index.reshape(channels.numel(), -1) + channels[:, None]
    assert flat.numel() == values.numel()
    return [Link(0, 0, (Gather(flat, x.numel()),))]


@rule("sort", "topk")
def _ordered(operation: Operation) -> list[Link]:
    x = only_argument(operation)
    index = operation.output[1]
    if x.dim() == 0:
        return [Link(0, 0, (Identity(),))]
    axis = argument(operation, "dim") % x.dim()
    places = torch.arange(x.numel(), device=x.device).view(x.shape).gather(axis, index)
    return [Link(0, 0, (gather(places, x.numel()),))]
