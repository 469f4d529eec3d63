"""What has no Jacobian to measure is refused with the cause and the cure, before any number is made."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isometry.errors import AdjointError, InputError, IsometryError, ModelError, NonFiniteError
from isometry.jacobian import JacobianOperator


class Coupled(nn.Module):
    """Each sample sees the mean of the batch."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(z - z.mean(0))


class NoisyWeights(nn.Linear):
    def forward(self, z: Tensor) -> Tensor:
        return F.linear(z, self.weight + 0.1 * torch.randn_like(self.weight), self.bias)


class Counts(nn.Module):
    """Keeps a plain attribute as state: its output drifts from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, z: Tensor) -> Tensor:
        self.calls += 1
        return z * self.calls


class DetachedMean(nn.Module):
    @torch.no_grad()
    def forward(self, z: Tensor) -> Tensor:
        return z.sin()


def train(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules).train()


ONE = torch.linspace(-1, 1, 12).reshape(1, 3, 2, 2)

TRAINING = {
    "batch norm": (
        train(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
        r"module '1' \(BatchNorm2d\) is in training mode",
    ),
    "batch norm without statistics": (
        train(nn.BatchNorm2d(3, track_running_stats=False)),
        "couple the samples",
    ),
    "instance norm with statistics": (
        train(nn.InstanceNorm2d(3, track_running_stats=True)),
        "InstanceNorm2d",
    ),
    "dropout": (train(nn.Dropout(0.1)), r"module '0' \(Dropout\) is in training mode: it draws a new mask"),
    "dropout of channels": (train(nn.Dropout2d(0.1)), "Dropout2d"),
    "alpha dropout": (train(nn.AlphaDropout(0.1)), "AlphaDropout"),
    "rrelu": (train(nn.RReLU()), "draws new slopes"),
    "dropout between recurrent layers": (
        train(nn.LSTM(2, 2, num_layers=2, dropout=0.1)),
        "LSTM.*with dropout",
    ),
    "dropout of attention": (
        train(nn.MultiheadAttention(2, 1, dropout=0.1)),
        "MultiheadAttention.*with dropout",
    ),
    "encoder layer": (train(nn.TransformerEncoderLayer(2, 1, 2, dropout=0.1)), "in training mode"),
}


@pytest.mark.parametrize("name", TRAINING)
def test_training_mode_names_the_module_and_the_cure(name: str) -> None:
    model, message = TRAINING[name]
    with pytest.raises(ModelError, match=message) as caught:
        JacobianOperator(model, ONE)
    assert "Call model.eval()" in str(caught.value)


@pytest.mark.parametrize(
    "model", [nn.Dropout(0.0), nn.Sequential(nn.InstanceNorm2d(3)), nn.Sequential(nn.LayerNorm(2))], ids=str
)
def test_training_mode_that_changes_nothing_is_fine(model: nn.Module) -> None:
    assert JacobianOperator(model.train(), ONE).shape == (12, 12)


def test_batch_norm_in_evaluation_without_statistics_couples_a_batch() -> None:
    """track_running_stats=False takes the batch's own statistics even in evaluation mode."""
    model = nn.BatchNorm1d(3, track_running_stats=False).eval()
    with pytest.raises(ModelError, match="couples the samples of a batch"):
        JacobianOperator(model, torch.randn(4, 3), batched=True)


def test_batch_norm_in_training_hidden_in_a_function() -> None:
    norm = nn.BatchNorm1d(3).train()
    with pytest.raises(ModelError, match=r"changes a tensor in place.*model\.eval\(\)"):
        JacobianOperator(lambda z: norm(z), torch.randn(4, 3))
    # Two evaluations of the caller's own function have counted; no product has.
    assert int(norm.num_batches_tracked) == 2


def test_coupled_samples_are_refused_or_measured_as_one() -> None:
    x = torch.randn(3, 2, dtype=torch.float64)
    with pytest.raises(ModelError, match="leave batched=True out to measure the one big Jacobian"):
        JacobianOperator(Coupled(), x, batched=True)
    # As one input there is one J, (6, 6), and it is not block diagonal.
    operator = JacobianOperator(Coupled(), x)
    j = operator.matmat(torch.eye(6, dtype=torch.float64).reshape(6, 3, 2)).reshape(6, 6).T
    assert float(j[:2, 2:].abs().max()) > 0.05


def test_one_sample_among_many_is_caught() -> None:
    """Only the last sample's output depends on the first: one coupled pair is enough."""

    def model(z: Tensor) -> Tensor:
        return torch.cat([z[:-1].sin(), (z[-1:] + 1e-3 * z[:1]).sin()])

    for size in (2, 3, 4):
        with pytest.raises(ModelError, match="couples the samples"):
            JacobianOperator(model, torch.randn(size, 3), batched=True)


@pytest.mark.parametrize("model", [lambda z: F.dropout(z, 0.5, training=True), NoisyWeights(12, 12)])
def test_randomness_without_a_module_that_tells(model) -> None:
    with pytest.raises(ModelError, match="two evaluations of the model at the same input differ"):
        JacobianOperator(model, torch.linspace(-1, 1, 12))


def test_a_model_with_a_state_is_refused() -> None:
    with pytest.raises(ModelError, match="keeps a state"):
        JacobianOperator(Counts(), torch.ones(3))


def test_no_grad_inside_the_model_is_not_taken_for_a_zero_jacobian() -> None:
    with pytest.raises(AdjointError, match=r"under torch\.no_grad"):
        JacobianOperator(DetachedMean(), torch.randn(5))


def nan_inside(z: Tensor) -> Tensor:
    return torch.where(z > 0, z, z / 0.0)


INPUTS = {
    "integers": (nn.Linear(3, 3), torch.arange(3), {}, r"torch\.int64, which cannot be differentiated.*\.float\(\)"),
    "tokens": (nn.Embedding(3, 3), torch.arange(3), {}, "measure from the embeddings, with source="),
    "booleans": (nn.Linear(3, 3), torch.ones(3) > 0, {}, "cannot be differentiated"),
    "complex": (nn.Linear(3, 3), torch.ones(3) * 1j, {}, "pass real and imaginary parts as one real tensor"),
    "complex output": (lambda z: z * 1j, torch.ones(3), {}, "torch.view_as_real"),
    "integer output": (lambda z: z.round().long(), torch.ones(3), {}, "returned torch.int64"),
    "empty": (nn.Linear(3, 3), torch.ones(0, 3), {}, r"the input is empty: shape \(0, 3\)"),
    "sparse": (nn.Linear(3, 3), torch.ones(3).to_sparse(), {}, r"layout torch\.sparse_coo; pass a dense tensor"),
    "empty output": (lambda z: z[:0], torch.ones(3), {}, "returned an empty tensor"),
    "nan": (nn.Linear(3, 3), torch.tensor([1.0, float("nan"), 0.0]), {}, "the input holds NaN or inf"),
    "inf": (nn.Linear(3, 3), torch.tensor([1.0, float("inf"), 0.0]), {}, "the input holds NaN or inf"),
    "a sparse tensor": (nn.Linear(3, 3), torch.ones(3).to_sparse(), {}, r"pass a dense tensor, x\.to_dense"),
    "a list": (nn.Linear(3, 3), [1.0, 2.0, 3.0], {}, "the input is a list; pass a torch.Tensor"),
    "wrong shape": (
        nn.Linear(3, 3), torch.ones(5), {},
        r"fails on an input of shape \(5,\) and type torch.float32 on cpu: RuntimeError: mat1",
    ),
    "wrong shape before the source": (
        nn.Sequential(nn.Linear(3, 3), nn.Tanh()), torch.ones(5), {"source": "1"}, r"fails on an input of shape \(5,\)"
    ),
    "too many arguments": (nn.MultiheadAttention(4, 1), torch.ones(2, 4), {}, "TypeError.*'key' and 'value'"),
    "weights of another dtype": (
        lambda z: torch.ones(3, 3) @ z, torch.ones(3), {"dtype": torch.float64}, "need.* dtype and device to agree"
    ),
    "a bound method": (nn.Linear(3, 3).forward, torch.ones(3), {}, "a method of Linear was passed; pass the module"),
    "no model": (3.0, torch.ones(3), {}, "the model is a float; pass an nn.Module or a function"),
    "a scalar as a batch": (nn.Identity(), torch.tensor(1.0), {"batched": True}, "the input is a scalar"),
    "batch lost": (lambda z: z.sum(0), torch.ones(4, 3), {"batched": True}, "whose first axis is not the batch"),
    "chunk": (nn.Linear(3, 3), torch.ones(3), {"chunk": 0}, "chunk is at least 1; got 0"),
    "memory limit": (nn.Linear(3, 3), torch.ones(3), {"memory_limit": 0}, "positive number of bytes; got 0"),
    "unknown device": (nn.Linear(3, 3), torch.ones(3), {"device": "gpu"}, "device='gpu' is no device"),
    "meta": (nn.Linear(3, 3), torch.ones(3), {"device": "meta"}, "hold no numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", INPUTS)
def test_bad_input_is_told_with_its_cure(name: str) -> None:
    model, x, options, message = INPUTS[name]
    with pytest.raises(InputError, match=message):
        JacobianOperator(model, x, **options)


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="this machine has a CUDA device: its absence cannot be tested"
)
def test_no_cuda_when_asked_for() -> None:
    with pytest.raises(InputError, match="'cuda' was asked for, but this PyTorch sees no CUDA device"):
        JacobianOperator(nn.Linear(3, 3), torch.ones(3), device="cuda")


def test_errors_chain_to_their_cause() -> None:
    with pytest.raises(InputError) as caught:
        JacobianOperator(nn.Linear(3, 3), torch.ones(5))
    assert isinstance(caught.value.__cause__, RuntimeError)
    # One except clause catches them all, and old code that expects a ValueError too.
    assert isinstance(caught.value, IsometryError)
    assert isinstance(caught.value, ValueError)


# ---- NaN and inf -------------------------------------------------------------------------------------------


def test_nan_in_the_output_names_the_first_module_that_makes_one() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Tanh()), nn.Linear(3, 3))
    with torch.no_grad():
        model[1][0].weight[1, 1] = torch.nan
    with pytest.raises(NonFiniteError, match=r"the first module that makes one is '1\.0' \(Linear\)"):
        JacobianOperator(model, torch.ones(3))


def test_inf_in_the_output_of_a_function() -> None:
    with pytest.raises(NonFiniteError, match=r"the model's output holds NaN or inf\. Check the weights"):
        JacobianOperator(lambda z: (90 * z).exp(), torch.ones(3))


def test_inf_in_a_product_although_the_output_is_finite() -> None:
    with pytest.raises(NonFiniteError, match="although the output is finite"):
        JacobianOperator(lambda z: z.sqrt(), torch.zeros(3))


class Root(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return (z - z).abs().sqrt()


def test_a_product_that_is_not_finite_names_the_first_module_and_operation() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Tanh(), Root()), nn.Linear(3, 3))
    with pytest.raises(
        NonFiniteError, match=r"the first that makes one is module '1\.1' \(Root\), operation sqrt"
    ):
        JacobianOperator(model, torch.ones(3))
    # Overflow on the way, for one long vector of a later block: forwards in the second factor, backwards in the first.
    scaled = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    with torch.no_grad():
        for layer in (scaled[0], scaled[2]):
            layer.weight.copy_(1e25 * torch.eye(3))
            layer.bias.zero_()
    operator = JacobianOperator(scaled, torch.zeros(3), check=False)
    vectors = torch.full((2, 3), 1e-20)
    vectors[1] = 1e10
    with pytest.raises(NonFiniteError, match=r"module '2' \(Linear\), operation addmm"):
        operator.matmat(vectors)
    with pytest.raises(NonFiniteError, match=r"module '0' \(Linear\), operation addmm"):
        operator.rmatmat(vectors)


def test_inf_in_a_later_product() -> None:
    """Found in whatever block it appears, not in the first alone: s = 1e30 overflows for one long vector."""
    operator = JacobianOperator(lambda z: 1e30 * z, torch.ones(3))
    vectors = torch.ones(4, 3)
    vectors[3] = 1e10
    with pytest.raises(NonFiniteError, match=r"dtype=torch\.float64"):
        operator.matmat(vectors)
    double = JacobianOperator(lambda z: 1e30 * z, torch.ones(3), dtype=torch.float64)
    assert float(double.matmat(vectors).max()) == pytest.approx(1e40)


# ---- blocks of vectors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4,), (2, 3, 1), (2, 5), (0, 4), ()], ids=str)
def test_blocks_of_a_wrong_shape(shape: tuple[int, ...]) -> None:
    operator = JacobianOperator(nn.Linear(4, 3), torch.ones(4))
    with pytest.raises(InputError, match=r"J v takes blocks of shape \(k, 4\), probes first; got"):
        operator.matmat(torch.ones(shape))
    with pytest.raises(InputError, match=r"J\^T u takes blocks of shape \(k, 3\), probes first; got"):
        operator.rmatmat(torch.ones(*shape[:1], 7))


def test_blocks_that_are_no_tensor() -> None:
    operator = JacobianOperator(nn.Linear(4, 3), torch.ones(4))
    with pytest.raises(InputError, match=r"a torch\.Tensor; got list"):
        operator.matmat([[1.0] * 4])


def test_blocks_of_a_batch_have_the_batch_second() -> None:
    operator = JacobianOperator(nn.Linear(4, 3), torch.ones(2, 4), batched=True)
    with pytest.raises(InputError, match=r"\(k, 2, 4\), probes first; got \(5, 4\)"):
        operator.matmat(torch.ones(5, 4))
