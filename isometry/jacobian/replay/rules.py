"""What each aten operation is as linear maps: one function for each kind of operation.

A rule takes an operation as it was recorded and gives its links: which argument leads to which output by which chain of
maps. Derivatives of entrywise operations and of reductions come from autograd itself, so that every convention
(at the kink of ReLU, at ties of a maximum) is PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .convolution import Convolution, Geometry
from .dense import (
    BatchedLeft,
    BatchedRight,
    Cumulative,
    Folded,
    LogSoftmax,
    RightProduct,
    Softmax,
    Standardise,
)
from .maps import Cast, Gather, Identity, LinearMap, Sum, broadcast, diagonal, elements, gather
from .recording import NoRule, Operation, flat_tensors, with_tensors

aten = torch.ops.aten


@dataclass(frozen=True)
class Link:
    """A chain of maps from one tensor among the arguments to one output, both by position."""

    source: int
    result: int
    maps: tuple[LinearMap, ...]


Rule = Callable[[Operation], list[Link]]
RULES: dict[str, Rule] = {}


def links(operation: Operation, known: dict[Any, tuple[list[Link], Operation]]) -> list[Link]:
    """The links of one operation.

    Parameters
    ----------
    operation : Operation
    known : dict
        Links of movements found before: ten thousand equal layers pad in the same way. Filled here.

    Raises
    ------
    NoRule
        Naming it, where there is no rule for it.
    """
    if operation.function is None:
        return [Link(0, 0, (gather(*operation.args),))]
    rule = RULES.get(operation.name)
    if rule is None and torch.Tag.pointwise in operation.function.tags:
        rule = _pointwise
    if rule is None:
        raise NoRule(str(operation.function))
    if rule is not _movement:
        return rule(operation)
    key = _likeness(operation)
    if key not in known:
        # With the operation, so that the identities in the key stay those of its tensors.
        known[key] = (rule(operation), operation)
    return known[key][0]


def _likeness(operation: Operation) -> tuple[Any, ...]:
    """What two movements share that move alike: the operation, its options, its indices, the shapes of its sources."""
    sources = operation.sources

    def token(position: int, tensor: Tensor) -> Any:
        if position in sources:
            return tensor.shape, tensor.stride(), tensor.dtype
        return id(tensor)

    args, kwargs = with_tensors(operation.args, operation.kwargs, token)
    return operation.function, tuple(operation.results), repr(args), repr(kwargs)


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return add


def _argument(operation: Operation, name: str, default: Any = None) -> Any:
    """An argument by its name in the schema."""
    if name in operation.kwargs:
        return operation.kwargs[name]
    position, usual = _arguments(operation.function).get(name, (len(operation.args), default))
    return operation.args[position] if position < len(operation.args) else usual


@cache
def _arguments(function: Any) -> dict[str, tuple[int, Any]]:
    """Position and default value of each argument."""
    return {
        argument.name: (position, argument.default_value if argument.has_default_value() else None)
        for position, argument in enumerate(function._schema.arguments)
    }


def _tensors(operation: Operation) -> list[Tensor]:
    return list(flat_tensors(operation.args, operation.kwargs))


def _only_first(operation: Operation, result: int = 0) -> Tensor:
    """The first tensor, where it alone depends on the input and only one output is followed further."""
    if set(operation.sources) != {0}:
        raise NoRule(f"{operation.function} (with parameters that depend on the input)")
    _only_result(operation, result)
    return _tensors(operation)[0]


def _only_result(operation: Operation, result: int) -> None:
    if any(position != result for position in operation.used):
        raise NoRule(f"{operation.function} (an output of it beside the first)")


# ---- entry by entry ------------------------------------------------------------------------------------


def _derivatives(operation: Operation, output: Tensor, *, expand: bool) -> dict[int, Tensor]:
    """d output / d argument for each argument that matters, by autograd on the operation alone."""
    leaves: dict[int, Tensor] = {}

    def leaf(position: int, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if position not in operation.sources:
            return tensor
        tensor = tensor.expand(output.shape) if expand else tensor
        leaves[position] = (tensor.clone() if tensor.is_inference() else tensor).requires_grad_()
        return leaves[position]

    args, kwargs = with_tensors(operation.args, operation.kwargs, leaf)
    with torch.enable_grad():
        value = operation.functional()(*args, **kwargs)
        value = value[0] if isinstance(value, list | tuple) else value
        if not value.requires_grad:
            return {}
        gradients = torch.autograd.grad(
            value, list(leaves.values()), torch.ones_like(value), allow_unused=True
        )
    return {
        position: gradient
        for position, gradient in zip(leaves, gradients, strict=True)
        if gradient is not None
    }


# Derivatives from the output, by autograd's own formulas for the activations of very deep networks: a hundred
# microseconds less than autograd itself takes to get there.
_FROM_OUTPUT: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
    "tanh": aten.tanh_backward.default,
    "sigmoid": aten.sigmoid_backward.default,
    "relu": lambda ones, output: aten.threshold_backward.default(ones, output, 0),
}


def _pointwise(operation: Operation) -> list[Link]:
    _only_result(operation, 0)
    output = _output(operation, 0)
    formula = _FROM_OUTPUT.get(operation.name)
    if formula is not None:
        slope = formula(torch.ones_like(output), output.detach())
        return [Link(0, 0, (diagonal(slope, output.shape),))]
    tensors = _tensors(operation)
    out = []
    for position, gradient in _derivatives(operation, output, expand=True).items():
        tensor = tensors[position]
        if tensor.dtype != output.dtype:
            raise NoRule(f"{operation.function} (of two precisions)")
        out.append(
            Link(position, 0, (broadcast(tensor.shape, output.shape), diagonal(gradient, output.shape)))
        )
    return out


# What PyTorch does not mark as entrywise although it is.
for _name in (
    "threshold",
    "gelu",
    "mish",
    "hardswish",
    "hardsigmoid",
    "log_sigmoid_forward",
    "_prelu_kernel",
):
    RULES[_name] = _pointwise


# ---- reductions ----------------------------------------------------------------------------------------


@_rule(
    "sum", "nansum", "mean", "var", "std", "prod", "amax", "amin", "logsumexp", "norm", "linalg_vector_norm", "max",
    "min", "median", "mode", "kthvalue",
)  # fmt: skip
def _reduction(operation: Operation) -> list[Link]:
    if len(operation.sources) > 1:
        return _pointwise(operation)
    x = _only_first(operation)
    output = operation.output[0] if isinstance(operation.output, list | tuple) else operation.output
    if output.dtype != x.dtype:
        raise NoRule(f"{operation.function} (of two precisions)")
    axes = _argument(operation, "dim")
    if axes is None or axes == []:
        axes = range(x.dim())
    axes = sorted({axis % max(x.dim(), 1) for axis in ([axes] if isinstance(axes, int) else axes)})
    gradients = _derivatives(operation, output, expand=False)
    if not gradients:
        return []
    return [Link(0, 0, (diagonal(gradients[0], x.shape), Sum(x.shape, axes) if axes else Identity()))]


@_rule("cumsum")
def _cumsum(operation: Operation) -> list[Link]:
    x = _only_first(operation)
    if x.dim() == 0:
        return [Link(0, 0, (Identity(),))]
    return [Link(0, 0, (Cumulative(x.shape, _argument(operation, "dim") % x.dim()),))]


# ---- movement ------------------------------------------------------------------------------------------


@_rule(
    "view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "alias", "clone", "lift_fresh",
    "view_copy", "contiguous",
)  # fmt: skip
def _reshaped(operation: Operation) -> list[Link]:
    """The same entries in the same row-major order."""
    if _only_first(operation).dtype != operation.output.dtype:
        raise NoRule(f"{operation.function} (as another type of number)")
    return [Link(0, 0, (Identity(),))]


@_rule(
    "permute", "transpose", "t", "expand", "slice", "select", "cat", "stack", "split", "split_with_sizes",
    "unsafe_split", "unbind", "flip", "roll", "repeat", "index_select", "gather", "index", "take", "tril", "triu",
    "diagonal",
    "slice_scatter", "select_scatter", "diagonal_scatter", "unfold", "im2col", "pixel_shuffle", "pixel_unshuffle",
    "channel_shuffle", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "where", "constant_pad_nd",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
    "replication_pad3d", "masked_fill", "masked_select", "scatter", "index_put", "copy", "diag_embed", "rot90",
    "repeat_interleave", "narrow_copy", "index_fill", "index_copy", "_index_put_impl", "embedding",
)  # fmt: skip
def _movement(operation: Operation) -> list[Link]:
    """Every entry of the output is an entry of an argument, or constant: found by moving the entries' numbers."""
    if _argument(operation, "accumulate", False):
        raise NoRule(f"{operation.function} (that adds up)")
    tensors = _tensors(operation)
    first: dict[int, int] = {}
    count = 0
    for position in operation.sources:
        first[position] = count
        count += tensors[position].numel()

    def numbered(position: int, tensor: Tensor) -> Tensor:
        if position not in operation.sources:
            return torch.zeros_like(tensor, dtype=torch.float64) if tensor.is_floating_point() else tensor
        # In float64, which every operation takes; whole numbers are exact in it up to 2^53. Zero is a constant.
        numbers = torch.arange(
            1 + first[position],
            1 + first[position] + tensor.numel(),
            dtype=torch.float64,
            device=tensor.device,
        )
        if tensor.is_contiguous():
            return numbers.view(tensor.shape)
        # A view asks for the strides that it had.
        dense = torch.empty_like(tensor, dtype=torch.float64)
        return (
            dense.copy_(numbers.view(tensor.shape))
            if dense.stride() == tensor.stride()
            else numbers.view(tensor.shape)
        )

    args, kwargs = with_tensors(operation.args, operation.kwargs, numbered)
    args, kwargs = _without_constants(operation, args, kwargs)
    moved = operation.functional()(*args, **kwargs)
    out = []
    for result, numbers in enumerate(moved if isinstance(moved, list | tuple) else (moved,)):
        if result not in operation.results:
            continue
        index = numbers.reshape(-1).to(torch.int64) - 1
        for position, start in first.items():
            size = tensors[position].numel()
            mine = torch.where((index >= start) & (index < start + size), index - start, -1)
            if tensors[position].dtype != _output(operation, result).dtype:
                raise NoRule(f"{operation.function} (of two precisions)")
            if bool((mine >= 0).any()):
                out.append(Link(position, result, (gather(mine, size),)))
    return out


def _without_constants(
    operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A number that an operation fills with is a constant, which is zero here."""
    filled = list(args)
    for position, argument in enumerate(operation.function._schema.arguments):
        if argument.name in ("value", "src", "other", "self"):
            if position < len(filled) and isinstance(filled[position], int | float):
                filled[position] = 0.0
            if isinstance(kwargs.get(argument.name), int | float):
                kwargs = {**kwargs, argument.name: 0.0}
    return tuple(filled), kwargs


def _output(operation: Operation, result: int) -> Tensor:
    return operation.output[result] if isinstance(operation.output, list | tuple) else operation.output


@_rule("max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool3d")
def _max_pool(operation: Operation) -> list[Link]:
    x = _only_first(operation)
    values, index = operation.output[0], operation.output[1]
    # Indices count within a channel; what is in front of the pooled axes are channels.
    axes = 3 if "3d" in operation.name else 2
    area = elements(x.shape[x.dim() - axes :])
    channels = torch.arange(x.numel() // area, device=x.device) * area
    flat = index.reshape(channels.numel(), -1) + channels[:, None]
    assert flat.numel() == values.numel()
    return [Link(0, 0, (Gather(flat, x.numel()),))]


@_rule("sort", "topk")
def _ordered(operation: Operation) -> list[Link]:
    x = _only_first(operation)
    index = operation.output[1]
    if x.dim() == 0:
        return [Link(0, 0, (Identity(),))]
    axis = _argument(operation, "dim") % x.dim()
    places = torch.arange(x.numel(), device=x.device).view(x.shape).gather(axis, index)
    return [Link(0, 0, (gather(places, x.numel()),))]


@_rule("detach", "fill", "zero", "floor", "ceil", "round", "trunc", "sign")
def _constant(operation: Operation) -> list[Link]:
    return []


@_rule("_to_copy")
def _to_copy(operation: Operation) -> list[Link]:
    x = _only_first(operation)
    if x.dtype == operation.output.dtype:
        return [Link(0, 0, (Identity(),))]
    return [Link(0, 0, (Cast(x.dtype, operation.output.dtype),))]


# ---- sums of products ----------------------------------------------------------------------------------


@_rule("convolution", "_convolution")
def _convolution(operation: Operation) -> list[Link]:
    x = _only_first(operation)
    weight = _tensors(operation)[1].detach()
    axes = weight.dim() - 2

    def per_axis(name: str) -> tuple[int, ...]:
        given = tuple(_argument(operation, name))
        return given * axes if len(given) == 1 else given

    geometry = Geometry(
        per_axis("stride"),
        per_axis("padding"),
        per_axis("dilation"),
        bool(_argument(operation, "transposed")),
        per_axis("output_padding"),
        int(_argument(operation, "groups")),
    )
    return [
        Link(0, 0, (Convolution(weight, geometry, tuple(x.shape[1:]), tuple(operation.output.shape[1:])),))
    ]


def _factors(
    operation: Operation, left: Tensor, right: Tensor, at: int, rows: Callable[[Tensor], LinearMap],
    columns: Callable[[Tensor], LinearMap], then: Sequence[LinearMap] = (),
) -> list[Link]:  # fmt: skip
    """Links of a product of tensors number ``at`` and ``at + 1``, of which each may depend on the input."""
    out = []
    if at in operation.sources:
        out.append(Link(at, 0, (rows(right), *then)))
    if at + 1 in operation.sources:
        out.append(Link(at + 1, 0, (columns(left), *then)))
    return out


@_rule("mm", "addmm", "mv", "addmv", "dot", "vdot")
def _matrix_product(operation: Operation) -> list[Link]:
    tensors = [tensor.detach() for tensor in _tensors(operation)]
    at = 1 if operation.name.startswith("add") else 0
    left, right = tensors[at], tensors[at + 1]
    rows = left if left.dim() == 2 else left[None]
    columns = right if right.dim() == 2 else right[:, None]
    width = columns.shape[1]
    out = _factors(
        operation,
        rows,
        columns,
        at,
        lambda matrix: RightProduct(matrix),
        lambda matrix: RightProduct(matrix.T) if width == 1 else BatchedLeft(matrix[None], width),
        _scaled(operation, "alpha"),
    )
    return out + _added(operation, tensors[0])


@_rule("bmm", "baddbmm")
def _batched_product(operation: Operation) -> list[Link]:
    tensors = [tensor.detach() for tensor in _tensors(operation)]
    at = 1 if operation.name.startswith("b") and operation.name != "bmm" else 0
    left, right = tensors[at], tensors[at + 1]
    rows, columns = left.shape[1], right.shape[2]
    out = _factors(
        operation,
        left,
        right,
        at,
        lambda matrices: BatchedRight(matrices, rows),
        lambda matrices: BatchedLeft(matrices, columns),
        _scaled(operation, "alpha"),
    )
    return out + (_added(operation, tensors[0]) if at else [])


def _scaled(operation: Operation, name: str) -> tuple[LinearMap, ...]:
    factor = float(_argument(operation, name, 1))
    return () if factor == 1.0 else (diagonal(torch.tensor(factor), ()),)


def _added(operation: Operation, bias: Tensor) -> list[Link]:
    """The link of what addmm and its like add."""
    if not operation.name.startswith(("add", "badd")) or 0 not in operation.sources:
        return []
    return [Link(0, 0, (broadcast(bias.shape, operation.output.shape), *_scaled(operation, "beta")))]


# ---- softmax and normalisation -------------------------------------------------------------------------


@_rule("_softmax", "_safe_softmax", "softmax")
def _softmax(operation: Operation) -> list[Link]:
    x = _only_first(operation)
    if x.dim() == 0:
        return []
    return [Link(0, 0, (Softmax(operation.output.detach(), _argument(operation, "dim") % x.dim()),))]


@_rule("_log_softmax", "log_softmax")
def _log_softmax(operation: Operation) -> list[Link]:
    x = _only_first(operation)
    if x.dim() == 0:
        return []
    return [Link(0, 0, (LogSoftmax(operation.output.detach().exp(), _argument(operation, "dim") % x.dim()),))]


def _standardised(x: Tensor, statistics: Sequence[Tensor], axes: Sequence[int]) -> LinearMap:
    """With the statistics that the operation itself found: its derivative formulas use them too."""
    shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    mean, inverse = (statistic.detach().reshape(shape) for statistic in statistics)
    return Standardise((x - mean) * inverse, inverse, axes)


@_rule("native_layer_norm")
def _layer_norm(operation: Operation) -> list[Link]:
    x = _only_first(operation).detach()
    axes = range(x.dim() - len(_argument(operation, "normalized_shape")), x.dim())
    maps = [_standardised(x, operation.output[1:3], tuple(axes))]
    weight = _argument(operation, "weight")
    if weight is not None:
        maps.append(diagonal(weight.detach(), x.shape))
    return [Link(0, 0, tuple(maps))]


@_rule("native_group_norm")
def _group_norm(operation: Operation) -> list[Link]:
    x = _only_first(operation).detach()
    grouped = x.reshape(x.shape[0], _argument(operation, "group"), -1)
    maps = [_standardised(grouped, operation.output[1:3], (2,))]
    weight = _argument(operation, "weight")
    if weight is not None:
        maps.append(diagonal(weight.detach().reshape(x.shape[1], *[1] * (x.dim() - 2)), x.shape))
    return [Link(0, 0, tuple(maps))]


@_rule(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "_batch_norm_with_update", "_batch_norm_no_update",
)  # fmt: skip
def _batch_norm(operation: Operation) -> list[Link]:
    x = _only_first(operation).detach()
    shape = (x.shape[1], *[1] * (x.dim() - 2))
    weight = _argument(operation, "weight")
    factors = x.new_ones(x.shape[1]) if weight is None else weight.detach()
    if _argument(operation, "training", False):
        axes = (0, *range(2, x.dim()))
        standardised = _standardised(x, operation.output[1:3], axes)
        return [Link(0, 0, (standardised, diagonal(factors.reshape(shape), x.shape)))]
    eps = _argument(operation, "eps", None) or _argument(operation, "epsilon")
    variance = _argument(operation, "running_var").detach()
    return [Link(0, 0, (diagonal((factors * (variance + eps).rsqrt()).reshape(shape), x.shape),))]


# ---- pooling and resizing ------------------------------------------------------------------------------


@_rule("avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d")
def _average_pool(operation: Operation) -> list[Link]:
    x = _only_first(operation)
    options = operation.args[1:]
    forward = operation.function
    backward = getattr(aten, f"{operation.name}_backward").default
    adaptive = operation.name.startswith("_")
    if not adaptive:
        # The backward operation has no default values.
        options = tuple(_argument(operation, argument.name) for argument in forward._schema.arguments[1:])
    axes = 3 if "3d" in operation.name else 2
    keep = x.dim() - axes - 1

    def pull(u: Tensor, shape: tuple[int, ...]) -> Tensor:
        like = u.new_empty(shape)
        return backward(u.contiguous(), like) if adaptive else backward(u.contiguous(), like, *options)

    return [
        Link(
            0,
            0,
            (Folded(lambda v: forward(v, *options), pull, x.shape[keep:], operation.output.shape[keep:]),),
        )
    ]


@_rule("upsample_bilinear2d", "upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d")
def _upsample(operation: Operation) -> list[Link]:
    x = _only_first(operation)
    if operation.function._overloadname != "default":
        raise NoRule(str(operation.function))
    options = operation.args[1:]
    forward, backward = operation.function, getattr(aten, f"{operation.name}_backward").default

    def pull(u: Tensor, shape: tuple[int, ...]) -> Tensor:
        return backward(u.contiguous(), options[0], list(shape), *options[1:])

    # (1, c, *size) for each probe and sample.
    single, out = (1, *x.shape[1:]), (1, *operation.output.shape[1:])
    return [Link(0, 0, (Folded(lambda v: forward(v, *options), pull, single[1:], out[1:]),))]
