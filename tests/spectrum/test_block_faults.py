"""Blame by shares of the total: one block, all alike, or a trend; changes of shape by their fan."""

from __future__ import annotations

import math

import numpy as np
import pytest

from isometry.spectrum.block_faults import counted_gains, find_faults


def found(gains, shapes=None, kinds=None, error: float = 1e-3):
    gains = np.log10(np.asarray(gains, dtype=float))
    shapes = np.full((gains.size, 2), 8) if shapes is None else np.asarray(shapes)
    return find_faults(gains, np.full(gains.size, error), shapes, kinds or ["Linear"] * gains.size)


def test_fifty_that_explode_are_to_blame_and_not_the_last_that_shrinks() -> None:
    result = found([2.5] * 50 + [0.0025])
    assert (result.direction, result.faults, result.outlier) == (1, (), None)
    square = [(8, 8)] * 50
    for head in ((10, 8), (4, 8), (8, 8)):
        assert found([2.5] * 50 + [0.0025], [*square, head]).faults == ()


def test_a_first_block_that_loses_its_eighth_is_named_and_not_blamed() -> None:
    """As of mlp:depth=32,width=64,sigma_w=0.9: the first loses a factor of 0.41, the others 900 together."""
    result = found([0.41] + [900 ** (-1 / 31)] * 31)
    assert (result.direction, result.faults, result.outlier) == (-1, (), 0)
    assert result.share == pytest.approx(math.log(0.41) / (math.log(0.41) - math.log(900)))


def test_one_block_or_several_that_do_it_are_blamed() -> None:
    assert found([1.0] * 30 + [1e-3] + [0.95] * 30).faults == (30,)
    assert found([1.0] * 30 + [1e-3] + [0.95] * 30 + [1e-2]).faults == (30, 61)
    # He's layers double and ReLU halves: the halves do not add up against the one that loses.
    layers = ["Linear", "ReLU"] * 101
    assert found([2.0, 0.5] * 50 + [1e-2, 0.5] + [2.0, 0.5] * 50, kinds=layers).faults == (100,)
    # Growth elsewhere does not excuse it as long as it decides.
    assert found([1.02] * 40 + [1e-4]).faults == (40,)


def test_alike_and_trends_are_told_apart() -> None:
    even = found([0.7] * 20)
    assert even.alike
    assert even.trend is None
    falling = found(10 ** (-1 / np.arange(2.0, 30.0)))
    assert falling.faults == ()
    assert falling.trend is not None
    first, last = falling.trend
    assert first < last < 0.01
    generator = np.random.default_rng(0)
    # Gains of no order: the slope of white noise is within six of its errors.
    assert all(found(np.exp(generator.normal(0.3, 0.2, 20))).trend is None for _ in range(50))


def test_neither_growth_nor_loss_has_no_direction() -> None:
    assert found([1.0] * 5).direction == 0
    assert found([2**0.5, 0.5**0.5] * 4).faults == ()
    # What one block loses another one restores: the worst is named as what stands out.
    assert found([1.0, 1e-3, 1.0, 1.0, 900.0, 1.0]).faults == (1,)
    # A norm that restores what the layers before it have lost little by little.
    assert found([0.9] * 12 + [3.0]).faults == ()


@pytest.mark.parametrize(("outputs", "inputs"), [(1000, 64), (10, 64)])
def test_heads_and_stems_are_judged_against_their_fan(outputs: int, inputs: int) -> None:
    """chi of Gaussian weights of variance 1/m, 1/n and 2/(m + n): all three are in use, and none is a fault."""
    least = min(outputs, inputs)
    for variance in (1 / outputs, 1 / inputs, 2 / (outputs + inputs)):
        chi = outputs * inputs * variance / least
        for shapes, gain in (
            # As the first block the gain is chi; behind 64 values it is ||J||^2 / min(m, 64) over 1.
            ([(outputs, inputs)], chi),
            ([(inputs, inputs), (outputs, inputs)], outputs * variance * inputs / min(outputs, inputs)),
        ):
            gains = np.log10([1.0] * (len(shapes) - 1) + [gain])
            counted, changes = counted_gains(gains, np.array(shapes))
            assert changes[-1]
            assert counted[-1] == pytest.approx(0.0, abs=1e-12)
            assert found(10**gains, shapes).direction == 0


def test_pooling_is_no_fault_and_a_head_that_is_far_off_is() -> None:
    # The mean of 16 values: 8 singular values of 1/4 each.
    assert found([1.0, 1 / 16], [(128, 128), (8, 128)]).faults == ()
    assert found([1.0] * 9 + [1e-8], [(64, 64)] * 9 + [(10, 64)]).faults == (9,)


def test_a_walk_of_gains_that_chance_explains_is_neither_growth_nor_loss() -> None:
    """Thirty healthy layers of width 24: ln gains of variance 5/24 and mean gain 1, whatever their kinds."""
    generator = np.random.default_rng(1)
    variance = 5 / 24

    def drawn(mean: float) -> np.ndarray:
        return np.exp(generator.normal(math.log(mean) - variance / 2, variance**0.5, 30))

    healthy = [found(drawn(1.0)) for _ in range(100)]
    # 3 standard deviations around the drift, with a standard deviation from 30 gains.
    assert sum(result.direction != 0 for result in healthy) <= 6
    assert sum(result.by_chance for result in healthy) > 60
    assert sum(found(drawn(1.8)).direction == 1 for _ in range(50)) >= 45
    # The two kinds of a layer differ: that is no fluctuation.
    kinds = ["Linear", "ReLU"] * 15
    assert found([3.0, 0.5] * 15, kinds=kinds).direction == 1
    # One that loses by far more is blamed in any case.
    gains = drawn(1.0)
    gains[7] = 1e-4
    assert found(gains).faults == (7,)


def test_an_average_over_what_the_layers_before_made_alternate_is_not_blamed() -> None:
    """Its own mean square is as its fan has it: 1/64 for 64 positions."""
    gains, shapes = np.log10([1.0, 1.0, 1e-5]), np.array([(512, 512), (512, 512), (8, 512)])
    blamed = find_faults(gains, np.full(3, 1e-3), shapes, ["Conv2d", "Conv2d", "AvgPool"])
    assert blamed.faults == (2,)
    own = np.log10([1.0, 1.0, 1 / 64])
    assert find_faults(gains, np.full(3, 1e-3), shapes, ["Conv2d", "Conv2d", "AvgPool"], own).direction == 0
    # A head that is small itself is blamed.
    small = np.log10([1.0, 1.0, 1e-5])
    assert find_faults(gains, np.full(3, 1e-3), shapes, ["Conv2d", "Conv2d", "Linear"], small).faults == (2,)
