"""No tensor argument that depends on the input is taken for a constant: every overload with a rule, each argument."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from isometry.errors import ModelError
from isometry.jacobian import JacobianOperator
from isometry.jacobian.replay import NoRule, linearise, rules
from isometry.jacobian.replay.rules import Link

D = torch.float64
aten = torch.ops.aten


def draw(*shape: int) -> Tensor:
    """Positive, without ties, the same every time."""
    count = torch.Size(shape).numel()
    return (0.3 + 0.6 * torch.linspace(0, 7, count, dtype=D).sin().square()).reshape(shape)


M, V, ONE = draw(3, 3), draw(3), draw()
INDEX = torch.tensor([0, 2])
PLACES = torch.tensor([[0, 1, 2], [2, 0, 1]])
MASK = torch.tensor([[True, False, True]] * 3)
MAPS, KERNEL = draw(2, 2, 4, 4), draw(2, 2, 3, 3)
NORM = (MAPS, V[:2], V[1:], V[:2], V[1:])
CONV = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)

# The arguments of overloads whose tensors are not all of one shape.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "_batch_norm_no_update.default": (*NORM, 0.1, 1e-5),
    "_batch_norm_with_update.default": (*NORM, 0.1, 1e-5),
    "_pack_padded_sequence.default": (M, torch.tensor([3, 2, 1]), False),
    "_unsafe_index_put.default": (M, [INDEX], draw(2, 3)),
    "_unsafe_index_put.hacked_twin": (M, [INDEX], draw(2, 3)),
    "index_add.default": (M, 0, INDEX, draw(2, 3)),
    "scatter_add.default": (M, 0, PLACES, draw(2, 3)),
    "scatter_reduce.two": (M, 0, PLACES, draw(2, 3)),
    "_convolution.default": (MAPS, KERNEL, V[:2], *CONV, False, False, False, False),
    "_convolution.deprecated": (MAPS, KERNEL, V[:2], *CONV, False, False, False),
    "_index_put_impl.default": (M, [INDEX], draw(2, 3)),
    "_native_batch_norm_legit.default": (*NORM, False, 0.1, 1e-5),
    "_native_batch_norm_legit.no_stats": (MAPS, V[:2], V[1:], True, 0.1, 1e-5),
    "_native_batch_norm_legit_no_training.default": (*NORM, 0.1, 1e-5),
    "addmv.default": (V, M, V),
    "baddbmm.default": (M[None], M[None], M[None]),
    "bmm.default": (M[None], M[None]),
    "convolution.default": (MAPS, KERNEL, V[:2], *CONV),
    "diagonal_scatter.default": (M, V),
    "dot.default": (V, V),
    "embedding.default": (M, INDEX),
    "fill.Tensor": (M, ONE),
    "gather.default": (M, 1, PLACES),
    "index.Tensor": (M, [INDEX]),
    "index.Tensor_hacked_twin": (M, [INDEX]),
    "index.list_Tensor": (None,),
    "index_copy.default": (M, 0, INDEX, draw(2, 3)),
    "index_fill.int_Tensor": (M, 0, INDEX, ONE),
    "index_fill.int_Scalar": (M, 0, INDEX, 0.5),
    "index_put.default": (M, [INDEX], draw(2, 3)),
    "index_put.hacked_twin": (M, [INDEX], draw(2, 3)),
    "index_select.default": (M, 0, INDEX),
    "lerp.Scalar": (M, draw(3, 3).flip(0), 0.3),
    "masked_fill.Scalar": (M, MASK, 0.5),
    "masked_fill.Tensor": (M, MASK, ONE),
    "masked_select.default": (M, MASK),
    "mv.default": (M, V),
    "native_batch_norm.default": (*NORM, False, 0.1, 1e-5),
    "native_dropout_backward.default": (M, MASK, 2.0),
    "native_group_norm.default": (MAPS, V[:2], V[1:], 2, 2, 16, 2, 1e-5),
    "native_layer_norm.default": (M, [3], V, V, 1e-5),
    "_prelu_kernel.default": (-MAPS, V[:2].view(1, 2, 1, 1)),
    "repeat_interleave.self_Tensor": (M, torch.tensor([2, 0, 1]), 0),
    "scatter.value": (M, 0, PLACES, 0.5),
    "scatter.src": (M, 0, PLACES, draw(2, 3)),
    "scatter.reduce": (M, 0, PLACES, draw(2, 3)),
    "scatter.value_reduce": (M, 0, PLACES, 0.5),
    "select_scatter.default": (M, V, 0, 1),
    "slice_scatter.default": (M, draw(2, 3), 0, 0, 2),
    "special_zeta.default": (M + 1.5, M),
    "take.default": (M, INDEX),
    "threshold_backward.default": (M, draw(3, 3) - 0.5, 0.1),
    "vdot.default": (V, V),
    "where.self": (MASK, M, draw(3, 3)),
    "where.ScalarOther": (MASK, M, 0.5),
    "where.ScalarSelf": (MASK, 0.5, M),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "div.Tensor_mode": {"rounding_mode": None},
    "scatter.reduce": {"reduce": "multiply"},
    "scatter.value_reduce": {"reduce": "multiply"},
    "scatter_reduce.two": {"reduce": "sum"},
}
# Of integers only, or of other devices, or that take an argument of a type that is told by name.
NONE_HERE = {
    "cudnn_batch_norm.default", "index.list_Tensor", "addmm.dtype", "baddbmm.dtype", "bmm.dtype", "mm.dtype",
    "gcd.default", "lcm.default", *(
        f"{name}.Tensor" for name in (
            "__and__", "__or__", "__xor__", "__lshift__", "__rshift__", "bitwise_and", "bitwise_or", "bitwise_xor",
            "bitwise_left_shift", "bitwise_right_shift", "ldexp",
        )
    ),
}  # fmt: skip


def overloads() -> Iterator[str]:
    """Every overload of an operation with a rule, by name or as pointwise, that takes at least two tensors."""
    for name in dir(aten):
        packet = getattr(aten, name)
        if not hasattr(packet, "overloads"):
            continue
        for overload in packet.overloads():
            operation = getattr(packet, overload)
            schema = operation._schema
            ruled = name in rules.RULES or torch.Tag.pointwise in operation.tags
            tensors = [a for a in schema.arguments if "Tensor" in str(a.type)]
            if ruled and len(tensors) > 1 and not schema.is_mutable:
                yield f"{name}.{overload}"


def arguments_of(name: str) -> tuple[Any, ...]:
    if name in ARGUMENTS:
        return ARGUMENTS[name]
    packet, overload = name.rsplit(".", 1)
    schema = getattr(getattr(aten, packet), overload)._schema
    needed = [a for a in schema.arguments if "Tensor" in str(a.type)]
    return tuple((M + 0.07 * i).roll(i, 0) for i in range(len(needed)))


@pytest.mark.parametrize("name", sorted(set(overloads()) - NONE_HERE))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_argument_that_depends_on_the_input_is_dropped(name: str) -> None:
    packet, overload = name.rsplit(".", 1)
    operation: Callable[..., Any] = getattr(getattr(aten, packet), overload)
    given, options = arguments_of(name), OPTIONS.get(name, {})
    for position, argument in enumerate(given):
        if not isinstance(argument, Tensor) or not argument.is_floating_point():
            continue

        def function(z: Tensor, position: int = position) -> Tensor:
            # Beside a path of its own, so that J is not zero.
            args = [a.clone() if isinstance(a, Tensor) else a for a in given]
            args[position] = z * 1.0
            out = operation(*args, **options)
            out = out[0] if isinstance(out, tuple) else out
            return torch.cat([z.reshape(-1), out.to(D).reshape(-1)])

        n = argument.numel()
        try:
            dense = torch.autograd.functional.jacobian(function, argument).reshape(-1, n)
        except (RuntimeError, NotImplementedError):
            # PyTorch has no derivative of it: there is no J.
            with pytest.raises(ModelError):
                JacobianOperator(function, argument)
            continue
        found = JacobianOperator(function, argument)
        assert not found.backend.startswith("torch.func (the recorded map is wrong")
        columns = found.matmat(torch.eye(n, dtype=D).reshape(n, *argument.shape)).reshape(n, -1).T
        assert torch.allclose(columns, dense, rtol=1e-12, atol=1e-12)
        # Without the comparison too: what the rules give by themselves, where there are rules.
        try:
            replay = linearise(function, argument)
        except (NoRule, RuntimeError, TypeError, IndexError):
            continue
        columns = replay.matmat(torch.eye(n, dtype=D).reshape(n, *argument.shape)).reshape(n, -1).T
        assert torch.allclose(columns, dense, rtol=1e-12, atol=1e-12)


WRITES = {
    "fill_": lambda x: torch.zeros_like(x).fill_(x.sum() * 1e-6) + x,
    "masked_fill_": lambda x: torch.zeros_like(x).masked_fill_(x.detach() > 0, x.sum() * 1e-6) + x,
    "masked_fill": lambda x: x.masked_fill(x.detach() > 0, x.mean()),
    "index_fill_": lambda x: torch.zeros_like(x).index_fill_(0, INDEX, x.sum() * 1e-6) + x,
    "an item": lambda x: (
        torch.cat([x[:50], torch.full_like(x, 0.0)[50:].index_put((INDEX,), x.sum() * 1e-6)]) + x
    ),
    "setitem": lambda x: set_item(x),
    "clamp": lambda x: x.clamp(min=x.mean(), max=x.mean() + 1),
    "clamp_": lambda x: (x * 1.0).clamp_(max=x.mean()),
    "addcmul": lambda x: torch.addcmul(x, x.mean(), x, value=1e-6),
    "lerp": lambda x: torch.lerp(x, x.flip(0), x.mean()),
    "pow": lambda x: (2 + x.tanh()) ** x.mean(),
    "where": lambda x: torch.where(x.detach() > 0, x, x.mean()),
    "a mean of everything": lambda x: x + 1e-6 * x.mean(),
}


def set_item(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[3:7] = x.sum() * 1e-6
    out[9] = x.mean()
    return out + x


@pytest.mark.parametrize("name", WRITES)
def test_tensors_where_a_number_is_usual(name: str, dense_jacobian) -> None:
    function = WRITES[name]
    for dtype in (torch.float32, D):
        x = torch.linspace(-1, 2, 100, dtype=dtype).sin()
        dense = torch.linalg.svdvals(dense_jacobian(function, x).double())
        operator = JacobianOperator(function, x)
        found = torch.linalg.svdvals(operator.matmat(torch.eye(100, dtype=dtype)).double())
        # The decompositions of the two matrices round as well, by some units for each of 100 rows.
        allowed = operator.rounding + 100 * torch.finfo(D).eps
        assert abs(float(found[0] - dense[0])) <= allowed * float(dense[0])


@pytest.mark.parametrize("name", ["mul", "addcmul", "lerp", "maximum", "addmm"])
def test_a_rule_that_drops_an_argument_is_not_used(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by autograd on the operation alone: nothing depends on how large the part is that is dropped.

    Its derivative by torch.func stands in for the rule.
    """
    rule = rules.RULES.get(name, rules.elementwise.elementwise)

    def without_the_last(operation) -> list[Link]:
        return [link for link in rule(operation) if link.source != max(operation.sources)]

    monkeypatch.setitem(rules.RULES, name, without_the_last)
    y = 1e-9 * torch.linspace(1, 2, 9, dtype=D)

    def function(x: Tensor) -> Tensor:
        a, b = x.reshape(3, 3), 1e-9 * x.reshape(3, 3).sum(0)
        return {
            "mul": lambda: a * b, "addcmul": lambda: torch.addcmul(a, a, b), "lerp": lambda: torch.lerp(a, a + b, b),
            "maximum": lambda: torch.maximum(a, b + 1), "addmm": lambda: torch.addmm(a, a, b.expand(3, 3)),
        }[name]()  # fmt: skip

    operator = JacobianOperator(function, y)
    assert operator.backend == f"replay, with torch.func for {name}"


@pytest.mark.parametrize("missing", [1e-4, 1e-5])
def test_a_comparison_allows_no_more_than_rounding_explains(
    missing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A map that is wrong by 10^-5 of its length, eighty units of float32, is not used; nothing smaller is silent."""
    monkeypatch.setitem(
        rules.RULES,
        "sin",
        lambda op: [Link(0, 0, (rules.elementwise.diagonal(op.args[0].cos() * (1 + missing), ()),))],
    )
    with pytest.warns(UserWarning, match="recorded map is wrong"):
        operator = JacobianOperator(torch.sin, torch.linspace(-1, 1, 30))
    assert operator.backend.startswith("torch.func")


@pytest.mark.parametrize("missing", [1e-6, 3e-7])
def test_what_a_comparison_leaves_open_is_rounding(missing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.linspace(-1, 1, 30)
    monkeypatch.setitem(
        rules.RULES, "sin",
        lambda op: [Link(0, 0, (rules.elementwise.diagonal(op.args[0].cos() * (1 + missing), x.shape),))],
    )  # fmt: skip
    operator = JacobianOperator(torch.sin, x)
    assert operator.backend == "replay"
    assert operator.rounding > 1.5 * missing
