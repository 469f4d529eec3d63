"""Grids larger than meant: counted before they are made, in little memory, and many points planned in seconds."""

from __future__ import annotations

import itertools
import math
import time
import tracemalloc

import numpy as np
import pytest

import isometry
from isometry.cli.entry import run
from isometry.errors import IsometryError, SpecError
from isometry.sweeps import points_of
from isometry.sweeps.estimate import estimate
from isometry.sweeps.grid import Plan

MLP = {"model": "mlp", "width": 4}
RANGE = {"from": 0.5, "to": 2.0, "count": 10**9}


@pytest.mark.parametrize(
    ("grid", "count"),
    [
        ({"fixed": MLP, "axes": {"sigma_w": RANGE}}, "1,000,000,000"),
        ({"fixed": MLP, "axes": {"sigma_w": {**RANGE, "spacing": "log"}}}, "1,000,000,000"),
        ({"fixed": MLP, "seeds": 10**9}, "1,000,000,000"),
        ({"fixed": MLP, "seeds": 10**30}, "about 1e30"),
        ({"fixed": MLP, "seeds": 10**5000}, "about 1e5000"),
        ({"fixed": MLP, "zip": [{"sigma_w": RANGE, "q_star": RANGE}]}, "1,000,000,000"),
        (
            {"fixed": MLP, "axes": {"depth": list(range(1, 1001)), "sigma_w": {**RANGE, "count": 1000}}, "seeds": 2},
            "2,000,000",
        ),
        ({"fixed": MLP, "axes": {key: [1, 2] for key in ("depth", *map(str, range(200)))}}, "about 1e60"),
        ({"fixed": MLP, "axes": {"depth": itertools.count(1)}}, "10,001"),
        ({"fixed": MLP, "seeds": itertools.count()}, "10,001"),
        (({**MLP, "seed": seed} for seed in itertools.count()), "more than 10,000"),
    ],
    ids=["range", "log range", "seeds", "many seeds", "seeds beyond text", "zip", "product", "axes", "endless axis",
         "endless seeds", "endless list"],
)  # fmt: skip
def test_a_grid_of_too_many_points_is_counted_and_refused_in_little_memory(grid, count):
    tracemalloc.start()
    began = time.monotonic()
    with pytest.raises(SpecError, match=r"max_points= \(--max-points\) allows more") as refusal:
        points_of(grid, max_points=10_000 if "10,00" in count else 1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count in str(refusal.value)
    assert len(str(refusal.value)) < 400
    assert peak < 20e6
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "grid",
    [
        {"fixed": MLP, "axes": {"sigma_w": {"from": math.nan, "to": 2.0, "count": 3}}},
        {"fixed": MLP, "axes": {"sigma_w": {"from": 0.5, "to": math.inf, "count": 3}}},
        {"fixed": MLP, "axes": {"sigma_w": {"from": -1e308, "to": 1e308, "count": 3}}},
        {"fixed": MLP, "axes": {"sigma_w": {"from": 0.5, "to": 10**400, "count": 3}}},
        {"fixed": MLP, "axes": {"sigma_w": {"from": 0.5, "to": 2.0, "step": 1e-300}}},
        {"fixed": MLP, "axes": {"sigma_w": {"from": 0.5, "to": 2.0, "count": 1e300}}},
        {"fixed": MLP, "axes": {"sigma_w": [10**400]}},
        {"fixed": MLP, "axes": {"depth": [[1, 2], [3]]}},
        {"fixed": MLP, "axes": {"depth": np.ones((2, 2))}},
        {"fixed": {**MLP, "width": list(range(10**6))}},
        {"fixed": MLP, "seeds": "1e9"},
        {"fixed": MLP, "seeds": math.nan},
        {"fixed": MLP, "seeds": [[0]]},
    ],
)  # fmt: skip
def test_what_is_no_number_of_an_axis_is_refused_in_few_words(grid):
    with pytest.raises(SpecError) as refusal:
        points_of(grid)
    assert len(str(refusal.value)) < 1000


def test_values_nested_a_hundred_thousand_deep_are_refused():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for grid in ({"fixed": MLP, "axes": {"depth": [deep]}}, {"fixed": {**MLP, "width": deep}}, [{"model": deep}],
                 {"fixed": MLP, "seeds": [deep]}, {"fixed": MLP, "axes": {"sigma_w": {"from": deep}}}):  # fmt: skip
        with pytest.raises(IsometryError):
            points_of(grid)


def test_deep_toml_is_refused(tmp_path):
    for text in ("x = " + "[" * 10**5, ".".join("a" * 10**4) + " = 1", "[" + ".".join("a" * 10**4) + "]"):
        (tmp_path / "grid.toml").write_text(text)
        with pytest.raises(SpecError):
            points_of(tmp_path / "grid.toml")


def test_max_points_allows_more_or_fewer(tmp_path, capsys):
    grid = {"fixed": MLP, "seeds": 3}
    with pytest.raises(SpecError, match="3 points, more than 2"):
        points_of(grid, max_points=2)
    assert len(points_of(grid, max_points=3)) == 3
    with pytest.raises(SpecError, match="3 points, more than 2"):
        isometry.sweep(grid, tmp_path / "a.h5", max_points=2)
    assert not list(tmp_path.iterdir())
    (tmp_path / "grid.toml").write_text('seeds = 1_000_000_000\n[fixed]\nmodel = "mlp"\n')
    for more in (["--dry-run"], []):
        code = run(["sweep", str(tmp_path / "grid.toml"), "-o", str(tmp_path / "a.h5"), *more])
        assert code == 2
        assert "1,000,000,000 points" in capsys.readouterr().err
    assert run(["sweep", str(tmp_path / "grid.toml"), "-o", str(tmp_path / "a.h5"), "--max-points", "7"]) == 2
    assert "more than 7" in capsys.readouterr().err


def test_points_are_made_one_by_one():
    tracemalloc.start()
    points = iter(Plan({"fixed": MLP, "axes": {"depth": range(1, 1001)}, "seeds": 1000}))
    assert next(points).values["seed"] == 0
    assert next(points).values["seed"] == 1
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.slow
def test_a_hundred_thousand_points_are_planned_in_seconds(tmp_path):
    """Counted, checked and estimated; nothing is computed but the two that are timed."""
    grid = {"fixed": MLP, "axes": {"depth": list(range(1, 101))}, "seeds": 1000}
    began = time.monotonic()
    assert sum(1 for _ in Plan(grid)) == 100_000
    planned = time.monotonic() - began
    found = estimate(grid, tmp_path / "a.h5", workers=1)
    both = time.monotonic() - began
    print(f"100,000 points: planned in {planned:.1f} s, planned and estimated in {both:.1f} s")
    assert found.total == 100_000
    assert planned < 20
    assert both < 60
