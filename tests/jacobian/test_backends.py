"""Networks without a plain forward mode: attention, recurrence, custom functions. A slower backend warns once."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from isometry.errors import FallbackWarning, ModelError
from isometry.jacobian import JacobianOperator


def dense_of(operator: JacobianOperator) -> tuple[Tensor, Tensor]:
    m, n = operator.shape
    forward = operator.matmat(torch.eye(n, dtype=operator.dtype).reshape(n, *operator.input_shape))
    reverse = operator.rmatmat(torch.eye(m, dtype=operator.dtype).reshape(m, *operator.output_shape))
    return forward.reshape(n, m).T, reverse.reshape(m, n)


def assert_equals(operator: JacobianOperator, dense: Tensor) -> None:
    # float64 and short sums: 1e-12 of the largest entry is a thousand units of rounding.
    bound = 1e-12 * float(dense.abs().max())
    for found in dense_of(operator):
        assert torch.allclose(found, dense, rtol=0, atol=bound)


# ---- what works unasked ------------------------------------------------------------------------------------


def attention(z: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(z, z, z)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, z: Tensor) -> Tensor:
        return self.inner(z, z, z, need_weights=False)[0]


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


@pytest.mark.parametrize("make", [SelfAttention, encoder])
def test_attention_needs_no_asking(make, dense_jacobian) -> None:
    torch.manual_seed(0)
    model, x = make().double().eval(), torch.randn(1, 5, 8, dtype=torch.float64)
    assert_equals(JacobianOperator(model, x), dense_jacobian(model, x))


def test_fused_attention_in_a_function(dense_jacobian) -> None:
    x = torch.randn(1, 2, 4, 8, dtype=torch.float64)
    assert_equals(JacobianOperator(attention, x), dense_jacobian(attention, x))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_recurrent_layers(kind, dtype, dense_jacobian) -> None:
    torch.manual_seed(0)
    model = kind(3, 4, num_layers=2, batch_first=True).to(dtype)
    x = torch.randn(1, 5, 3, dtype=dtype)
    dense = dense_jacobian(lambda z: model(z)[0], x)
    bound = 50 * torch.finfo(dtype).eps * float(dense.abs().max())
    for found in dense_of(JacobianOperator(model, x, output=0)):
        assert torch.allclose(found, dense, rtol=0, atol=bound)


def test_the_last_state_of_an_lstm_is_an_output_too(dense_jacobian) -> None:
    model = nn.LSTM(3, 4).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    operator = JacobianOperator(model, x, output=lambda out: out[1][1])
    assert_equals(operator, dense_jacobian(lambda z: model(z)[1][1], x))


def test_control_flow_on_values(dense_jacobian) -> None:
    def model(z: Tensor) -> Tensor:
        return z.square() if z.sum() > 0 else z.sin()

    for x in (torch.full((3,), 0.3).double(), torch.full((3,), -0.3).double()):
        assert_equals(JacobianOperator(model, x), dense_jacobian(model, x))


def test_layers_that_work_in_place(dense_jacobian) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4), nn.SELU(inplace=True)).double()
    x = torch.randn(4, dtype=torch.float64)
    before = x.clone()
    operator = JacobianOperator(model, x)
    assert_equals(operator, dense_jacobian(lambda z: model(z.clone()), x))
    assert torch.equal(x, before)
    assert torch.equal(operator.point, before)


# ---- what works more slowly, and says so -------------------------------------------------------------------


class OldSquare(torch.autograd.Function):
    """A custom function as most are written; torch.func refuses it."""

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z**2

    @staticmethod
    def backward(ctx, u: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * u


class NewSquare(torch.autograd.Function):
    """A custom function with a reverse formula only."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z**2

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, u: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * u


IMAGE = torch.linspace(-1, 1, 18, dtype=torch.float64).sin().reshape(1, 2, 3, 3)
PLACES = 0.8 * torch.linspace(-1, 1, 8, dtype=torch.float64).cos().reshape(1, 2, 2, 2)

SLOW = {
    "grid_sample beside a custom function": (
        lambda z: F.grid_sample(NewSquare.apply(z), PLACES, align_corners=False), IMAGE, "double backward"
    ),
    "rrelu in evaluation": (nn.RReLU().eval(), IMAGE, "double backward"),
    "a custom function": (lambda z: NewSquare.apply(z), IMAGE, "double backward"),
    "an old custom function": (lambda z: OldSquare.apply(z.sin()), IMAGE, "double backward by plain autograd"),
    "gradient checkpointing": (
        lambda z: checkpoint(lambda y: NewSquare.apply(y.sin()), z, use_reentrant=False), IMAGE,
        "torch.func cannot differentiate this model: plain autograd",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", SLOW)
def test_a_slower_way_is_right_and_said_once(name: str, dense_jacobian) -> None:
    model, x, note = SLOW[name]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", FallbackWarning)
        operator = JacobianOperator(model, x)
        assert_equals(operator, dense_jacobian(model, x))
    notes = [str(w.message) for w in said if issubclass(w.category, FallbackWarning)]
    assert sum(note in text for text in notes) == 1
    # Nothing is said twice, and nothing of the fastest backend.
    assert len(set(notes)) == len(notes) <= 2


def test_the_note_points_at_the_callers_line() -> None:
    with pytest.warns(FallbackWarning, match="comes from double backward") as said:
        JacobianOperator(lambda z: NewSquare.apply(z), IMAGE)
    assert said[0].filename == __file__


# ---- what has no backend ---------------------------------------------------------------------------------------


def test_no_way_at_all_names_the_operation_and_a_cure() -> None:
    with pytest.raises(ModelError, match=r"source= and target= measure the parts.*igamma"):
        JacobianOperator(lambda z: torch.igamma(z.abs() + 1, torch.ones(3)), torch.randn(4, 3))


def test_inference_mode_inside_the_model_is_named() -> None:
    class Frozen(nn.Linear):
        @torch.inference_mode()
        def forward(self, z: Tensor) -> Tensor:
            return super().forward(z)

    with pytest.raises(ModelError, match="inference_mode"):
        JacobianOperator(Frozen(3, 3), torch.randn(3))


def test_inference_mode_around_the_measurement_does_no_harm(dense_jacobian) -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double(), torch.randn(3, dtype=torch.float64)
    dense = dense_jacobian(model, x)
    with torch.inference_mode():
        found = dense_of(JacobianOperator(model, x.clone()))
    for each in found:
        assert torch.allclose(each, dense, rtol=1e-13, atol=1e-14)
