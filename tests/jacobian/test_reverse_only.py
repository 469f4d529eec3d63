"""Models that plain autograd differentiates once, backwards, and in no other way: exact from rows of J alone."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from custom_functions import sine
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from isometry.errors import AdjointError, FallbackWarning, InputError, ModelError
from isometry.jacobian import JacobianOperator
from isometry.measurement import measure

D = torch.float64
MATRIX = torch.linspace(-1, 1, 16, dtype=D).sin().reshape(4, 4)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx, u: Tensor) -> Tensor:
        return ctx.saved_tensors[0].cos() * u


class NumpyBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.sin()

    @staticmethod
    def backward(ctx, u: Tensor) -> Tensor:
        return torch.from_numpy(np.cos(ctx.saved_tensors[0].detach().numpy()) * u.numpy())


class Adjoint(torch.autograd.Function):
    """Euler steps, and their adjoint as odeint_adjoint has it: autograd in the backward pass, under no_grad."""

    @staticmethod
    def step(z: Tensor) -> Tensor:
        return z + 0.1 * torch.tanh(z @ MATRIX)

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        ctx.states = [z.detach()]
        with torch.no_grad():
            for _ in range(4):
                ctx.states.append(Adjoint.step(ctx.states[-1]))
        return ctx.states[-1].clone()

    @staticmethod
    def backward(ctx, u: Tensor) -> Tensor:
        with torch.no_grad():
            for state in reversed(ctx.states[:-1]):
                with torch.enable_grad():
                    leaf = state.detach().requires_grad_()
                    (u,) = torch.autograd.grad(Adjoint.step(leaf), leaf, u)
        return u.clone()


class Equilibrium(nn.Module):
    """z = tanh(W z + x) by iteration, one step with gradients, and the rest of the derivative by a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.4 * MATRIX)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            z = torch.zeros_like(x)
            for _ in range(80):
                z = torch.tanh(z @ self.weight + x)
        z = torch.tanh(z @ self.weight + x)
        if torch.is_grad_enabled() and z.requires_grad:
            start = z.clone().detach().requires_grad_()
            again = torch.tanh(start @ self.weight + x)

            def solve(u: Tensor) -> Tensor:
                total = u
                for _ in range(80):
                    total = torch.autograd.grad(again, start, total, retain_graph=True)[0] + u
                return total

            z.register_hook(solve)
        return z


def jagged(z: Tensor) -> Tensor:
    nested = torch.nested.as_nested_tensor([z[:2], z[2:]], layout=torch.jagged)
    return nested.sin().values()


X = torch.linspace(-1, 1.1, 20, dtype=D).cos().reshape(5, 4)
BAG = torch.tensor([0, 1, 1, 4]), torch.tensor([0, 2])
MODELS = {
    "once_differentiable": lambda z: Once.apply(z) * z,
    "a backward in NumPy": lambda z: NumpyBackward.apply(z.tanh()),
    "an adjoint ODE": lambda z: Adjoint.apply(z),
    "an adjoint ODE beside a residual": lambda z: z.square() + Adjoint.apply(z),
    "an equilibrium with a hook": Equilibrium().double(),
    "pdist": lambda z: torch.pdist(z),
    "small cdist": lambda z: torch.cdist(z, z.flip(0) + 1),
    "a bag of embeddings": lambda z: F.embedding_bag(BAG[0], z, BAG[1], mode="mean").sin(),
    "a bag of the largest": lambda z: F.embedding_bag(BAG[0], z, BAG[1], mode="max").sin(),
    "jagged rows": jagged,
}  # fmt: skip


def both_ways(name: str) -> bool:
    """Forward mode differentiates through the iterations of an equilibrium; cdist has it of a tensor of its own."""
    return name == "an equilibrium with a hook"


@pytest.mark.filterwarnings("ignore::isometry.errors.FallbackWarning")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("products", ["both", "reverse"])
def test_exact_from_rows(name: str, products: str, dense_jacobian) -> None:
    model = MODELS[name]
    operator = JacobianOperator(model, X, products=products)
    spectrum = measure(operator, progress=False)
    expected = torch.linalg.svdvals(dense_jacobian(model, X)).numpy()
    assert np.allclose(np.sort(spectrum.quadrature.nodes.ravel())[::-1], expected, rtol=1e-9, atol=1e-12)
    reverse_only = products == "reverse" or not both_ways(name)
    assert operator.reverse_only == reverse_only
    assert spectrum.provenance["products_by"].startswith(
        "reverse products alone" if reverse_only else "torch.func"
    )
    assert spectrum.products == (operator.shape[0] if reverse_only else min(operator.shape))
    if reverse_only:
        with pytest.raises(ModelError, match="take method='exact'"):
            operator.matmat(X[None])
        with pytest.raises(InputError, match=r"stands on products J v.*take method='exact'"):
            measure(operator, method="lanczos", progress=False)


@pytest.mark.filterwarnings("ignore::isometry.errors.FallbackWarning")
@pytest.mark.parametrize("outputs", [2, 7])
def test_a_batch_from_rows(outputs: int) -> None:
    """More outputs than inputs, fewer, and a Jacobian for each input; samples that are coupled are refused."""
    matrix = torch.linspace(-1, 1, 4 * outputs, dtype=D).cos().reshape(4, outputs)
    spectrum = measure(lambda z: Once.apply(z) @ matrix, X, products="reverse", batched=True, progress=False)
    dense = torch.stack([(matrix.T * x.cos()) for x in X])
    assert np.allclose(spectrum.quadrature.nodes[:, 0], torch.linalg.svdvals(dense).numpy(), rtol=1e-12)
    with pytest.raises(ModelError, match="couples the samples"):
        measure(lambda z: Once.apply(z) * z.sum(), X, products="reverse", batched=True, progress=False)


def test_a_reverse_derivative_that_differs_from_the_function_is_said() -> None:
    class Straight(torch.autograd.Function):
        """Rounds, and passes the gradient on."""

        @staticmethod
        def forward(ctx, z: Tensor) -> Tensor:
            return (8 * z).round() / 8

        @staticmethod
        @once_differentiable
        def backward(ctx, u: Tensor) -> Tensor:
            return 5 * u

    def model(z: Tensor) -> Tensor:
        return Straight.apply(z).cumsum(0) + torch.pdist(z).sum() + z

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", FallbackWarning)
        operator = JacobianOperator(model, X)
    assert operator.reverse_only
    assert any("differs from finite differences" in str(w.message) for w in said)


@pytest.mark.filterwarnings("ignore::isometry.errors.FallbackWarning")
def test_a_wrong_backward_is_no_reverse_product() -> None:
    """Forward mode is right, and the reverse pass wrong: nothing is measured."""
    with pytest.raises(AdjointError):
        JacobianOperator(lambda z: sine(0.5).apply(z), X)
