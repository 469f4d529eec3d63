"""Out of memory halves the chunk and says so; with one probe left it stops with a cure."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from isometry.errors import FallbackWarning, InputError, IsometryError
from isometry.jacobian import JacobianOperator

MESSAGES = [
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
    ),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    MemoryError(),
]


def limited(operator: JacobianOperator, most: int, error: Exception) -> list[int]:
    """Make J v of more than ``most`` vectors at once fail; returns the list of the sizes tried."""
    chunked = operator._chunked
    product, tried = chunked.products.matmat, []

    def hungry(block: Tensor) -> Tensor:
        tried.append(block.shape[0])
        if block.shape[0] > most:
            raise error
        return product(block)

    chunked.products = replace(chunked.products, matmat=hungry)
    return tried


@pytest.mark.parametrize("error", MESSAGES, ids=lambda error: type(error).__name__)
def test_the_chunk_is_halved_until_it_fits(error: Exception) -> None:
    model = nn.Linear(6, 4).double()
    operator = JacobianOperator(model, torch.zeros(6, dtype=torch.float64), chunk=8)
    tried = limited(operator, 2, error)
    vectors = torch.randn(11, 6, dtype=torch.float64)
    with pytest.warns(FallbackWarning, match="going on with") as said:
        found = operator.matmat(vectors)
    assert torch.allclose(found, vectors @ model.weight.T, rtol=1e-14)
    assert tried == [8, 4, 2, 2, 2, 2, 2, 1]
    assert [str(w.message) for w in said] == [
        f"out of memory: going on with {k} probes at a time" for k in (4, 2)
    ]
    # It stays so: the next block does not try again what failed.
    tried.clear()
    operator.matmat(vectors[:4])
    assert tried == [2, 2]
    assert operator.products == 15


def test_half_of_the_block_where_the_chunk_is_larger() -> None:
    """A chunk of 64 and a block of 5: half of 64 would be the same block once more."""
    operator = JacobianOperator(nn.Linear(6, 4), torch.zeros(6), chunk=64)
    tried = limited(operator, 3, MESSAGES[0])
    with pytest.warns(FallbackWarning, match="going on with 3"):
        operator.matmat(torch.randn(5, 6))
    assert tried == [5, 3, 2]


def test_one_probe_that_does_not_fit_stops_with_a_cure() -> None:
    operator = JacobianOperator(nn.Linear(6, 4), torch.zeros(6), chunk=1)
    limited(operator, 0, MESSAGES[1])
    with pytest.raises(IsometryError, match=r"single probe at a time\. Take fewer inputs") as caught:
        operator.matmat(torch.randn(5, 6))
    assert caught.value.__cause__ is MESSAGES[1]


def test_other_errors_pass_as_they_are() -> None:
    operator = JacobianOperator(nn.Linear(6, 4), torch.zeros(6), chunk=8)
    limited(operator, 0, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        operator.matmat(torch.randn(5, 6))


def test_the_users_filter_decides_about_the_warning() -> None:
    """The test suite turns this package's warnings into errors: so must a user be able to."""
    operator = JacobianOperator(nn.Linear(6, 4), torch.zeros(6), chunk=8)
    limited(operator, 2, MESSAGES[0])
    with pytest.raises(FallbackWarning):
        operator.matmat(torch.randn(8, 6))


def test_no_memory_for_one_evaluation() -> None:
    def greedy(z: Tensor) -> Tensor:
        raise MESSAGES[0]

    with pytest.raises(IsometryError, match="out of memory in one evaluation of the model") as caught:
        JacobianOperator(greedy, torch.zeros(3))
    assert not isinstance(caught.value, InputError)
