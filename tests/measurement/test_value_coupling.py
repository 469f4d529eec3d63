"""Inputs whose Jacobians depend on the values of the others: a group has the numbers of the whole batch."""

from __future__ import annotations

import pytest
import torch

from isometry import JacobianOperator, measure
from isometry.errors import FallbackWarning

pytestmark = pytest.mark.filterwarnings("ignore:the Jacobian of a sample depends on the batch")

KINDS = {
    "largest": lambda x: x.tanh() * x.detach().abs().amax(),
    "mean": lambda x: x.tanh() * (1 + x.detach().mean()),
    "norm of each feature": lambda x: x.sin() / x.detach().norm(dim=0),
    "rank in the batch": lambda x: x.tanh() * (1 + x.detach()[:, :1].argsort(0).argsort(0)),
    "neighbour": lambda x: x * x.detach().roll(1, 0),
    "slope alone": lambda x: (x - x.detach()) * x.detach().abs().amax(),
    "softmax gate": lambda x: x.tanh() * x.detach().sum(1, keepdim=True).softmax(0),
}


def inputs(count: int = 70) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 4, generator=generator, dtype=torch.float64)


def largest_of_each(function, x):
    jacobian = torch.func.jacrev(function)(x)
    return torch.stack([torch.linalg.svdvals(jacobian[i, :, i])[0] for i in range(x.shape[0])])


@pytest.mark.parametrize(
    ("kind", "method"),
    # The products of a group are the same for every method: each takes a kind that shows in values, and one in slopes.
    [(kind, "exact") for kind in KINDS]
    + [(kind, method) for kind in ("mean", "slope alone") for method in ("lanczos", "randomized")],
)
def test_every_input_has_the_jacobian_of_the_whole_batch(kind, method):
    x = inputs()
    found = measure(KINDS[kind], x, method, batched=True, progress=False)
    top = torch.as_tensor(found.extremes.top[:, 0])
    assert torch.allclose(top, largest_of_each(KINDS[kind], x), rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_said_that_a_sample_alone_has_another_jacobian(kind):
    with pytest.warns(FallbackWarning, match="depends on the batch"):
        JacobianOperator(KINDS[kind], inputs(3), batched=True)


def test_the_memory_limit_changes_no_number():
    x = inputs()
    wide = measure(KINDS["mean"], x, "exact", batched=True, progress=False)
    narrow = measure(KINDS["mean"], x, "exact", batched=True, memory_limit=20_000, progress=False)
    assert narrow.mean_square == pytest.approx(wide.mean_square, rel=1e-12)
    assert narrow.s_max == pytest.approx(wide.s_max, rel=1e-12)


def test_products_of_a_group_are_rows_of_those_of_the_batch():
    x = inputs(9)
    whole = JacobianOperator(KINDS["mean"], x, batched=True)
    part = whole.of_inputs(range(2, 5))
    assert "whole batch" in part.backend
    vectors = torch.randn(3, 9, 4, dtype=torch.float64)
    alone = torch.zeros_like(vectors)
    alone[:, 2:5] = vectors[:, 2:5]
    for product in ("matmat", "rmatmat"):
        expected = getattr(whole, product)(alone)[:, 2:5]
        assert torch.equal(getattr(part, product)(vectors[:, 2:5]), expected)
    inner = part.of_inputs(range(1, 2))
    assert torch.allclose(inner.matmat(vectors[:, 3:4]), whole.matmat(vectors)[:, 3:4], rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_that_are_independent_are_evaluated_alone(dtype):
    torch.manual_seed(0)
    layers = [module for _ in range(30) for module in (torch.nn.Linear(4, 4), torch.nn.Tanh())]
    model = torch.nn.Sequential(*layers).to(dtype)
    whole = JacobianOperator(model, inputs(20).to(dtype), batched=True)
    assert whole.of_inputs(range(3, 7)).backend == whole.backend
