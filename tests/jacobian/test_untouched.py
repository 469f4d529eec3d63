"""After a measurement the model, torch's settings and every random state are exactly what they were."""

from __future__ import annotations

import copy
import random
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from isometry.errors import InputError, ModelError
from isometry.jacobian import JacobianOperator


class Busy(nn.Module):
    """Everything a measurement could disturb: statistics, counters, a rescaled embedding, a part in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4, max_norm=0.5)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.norm = nn.BatchNorm1d(4).eval()
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, z: Tensor) -> Tensor:
        self.calls += 1
        z = self.norm(self.frozen(z)[None])[0] + self.embedding(torch.tensor(2))
        return torch.tanh(self.spectral(z))


def snapshot(model: nn.Module) -> dict[str, object]:
    """Bits, identity and version of every tensor, gradients, modes and hooks."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {
        "bits": {name: t.detach().clone().flatten().tolist() for name, t in named},
        "identity": {name: (id(t), t.data_ptr(), t._version, t.requires_grad, t.dtype) for name, t in named},
        "gradients": {name: None if t.grad is None else t.grad.clone().tolist() for name, t in named},
        "modes": {name: part.training for name, part in model.named_modules()},
        "hooks": {
            name: (list(part._forward_hooks), list(part._forward_pre_hooks))
            for name, part in model.named_modules()
        },
    }


@pytest.fixture
def busy() -> Busy:
    torch.manual_seed(0)
    model = Busy()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
    model.frozen.register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize(
    "options", [{}, {"dtype": torch.float64}, {"source": "spectral"}, {"target": "norm"}], ids=str
)
def test_the_model_stays_as_it_was_bit_for_bit(busy: Busy, options: dict) -> None:
    before, x = snapshot(busy), torch.randn(4)
    kept = x.clone()
    operator = JacobianOperator(busy, x, **options)
    operator.rmatmat(operator.matmat(torch.randn(3, *operator.input_shape)))
    assert snapshot(busy) == before
    assert torch.equal(x, kept)
    assert x.grad is None


def test_a_refused_model_stays_as_it_was(busy: Busy) -> None:
    busy.norm.train()
    before = snapshot(busy)
    with pytest.raises(ModelError):
        JacobianOperator(busy, torch.randn(4))
    assert snapshot(busy) == before


def test_lazy_modules_are_not_made_behind_the_users_back() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d()).eval()
    with pytest.raises(ModelError, match="lazy parameters that are not yet made; call it once"):
        JacobianOperator(model, torch.randn(2, 5))
    assert isinstance(model[0], nn.LazyLinear)
    assert model[0].has_uninitialized_params()


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_a_weight_that_a_hook_computes_is_put_back() -> None:
    """The older weight_norm stores a plain attribute before each forward: many audio models have one."""
    model = nn.utils.weight_norm(nn.Linear(4, 4))
    weight = model.weight
    operator = JacobianOperator(model, torch.ones(4))
    operator.rmatmat(operator.matmat(torch.ones(2, 4)))
    assert model.weight is weight


def test_an_expanded_input_is_measured_without_a_detour() -> None:
    """One number seen as four: no operation may write into it, so the point has memory of its own."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    JacobianOperator(model, torch.ones(1).expand(4))
    JacobianOperator(nn.ReLU(inplace=True), torch.ones(1).expand(4))


def test_tensors_a_model_keeps_in_plain_attributes_are_put_back() -> None:
    """Inside a transform of torch.func they are wrappers that are dead afterwards; copying the model would fail."""

    class Remembers(nn.Linear):
        def forward(self, z: Tensor) -> Tensor:
            self.last = super().forward(z)
            self.several = {"in": z, "out": self.last}
            return torch.tanh(self.last)

    model = Remembers(4, 4)
    model(torch.ones(4))
    last, several = model.last, model.several
    operator = JacobianOperator(model, torch.zeros(4))
    operator.rmatmat(operator.matmat(torch.randn(2, 4)))
    assert model.last is last
    assert model.several is several
    fresh = Remembers(4, 4)
    JacobianOperator(fresh, torch.zeros(4)).matmat(torch.randn(2, 4))
    assert not hasattr(fresh, "last")
    assert torch.equal(copy.deepcopy(fresh)(torch.ones(4)), fresh(torch.ones(4)))


def test_the_point_is_the_operators_own() -> None:
    """Whatever becomes of x afterwards, J stays that of the input as it was; an expanded view is an input too."""
    x = torch.full((1, 3), 2.0).expand(2, 3)
    operator = JacobianOperator(lambda z: z.square().sum(0), x)
    y = torch.full((3,), 2.0)
    square = JacobianOperator(lambda z: z.square(), y)
    y.fill_(7.0)
    assert torch.equal(square.matmat(torch.eye(3)), 4 * torch.eye(3))
    assert torch.equal(operator.rmatmat(torch.eye(3))[0], torch.tensor([[4.0, 0, 0]] * 2))


def random_states() -> list[object]:
    return [torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()]  # noqa: NPY002


def test_random_states_stay_even_where_the_model_draws(busy: Busy) -> None:
    def draws(z: Tensor) -> Tensor:
        return F.dropout(z, 0.5, training=True)

    before = random_states()
    operator = JacobianOperator(busy, torch.ones(4))
    operator.matmat(torch.ones(3, 4))
    with pytest.raises(ModelError, match="two evaluations"):
        JacobianOperator(draws, torch.ones(64))
    assert random_states() == before


def settings_of_torch() -> dict[str, object]:
    b = torch.backends
    return {
        "matmul": torch.get_float32_matmul_precision(),
        "precisions": [
            b.cuda.matmul.fp32_precision, b.cudnn.conv.fp32_precision, b.cudnn.rnn.fp32_precision,
            b.mkldnn.matmul.fp32_precision, b.mkldnn.conv.fp32_precision, b.mkldnn.rnn.fp32_precision,
        ],
        "cudnn": (b.cudnn.enabled, b.cudnn.benchmark, b.cudnn.deterministic),
        "mkldnn": b.mkldnn.enabled,
        "attention": (
            b.cuda.flash_sdp_enabled(), b.cuda.mem_efficient_sdp_enabled(), b.cuda.math_sdp_enabled(),
        ),
        "fast path": b.mha.get_fastpath_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
    }  # fmt: skip


@pytest.fixture
def fast_settings():
    """The settings of a hurried user: TF32 and bfloat16 products, autocast, no mathematical attention."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]), torch.autocast("cpu", torch.bfloat16):
        yield
    torch.set_float32_matmul_precision(before)


class Witness(nn.Module):
    """Writes down under which settings it was evaluated, and multiplies a matrix."""

    # Of the class: a copy of the module has its own attributes.
    seen: ClassVar[list[dict[str, object]]] = []

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)
        self.seen.clear()

    def forward(self, z: Tensor) -> Tensor:
        self.seen.append(settings_of_torch())
        return torch.tanh(self.linear(z))


def test_settings_are_strict_inside_and_the_users_again_outside(fast_settings: None) -> None:
    torch.manual_seed(0)
    model, before = Witness(), settings_of_torch()
    assert before["matmul"] == "medium"
    assert before["autocast"]
    operator = JacobianOperator(model, torch.randn(64))
    operator.matmat(torch.randn(2, 64))
    assert settings_of_torch() == before
    assert model.seen
    for inside in model.seen:
        assert set(inside["precisions"]) == {"ieee"}
        assert inside["attention"] == (False, False, True)
        assert not inside["fast path"]
        assert not inside["autocast"]


def test_settings_come_back_after_an_error(fast_settings: None) -> None:
    before = settings_of_torch()
    with pytest.raises(InputError, match="the model fails"):
        JacobianOperator(Witness(), torch.randn(63))
    with pytest.raises(ModelError):
        JacobianOperator(lambda z: torch.igamma(z.abs() + 1, torch.ones(3)), torch.randn(4, 3))
    assert settings_of_torch() == before


def test_hurried_settings_do_not_change_a_single_bit() -> None:
    torch.manual_seed(0)
    lstm, x, v = nn.LSTM(8, 8), torch.randn(3, 8), torch.randn(2, 3, 8)
    linear = nn.Linear(64, 64)
    for model, point, probes, output in (
        (lstm, x, v, 0),
        (linear, torch.randn(64), torch.randn(2, 64), None),
    ):
        plain = JacobianOperator(model, point, output=output).matmat(probes)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        try:
            with torch.autocast("cpu", torch.bfloat16):
                hurried = JacobianOperator(model, point, output=output).matmat(probes)
        finally:
            torch.set_float32_matmul_precision(before)
        assert torch.equal(plain, hurried)


def test_recurrent_layers_get_their_fused_kernels_back() -> None:
    before = settings_of_torch()
    JacobianOperator(nn.LSTM(3, 4), torch.randn(5, 3), output=0).rmatmat(torch.randn(2, 5, 4))
    assert settings_of_torch() == before
    assert before["mkldnn"]
