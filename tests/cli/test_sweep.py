"""`isometry sweep` and `isometry table`: streams, exit codes, columns."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

GRID = """
kind = "predict"
[fixed]
q_star = 0.1
[axes]
depth = [2, 4]
init = ["gaussian", "orthogonal"]
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """A file of four predictions and one failure."""
    from concurrent.futures import ThreadPoolExecutor

    from isometry.sweeps import points_of, sweep
    from isometry.sweeps.ledger import Ledger
    from isometry.sweeps.work import Failure, Outcome

    folder = tmp_path_factory.mktemp("swept")
    (folder / "grid.toml").write_text(GRID)
    path = folder / "a.h5"
    with ThreadPoolExecutor(1) as threads:
        sweep(folder / "grid.toml", path, executor=threads, progress=False)
    (point,) = points_of([{"kind": "predict", "depth": 9}])
    Ledger(path).save(point, Outcome(failure=Failure("TheoryError", "no such\npoint"), seconds=1.0))
    return path


def test_a_sweep_is_counted_and_taken_up_again(isometry, swept):
    done = isometry("sweep", swept.parent / "grid.toml", "-o", swept)
    assert done.code == 0
    assert "0 points finished, 4 there before, 0 failed, of 4" in done.out
    done = isometry("sweep", swept.parent / "grid.toml", "-o", swept, "--json")
    assert {key: done.json[key] for key in ("total", "skipped", "finished", "failed")} == {
        "total": 4, "skipped": 4, "finished": 0, "failed": 0,
    }  # fmt: skip


def test_a_dry_run_counts_estimates_and_writes_nothing(isometry, swept, tmp_path):
    grid = tmp_path / "grid.toml"
    grid.write_text('seeds = 3\n[fixed]\nmodel = "mlp"\nwidth = 8\n[axes]\ndepth = [2, 8]\n')
    done = isometry("sweep", grid, "-o", tmp_path / "a.h5", "--dry-run")
    assert done.code == 0
    assert done.out.startswith("6 points, 0 finished, 6 to do\nestimate: ")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["grid.toml"]
    done = isometry("sweep", swept.parent / "grid.toml", "-o", swept, "--dry-run", "--json")
    assert done.json["finished"] == 4
    assert done.json["estimated_seconds"]["all"] == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[fixed]\nmodel = 'mlp'\nwidht = 3", "did you mean width or weights?"),
        ("[fixed", "is not valid TOML"),
        ("[axes]\ndepth = [2]", "model is missing"),
    ],
)
def test_a_wrong_grid_is_a_usage_error(isometry, tmp_path, text, words):
    (tmp_path / "grid.toml").write_text(text)
    done = isometry("sweep", tmp_path / "grid.toml", "-o", tmp_path / "a.h5")
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert not (tmp_path / "a.h5").exists()


def test_failures_are_a_line_each_and_exit_code_1(isometry, tmp_path, monkeypatch):
    """Workers of the command line are processes; what it says of a failure does not depend on that."""
    from concurrent.futures import ThreadPoolExecutor

    from isometry.sweeps.engines import UserExecutor

    asked = []

    def in_a_thread(workers, *_):
        asked.append(workers)
        return UserExecutor(threads)

    threads = ThreadPoolExecutor(1)
    monkeypatch.setattr("isometry.sweeps.engines.Processes", in_a_thread)
    (tmp_path / "bad.py").write_text("def net():\n    raise RuntimeError('broken\\nin two lines')\n")
    (tmp_path / "grid.toml").write_text(f"[fixed]\nmodel = '{tmp_path}/bad.py:net'\ninput = '3'\n")
    done = isometry("sweep", tmp_path / "grid.toml", "-o", tmp_path / "a.h5", "--workers", 1)
    threads.shutdown()
    assert asked == [1]
    assert done.code == 1
    assert "0 points finished, 0 there before, 1 failed, of 1" in done.out
    assert sum("RuntimeError: broken" in line and line.startswith("failed: bad.py:net") for line in
               done.err.splitlines()) == 1  # fmt: skip
    done = isometry("table", tmp_path / "a.h5", "--failed")
    assert "in two lines" not in done.out
    assert "broken" in done.out


def test_a_table_shows_what_differs_and_the_main_numbers(isometry, swept):
    done = isometry("table", swept)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].split()[:3] == ["depth", "init", "s_max"]
    assert len(lines) == 5
    assert "1 points have failed; --failed lists their errors" in done.err


def test_columns_conditions_order_and_csv_with_all_digits(isometry, swept):
    done = isometry(
        "table", swept, "--columns", "depth,s_max", "--where", "init=gaussian", "--where", "depth>1", "--sort",
        "-s_max", "--csv",
    )  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [row["depth"] for row in rows] == ["4", "2"]
    from isometry import open_store
    from isometry.sweeps import points_of

    (point,) = points_of([{"kind": "predict", "depth": 4, "q_star": 0.1, "init": "gaussian"}])
    assert float(rows[0]["s_max"]) == open_store(swept)[point.name].s_max


def test_a_table_as_json(isometry, swept):
    rows = isometry("table", swept, "--json", "--where", "depth=2").json["rows"]
    assert [row["init"] for row in rows] == ["gaussian", "orthogonal"]
    assert rows[0]["mean_square"] == pytest.approx(1.0, rel=1e-6)  # critical: chi = 1
    assert rows[0]["kind"] == "predict"


def test_what_the_configuration_left_open_is_told_by_the_ensemble(isometry, swept):
    from isometry import open_store

    store = open_store(swept)
    done = isometry("table", swept, "--columns", "name,sigma_w", "--csv")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert rows
    for row in rows:
        assert float(row["sigma_w"]) == store[row["name"]].provenance["ensemble"]["sigma_w"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--columns", "depht"], "did you mean depth?"),
        (["--where", "depth~3"], "is no condition"),
        (["--where", "dept=3"], "did you mean depth?"),
        (["--sort", "-smax"], "did you mean s_max"),
        (["--columns", ","], "give column names"),
        (["--csv", "--json"], "one of the two"),
    ],
)
def test_a_wrong_column_is_a_usage_error(isometry, swept, options, words):
    done = isometry("table", swept, *options)
    assert (done.code, done.out) == (2, "")
    assert words in done.err


def test_any_file_of_spectra_is_a_table(isometry, tmp_path):
    for name in ("one", "two"):
        isometry("measure", "mlp:depth=1,width=4,sigma_w=1", "-o", tmp_path / "a.h5", "--name", name)
    done = isometry("table", tmp_path / "a.h5")
    assert [line.split()[0] for line in done.out.splitlines()] == ["name", "one", "two"]
    isometry("table", tmp_path / "absent.h5")


def test_a_picture_and_its_numbers(isometry, swept, tmp_path):
    out = tmp_path / "a.png"
    done = isometry("plot", swept, "--x", "depth", "--y", "s_max", "--hue", "init", "-o", out, "--json")
    assert done.code == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    # Predictions are lines.
    assert [curve["law_x"] for curve in done.json["curves"]] == [[2, 4], [2, 4]]
    assert [curve["x"] for curve in done.json["curves"]] == [[], []]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--x", "depth", "--y", "smax"], 2, "did you mean s_max"),
        (["--x", "depth", "--y", "s_max"], 2, "--hue init"),
        (["--x", "depth", "--y", "s_max", "--where", "depth>99"], 1, "no points to draw"),
        (["--x", "depth", "--y", "s_max", "--hue", "init", "--out", "a.bmp"], 1, ".png, .svg or .pdf"),
    ],
)
def test_a_picture_that_can_not_be_drawn_is_explained(isometry, swept, tmp_path, options, code, words):
    done = isometry("plot", swept, "-o", tmp_path / "a.png", *options)
    assert done.code == code
    assert words in done.err
    assert not (tmp_path / "a.png").exists()
