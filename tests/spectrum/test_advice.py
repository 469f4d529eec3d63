"""Advice: the sentence says what the numbers say, the command tunes what was measured, and silence is the rule."""

from __future__ import annotations

import math

import numpy as np
import pytest

from isometry.spectrum.advice import advice_on_blocks, advice_on_spectrum, tuning_command

MEASURED = {"command": "isometry measure net.py:f --input 3x8x8 --eval --per-block --probes 4 -o a.h5 --tf32"}
TUNED = "isometry tune net.py:f --input 3x8x8 --eval -o tuned.safetensors"


def blocks(
    gain: float,
    count: int,
    *,
    kind: str = "Linear, Tanh",
    branches: list[tuple[int, float, float]] | None = None,
    fault: int | None = None,
    by_chance: bool = False,
):
    total = count * math.log10(gain)
    return advice_on_blocks(
        MEASURED, kinds=[kind] * count, blocks=[f"b{k}" for k in range(count)],
        log10_gain=np.full(count, math.log10(gain)), log10_mean_square=total, log10_mean_square_stderr=0.01,
        fault=fault, by_chance=by_chance, branches=branches or [],
    )  # fmt: skip


def test_a_chain_says_by_what_to_multiply_its_weights() -> None:
    (one,) = blocks(0.8, 10)
    assert one.sentence == (
        "10 blocks with weights lose a factor 0.8 of mean s² each: multiply their weights by 1.118"
    )
    assert one.numbers["factor"] == pytest.approx(0.8**-0.5)
    # The error of ln M / 20.
    assert one.numbers["factor_stderr"] == pytest.approx(0.8**-0.5 * 0.01 * math.log(10) / 20)
    assert one.command == TUNED
    (one,) = blocks(1.3, 10)
    assert "gain a factor 1.3" in one.sentence


def test_only_blocks_with_weights_count() -> None:
    (one,) = advice_on_blocks(
        {}, kinds=["Conv2d", "Tanh"] * 4, blocks=list("abcdefgh"), log10_gain=np.full(8, -0.1),
        log10_mean_square=-0.8, log10_mean_square_stderr=0.0, fault=None, by_chance=False, branches=[],
    )  # fmt: skip
    assert one.numbers["blocks"] == 4
    assert one.numbers["gain"] == pytest.approx(10**-0.2)
    assert one.command == "isometry.tune_(model, x)"


def test_branches_add_up() -> None:
    (one,) = blocks(2.0, 50, branches=[(k, 1.0, 0.1) for k in range(50)])
    assert one.sentence == (
        "50 branches add up to 50 times the mean square of their stream: scale each by 0.07071"
    )
    assert one.numbers["sum_stderr"] == pytest.approx(0.1 * math.sqrt(50))


def test_a_block_at_fault_is_scaled_alone() -> None:
    gains = np.zeros(5)
    gains[3] = -4.0
    (one,) = advice_on_blocks(
        {}, kinds=["Linear"] * 5, blocks=list("abcde"), log10_gain=gains, log10_mean_square=-4.0,
        log10_mean_square_stderr=0.01, fault=3, by_chance=False, branches=[],
    )  # fmt: skip
    assert one.sentence == "block d multiplies mean s² by 0.0001: multiply its weights by 100"


def test_silence_where_nothing_is_wrong_or_known() -> None:
    assert blocks(1.01, 20) == ()
    assert blocks(0.8, 10, by_chance=True) == ()
    assert blocks(0.8, 10, kind="LayerNorm, Linear") == ()
    assert blocks(0.5, 4, kind="Tanh") == ()
    assert blocks(0.5, 4, kind="Tanh", fault=2) == ()
    for log10, error in ((0.2, 0.0), (-math.inf, math.nan), (0.5, 0.5)):
        assert advice_on_spectrum({}, log10_mean_square=log10, relative_error=error, log10_s_max=0.4) == ()
    for part in (
        {"part": True},
        {"running_product_of": "net"},
        {"model": "<lambda>"},
        {"model": "Tanh (0 parameters)"},
    ):
        assert advice_on_spectrum(part, log10_mean_square=-9, relative_error=0, log10_s_max=-4) == ()


def test_the_critical_point_and_orthogonal_weights() -> None:
    theory = {
        "sigma_w": 0.9,
        "critical_sigma_w": 1.046,
        "critical_q_star": 0.05,
        "orthogonal_s_max_over_rms": 1.5,
    }
    found = advice_on_spectrum(
        {**MEASURED, "theory": theory},
        log10_mean_square=-4.0,
        relative_error=0.1,
        log10_s_max=-2 + math.log10(40),
    )
    assert [one.sentence for one in found] == [
        "sigma_w is 0.9; critical is 1.046 (q* = 0.05)",
        "mean s² is 0.0001: scale the weights until every block keeps it",
        "s_max / rms is 40 with Gaussian weights; orthogonal ones give 1.5",
    ]
    assert [one.command for one in found] == [
        "isometry.critical_init_(model, x)", TUNED, 'isometry.critical_init_(model, x, weights="delta_orthogonal")',
    ]  # fmt: skip
    # sigma_w below the critical one does not explain growth.
    grown = advice_on_spectrum({"theory": theory}, log10_mean_square=4.0, relative_error=0.1, log10_s_max=2.1)
    assert [one.command for one in grown] == ["isometry.tune_(model, x)"]


def test_what_a_foreign_file_holds_is_quoted_and_no_number_is_believed() -> None:
    hostile = {
        "command": "isometry measure 'x; rm -rf ~' --input '$(id)'",
        "theory": {"sigma_w": "big", "x": []},
    }
    assert tuning_command(hostile) == "isometry tune 'x; rm -rf ~' --input '$(id)' -o tuned.safetensors"
    (one,) = advice_on_spectrum(hostile, log10_mean_square=-9, relative_error=0, log10_s_max=-4)
    assert "sigma_w" not in one.sentence
    for command in (None, 3, "isometry measure 'open", "rm -rf ~ x", "isometry sweep a b"):
        assert tuning_command({"command": command}) == "isometry.tune_(model, x)"


def test_a_bottleneck_is_no_fault_of_the_weights() -> None:
    """Three values of 1 and thirteen zeros: the mean square of those that can pass is 1."""
    numbers = {"log10_mean_square": math.log10(3 / 16), "relative_error": 0.0, "log10_s_max": 0.0}
    assert advice_on_spectrum({}, **numbers, zero_mass=13 / 16) == ()
    assert len(advice_on_spectrum({}, **numbers, zero_mass=0.0)) == 1
