"""`tune_` brings every kind of model to isometry at its inputs, and leaves a model as it was where it cannot."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import isometry
from isometry.depth import tuning
from isometry.errors import ConvergenceError, InputError, ModelError

# So small models are measured exactly, and their last layer brings the mean square within the tolerance of 1 %.
NEAR_ONE = pytest.approx(1.0, rel=0.011)


class Sum(nn.Module):
    """x + relu(W x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.r = nn.Linear(width, width), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.r(self.a(x))


class UNet(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, width, 3, padding=1)
        self.inner = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.out = nn.Conv2d(2 * width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.down(x))
        deep = self.up(torch.relu(self.inner(nn.functional.max_pool2d(skip, 2))))
        return self.out(torch.cat([skip, deep], 1))


class Projected(nn.Module):
    """Two weighted paths of one sum, as a ResNet block with a projected shortcut."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.a, self.b, self.shortcut = nn.Linear(width, width), nn.Linear(width, 4), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x))) + self.shortcut(x)


def chain(activation: type[nn.Module], depth: int, width: int, *, bias: bool = True) -> nn.Sequential:
    """Dense layers as PyTorch initialises them, an activation behind each but the last."""
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width, bias=bias), activation())]
    return nn.Sequential(*layers[:-1])


def convolutions(depth: int, width: int) -> nn.Sequential:
    sizes = [3] + [width] * depth
    layers = [m for a, b in pairwise(sizes) for m in (nn.Conv2d(a, b, 3, padding=1), nn.Tanh())]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * 16, 5))


def vgg() -> nn.Sequential:
    layers: list[nn.Module] = []
    sizes = [2, 4, 6, 8]
    for a, b in pairwise(sizes):
        layers += [
            nn.Conv2d(a, b, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(b, b, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 6))


def encoder(*, norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).eval()


MODELS = {
    "tanh CNN": (lambda: convolutions(6, 4), (1, 3, 4, 4)),
    "GELU MLP": (lambda: chain(nn.GELU, 8, 16), (16,)),
    "VGG": (vgg, (1, 2, 8, 8)),
    "U-Net": (UNet, (1, 2, 8, 8)),
    "projected shortcut": (lambda: nn.Sequential(Projected(), nn.ReLU(), nn.Linear(4, 4)), (8,)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_without_normalisation_ends_at_mean_square_one(kind: str) -> None:
    make, shape = MODELS[kind]
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape)
    signs = {name: p.sign() for name, p in model.named_parameters()}
    report = isometry.tune_(model, x, progress=False)
    after = isometry.measure(model, x, progress=False)
    assert report.before.mean_square < 0.2
    assert after.mean_square == NEAR_ONE
    assert after.mean_square == report.after.mean_square
    assert all(torch.equal(p.sign(), signs[name]) for name, p in model.named_parameters())


def test_the_gain_of_every_layer_is_one_and_relu_takes_one_step() -> None:
    """Without biases ReLU layers are homogeneous: every factor is exact after one recording."""
    torch.manual_seed(0)
    model = chain(nn.ReLU, 8, 24, bias=False)
    weights = [layer.weight.detach().clone() for layer in model if isinstance(layer, nn.Linear)]
    x = torch.randn(24)
    report = isometry.tune_(model, x, progress=False)
    assert report.sweeps == 2
    product, point = torch.eye(24), x
    for entry, weight in zip(report.weights, weights, strict=True):
        matrix = weight * entry.factor
        product, point = matrix @ product, matrix @ point
        # The running product behind each layer, by dense matrices in float32.
        assert float(product.square().sum()) / 24 == pytest.approx(1.0, rel=1e-4)
        product, point = (point > 0)[:, None] * product, point.relu()
    assert [entry.chi_after for entry in report.weights] == pytest.approx([1.0] * 8, rel=1e-4)
    assert [entry.chi_stderr for entry in report.weights] == [0.0] * 8


def test_residual_branches_are_scaled_and_the_stream_stays() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(*(Sum(16) for _ in range(20))), torch.randn(16)
    report = isometry.tune_(model, x, branch_gain=0.5, progress=False)
    assert report.before.mean_square > 20
    # Each sum grows by at most c^2 / L, to the tolerance of 1 %.
    assert 0.9 < report.after.mean_square < math.exp(0.25) * 1.02
    assert report.after.s_max < 4
    assert {entry.role for entry in report.weights} == {"branch"}
    assert all(0 < entry.factor < 1 for entry in report.weights)
    assert all(entry.chi_after <= 0.25 / 20 * 1.02 for entry in report.weights)
    # It is where it should be: nothing is left to scale.
    assert isometry.tune_(model, x, branch_gain=0.5, tolerance=0.05, progress=False).factors() == {}


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_transformer_is_tuned_at_its_output_projections(norm_first: bool) -> None:
    torch.manual_seed(0)
    model, x = encoder(norm_first=norm_first), torch.randn(1, 5, 16)
    report = isometry.tune_(model, x, progress=False)
    names = {name for entry in report.weights for name in entry.parameters}
    assert names == {
        f"layers.{k}.{part}.{kind}"
        for k in range(4)
        for part in ("self_attn.out_proj", "linear2")
        for kind in ("weight", "bias")
    }
    assert {reason for _, reason in report.left_alone} == {"inside a branch, whose last layer sets its gain"}
    assert abs(math.log(report.after.mean_square)) < max(abs(math.log(report.before.mean_square)), 0.3)
    assert report.after.isometry() > report.before.isometry()


def test_zero_branches_and_small_ones_stay() -> None:
    torch.manual_seed(0)
    blocks = [Sum(8) for _ in range(4)]
    nn.init.zeros_(blocks[0].a.weight)
    nn.init.zeros_(blocks[0].a.bias)
    blocks[1].a.weight.data *= 1e-3
    blocks[3].a.weight.data *= 5
    report = isometry.tune_(nn.Sequential(*blocks), torch.randn(8), progress=False)
    assert "0.a.weight" not in report.factors()
    assert "1.a.weight" not in report.factors()
    assert "3.a.weight" in report.factors()


def test_normalised_layers_are_left_alone_by_name() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)
    )
    report = isometry.tune_(model, torch.randn(8), progress=False)
    assert report.left_alone == (("0.weight", "a normalisation follows, so its scale has no effect"),)
    assert [entry.module for entry in report.weights] == ["3", "5"]
    assert report.after.mean_square == NEAR_ONE


def test_a_dry_run_changes_nothing_and_says_what_would_change() -> None:
    torch.manual_seed(0)
    model, x = chain(nn.Tanh, 6, 12), torch.randn(12)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    versions = {name: tensor._version for name, tensor in model.named_parameters()}
    advice = isometry.tune_(model, x, dry_run=True, progress=False)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert {name: tensor._version for name, tensor in model.named_parameters()} == versions
    report = isometry.tune_(model, x, progress=False)
    assert report.factors() == advice.factors()
    for name, factor in advice.factors().items():
        assert torch.equal(model.state_dict()[name], state[name] * factor)


def test_a_batch_is_tuned_over_all_its_inputs() -> None:
    torch.manual_seed(0)
    model, x = chain(nn.GELU, 6, 16), torch.randn(5, 16)
    report = isometry.tune_(model, x, batched=True, progress=False)
    assert report.after.n_inputs == 5
    assert report.after.mean_square == NEAR_ONE


def test_a_small_signal_is_chosen_where_the_spectrum_would_be_wider() -> None:
    """Orthogonal layers are narrow at a small signal; at one of mean square 1 tanh spreads them."""
    torch.manual_seed(0)
    model, x = chain(nn.Tanh, 12, 24), torch.randn(24)
    for layer in model[::2]:
        nn.init.orthogonal_(layer.weight, 0.8)
        nn.init.zeros_(layer.bias)
    chosen = isometry.tune_(model, x, dry_run=True, progress=False)
    large = isometry.tune_(model, x, q_star=1.0, dry_run=True, progress=False)
    small = isometry.tune_(model, x, q_star=0.01, dry_run=True, progress=False)
    assert large.after.mean_square == NEAR_ONE
    assert small.after.mean_square == NEAR_ONE
    assert small.after.isometry() > large.after.isometry() + 0.2
    assert chosen.after.isometry() > large.after.isometry() + 0.2
    # 1/12 behind the first layer, and the last one makes up for it.
    first = x @ model[0].weight.T * chosen.factors()["0.weight"]
    assert first.square().mean().item() == pytest.approx(1 / 12, rel=0.03)


def test_inputs_beyond_the_activation_leave_layers_at_a_lower_mean_square() -> None:
    torch.manual_seed(0)
    report = isometry.tune_(chain(nn.Tanh, 6, 16), 30 * torch.randn(16), progress=False)
    assert report.before.mean_square < 1e-3
    assert report.after.mean_square == NEAR_ONE
    assert report.weights[2].log10_mean_square_after < -1


def _dead() -> nn.Module:
    model = chain(nn.ReLU, 3, 6)
    nn.init.constant_(model[2].bias, -100.0)
    return model


def _shared() -> nn.Module:
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer)


def _frozen() -> nn.Module:
    return chain(nn.Tanh, 3, 6).requires_grad_(False)


def _whole_numbers() -> nn.Module:
    model = chain(nn.Tanh, 3, 6)
    model.register_buffer("packed_weight", torch.ones(6, dtype=torch.int8))
    return model


REFUSED = {
    "dead": (_dead, InputError, "nothing passes '3' (ReLU)"),
    "shared": (_shared, InputError, "shared weights: 0.weight and 2.weight are one tensor"),
    "frozen": (_frozen, InputError, "all weights are frozen"),
    "quantised": (_whole_numbers, InputError, "quantised"),
    "normalised": (
        lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)),
        InputError,
        "a normalisation follows",
    ),
    "no weights": (lambda: nn.Sequential(nn.Tanh()), InputError, "there is nothing to tune"),
    "no data": (
        lambda: nn.Sequential(
            nn.Unflatten(-1, (6, 1)), nn.BatchNorm1d(6), nn.Flatten(0), nn.Linear(6, 6)
        ).eval(),
        InputError,
        "'1' (BatchNorm1d) has seen no data",
    ),
    "training": (lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout()), ModelError, "eval"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_tuned_is_named_and_left(case: str) -> None:
    make, error, words = REFUSED[case]
    torch.manual_seed(0)
    model = make()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(error) as caught:
        isometry.tune_(model, torch.randn(6), progress=False)
    assert words in str(caught.value)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_leave_and_frozen_layers_are_kept_and_the_others_make_up_for_them() -> None:
    torch.manual_seed(0)
    model = chain(nn.Tanh, 5, 12)
    model[2].requires_grad_(False)
    report = isometry.tune_(model, torch.randn(12), leave="4", progress=False)
    assert dict(report.left_alone) == {"2.weight": tuning_reason("FROZEN"), "4.weight": tuning_reason("KEPT")}
    assert report.after.mean_square == NEAR_ONE


def tuning_reason(name: str) -> str:
    from isometry.depth import tuning_plan

    reason: str = getattr(tuning_plan, name)
    return reason


def test_no_convergence_names_the_block() -> None:
    torch.manual_seed(0)
    with pytest.raises(ConvergenceError, match=r"behind '.*' \(.*weight\) is still"):
        isometry.tune_(chain(nn.Tanh, 8, 12), torch.randn(12), sweeps=1, progress=False)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_while_the_weights_are_written_undoes_it(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = chain(nn.Tanh, 4, 8)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scale = Tensor.mul_
    calls = []

    def interrupted(tensor: Tensor, factor: float) -> Tensor:
        calls.append(factor)
        if len(calls) == 3:
            raise error("stop")
        return scale(tensor, factor)

    monkeypatch.setattr(Tensor, "mul_", interrupted)
    with pytest.raises((KeyboardInterrupt, InputError)):
        tuning._apply(model, {f"{k}.weight": 2.0 for k in (0, 2, 4, 6)})
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_model_that_would_become_worse_is_left_as_it_was() -> None:
    """The mean square over two inputs that a wide ReLU net treats alike is right already; a report says nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16, bias=False))
    nn.init.orthogonal_(model[0].weight)
    report = isometry.tune_(model, torch.randn(16), progress=False)
    assert report.factors() == {}
    assert "nothing had to be scaled" in str(report)


def test_what_is_reported_of_the_last_layer_is_what_it_has() -> None:
    """Behind it lies a ReLU, so that its own mean square is not 1 where that of the whole is."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 16, bias=False), nn.ReLU()), torch.randn(16)
    report = isometry.tune_(model, x, progress=False)
    (entry,) = report.weights
    assert report.after.mean_square == NEAR_ONE
    # Exact, for 16 inputs are taken one by one; in float32.
    own = model[0].weight.detach().square().sum().item() / 16
    assert entry.chi_after == pytest.approx(own, rel=1e-4)
    assert 10**entry.log10_mean_square_after == pytest.approx(own, rel=1e-4)
    assert own > 1.3


def test_weights_that_cannot_be_written_to_are_named_as_that() -> None:
    torch.manual_seed(0)
    with torch.inference_mode():
        model = chain(nn.Tanh, 3, 6)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match="cannot be written to"):
        isometry.tune_(model, torch.randn(6), progress=False)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
