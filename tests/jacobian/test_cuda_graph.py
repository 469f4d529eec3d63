"""The bookkeeping of captured products, with a stand-in for the graph; and on a GPU the graph itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from isometry.errors import FallbackWarning
from isometry.jacobian import JacobianOperator
from isometry.jacobian.replay import linearise
from isometry.jacobian.replay.cuda_graph import Captured, Graphed
from isometry.nn import VanillaCNN


class StandIn:
    """Captures by remembering the product: a replay runs it on the fixed memory, as a graph does."""

    def __init__(self, error: Exception | None = None, off: float = 0.0) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.replays = 0
        self._error, self._off = error, off

    def __call__(self, product, block: Tensor) -> Captured:
        self.shapes.append(tuple(block.shape))
        if self._error is not None:
            raise self._error
        fixed, result = block.clone(), product(block).clone()

        def replay() -> None:
            self.replays += 1
            result.copy_(product(fixed) * (1 + self._off))

        return Captured(fixed, result, replay)


def double(block: Tensor) -> Tensor:
    return 2 * block


def blocks(*counts: int) -> list[Tensor]:
    return [torch.full((count, 3), float(number + 1)) for number, count in enumerate(counts)]


def test_a_shape_that_comes_again_is_captured_once_and_replayed() -> None:
    stand_in = StandIn()
    product = Graphed(double, stand_in)
    kept = [(block, product(block)) for block in blocks(4, 4, 1, 4, 4, 4, 2)]
    assert stand_in.shapes == [(4, 3)]
    # Once to look whether it is right, then for the fourth and fifth block of four.
    assert stand_in.replays == 3
    # Each result is memory of its own, whatever was replayed later.
    for block, found in kept:
        assert torch.equal(found, 2 * block)


def test_types_and_shapes_have_graphs_of_their_own_and_the_latest_are_kept() -> None:
    stand_in = StandIn()
    product = Graphed(double, stand_in, most=2)
    for count in (1, 2, 3):
        for block in blocks(count, count, count):
            product(block)
    assert stand_in.shapes == [(1, 3), (2, 3), (3, 3)]
    product(torch.ones(2, 3))
    assert len(stand_in.shapes) == 3
    # The first was given up for the third.
    assert torch.equal(product(torch.ones(1, 3)), torch.full((1, 3), 2.0))
    assert stand_in.shapes[3:] == [(1, 3)]
    for _ in range(3):
        assert product(torch.ones(2, 3, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("stand_in", "reason"),
    [
        (StandIn(RuntimeError("operation not permitted when stream is capturing")), "not permitted"),
        (StandIn(torch.OutOfMemoryError("no memory")), "OutOfMemoryError"),
        (StandIn(off=1e-3), "other numbers"),
    ],
)
def test_what_cannot_be_captured_is_said_once_and_multiplied_as_before(
    stand_in: StandIn, reason: str
) -> None:
    product = Graphed(double, stand_in)
    block = torch.ones(4, 3)
    product(block), product(block)
    with pytest.warns(FallbackWarning, match=reason):
        assert torch.equal(product(block), 2 * block)
    # Warnings are errors here: nothing is said again.
    assert torch.equal(product(block), 2 * block)
    assert len(stand_in.shapes) == 1


def test_products_that_are_not_finite_are_no_reason_to_give_up() -> None:
    stand_in = StandIn()
    product = Graphed(lambda block: block / 0, stand_in)
    for _ in range(4):
        assert bool(torch.isinf(product(torch.ones(1, 3))).all())
    assert len(stand_in.shapes) == 1


def test_nothing_is_captured_on_a_processor() -> None:
    replay = linearise(nn.Tanh(), torch.zeros(3))
    for _ in range(4):
        replay.matmat(torch.ones(2, 3)), replay.rmatmat(torch.ones(2, 3))
    assert "_graphs" not in vars(replay)


@pytest.mark.gpu
@pytest.mark.parametrize("init", ["gaussian", "delta_orthogonal"])
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: products under a CUDA graph are not tested here"
)
def test_a_graph_gives_the_products_of_its_program(init: str) -> None:
    model = VanillaCNN(depth=8, channels=16, init=init, seed=0).cuda()
    x = torch.randn(16, 8, 8, device="cuda")
    operator, exact = JacobianOperator(model, x), linearise(model, x)
    for count in (1, 8, 1, 8, 1, 8, 1, 8):
        block = torch.randn(count, 16, 8, 8, device="cuda")
        for found, expected in (
            (operator.matmat(block), exact.direct(block)),
            (operator.rmatmat(block), exact.transposed(block)),
        ):
            assert torch.allclose(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
