"""lanczos: what its probes see, what it admits it cannot see, and its options."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from isometry.errors import InputError
from isometry.estimators import exact, lanczos, measure_probes
from isometry.estimators.blocks import ShortSide, random_block
from isometry.jacobian import MatrixOperator


@pytest.mark.parametrize(
    "s",
    [np.linspace(0.1, 2.0, 60), np.logspace(0, -5, 60), np.repeat([1.5, 1.0, 0.2], 20), np.logspace(0, -12, 60)],
    ids=["spread", "five decades", "repeated", "twelve decades"],
)  # fmt: skip
@pytest.mark.parametrize("steps", [2, 5, 15])
def test_bounds_contain_the_cdf_of_the_very_probes(s: np.ndarray, steps: int, known) -> None:
    """Rigorous, no statistics: the measure of a probe is sum_i (v . v_i)^2 at s_i."""
    truth = known(s)
    operator = MatrixOperator(truth.a)
    spectrum = lanczos(operator, probes=4, steps=steps, seed=5)
    mass = ((random_block(4, ShortSide(operator), 5)[:, 0] @ truth.v) ** 2).mean(0).numpy()
    points = np.geomspace(1e-14, 3, 201)
    # Off the values themselves by more than rounding can move a node.
    points = points[np.abs(points[:, None] - truth.chosen).min(axis=1) > 1e-13]
    cdf = (truth.chosen <= points[:, None]) @ mass
    lower, upper = spectrum.cdf_bounds(points)
    assert np.all(lower <= cdf + 1e-12)
    assert np.all(cdf <= upper + 1e-12)
    # The width of the bounds is at most three masses; with more steps masses become small.
    assert float((upper - lower).max()) <= 3 * float(spectrum.distribution.weights.max()) + 1e-12


def test_the_floor_is_s_max_over_steps_until_the_space_closes(known) -> None:
    operator = MatrixOperator(known(np.linspace(0.01, 2.0, 60)).a)
    spectrum = lanczos(operator, probes=4, steps=20)
    assert spectrum.floor == spectrum.s_max / 20
    assert spectrum.provenance["steps"] == 20
    # 3 of the 60 values lie below 0.1. The quadrature knows that mass to one node and its neighbours, the probes
    # to sqrt(2 * 0.05 * 0.95 / 60 / 4) = 0.02.
    lower, upper = spectrum.cdf_bounds(spectrum.floor)
    assert lower - 0.06 <= 0.05 <= upper + 0.06
    assert 0 < spectrum.below_floor < 0.15
    assert math.isnan(spectrum.s_min)
    assert math.isnan(spectrum.condition_number)
    assert spectrum.s_min_bound >= 0.01
    whole = lanczos(operator, probes=4, steps=60)
    assert whole.floor < 1e-13
    assert whole.s_min == pytest.approx(0.01, abs=1e-12)
    assert whole.condition_number == pytest.approx(200.0, rel=1e-9)


def test_twelve_decades_are_not_invented(known) -> None:
    """Four of thirteen values lie above s_max / 30; the rest is one mass below the floor, in both precisions."""
    s = np.repeat(np.logspace(0, -12, 13), 8)
    for dtype in (torch.float32, torch.float64):
        operator = MatrixOperator(known(s, dtype=dtype).a)
        spectrum = lanczos(operator, probes=16, steps=8)
        assert spectrum.floor >= spectrum.s_max / 8
        assert spectrum.support[0] > spectrum.floor
        share = float(np.mean(s > spectrum.floor))
        # 16 probes in 104 dimensions: the mass has a standard deviation of sqrt(2 p (1 - p) / 104 / 16) = 0.01.
        assert 1 - spectrum.below_floor == pytest.approx(share, abs=0.05)
        # The dense method sees down to rounding of its products, and no further.
        dense = exact(operator)
        eps = torch.finfo(dtype).eps
        assert dense.floor == pytest.approx(8 * eps, rel=1e-3)
        assert dense.below_floor == pytest.approx(float(np.mean(s <= 8 * eps)), abs=1e-12)
        # In float64 everything is above the floor; the last value is known to 8 units of rounding beside 1e-12.
        wanted = math.inf if dtype == torch.float32 else 1e12
        assert dense.condition_number == pytest.approx(wanted, rel=2e-3)


def test_a_space_that_closed_on_a_large_value_does_not_vouch_for_small_ones() -> None:
    """One value of 1e5 above a Gaussian bulk in float32: the recurrence stops at rounding of 1e5 = beta of the bulk.

    What it saw of the bulk is one node; the bulk must not be reported as a resolved value.
    """
    generator = torch.Generator().manual_seed(0)
    n = 400
    bulk = torch.randn(n, n, generator=generator) / math.sqrt(n)
    u, v = (torch.nn.functional.normalize(torch.randn(n, generator=generator), dim=0) for _ in range(2))
    spectrum = lanczos(MatrixOperator(bulk + 1e5 * torch.outer(u, v)), probes=4, steps=30)
    assert spectrum.s_max == pytest.approx(1e5, rel=1e-3)
    if spectrum.provenance["steps"] < 30:
        # It closed: the bulk, up to s = 2, is below the floor, with the mass of all but one direction.
        assert spectrum.floor > 2
        assert spectrum.below_floor > 0.9
    lower, upper = spectrum.cdf_bounds(1.0)
    truth = float((torch.linalg.svdvals(bulk.double()) <= 1).double().mean())
    assert lower <= truth <= upper


def test_an_isometry_takes_two_products_a_probe_and_has_no_error(known) -> None:
    for dtype in (torch.float32, torch.float64):
        spectrum = lanczos(MatrixOperator(known(np.full(50, 2.0), (50, 70), dtype).a))
        eps = torch.finfo(dtype).eps
        assert spectrum.products == 2 * 16
        assert spectrum.mean_square == pytest.approx(4.0, rel=20 * eps)
        assert spectrum.mean_square_stderr <= 20 * eps
        assert spectrum.isometry(2 * (1 - 20 * eps), 2 * (1 + 20 * eps)) == 1.0
        assert spectrum.s_min == pytest.approx(2.0, rel=20 * eps)
        assert spectrum.condition_number == pytest.approx(1.0, rel=20 * eps)
        assert spectrum.below_floor == 0


def test_top_values_are_distinct_and_as_many_as_were_found(known) -> None:
    truth = known(np.concatenate([[3.0, 2.9], np.linspace(0.1, 2.0, 48)]))
    spectrum = lanczos(MatrixOperator(truth.a), probes=3, steps=30, top=4)
    assert spectrum.extremes.top.shape == (1, 4)
    assert spectrum.extremes.top[0, :2] == pytest.approx([3.0, 2.9], abs=1e-8)
    assert np.all(spectrum.extremes.top_residual[0, :2] < 1e-4)
    few = lanczos(MatrixOperator(known(np.repeat([2.0, 1.0], 10)).a), top=4)
    assert few.extremes.top[0] == pytest.approx([2.0, 1.0], abs=1e-12)
    assert [round(value["s"], 9) for value in few.to_dict()["top"]] == [2.0, 1.0]


def test_errors_shrink_with_the_probes(known) -> None:
    """Sixteen times the probes: a quarter of the standard error, known itself to 1 / sqrt(2 * 15) = 18 %."""
    operator = MatrixOperator(known(np.linspace(0.1, 2.0, 60)).a)
    few, many = (lanczos(operator, probes=k, steps=3).mean_square_stderr for k in (16, 256))
    assert few / many == pytest.approx(4.0, rel=0.6)
    # Dirichlet(1/2) masses: Var = 2 (E[s^4] - E[s^2]^2) / (d + 2) for one probe.
    squares = np.linspace(0.1, 2.0, 60) ** 2
    assert many == pytest.approx(math.sqrt(2 * squares.var() / 62 / 256), rel=0.2)


@pytest.mark.parametrize("option", ["probes", "steps", "top"])
def test_options_that_make_no_sense(option: str, known) -> None:
    with pytest.raises(InputError, match="got 0"):
        lanczos(MatrixOperator(known(np.ones(4)).a), **{option: 0})


def test_an_operator_without_a_side_has_no_singular_values() -> None:
    class Empty:
        shape = (0, 3)

    with pytest.raises(InputError, match="0 x 3 has no singular values"):
        lanczos(Empty())


def test_probes_that_do_not_fit_together_go_in_groups(known, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same probes, the same measure; at no time are there more bases than the limit holds."""
    import importlib

    module = importlib.import_module("isometry.estimators.lanczos")
    operator, blocks = MatrixOperator(known(np.linspace(0.1, 2.0, 30), (30, 50)).a), []

    def watched(operator, inputs, probes, **options):
        blocks.append(probes)
        return measure_probes(operator, inputs, probes, **options)

    monkeypatch.setattr(module, "measure_probes", watched)
    # 4 steps of 30 + 50 numbers of 8 bytes each: the limit holds two probes.
    seen: list[tuple[int, int]] = []
    options = {"probes": 5, "steps": 4, "seed": 3}
    grouped = lanczos(
        operator,
        memory_limit=2 * 4 * 80 * 8 + 7,
        progress=lambda done, total: seen.append((done, total)),
        **options,
    )
    assert blocks == [range(2), range(2, 4), range(4, 5)]
    assert seen[-1] == (12, 12)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    whole = lanczos(operator, **options)
    assert blocks[3:] == [range(5)]
    assert grouped.products == whole.products
    for name in ("nodes", "weights"):
        one, other = getattr(grouped.distribution, name), getattr(whole.distribution, name)
        assert one == pytest.approx(other, abs=1e-13)
    assert grouped.s_max_residual == pytest.approx(whole.s_max_residual, abs=1e-13)
    # One probe at a time is the least there is; groups may close after different numbers of steps.
    isometry, one = MatrixOperator(known(np.ones(6)).a), 6 * 12 * 8
    assert lanczos(isometry, probes=3, memory_limit=one).s_min == pytest.approx(1.0, abs=1e-12)
    with pytest.raises(InputError, match=r"of a single probe take 5\.76e-07 GB, more than memory_limit"):
        lanczos(isometry, probes=3, memory_limit=one - 1)
