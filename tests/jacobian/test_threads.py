"""Other threads of the caller: their random numbers and their forward mode leave a measurement right, and are left."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from isometry import JacobianOperator
from isometry.depth import measure_blocks
from isometry.errors import ModelError
from isometry.jacobian import forward_mode_turn

X = torch.linspace(-1, 1, 8, dtype=torch.float64)


@contextmanager
def beside(work, started: threading.Event) -> Iterator[None]:
    """``work`` in another thread, begun before the block and ended after it."""
    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    yield
    thread.join()


class During(nn.Module):
    """A layer that lets another thread act in the middle of its forward pass."""

    def __init__(self, act) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.diag(torch.linspace(1, 2, 8, dtype=torch.float64)))
        self._act = act

    def forward(self, x: Tensor) -> Tensor:
        thread = threading.Thread(target=self._act)
        thread.start()
        thread.join()
        return torch.tanh(self.weight @ x)


def test_numbers_that_another_thread_draws_do_not_make_a_model_random() -> None:
    drawn: list[Tensor] = []
    torch.manual_seed(0)
    operator = JacobianOperator(During(lambda: drawn.append(torch.rand(3))), X)
    assert not operator.evaluation.draws
    # And what it drew is not drawn again.
    drawn.append(torch.rand(3))
    torch.manual_seed(0)
    assert torch.equal(torch.stack(drawn), torch.rand(3 * len(drawn)).reshape(-1, 3))


@pytest.mark.parametrize("generator", [None, torch.Generator()], ids=["global", "its own"])
def test_a_model_that_draws_leaves_the_random_state_as_it_was(generator: torch.Generator | None) -> None:
    def noisy(x: Tensor) -> Tensor:
        return x + torch.rand(x.shape, generator=generator, dtype=x.dtype)

    before = torch.get_rng_state()
    with pytest.raises(ModelError, match="differ"):
        JacobianOperator(noisy, X)
    assert torch.equal(torch.get_rng_state(), before)


def test_forward_mode_of_another_thread_is_waited_for() -> None:
    """PyTorch counts its levels for the whole process: a product within another's level failed."""
    inside, weight = threading.Event(), torch.diag(X)

    def work() -> None:
        with forward_ad.dual_level():
            inside.set()
            threading.Event().wait(0.2)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with beside(work, inside):
            operator = JacobianOperator(lambda x: torch.tanh(weight @ x), X)
    assert operator.backend == "replay"
    with forward_mode_turn(), forward_ad.dual_level():
        dual = forward_ad.make_dual(X.clone(), torch.ones_like(X))
        tangent = forward_ad.unpack_dual(torch.tanh(weight @ dual)).tangent
    assert torch.allclose(operator.matmat(torch.ones(1, 8, dtype=torch.float64))[0], tangent)


def test_blocks_are_those_of_a_copy() -> None:
    """What the caller does to his model while its blocks are measured changes no number, and no pass writes to it."""
    torch.manual_seed(0)

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = nn.Linear(8, 8, dtype=torch.float64), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = torch.tanh(self.inner(x))
            return self.last

    model = nn.Sequential(*(Counting() for _ in range(4)))
    alone = measure_blocks(model, X, progress=False)

    def train(*_: object) -> None:
        with torch.no_grad():
            for layer in model:
                layer.inner.weight.mul_(1.5)

    beside_training = measure_blocks(model, X, progress=train)
    assert beside_training.chi.tolist() == alone.chi.tolist()
    assert all(layer.calls == 0 and not hasattr(layer, "last") for layer in model)
    # Not by a lucky callback that was never called.
    assert measure_blocks(model, X, progress=False).chi[0] > 2 * alone.chi[0]
