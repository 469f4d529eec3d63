"""Which models are replayed, which go through torch.func and say why, and what happens where a recording is wrong."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from isometry.errors import ConvergenceWarning, FallbackWarning, ModelError
from isometry.jacobian import JacobianOperator
from isometry.jacobian.replay import rules
from isometry.jacobian.replay.maps import Multiple
from isometry.jacobian.replay.rules import Link
from isometry.measurement import measure
from isometry.nn import MLP, ResNet, VanillaCNN

D = torch.float64
TRANSFORMERS = "transformers is a dev extra: BERT, GPT-2 and ViT are not tested here"


def assert_dense(operator: JacobianOperator, function, point: Tensor) -> None:
    m, n = operator.shape
    dense = torch.autograd.functional.jacobian(function, point).reshape(m, n)
    # A dozen layers in float64; the largest entry sets the scale.
    bound = 1e-12 * float(dense.abs().max())
    forward = operator.matmat(torch.eye(n, dtype=D).reshape(n, *operator.input_shape)).reshape(n, m).T
    reverse = operator.rmatmat(torch.eye(m, dtype=D).reshape(m, *operator.output_shape)).reshape(m, n)
    for found in (forward, reverse):
        assert torch.allclose(found, dense, rtol=0, atol=bound)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (VanillaCNN(depth=3, channels=4, sigma_w=1.1, seed=0), (4, 4, 3)),
        (VanillaCNN(depth=3, channels=4, sigma_w=1.1, init="gaussian", seed=0), (4, 4, 3)),
        (
            VanillaCNN(
                depth=2, channels=4, in_channels=1, num_classes=3, image_size=6, stem_strides=(1, 2), seed=0
            ),
            (1, 6, 6),
        ),
        (ResNet(depth=3, channels=4, sigma_w=1.1, seed=0), (4, 4, 3)),
        (MLP(depth=3, width=6, in_features=5, num_classes=2, seed=0), (5,)),
    ],
)  # fmt: skip
def test_reference_networks_are_replayed(model: nn.Module, shape: tuple[int, ...]) -> None:
    model, x = model.to(D), torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=D).sin().reshape(shape)
    operator = JacobianOperator(model, x)
    assert operator.backend == "replay"
    assert_dense(operator, model, x)


def bert() -> tuple[nn.Module, Tensor, dict[str, str]]:
    transformers = pytest.importorskip("transformers", reason=TRANSFORMERS)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=8,
    )  # fmt: skip
    model = transformers.BertModel(config).to(D).eval()
    return model, torch.tensor([[3, 1, 4, 1]]), {"source": "encoder", "output": "last_hidden_state"}


def gpt2() -> tuple[nn.Module, Tensor, dict[str, str]]:
    transformers = pytest.importorskip("transformers", reason=TRANSFORMERS)
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).to(D).eval()
    return model, torch.tensor([[3, 1, 4, 1]]), {"source": "transformer.h.0", "output": "logits"}


def vit() -> tuple[nn.Module, Tensor, dict[str, str]]:
    transformers = pytest.importorskip("transformers", reason=TRANSFORMERS)
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        image_size=8,
        patch_size=4,
    )
    model = transformers.ViTModel(config).to(D).eval()
    return model, torch.randn(1, 3, 8, 8, dtype=D), {"output": "last_hidden_state"}


@pytest.mark.filterwarnings("ignore:.*looks like a batch")
@pytest.mark.parametrize("make", [bert, gpt2, vit])
def test_transformers_are_replayed(make) -> None:
    torch.manual_seed(0)
    model, x, options = make()
    operator = JacobianOperator(model, x, **options)
    assert operator.backend == "replay"
    assert_dense(operator, operator._evaluation.function, operator.point)


def test_recurrent_layers_are_replayed_gate_by_gate() -> None:
    torch.manual_seed(0)
    model, x = nn.LSTM(3, 4).to(D), torch.randn(5, 3, dtype=D)
    operator = JacobianOperator(model, x, output=0)
    assert operator.backend == "replay"
    assert_dense(operator, lambda z: model(z)[0], x)


class Cube(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z**3

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, u: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * u

    @staticmethod
    def jvp(ctx, v: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * v


class Unseen(nn.Module):
    """A factor that reverse mode takes for a constant, of an integer."""

    def forward(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            factor = z.round()
        return z * factor


UNKNOWN = {
    "a custom function": (lambda z: Cube.apply(z), "custom autograd function"),
    "a part without gradients": (Unseen(), "under torch.no_grad"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_has_no_rule_goes_through_torch_func_and_says_so_without_a_warning(name: str) -> None:
    function, reason = UNKNOWN[name]
    x = torch.linspace(0.3, 1, 4, dtype=D)
    operator = JacobianOperator(function, x)
    assert operator.backend.startswith("torch.func (no linear map for ")
    assert reason in operator.backend
    assert_dense(operator, function, x)


def test_the_provenance_says_how_products_were_made() -> None:
    x = torch.randn(4)
    assert (
        measure(nn.Linear(4, 4), x, progress=False).provenance["products_by"]
        == "the 4 rows of J, by autograd"
    )
    made_by = measure(nn.Linear(4, 4), x, products="both", progress=False).provenance["products_by"]
    assert made_by == "replay"
    made_by = measure(lambda z: z.cumprod(0), x, products="both", progress=False).provenance["products_by"]
    assert made_by == "replay, with torch.func for cumprod"
    made_by = measure(lambda z: Cube.apply(z), x, products="both", progress=False).provenance["products_by"]
    assert "custom autograd function" in made_by


@pytest.mark.parametrize("factor", [1 + 1e-3, 0.0, -1.0])
def test_a_wrong_rule_is_caught_and_said_and_the_numbers_are_right(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(rules.RULES, "sin", lambda _: [Link(0, 0, (Multiple(factor),))])
    x = torch.linspace(-1, 1, 5)
    with pytest.warns(
        FallbackWarning, match=r"recorded map is wrong: J\^T u differs .* Products come from torch\.func"
    ):
        operator = JacobianOperator(torch.sin, x)
    assert operator.backend.startswith("torch.func (the recorded map is wrong")
    assert torch.allclose(operator.matmat(torch.eye(5)), torch.diag(x.cos()), rtol=1e-6)


def test_a_wrong_transpose_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    class OneWay(Multiple):
        def matmat(self, v: Tensor, overwrite: bool) -> Tensor:
            return 2.0 * v

    monkeypatch.setitem(rules.RULES, "sin", lambda _: [Link(0, 0, (OneWay(1.0),))])
    with pytest.warns(FallbackWarning, match="recorded map is wrong: <J v, u> and"):
        JacobianOperator(torch.sin, torch.zeros(3))


class SignLost(Multiple):
    """Right for u and wrong for -u, as a backward pass that lets only positive gradients through."""

    def rmatmat(self, u: Tensor, overwrite: bool) -> Tensor:
        return u if float(u.sum()) > 0 else -u


class Coarse(Multiple):
    """Rounds to eight digits, where no tensor of the run says so."""

    def rmatmat(self, u: Tensor, overwrite: bool) -> Tensor:
        return u.bfloat16().to(u.dtype)

    matmat = rmatmat


def test_a_transpose_that_depends_on_the_sign_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rules.RULES, "sin", lambda _: [Link(0, 0, (SignLost(1.0),))])
    with pytest.warns(FallbackWarning, match=r"recorded map is wrong: J\^T u differs"):
        JacobianOperator(torch.sin, torch.zeros(30))


def test_rounding_that_the_run_does_not_show_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rules.RULES, "sin", lambda _: [Link(0, 0, (Coarse(1.0),))])
    with pytest.warns(ConvergenceWarning, match="are known to"):
        operator = JacobianOperator(torch.sin, torch.zeros(300))
    assert operator.backend == "replay"
    # A unit of eight digits is 2^-7; the rounding of a generic entry is a quarter of it and less.
    assert 2**-10 < operator.rounding < 2**-5


def test_a_rule_that_fails_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> list[Link]:
        raise IndexError("no such thing")

    monkeypatch.setitem(rules.RULES, "sin", broken)
    operator = JacobianOperator(torch.sin, torch.zeros(3))
    assert "a rule that fails (IndexError: no such thing)" in operator.backend
    assert torch.equal(operator.matmat(torch.eye(3)), torch.eye(3))


def test_what_cancels_is_not_taken_for_a_wrong_rule() -> None:
    """Layer norm of two entries is almost constant: its Jacobian is the rounding of what cancels."""
    with pytest.warns(ConvergenceWarning, match="large terms cancel"):
        operator = JacobianOperator(nn.LayerNorm(2), torch.tensor([0.3, -0.9]))
    assert operator.backend == "replay"


def test_a_function_whose_tensors_changed_is_refused_and_not_mixed_with_old_slopes() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    operator = JacobianOperator(lambda z: model(z), torch.ones(3))
    with torch.no_grad():
        model[2].weight.mul_(2)
    for product in (operator.matmat, operator.rmatmat):
        with pytest.raises(ModelError, match="a parameter of the model has changed"):
            product(torch.ones(1, 3))


def test_products_do_not_write_to_what_they_are_given_and_repeat_bit_for_bit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1), nn.Tanh())
    operator = JacobianOperator(model, torch.randn(3, 8, 8))
    v = torch.randn(5, 3, 8, 8)
    before = v.clone()
    first, second = operator.matmat(v), operator.matmat(v)
    assert torch.equal(first, second)
    operator.rmatmat(v)
    assert torch.equal(v, before)
    identity = JacobianOperator(lambda z: z.view(-1), torch.randn(3, 4))
    block = torch.ones(2, 3, 4)
    identity.matmat(block).zero_()
    assert torch.equal(block, torch.ones(2, 3, 4))


def test_tf32_changes_nothing_on_a_processor() -> None:
    model, x, v = nn.Linear(8, 8), torch.randn(8), torch.randn(3, 8)
    plain, rounded = JacobianOperator(model, x), JacobianOperator(model, x, tf32=True)
    assert torch.equal(plain.matmat(v), rounded.matmat(v))
    assert plain.rounding == rounded.rounding


@pytest.mark.slow
def test_the_set_up_is_linear_in_depth() -> None:
    """Eight times as many layers take about eight times as long; sixteen would be quadratic in part."""
    x, seconds = torch.randn(8, 6, 6), []
    JacobianOperator(VanillaCNN(depth=2, channels=8), x)
    for depth in (250, 2000):
        model = VanillaCNN(depth=depth, channels=8, init="gaussian", sigma_w=1.0, seed=0)
        start = time.process_time()
        JacobianOperator(model, x)
        seconds.append(time.process_time() - start)
    assert seconds[1] < 14 * seconds[0]
