"""Models with any number of inputs: J with respect to one of them, or several joined; all others stay as they are."""

from __future__ import annotations

from collections import OrderedDict, UserDict, deque, namedtuple
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isometry import JacobianOperator, measure
from isometry.errors import InputError
from isometry.jacobian import named_layers

Pair = namedtuple("Pair", "left right")


@dataclass
class Batch:
    image: Tensor
    label: Tensor


class Denoiser(nn.Module):
    """Called like a diffusion U-Net: a sample, a time step, and what it is conditioned on by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.time, self.context = nn.Linear(4, 4), nn.Embedding(20, 4), nn.Linear(3, 4)

    def forward(
        self, sample: Tensor, timestep: Any, *, context: dict[str, Any], scale: float = 1.0
    ) -> dict[str, Any]:
        hidden = self.inner(sample) + self.time(torch.as_tensor(timestep))
        hidden = hidden + self.context(context["states"][0]) * scale
        hidden = hidden + hidden.mean(0)
        return {"out": [torch.tanh(hidden), hidden.detach()]}


class Encoder(nn.Module):
    """Called with token numbers and a mask, by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        hidden = self.embed(input_ids)
        hidden = hidden + torch.tanh(self.first(hidden)) * attention_mask[..., None]
        hidden = hidden + self.second(hidden.softmax(-1))
        return {"last_hidden_state": hidden}


def dense_of(operator: JacobianOperator) -> Tensor:
    n, m = operator.shape[1], operator.shape[0]
    columns = (
        operator.matmat(torch.eye(n).to(operator.point).reshape(n, *operator.input_shape)).reshape(n, m).T
    )
    rows = operator.rmatmat(torch.eye(m).to(operator.point).reshape(m, *operator.output_shape)).reshape(m, n)
    assert torch.allclose(columns, rows, atol=1e-12)
    return columns


def denoiser() -> tuple[Denoiser, Tensor, dict[str, Any]]:
    torch.manual_seed(0)
    context = {"states": (torch.randn(2, 3, dtype=torch.float64), "a text"), "ids": torch.arange(2)}
    return Denoiser().double(), torch.randn(2, 4, dtype=torch.float64), context


def wanted(model: Denoiser, x: Tensor, context: dict[str, Any]) -> dict[str, Tensor]:
    """J with respect to the sample and to the states, by torch.func."""

    def by_states(states: Tensor) -> Tensor:
        return model(x, 7, context={"states": (states, "")}, scale=2.0)["out"][0]

    def by_sample(sample: Tensor) -> Tensor:
        return model(sample, 7, context=context, scale=2.0)["out"][0]

    by = {"sample": (by_sample, x), "states": (by_states, context["states"][0])}
    return {name: torch.func.jacrev(f)(z).reshape(8, -1).detach() for name, (f, z) in by.items()}


@pytest.mark.parametrize(
    ("wrt", "which"),
    [
        (None, ["sample"]), (0, ["sample"]), ("sample", ["sample"]), ("0", ["sample"]),
        ("context.states.0", ["states"]), ("context", ["states"]), ("context.states", ["states"]),
        (["context", "sample"], ["states", "sample"]), ((0, "context.states.0"), ["sample", "states"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("step", [7, torch.tensor(7)], ids=["number", "tensor"])
def test_with_respect_to_one_input_or_several(wrt, which, step) -> None:
    model, x, context = denoiser()
    blocks = wanted(model, x, context)
    operator = JacobianOperator(
        model, x, args=(step,), kwargs={"context": context, "scale": 2.0}, wrt=wrt, output="out.0"
    )
    assert torch.allclose(dense_of(operator), torch.cat([blocks[name] for name in which], dim=1), atol=1e-12)
    if len(which) == 1:
        assert operator.parts == ()
        assert len(operator.input_shape) == 2
    else:
        assert [part.stop - part.start for part in operator.parts] == [
            blocks[name].shape[1] for name in which
        ]


@pytest.mark.parametrize(
    "holder",
    [
        lambda a, b: (a, b), lambda a, b: [b, {"deep": (a,)}], lambda a, b: {"x": a, "y": b}, Pair, Batch,
        lambda a, b: OrderedDict(x=a, y=b), lambda a, b: UserDict({"x": a, 3: b}), lambda a, b: deque([a, b]),
        lambda a, b: MappingProxyType({"x": a, "y": b}), lambda a, b: {"x": Pair(a, Batch(b, None)), "n": 3},
    ],
)  # fmt: skip
def test_every_container_is_rebuilt_around_what_is_differentiated(holder) -> None:
    a, number = torch.randn(3, dtype=torch.float64), torch.arange(3)
    held = holder(a, number)
    kind, seen = type(held), []

    def model(given: Any) -> Tensor:
        seen.append(given)
        value = given
        while not isinstance(value, Tensor):
            entries = value.values() if hasattr(value, "values") else getattr(value, "__dict__", value)
            entries = entries.values() if isinstance(entries, dict) else entries
            value = next(e for e in entries if not isinstance(e, Tensor) or e.is_floating_point())
        kept = value.clone()
        value.zero_()
        return kept.sin()

    operator = JacobianOperator(model, held, dtype=torch.float64)
    assert torch.allclose(dense_of(operator), torch.diag(a.cos()))
    assert type(seen[-1]) is (dict if kind is MappingProxyType else kind)
    assert bool((a != 0).all())


def test_source_target_blocks_and_dtype_with_keywords_alone() -> None:
    torch.manual_seed(1)
    model = Encoder().eval()
    ids, mask = torch.randint(11, (1, 3)), torch.tensor([[1, 1, 0]])
    encoding = UserDict(input_ids=ids, attention_mask=mask)
    how = {"kwargs": encoding, "source": "first", "output": "last_hidden_state", "dtype": torch.float64}
    operator = JacobianOperator(model, **how)
    twin = Encoder().double().eval()
    twin.load_state_dict(model.state_dict())

    def after(entering: Tensor) -> Tensor:
        hidden = twin.embed(ids) + torch.tanh(twin.first(entering)) * mask[..., None]
        return hidden + twin.second(hidden.softmax(-1))

    dense = torch.func.jacrev(after)(twin.embed(ids)).reshape(18, 18).detach()
    assert torch.allclose(dense_of(operator), dense, atol=1e-12)
    spectrum = measure(model, method="exact", progress=False, **how)
    assert np.allclose(spectrum.singular_values, torch.linalg.svdvals(dense).numpy(), atol=1e-12)
    assert spectrum.provenance["input"] == "input_ids (1, 3) int64, attention_mask (1, 3) int64"
    assert [layer.name for layer in named_layers(model, kwargs=encoding)] == ["embed", "first", "second"]


def test_the_share_of_each_of_several_inputs() -> None:
    model, x, context = denoiser()
    blocks = wanted(model, x, context)
    squares = {name: float(block.square().sum()) for name, block in blocks.items()}
    how = {"args": (7,), "kwargs": {"context": context, "scale": 2.0}, "output": "out.0", "progress": False}
    shares = measure(model, x, wrt=["sample", "context"], **how).provenance["shares"]
    assert [share["path"] for share in shares] == ["sample", "context.states.0"]
    for share, name in zip(shares, ("sample", "states"), strict=True):
        assert share["share"] == pytest.approx(squares[name] / sum(squares.values()), rel=1e-12)
        assert share["stderr"] == 0.0
    assert "shares" not in measure(model, x, wrt="sample", **how).provenance


def test_shares_by_random_probes_are_within_their_errors() -> None:
    torch.manual_seed(2)
    a, b = (torch.randn(400, 30, dtype=torch.float64) / 30 for _ in range(2))

    def model(p: Tensor, q: Tensor) -> Tensor:
        return a @ p + 3 * b @ q

    x = torch.randn(30, dtype=torch.float64)
    first, second = measure(model, x, args=(x,), wrt=(0, 1), progress=False).provenance["shares"]
    expected = float(a.square().sum() / (a.square().sum() + 9 * b.square().sum()))
    assert 0 < first["stderr"] < 0.02
    assert abs(first["share"] - expected) < 4 * first["stderr"]
    assert first["share"] + second["share"] == pytest.approx(1.0)


# ---- batches -----------------------------------------------------------------------------------------------


def graph_layer(x: Tensor, adjacency: Tensor, weight: Tensor, step: Tensor) -> Tensor:
    """Samples along the first axis of x and step; adjacency and weight belong to all."""
    return torch.tanh(adjacency @ x @ weight) * (1 + step)[:, None, None]


@pytest.mark.parametrize("nodes", [5, 3])
@pytest.mark.parametrize("limit", [2 * 1024**3, 30_000], ids=["one group", "groups"])
@pytest.mark.parametrize("wrt", [None, ["x", "step"]], ids=["x", "x and step"])
def test_other_inputs_of_a_batch_are_never_taken_apart_wrongly(nodes, limit, wrt) -> None:
    # With five nodes and five features the first axes of adjacency and weight are as long as the batch.
    torch.manual_seed(3)
    x, step = torch.randn(5, nodes, 5, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    adjacency, weight = torch.rand(nodes, nodes, dtype=torch.float64), torch.randn(5, 5, dtype=torch.float64)
    how = {"wrt": wrt, "progress": False, "method": "exact"}
    found = measure(graph_layer, x, args=(adjacency, weight, step), batched=True, memory_limit=limit, **how)
    each = [
        measure(graph_layer, x[i : i + 1], args=(adjacency, weight, step[i : i + 1]), batched=True, **how)
        for i in range(5)
    ]
    top = np.array([one.extremes.top[0] for one in each])
    assert np.allclose(found.extremes.top, top, rtol=1e-10)
    assert found.mean_square == pytest.approx(np.mean([one.mean_square for one in each]), rel=1e-10)


def test_a_batch_that_shares_what_is_differentiated_is_refused() -> None:
    x, shared = torch.randn(4, 3), torch.randn(4, 3)
    with pytest.raises(InputError, match=r"different lengths: x \(4, 3\), y \(1, 3\)"):
        JacobianOperator(lambda x, y: x * y, x, args=(torch.randn(1, 3),), wrt=(0, 1), batched=True)
    with pytest.raises(InputError, match="leading batch axis"):
        JacobianOperator(lambda x, y: x * y, x, args=(torch.tensor(2.0),), wrt="y", batched=True)
    with pytest.raises(Exception, match="couples the samples"):
        JacobianOperator(lambda x, y: x * y.sum(0), x, args=(shared,), wrt="y", batched=True)


# ---- what cannot be meant ----------------------------------------------------------------------------------

X, IDS = torch.ones(2, 3), torch.arange(3)
BAD = {
    "no such name": ((X,), {"wrt": "y"}, r"wrt='y' is not among the inputs: x \(2, 3\) float32"),
    "no such place": ((X,), {"wrt": 1}, "wrt=1 is not among the inputs"),
    "no such path": (
        (X,), {"kwargs": {"batch": {"image": X, "ids": IDS}}, "wrt": "batch.picture"},
        r"not among the inputs: x .*, batch.image \(2, 3\) float32, batch.ids \(3,\) int64",
    ),
    "whole numbers": ((X,), {"args": (IDS,), "wrt": 1}, "wrt=1 is of type torch.int64, .* source="),
    "whole numbers and others": ((IDS,), {"args": (X, X)}, "several floating tensors .* wrt="),
    "several in a container": (({"a": X, "b": X},), {}, r"several floating tensors among the inputs: x.a \(2, 3\)"),
    "none in a container": (({"a": IDS},), {}, "no floating tensor"),
    "no tensor": ((), {"kwargs": {"a": 3}}, "no tensor among the inputs"),
    "wrt and source": ((X,), {"wrt": 0, "source": "0"}, "wrt= and source= both"),
    "twice in wrt": (({"a": X},), {"wrt": ["x.a", "x"]}, "names the input 'x.a' twice"),
    "nothing in wrt": ((X,), {"wrt": []}, "one or several"),
    "no name in wrt": ((X,), {"wrt": [X]}, "one or several"),
    "a bool": ((X,), {"wrt": True}, "one or several"),
    "given twice": ((X,), {"kwargs": {"x": X}}, "'x' is given twice"),
    "one path twice": (({1: X, "1": X},), {}, "two inputs have the path 'x.1'"),
    "args is a tensor": ((X,), {"args": X}, r"Write args=\(value,\)"),
    "kwargs is a list": ((X,), {"kwargs": [X]}, "kwargs maps names to inputs; got a list"),
    "other on meta": ((X,), {"args": (torch.ones(2, device="meta"),)}, "meta device"),
    "a set": (({X},), {}, "the input is a set"),
    "infinite": ((X,), {"args": (X / 0,), "wrt": 1}, "NaN or inf"),
    "unknown keyword": ((X,), {"kwargs": {"masc": X}}, "unexpected keyword argument 'masc'.*args= and kwargs="),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_inputs_are_told_with_what_there_is(case: str) -> None:
    positional, options, message = BAD[case]

    def model(x: Any, *others: Any, batch: Any = None) -> Tensor:
        return torch.stack([t.float().sum() for t in (x, *others) if isinstance(t, Tensor)])

    with pytest.raises(InputError, match=message):
        JacobianOperator(model, *positional, **options)


def test_a_ready_operator_has_its_inputs_already() -> None:
    operator = JacobianOperator(lambda x, y: x * y, X, args=(X,))
    with pytest.raises(InputError, match="args and wrt belong to the operator"):
        measure(operator, args=(X,), wrt=1)


def test_masks_with_infinite_entries_are_inputs_like_others() -> None:
    mask = torch.tensor([0.0, -torch.inf, 0.0])
    operator = JacobianOperator(lambda x, mask: (x + mask).softmax(-1), torch.randn(3), kwargs={"mask": mask})
    assert bool(torch.isfinite(operator.matmat(torch.eye(3))).all())
