"""A part of a model by source= and target=, and an element of its output by output=."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from isometry.errors import FallbackWarning, InputError, NonFiniteError
from isometry.jacobian import JacobianOperator, LayerInfo, named_layers

TRANSFORMERS = "transformers is a dev extra (pip install '.[dev]'): its output classes are not tested here"


def dense_of(operator: JacobianOperator) -> Tensor:
    m, n = operator.shape
    return (
        operator.matmat(torch.eye(n, dtype=operator.dtype).reshape(n, *operator.input_shape)).reshape(n, m).T
    )


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    names = OrderedDict(
        stem=nn.Linear(5, 4), act=nn.Tanh(), block=nn.Sequential(nn.Linear(4, 6), nn.Sigmoid()), head=nn.Linear(6, 3)
    )  # fmt: skip
    return nn.Sequential(names).double()


@pytest.fixture
def x() -> Tensor:
    return torch.linspace(-1, 1, 5, dtype=torch.float64)


def test_a_chain_is_the_product_of_its_parts(network, x, dense_jacobian) -> None:
    whole = dense_jacobian(network, x)
    before = dense_of(JacobianOperator(network, x, target="act"))
    after = dense_of(JacobianOperator(network, x, source="block"))
    assert (before.shape, after.shape) == ((4, 5), (3, 4))
    assert torch.allclose(after @ before, whole, rtol=1e-13, atol=1e-14)


def test_source_and_target_belong_to_the_part(network, x, dense_jacobian) -> None:
    entering = network.act(network.stem(x)).detach()
    found = dense_of(JacobianOperator(network, x, source="block", target="block.1"))
    assert torch.allclose(found, dense_jacobian(network.block, entering), rtol=1e-13, atol=1e-14)
    one = dense_of(JacobianOperator(network, x, source="head", target="head"))
    assert torch.equal(one, network.head.weight.detach())
    # The root has the empty name.
    root = dense_of(JacobianOperator(network, x, source="", target=""))
    assert torch.allclose(root, dense_jacobian(network, x), rtol=1e-13, atol=1e-14)


def test_the_description_names_the_part(network, x) -> None:
    assert "[block -> output]" in JacobianOperator(network, x, source="block").description
    assert "[input -> act]" in repr(JacobianOperator(network, x, target="act"))


class ByKeyword(nn.Module):
    """Calls its parts by keyword, with a tensor of integers first, as transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner = nn.Embedding(7, 4), Inner()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.inner(positions=torch.arange(3), hidden=self.embedding(tokens), scale=2.0)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, positions: Tensor, hidden: Tensor, scale: float) -> Tensor:
        # The mean over the tokens couples them, as attention does.
        return torch.tanh(scale * self.linear(input=hidden) + hidden.mean(0) + positions[:, None])


def test_modules_called_by_keyword_and_integer_inputs(dense_jacobian) -> None:
    torch.manual_seed(0)
    model, tokens = ByKeyword().double(), torch.tensor([3, 1, 6])
    hidden = model.embedding(tokens).detach()
    operator = JacobianOperator(model, tokens, source="inner")
    assert operator.input_shape == (3, 4)
    reference = dense_jacobian(lambda h: model.inner(torch.arange(3), h, 2.0), hidden)
    assert torch.allclose(dense_of(operator), reference, rtol=1e-13, atol=1e-14)
    with pytest.warns(FallbackWarning, match="looks like a batch of 3"):
        linear = JacobianOperator(model, tokens, source="inner.linear", target="inner.linear")
    deeper = dense_of(linear)
    assert torch.equal(deeper, torch.block_diag(*[model.inner.linear.weight] * 3).detach())


def test_an_embedding_measured_from_its_own_rows() -> None:
    """source= a module that only integers enter has no point to start from."""
    with pytest.raises(InputError, match="no real floating tensor enters module 'embedding'"):
        JacobianOperator(ByKeyword(), torch.tensor([3, 1, 6]), source="embedding")


def test_a_module_called_twice_counts_with_its_first_call(dense_jacobian) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, z: Tensor) -> Tensor:
            return self.layer(torch.tanh(self.layer(z)))

    model, z = Twice().double(), torch.randn(3, dtype=torch.float64)
    weight = model.layer.weight.detach()
    assert torch.equal(dense_of(JacobianOperator(model, z, target="layer")), weight)
    assert torch.allclose(
        dense_of(JacobianOperator(model, z, source="layer")), dense_jacobian(model, z), rtol=1e-13
    )


def test_a_skip_around_the_source_does_not_count(dense_jacobian) -> None:
    """J is with respect to what enters the source: a path beside it is constant."""

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Linear(3, 3)

        def forward(self, z: Tensor) -> Tensor:
            return z + self.branch(z)

    model, z = Skip().double(), torch.randn(3, dtype=torch.float64)
    weight = model.branch.weight.detach()
    assert torch.equal(dense_of(JacobianOperator(model, z, source="branch")), weight)
    assert torch.allclose(dense_of(JacobianOperator(model, z)), torch.eye(3) + weight, rtol=1e-15)


def test_a_part_of_each_of_a_batch(network, dense_jacobian) -> None:
    x = torch.randn(3, 5, dtype=torch.float64)
    operator = JacobianOperator(network, x, source="block", batched=True)
    assert (operator.batch, operator.shape) == (3, (3, 4))
    v = torch.randn(2, 3, 4, dtype=torch.float64)
    entering = network.act(network.stem(x)).detach()
    for b in range(3):
        dense = dense_jacobian(nn.Sequential(network.block, network.head), entering[b])
        assert torch.allclose(operator.matmat(v)[:, b], v[:, b] @ dense.T, rtol=1e-13, atol=1e-14)


def test_a_source_that_turns_the_batch_away_from_the_front_is_refused() -> None:
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, z: Tensor) -> Tensor:
            return self.inner(z.transpose(0, 1))

    with pytest.raises(InputError, match="whose first axis is not the batch of 2"):
        JacobianOperator(TimeFirst(), torch.randn(2, 5, 3), source="inner", batched=True)


# ---- output= -----------------------------------------------------------------------------------------------


@dataclass
class Result:
    logits: Tensor
    loss: Tensor


def outputs(z: Tensor) -> dict[str, object]:
    return {
        "tuple": (z.sin(), z.cos()),
        "list": [z.sin(), z.cos()],
        "dict": {"values": z.sin(), "items": z.cos()},
        "integer keys": {7: z.sin(), 8: z.cos()},
        "object": Result(z.sin(), z.cos()),
        "named tuple": torch.sort(z),
        "nested": {"decoder": [{"logits": z.sin()}, Result(z.cos(), (z.exp(),))], "a.b": {"c": z}},
    }


@pytest.mark.parametrize(
    ("kind", "output"),
    [
        ("tuple", 0), ("tuple", -2), ("list", 0), ("integer keys", 7), ("object", "logits"),
        # Names of methods of dict: the key counts.
        ("dict", "values"), ("tuple", lambda out: out[0]),
        ("nested", "decoder.0.logits"), ("nested", "decoder.-2.logits"), ("nested", lambda out: out["a.b"]["c"].sin()),
    ],
)  # fmt: skip
def test_output_chooses_a_tensor(kind: str, output, dense_jacobian) -> None:
    z = torch.randn(4, dtype=torch.float64)
    operator = JacobianOperator(lambda y: outputs(y)[kind], z, output=output)
    assert torch.equal(dense_of(operator), torch.diag(z.cos()))


def test_keys_with_dots_and_paths_into_objects() -> None:
    z = torch.randn(4, dtype=torch.float64)
    for output, wanted in (("a.b.c", torch.ones(4)), ("decoder.1.loss.0", z.exp())):
        operator = JacobianOperator(lambda y: outputs(y)["nested"], z, output=output)
        assert torch.equal(dense_of(operator), torch.diag(wanted.double()))
    with pytest.raises(InputError, match="the model returned one tensor"):
        JacobianOperator(torch.sin, z, output="T")


def test_a_named_tuple_is_chosen_by_name_and_place() -> None:
    z = torch.tensor([3.0, 1.0, 2.0])
    wanted = torch.eye(3)[[1, 2, 0]]
    for output in ("values", 0):
        assert torch.equal(dense_of(JacobianOperator(torch.sort, z, output=output)), wanted)


def test_the_output_class_of_transformers(dense_jacobian) -> None:
    ModelOutput = pytest.importorskip("transformers.modeling_outputs", reason=TRANSFORMERS).CausalLMOutput
    z = torch.randn(4, dtype=torch.float64)
    for output in ("logits", 0):
        operator = JacobianOperator(lambda y: ModelOutput(logits=y.sin()), z, output=output)
        assert torch.equal(dense_of(operator), torch.diag(z.cos()))
    with pytest.raises(InputError, match=r"with logits \(4,\)"):
        JacobianOperator(lambda y: ModelOutput(logits=y.sin()), z)


@pytest.mark.parametrize(
    ("kind", "output", "message"),
    [
        (
            "tuple",
            None,
            r"a tuple with 0 \(4,\), 1 \(4,\); choose a tensor with output=, a path .* or a function",
        ),
        ("list", None, r"a list with 0 \(4,\), 1"),
        ("dict", None, r"a dict with values \(4,\), items \(4,\); choose a tensor with output="),
        ("object", None, r"a Result with logits \(4,\), loss \(4,\); choose a tensor"),
        ("tuple", 2, r"output=2 is not in what the model returned: a tuple with 0"),
        ("tuple", "logits", "output='logits' is not in"),
        ("dict", "logits", "output='logits' is not in what the model returned: a dict with values"),
        ("object", "hidden", "output='hidden' is not in"),
        (
            "nested",
            "decoder.2",
            r"decoder.0.logits \(4,\), decoder.1.logits \(4,\), decoder.1.loss.0 \(4,\), a.b.c",
        ),
        ("nested", "decoder.0", "a dict with logits"),
        ("nested", "decoder.0.logits.T", "output='decoder.0.logits.T' is not in"),
        ("named tuple", "indices", "the model returned torch.int64, which cannot be differentiated"),
    ],
)
def test_output_that_is_no_tensor_is_told_with_the_choices(kind: str, output, message: str) -> None:
    with pytest.raises(InputError, match=message):
        JacobianOperator(lambda y: outputs(y)[kind], torch.randn(4), output=output)


# ---- names that do not fit ---------------------------------------------------------------------------------


def test_unknown_names_suggest_near_ones(network, x) -> None:
    with pytest.raises(InputError, match=r"no module named 'blok'; did you mean block"):
        JacobianOperator(network, x, source="blok")
    with pytest.raises(InputError, match="no module named 'zzz'; named_layers"):
        JacobianOperator(network, x, target="zzz")


def test_target_before_source(network, x) -> None:
    with pytest.raises(InputError, match="module 'stem' \\(target\\) runs before the source"):
        JacobianOperator(network, x, source="block", target="stem")


def test_modules_that_do_not_run(x) -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, z: Tensor) -> Tensor:
            return self.used(z)

    for option in ({"source": "idle"}, {"target": "idle"}):
        with pytest.raises(InputError, match="module 'idle' is not called"):
            JacobianOperator(Idle().double(), x, **option)


def test_a_plain_function_has_no_modules(x) -> None:
    with pytest.raises(InputError, match="a plain function was passed"):
        JacobianOperator(torch.sin, x, source="block")


def test_the_hooks_are_gone_even_where_it_failed(network, x) -> None:
    """After a part that worked, a target before its source, and an output that is not finite."""
    JacobianOperator(network, x, source="block", target="head").matmat(torch.randn(2, 4, dtype=torch.float64))
    with pytest.raises(InputError):
        JacobianOperator(network, x, source="block", target="stem")
    with torch.no_grad():
        network.head.bias.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match=r"the first module that makes one is 'head' \(Linear\)"):
        JacobianOperator(network, x)
    for module in network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._forward_pre_hooks_with_kwargs


# ---- the list of layers ------------------------------------------------------------------------------------


def test_named_layers_lists_what_runs_with_shapes(network, x) -> None:
    assert named_layers(network, x) == [
        LayerInfo("stem", "Linear", (5,), (4,), 24),
        LayerInfo("act", "Tanh", (4,), (4,), 0),
        LayerInfo("block", "Sequential", (4,), (6,), 30),
        LayerInfo("block.0", "Linear", (4,), (6,), 30),
        LayerInfo("block.1", "Sigmoid", (6,), (6,), 0),
        LayerInfo("head", "Linear", (6,), (3,), 21),
    ]
    assert not network.head._forward_hooks
    with pytest.raises(InputError, match=r"for an nn\.Module; got function"):
        named_layers(lambda z: z, x)


def test_named_layers_leaves_running_statistics_alone() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    named_layers(model, torch.randn(4, 3))
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])
