"""Models of several inputs at the points of a sweep: as `measure` takes them, and each a point of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isometry
from isometry.errors import SpecError
from isometry.sweeps import points_of
from isometry.sweeps.estimate import estimate
from isometry.sweeps.picture import picture_of
from isometry.sweeps.rows import rows_of, select

MODELS = '''
import torch
from torch import nn

class Scaled(nn.Module):
    """x times a diagonal that depends on the time, plus a part of y."""
    def forward(self, x, y=None, *, time=1.0):
        scale = torch.arange(1.0, 5.0, dtype=x.dtype) * time
        return scale * x + (0 if y is None else 10 * y)

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)
    def forward(self, input_ids):
        return self.head(self.embedding(input_ids))
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "several.py"
    path.write_text(MODELS)
    return path


def swept(grid: dict[str, Any], path: Path) -> list[Any]:
    with ThreadPoolExecutor(1) as threads:
        result = isometry.sweep(grid, path, executor=threads, progress=False)
    assert result.failures == {}
    return rows_of(isometry.open_store(path))


def test_arguments_are_an_axis(file: Path, tmp_path: Path) -> None:
    grid = {
        "fixed": {"model": f"{file}:Scaled", "input": "4", "batch_axis": False},
        "axes": {"args": ["time=1", ["time=3", "1=4"]], "wrt": ["0", "1"]},
    }
    with pytest.raises(SpecError, match="wrt"):
        points_of({**grid, "axes": {"wrt": [3]}})
    grid["axes"]["wrt"] = ["0"]
    rows = swept(grid, tmp_path / "a.h5")
    assert sorted(row.numbers["s_max"] for row in rows) == pytest.approx([4, 12])
    store = isometry.open_store(tmp_path / "a.h5")
    with_both = next(store[name] for name in store.names() if "time=3" in name)
    assert with_both.provenance["sweep"]["configuration"]["args"] == ["1=4", "time=3"]


def test_j_of_another_input(file: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.ones((1, 4), dtype=np.float32))
    grid = {"model": f"{file}:Scaled", "input": "4", "args": f"y={tmp_path / 'y.npy'}", "wrt": "y"}
    (point,) = points_of([grid])
    assert "args y" in point.files
    (row,) = swept([grid], tmp_path / "a.h5")
    assert row.numbers["s_max"] == pytest.approx(10)
    np.save(tmp_path / "y.npy", np.zeros((1, 4), dtype=np.float32))
    assert points_of([grid])[0].key != point.key


def test_a_table_and_a_plot_have_them_as_text(file: Path, tmp_path: Path) -> None:
    grid = {
        "seeds": 2,
        "fixed": {"model": f"{file}:Scaled", "input": "4", "batch_axis": False},
        "axes": {"args": ["time=1", ["time=3", "y=4"]]},
    }
    rows = swept(grid, tmp_path / "a.h5")
    assert {row.settings["args"] for row in rows} == {"time=1", "time=3, y=4"}
    assert [row.numbers["s_max"] for row in select(rows, ["args=time=3, y=4"])] == pytest.approx([12, 12])
    store = isometry.open_store(tmp_path / "a.h5")
    assert len(picture_of(rows, store, "seed", "s_max", hue="args").curves) == 2


def test_results_of_a_changed_file_among_them_are_told_apart(file: Path, tmp_path: Path) -> None:
    place, ids = tmp_path / "y.npy", tmp_path / "ids.npy"
    of_file = {"model": f"{file}:Scaled", "input": "4", "args": f"y={place}", "wrt": "0"}
    of_ids = {"model": f"{file}:Words", "input_ids": str(ids), "source": "head"}
    for content in (1, 2):
        np.save(place, np.full((1, 4), content, dtype=np.float32))
        np.save(ids, np.full((1, 3), content))
        rows = swept([of_file, of_ids], tmp_path / "a.h5")
    versions = [(row.get("args_version"), row.get("input_ids_version")) for row in rows]
    assert set(versions) == {(1, None), (2, None), (None, 1), (None, 2)}


def test_token_numbers(file: Path, tmp_path: Path) -> None:
    grid = {"model": f"{file}:Words", "input_ids": 5, "source": "head"}
    (row,) = swept([grid], tmp_path / "a.h5")
    assert row.numbers["s_max"] > 0
    assert estimate([grid], tmp_path / "b.h5", workers=1).seconds >= 0


@pytest.mark.parametrize(
    ("args", "words"), [("time", "NAME=VALUE"), (["time=1", "time=2"], "differ in name"), (3, "NAME=VALUE")]
)
def test_wrong_arguments(file: Path, args: object, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        points_of([{"model": f"{file}:Scaled", "input": "4", "args": args}])
