"""Singular values that a training differentiates: against dense Jacobians and finite differences."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import isometry
from isometry.errors import AdjointError, ConvergenceError, InputError, ModelError, NonFiniteError
from isometry.estimators.leading_triplet import leading_triplet
from isometry.jacobian import LiveJacobian, MatrixOperator
from isometry.measurement import differentiable
from isometry.measurement.differentiable import isometry_penalty, mean_square, spectral_norm

# Central differences of step 1e-5: h^2 times a third derivative of order ten, and rounding 1e-16 / h.
FINITE_DIFFERENCES = 1e-5


class Attention(nn.Module):
    """Pre-norm attention, whose layer norm has a third derivative that PyTorch has wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, x = {
        "mlp": lambda: (nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)), torch.randn(6)),
        "cnn": lambda: (
            nn.Sequential(
                nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 7)
            ),
            torch.randn(3, 1, 4, 4),
        ),
        "attention": lambda: (Attention(), torch.randn(2, 3, 4)),
    }[name]()
    return model.double().eval(), x.double()


def dense(model: nn.Module, x: Tensor) -> Tensor:
    value = model(x)
    return torch.autograd.functional.jacobian(model, x).reshape(value.numel(), x.numel())


def slopes(model: nn.Module, value: Callable[[], Tensor], step: float = 1e-5) -> tuple[float, float]:
    """The derivative of a value along a random direction of the parameters: by its gradient, and by differences."""
    model.zero_grad()
    value().backward()
    generator = torch.Generator().manual_seed(7)
    moved = [(p, torch.randn(p.shape, generator=generator, dtype=p.dtype)) for p in model.parameters()]
    by_gradient = sum(float((d * p.grad).sum()) for p, d in moved if p.grad is not None)
    ends = []
    with torch.no_grad():
        for sign in (1, -2, 1):
            ends.append(float(value()))
            for p, d in moved:
                p.add_(sign * step * d)
    return by_gradient, (ends[1] - ends[2]) / (2 * step)


@pytest.mark.parametrize("name", ["mlp", "cnn", "attention"])
@pytest.mark.parametrize(
    "function",
    [
        lambda model, x, **more: spectral_norm(model, x, **more).sum(),
        lambda model, x, **more: mean_square(model, x, probes=2, **more).sum(),
        lambda model, x, **more: mean_square(model, x, probes=50, log=True, **more).sum(),
        lambda model, x, **more: isometry_penalty(model, x, probes=2, **more),
        lambda model, x, **more: isometry_penalty(model, x, probes=50, target=0.5, spread=0.3, **more),
    ],
)
def test_gradients_are_those_of_finite_differences(name, function):
    model, x = made(name)
    by_gradient, by_differences = slopes(model, lambda: function(model, x, batched=name != "mlp"))
    assert by_gradient == pytest.approx(by_differences, rel=FINITE_DIFFERENCES, abs=1e-8)


@pytest.mark.parametrize("name", ["mlp", "cnn", "attention"])
def test_values_are_those_of_the_dense_jacobian(name):
    model, x = made(name)
    batched = name != "mlp"
    each = [torch.linalg.svdvals(dense(model, one)) for one in (x.split(1) if batched else [x])]
    s_max = torch.stack([s[0] for s in each])
    squares = torch.stack([s.square().mean() for s in each])
    fourths = torch.stack([s.pow(4).mean() for s in each])
    torch.testing.assert_close(spectral_norm(model, x, batched=batched), s_max if batched else s_max[0])
    exact = mean_square(model, x, probes=100, batched=batched)
    torch.testing.assert_close(exact, squares if batched else squares[0])
    expected = (squares / 2).log().square() + 0.7 * (fourths / squares.square()).log()
    penalty = isometry_penalty(model, x, probes=100, spread=0.7, target=2.0, batched=batched)
    torch.testing.assert_close(penalty, expected.mean())
    # By probes, of which so many are as good as all.
    few = isometry_penalty(model, x, probes=4, spread=0.0, batched=batched)
    estimate = mean_square(model, x, probes=4, log=True, batched=batched)
    torch.testing.assert_close(few, estimate.square().mean())


def test_probes_average_to_the_moments_within_their_stated_errors():
    model, x = made("mlp")
    truth = mean_square(model, x, probes=5).item()
    found = [mean_square(model, x, probes=4, seed=seed, return_error=True) for seed in range(25)]
    values, errors = (torch.stack(part).detach() for part in zip(*found, strict=True))
    # Orthogonal probes err less than the spread between them says, so no more than twice the error over the root of 25.
    assert abs(float(values.mean()) - truth) < 2 * float(errors.square().mean().sqrt()) / math.sqrt(25)
    assert float(values.std()) <= 1.2 * float(errors.square().mean().sqrt())
    assert float(mean_square(model, x, probes=5, return_error=True)[1]) == 0
    assert math.isnan(float(mean_square(model, x, probes=1, return_error=True)[1]))
    fourth = differentiable._Rows(LiveJacobian(model, x), 5, 0, create_graph=False).fourth_moment()
    found = [
        float(differentiable._Rows(LiveJacobian(model, x), 4, s, create_graph=False).fourth_moment())
        for s in range(25)
    ]
    spread = torch.tensor(found).std() / math.sqrt(25)
    assert abs(sum(found) / 25 - float(fourth)) < 3.5 * float(spread)


def test_a_value_costs_one_product_and_a_moment_three_beyond_the_triplet(monkeypatch):
    jacobians: list[LiveJacobian] = []

    class Kept(LiveJacobian):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            jacobians.append(self)

    monkeypatch.setattr(differentiable, "LiveJacobian", Kept)
    model, x = made("mlp")
    _, triplet = spectral_norm(model, x, return_triplet=True)
    assert jacobians[-1].products == triplet.products + 1 + 2, "one, and two for the check"
    spectral_norm(model, x, start=triplet, check=False)
    assert jacobians[-1].products == 10 + 1, (
        "five singular values: two steps of two vectors, and the last one"
    )
    for probes, spread, products in [(3, 1.0, 9), (3, 0.0, 3), (5, 1.0, 5)]:
        isometry_penalty(model, x, probes=probes, spread=spread, check=False)
        assert jacobians[-1].products == products, "three for each probe; all rows hold all moments"
    mean_square(model, x, probes=3)
    assert jacobians[-1].products == 3 + 2


def test_a_start_from_the_last_triplet_takes_fewer_products_and_sees_a_value_that_has_come_above():
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn((10, 100, 100), generator=generator, dtype=torch.float64) / 10
    changed = factors + 1e-4 * torch.randn(factors.shape, generator=generator, dtype=torch.float64)
    first = leading_triplet(MatrixOperator(torch.linalg.multi_dot(list(factors))), tol=1e-3)
    matrix = torch.linalg.multi_dot(list(changed))
    cold = leading_triplet(MatrixOperator(matrix), tol=1e-3)
    warm = leading_triplet(MatrixOperator(matrix), (first.left, first.right), tol=1e-3)
    assert warm.products <= cold.products / 2
    # The error of a value is the square of its residual over the gap.
    assert warm.values[0] == pytest.approx(float(torch.linalg.svdvals(matrix)[0]), rel=1e-5)
    sizes = torch.linspace(0.2, 1.0, 60, dtype=torch.float64)
    old = leading_triplet(MatrixOperator(torch.diag(sizes)))
    sizes[3] = 1.5
    new = leading_triplet(MatrixOperator(torch.diag(sizes)), (old.left, old.right))
    assert new.values[0] == pytest.approx(1.5)
    assert new.second[0] == pytest.approx(1.0, abs=1e-3)


def test_of_equal_values_a_subgradient_is_taken_and_the_second_says_so():
    layer = nn.Linear(5, 5, bias=False).double()
    nn.init.orthogonal_(layer.weight)
    s, triplet = spectral_norm(layer, torch.zeros(5).double(), return_triplet=True)
    s.backward()
    assert s.item() == pytest.approx(1.0)
    assert triplet.second[0] == pytest.approx(1.0)
    # u v^T of some pair W v = u.
    left, right = triplet.left, triplet.right
    torch.testing.assert_close(layer.weight.grad, left[:, None] * right)
    torch.testing.assert_close(layer.weight.detach() @ right, left)


def test_a_jacobian_of_zero_has_the_norm_zero_and_no_penalty():
    model, x = made("mlp")
    nn.init.zeros_(model[2].weight)
    s = spectral_norm(model, x)
    s.backward()
    assert float(s) == 0
    assert all(p.grad is None or not bool(p.grad.any()) for p in model.parameters())
    assert float(mean_square(model, x)) == 0
    with pytest.raises(NonFiniteError, match="J is zero"):
        isometry_penalty(model, x)
    with pytest.raises(NonFiniteError, match="has no logarithm"):
        mean_square(model, x, log=True)


def test_scales_beyond_the_squares_of_floats_are_kept():
    layer = nn.Linear(3, 3, bias=False)
    layer.weight.data = 1e-30 * torch.eye(3)
    assert float(mean_square(layer, torch.zeros(3), log=True)) == pytest.approx(2 * math.log(1e-30), rel=1e-6)
    assert float(isometry_penalty(layer, torch.zeros(3))) == pytest.approx(
        (2 * math.log(1e-30)) ** 2, rel=1e-6
    )
    assert float(spectral_norm(layer, torch.zeros(3))) == pytest.approx(1e-30, rel=1e-6)
    with pytest.raises(NonFiniteError, match="take log=True"):
        mean_square(layer, torch.zeros(3))


def test_an_unconverged_triplet_is_an_error_that_states_its_residual():
    torch.manual_seed(0)
    with pytest.raises(ConvergenceError, match=r"after 8 products .* residual .* above tol = 1e-06"):
        spectral_norm(nn.Linear(60, 60).double(), torch.zeros(60).double(), max_products=8)
    _, triplet = spectral_norm(nn.Linear(3, 2), torch.zeros(3), return_triplet=True)
    with pytest.raises(InputError, match="start has vectors of shapes"):
        spectral_norm(nn.Linear(4, 2), torch.zeros(4), start=triplet)


def test_the_callers_modes_and_precision_do_not_matter():
    model, x = made("mlp")
    value = spectral_norm(model, x).item()
    with torch.no_grad():
        assert not spectral_norm(model, x).requires_grad
        assert not isometry_penalty(model, x).requires_grad
    with torch.inference_mode():
        assert float(spectral_norm(model, x.clone())) == pytest.approx(value)
    model.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = spectral_norm(model, x.float())
    # Float32: tens of units (1.2e-7).
    assert float(under) == pytest.approx(value, rel=1e-5)
    under.backward()
    assert all(p.grad is None for p in [x])
    state, buffers = torch.get_rng_state(), {name: b.clone() for name, b in model.named_buffers()}
    mean_square(model, x.float(), probes=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.layer(x), 0.5)


def frozen() -> nn.Module:
    return nn.Linear(4, 4).requires_grad_(False)


def only_a_bias() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.weight.requires_grad_(False)
    return layer


class Straight(nn.Module):
    """A custom backward that holds its argument fixed: J^T u is right, and its transpose is zero."""

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x * w

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            return g.detach() * w, g.detach() * x

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.Once.apply(x, self.w)


def test_a_second_derivative_that_is_none_of_the_first_is_refused():
    for function in (spectral_norm, mean_square, isometry_penalty):
        with pytest.raises(AdjointError, match="wrong second derivative"):
            function(Straight(), torch.ones(12, 4))


class Fused(nn.Module):
    """A custom derivative without one of its own."""

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x * w

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            return g * w, g * x

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.Once.apply(x, self.w)


@pytest.mark.parametrize("function", [spectral_norm, mean_square, isometry_penalty])
@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout()), {}, ModelError, "training mode"),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), {}, ModelError, "training mode"),
        (Noisy(), {}, ModelError, "draws random numbers"),
        (frozen(), {}, InputError, "no parameter that requires a gradient"),
        (only_a_bias(), {}, InputError, "no parameter that requires a gradient"),
        (nn.Linear(4, 4).half(), {}, ModelError, "float16.*one\\s+precision"),
        (Fused(), {}, ModelError, "no second derivative"),
        (lambda x: x - x.mean(0) if x.dim() > 1 else x, {"batched": True}, ModelError, "couples the samples"),
        (nn.Linear(5, 4), {}, InputError, "fails on an input"),
        (nn.Linear(4, 4), {"wrt": "image"}, InputError, "not among the inputs"),
    ],
)
def test_what_has_no_gradient_is_refused_by_its_cause(function, model, options, error, message):
    with pytest.raises(error, match=message):
        function(model, torch.ones(3, 4), **options)


def test_what_is_asked_for_wrongly_is_named():
    layer, x = nn.Linear(3, 3), torch.ones(3)
    for options, message in [
        ({"spread": -1.0}, "spread"),
        ({"target": 0.0}, "target"),
        ({"probes": 0}, "probes"),
    ]:
        with pytest.raises(InputError, match=message):
            isometry_penalty(layer, x, **options)
    with pytest.raises(InputError, match="tol"):
        spectral_norm(layer, x, tol=0.0)


def test_steps_on_the_penalty_bring_the_scale_of_a_network_to_isometry_and_keep_its_shape():
    torch.manual_seed(1)
    model = nn.Sequential(*[part for _ in range(3) for part in (nn.Linear(8, 8), nn.Tanh())])
    for layer in model[::2]:
        nn.init.orthogonal_(layer.weight, gain=0.5)
    x = torch.randn(2, 8) / 10
    before = isometry.measure(model, x, batched=True, method="exact")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(30):
        optimizer.zero_grad()
        isometry_penalty(model, x, batched=True, probes=8, check=step == 0).backward()
        optimizer.step()
    after = isometry.measure(model, x, batched=True, method="exact")
    assert before.mean_square < 0.02
    assert after.mean_square == pytest.approx(1.0, abs=0.1)
    assert after.isometry() > 0.9


def test_the_examples_run():
    from importlib import import_module

    for module in (differentiable, import_module("isometry.estimators.leading_triplet")):
        assert doctest.testmod(module).failed == 0
