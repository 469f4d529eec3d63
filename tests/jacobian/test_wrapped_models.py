"""Compiled, scripted, exported and wrapped models have the Jacobian of what is inside; split ones are refused."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from isometry.errors import ModelError
from isometry.jacobian import JacobianOperator

D = torch.float64
X = torch.linspace(-1, 1.2, 6, dtype=D).sin()[None]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).to(D).eval()


class Forwarding(nn.Module):
    """As adapters do: attributes of the inner model, and a branch of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.down, self.up = (
            inner,
            nn.Linear(6, 2, bias=False).to(D),
            nn.Linear(2, 5, bias=False).to(D),
        )
        nn.init.zeros_(self.up.weight)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, z: Tensor) -> Tensor:
        return self.inner(z) + self.up(self.down(z))


class NoModule:
    """An object that is called like a model, as inference runtimes give."""

    def __init__(self) -> None:
        self.model = network()

    def __call__(self, z: Tensor) -> Tensor:
        return self.model(z)


class Checkpointed(nn.Module):
    def __init__(self, run: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.run = network(), run

    def forward(self, z: Tensor) -> Tensor:
        return self.run(self.inner, z)


def hooked() -> nn.Module:
    model, seen = network(), []
    model[0].register_forward_pre_hook(lambda _, args: (args[0] + 0,))
    model[1].register_forward_hook(lambda _, args, out: seen.append(out) or out * 1.0)
    model[2].register_full_backward_hook(lambda *_: None)
    return model


def called(model: nn.Module) -> nn.Module:
    model(X)
    return model


WRAPPED: dict[str, Callable[[], Any]] = {
    "compiled by another backend, and called": lambda: called(torch.compile(network(), backend="eager")),
    "a compiled function": lambda: torch.compile(network().forward.__get__(network()), backend="eager"),
    "compiled inside": lambda: nn.Sequential(torch.compile(network(), backend="eager")),
    "data parallel": lambda: nn.DataParallel(network()),
    "scripted": lambda: torch.jit.script(network()),
    "traced": lambda: torch.jit.trace(network(), X),
    "frozen": lambda: torch.jit.freeze(torch.jit.script(network())),
    "scripted inside": lambda: nn.Sequential(torch.jit.script(network())),
    "a graph module": lambda: torch.fx.symbolic_trace(network()),
    "exported": lambda: torch.export.export(network(), (X,)).module(),
    "an exported program": lambda: torch.export.export(network(), (X,)),
    "an adapter": lambda: Forwarding(network()),
    "an object that is called": NoModule,
    "checkpointed": lambda: Checkpointed(lambda inner, z: checkpoint(inner, z, use_reentrant=False)),
    "checkpointed in parts": lambda: Checkpointed(
        lambda inner, z: checkpoint_sequential(inner, 2, z, use_reentrant=False)
    ),
    "hooks": hooked,
    "a parametrisation": lambda: (lambda m: (parametrizations.weight_norm(m[0]), m)[1])(network()),
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_wrapped_model_is_measured_as_what_it_wraps(name: str, dense_jacobian) -> None:
    dense = dense_jacobian(network(), X)
    operator = JacobianOperator(WRAPPED[name](), X)
    assert operator.backend == "replay"
    assert torch.allclose(operator.rmatmat(torch.eye(5, dtype=D)[:, None]).reshape(5, 6), dense, atol=1e-14)
    assert torch.allclose(operator.matmat(torch.eye(6, dtype=D)[:, None]).reshape(6, 5).T, dense, atol=1e-14)


@pytest.fixture
def one_process() -> Iterator[None]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_models_of_several_processes(dense_jacobian) -> None:
    """One copy in each process is measured; parts in each are refused, with the cause."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import distribute_module, distribute_tensor

    operator = JacobianOperator(nn.parallel.DistributedDataParallel(network()), X)
    found = operator.rmatmat(torch.eye(5, dtype=D)[:, None]).reshape(5, 6)
    assert torch.allclose(found, dense_jacobian(network(), X), atol=1e-14)
    mesh = init_device_mesh("cpu", (1,))
    for model, x in (
        (fully_shard(network(), mesh=mesh), X),
        (distribute_module(network(), mesh), X),
        (network(), distribute_tensor(X, mesh)),
    ):
        with pytest.raises(ModelError, match=r"split over processes, as DTensors"):
            JacobianOperator(model, x)
