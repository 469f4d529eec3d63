"""Few outputs: all rows of J from one reverse pass, checked by a difference of f; else other products say why."""

from __future__ import annotations

import contextlib
import itertools
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from custom_functions import sine
from torch import Tensor, nn

from isometry.errors import AdjointError, ConvergenceWarning, FallbackWarning, InputError, ModelError
from isometry.jacobian import JacobianOperator
from isometry.measurement import measure

D = torch.float64
X = torch.linspace(-1, 1.3, 48, dtype=D).sin().reshape(1, 3, 4, 4)


def classifier() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Flatten())
    return nn.Sequential(body, nn.Linear(24, 5)).to(D).eval()


def test_both_products_and_every_method_follow_from_rows(dense_jacobian) -> None:
    model = classifier()
    before = {name: (tensor.clone(), tensor._version) for name, tensor in model.state_dict().items()}
    operator = JacobianOperator(model, X, products="auto")
    assert operator.backend == "the 5 rows of J, by autograd"
    dense = dense_jacobian(model, X)
    assert torch.allclose(operator.rmatmat(torch.eye(5, dtype=D)[:, None]).reshape(5, 48), dense, atol=1e-13)
    columns = operator.matmat(torch.eye(48, dtype=D).reshape(48, 1, 3, 4, 4))
    assert torch.allclose(columns.reshape(48, 5).T, dense, atol=1e-13)
    assert operator.rounding == 8 * torch.finfo(D).eps
    assert all(
        torch.equal(tensor, before[name][0]) and tensor._version == before[name][1]
        for name, tensor in model.state_dict().items()
    )
    expected = torch.linalg.svdvals(dense).numpy()
    for method in ("exact", "lanczos", "randomized"):
        spectrum = measure(model, X, method, progress=False)
        assert spectrum.provenance["products_by"] == operator.backend
        assert np.allclose(spectrum.s_max, expected[0], rtol=1e-12)


def test_more_outputs_and_batches_and_operators_are_recorded() -> None:
    wide = nn.Linear(48, 33).to(D)
    assert measure(wide, X.reshape(48), progress=False).provenance["products_by"] == "replay"
    batch = measure(nn.Linear(4, 2).to(D), X.reshape(12, 4), batched=True, progress=False)
    assert batch.provenance["products_by"] == "replay"
    assert JacobianOperator(nn.Linear(4, 2).to(D), X[0, 0, 0]).backend == "replay"
    with pytest.raises(InputError, match=r'"both", "auto" or "reverse"'):
        JacobianOperator(wide, X.reshape(48), products="forward")


@pytest.mark.filterwarnings("ignore::isometry.errors.FallbackWarning")
def test_probes_that_vmap_mixes_are_found() -> None:
    def model(z: Tensor) -> Tensor:
        return torch.cdist(z, z.flip(0) + 1).square().sum(1)

    x = X.reshape(12, 4)
    operator = JacobianOperator(model, x, products="auto")
    assert "rows of J, by" not in operator.backend
    dense = torch.autograd.functional.jacobian(model, x).reshape(12, 48)
    found = operator.rmatmat(torch.eye(12, dtype=D)).reshape(12, 48)
    assert torch.allclose(found, dense, atol=1e-12)


def test_a_value_that_is_not_differentiated_is_none_of_an_error() -> None:
    def model(z: Tensor) -> Tensor:
        return (z * z.detach()).sum((2, 3))

    operator = JacobianOperator(model, X, products="auto")
    assert operator.backend == "the 3 rows of J, by autograd"
    expected = torch.autograd.functional.jacobian(model, X).reshape(3, 48)
    found = operator.rmatmat(torch.eye(3, dtype=D)[:, None]).reshape(3, 48)
    assert torch.allclose(found, expected, atol=1e-15)


class Drawing(nn.Module):
    def __init__(self, draw) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, z: Tensor) -> Tensor:
        return z.sin().sum((2, 3)) * (1 + self.draw())


COUNTER = itertools.count()


def of_a_generator() -> Tensor:
    return torch.rand((), generator=torch.Generator().manual_seed(next(COUNTER)))


REFUSED = {
    "drawn": (Drawing(lambda: 1e-9 * torch.rand((), dtype=D)), ModelError),
    "a generator of its own": (Drawing(of_a_generator), ModelError),
    "a state": (Drawing(lambda: float(next(COUNTER) % 7)), ModelError),
    "dropout by function": (lambda z: F.dropout(z, 0.5).sum((2, 3)), ModelError),
    "a wrong backward": (lambda z: sine(0.5).apply(z).sum((2, 3)), AdjointError),
    "no derivative": (lambda z: torch.igamma(z.abs() + 1, torch.ones(1, dtype=D)).sum((2, 3)), ModelError),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::isometry.errors.FallbackWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_no_product_is_right_of_is_refused(name: str) -> None:
    model, error = REFUSED[name]
    with pytest.raises(error):
        measure(model, X, progress=False)


def test_a_cast_is_named() -> None:
    def model(z: Tensor) -> Tensor:
        return torch.tanh(z.bfloat16() @ torch.eye(4).bfloat16()).double().sum((2, 3))

    with pytest.warns(ConvergenceWarning, match="computes in bfloat16"):
        operator = JacobianOperator(model, X, products="auto")
    assert operator.unit > 1e-4


def test_a_zero_jacobian_and_a_batch_in_one_input_are_said() -> None:
    head = nn.Linear(48, 3).to(D)
    nn.init.zeros_(head.weight)
    operator = JacobianOperator(nn.Sequential(nn.Flatten(), head), X, products="auto")
    assert operator.zero_cause == "layer 1.weight is zero"
    with pytest.warns(FallbackWarning, match="looks like a batch of 3"):
        JacobianOperator(nn.Linear(4, 2).to(D), X.reshape(12, 4)[:3], products="auto")


def test_a_difference_that_rounding_hides_is_made_up_for_by_forward_mode() -> None:
    """J is 1e-9 of the output: no step tells of it. A wrong backward is found all the same."""

    def deep(z: Tensor) -> Tensor:
        return 1e-9 * z.sin().sum((2, 3)) + 1

    assert JacobianOperator(deep, X.float(), products="auto").backend == "the 3 rows of J, by autograd"
    with pytest.raises(AdjointError):
        JacobianOperator(lambda z: 1e-9 * sine(0.5).apply(z).sum((2, 3)) + 1, X.float(), products="auto")


class Large(nn.Module):
    """A head whose weight is worth borrowing; ``use`` may do more with it than read it."""

    def __init__(self, use=lambda _: None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.use = nn.Linear(48, 2048), nn.Linear(2048, 3), use

    def forward(self, z: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(z.flatten()))
        self.use(self.body.weight)
        return self.head(hidden)


def test_weights_are_borrowed_for_rows_alone() -> None:
    model = Large()
    large, whole = model.body.weight.nbytes, sum(p.nbytes for p in model.parameters())
    assert JacobianOperator(model, X, products="auto").copied_bytes == whole - large
    assert JacobianOperator(model, X).copied_bytes == whole
    operator, other = (JacobianOperator(model, X, products="auto") for _ in range(2))
    # Whoever needs the model later, as the chain method does, has a copy, or is told that it is too late for one.
    value = operator.evaluation.function(operator.point)
    assert operator._private.nbytes == whole
    with torch.no_grad():
        model.body.weight.mul_(2)
    assert torch.equal(operator.evaluation.function(operator.point), value)
    for _ in range(2):
        with pytest.raises(ModelError, match="have changed since the rows"):
            other.evaluation.function(other.point)


def test_many_small_weights_are_copied_at_once() -> None:
    """To watch over each function that reads one takes longer."""
    layers = [nn.Linear(100, 100) for _ in range(6)]
    model = nn.Sequential(nn.Flatten(0), nn.Linear(48, 100), *layers, nn.Linear(100, 3))
    whole = sum(p.nbytes for p in model.parameters())
    assert layers[0].weight.nbytes > 2**15
    assert JacobianOperator(model, X, products="auto").copied_bytes == whole


class Beside(nn.Module):
    """A head that comes to its layer through an object that is not copied."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 3)
        self.inner = Trainer(self.layer)

    def forward(self, z: Tensor) -> Tensor:
        return self.inner.weight(z.flatten().to(self.inner.weight.weight.dtype)).to(z)


def test_rows_through_weights_that_are_not_copied_are_said() -> None:
    with pytest.warns(FallbackWarning, match=r"its tensor 'layer\.(weight|bias)' not through its modules"):
        operator = JacobianOperator(Beside(), X, products="auto")
    assert operator.backend == "the 3 rows of J, by autograd"


def by_data(weight: Tensor) -> None:
    weight.data.mul_(0.5)


def in_place(weight: Tensor) -> None:
    weight.add_(1)


def by_numpy(weight: Tensor) -> None:
    weight.detach().numpy()[:] = 0


def by_a_view(weight: Tensor) -> None:
    weight.T[3:].zero_()


def as_output(weight: Tensor) -> None:
    torch.mul(weight.clone(), 2, out=weight)


def by_an_operator(weight: Tensor) -> None:
    torch.ops.aten.mul_.Scalar(weight, 2.0)


@pytest.mark.parametrize("write", [by_data, in_place, by_numpy, by_a_view, as_output, by_an_operator])
def test_a_model_that_writes_to_its_weights_writes_to_a_copy(write) -> None:
    model = Large(lambda weight: torch.no_grad()(write)(weight))
    before, version = model.body.weight.detach().clone(), model.body.weight._version
    # The second evaluation sees what the first has written: refused, or measured, but not on the caller's weights.
    with contextlib.suppress(ModelError):
        JacobianOperator(model, X, products="auto")
    assert torch.equal(model.body.weight, before)
    assert model.body.weight._version == version


class Trainer:
    """Another thread that doubles a weight once; slots are not copied with a model."""

    __slots__ = ("begun", "weight")

    def __init__(self, weight: Tensor) -> None:
        self.begun, self.weight = False, weight

    def step(self) -> None:
        with torch.no_grad():
            self.weight.mul_(2)

    def __call__(self, _: Tensor) -> None:
        if not self.begun:
            self.begun = True
            thread = threading.Thread(target=self.step)
            thread.start()
            thread.join()


def test_weights_that_another_thread_changes_meanwhile_are_copied_and_measured_again(dense_jacobian) -> None:
    model = Large()
    trainer = model.use = Trainer(model.body.weight)
    operator = JacobianOperator(model, X, products="auto")
    found = operator.rmatmat(torch.eye(3)).reshape(3, 48)
    assert trainer.begun
    assert operator.copied_bytes > model.body.weight.nbytes
    assert torch.allclose(found.double(), dense_jacobian(model.double(), X), atol=1e-6)
