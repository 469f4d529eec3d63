"""A sweep: what lands in the file, on which engine, the second time, and when points fail."""

from __future__ import annotations

import multiprocessing
import shutil
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from sweep_samples import GRID, MEASURED, contents, models, of_models

import isometry
from isometry.errors import InputError, SpecError, StoreError, SweepError
from isometry.sweeps import points_of
from isometry.sweeps.ledger import coordinating
from isometry.sweeps.rows import failures_of, rows_of


class AtOnce(Executor):
    """Computes while it is asked: the plainest executor there is; counts what it was given."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def submit(self, fn, /, *args, **kwargs):
        future: Future = Future()
        self.calls.append(args[0].name)
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Path:
    """The file of GRID, from one process."""
    path = tmp_path_factory.mktemp("one") / "a.h5"
    result = isometry.sweep(GRID, path, workers=1, progress=False)
    assert (result.total, result.finished, result.skipped, result.failures) == (4, 4, 0, {})
    return path


def test_the_file_holds_what_measure_and_compare_give(one_process):
    store = isometry.open_store(one_process)
    assert store.validate() == []
    for point in points_of(GRID):
        spectrum = store[point.name]
        depth, seed = point.values["depth"], point.values["seed"]
        from isometry.loading import load_input, load_model

        model = load_model(
            f"mlp:depth={depth},width=6,activation=linear,sigma_w=1.0,init=gaussian,seed={seed}"
        )
        x = load_input(None, model, count=None, seed=seed).tensor
        # By dense linear algebra: J of a linear network is the product of its weights.
        matrix = np.linalg.multi_dot(
            [np.eye(6), *(layer.weight.detach().double().numpy() for layer in reversed(model.module.trunk))]
        )
        assert spectrum.s_max == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-5)  # weights are float32
        assert spectrum.mean_square == pytest.approx(np.sum(matrix**2) / 6, rel=1e-5)
        assert x.shape == (1, 6)
        assert spectrum.provenance["sweep"] == point.record()
        assert spectrum.provenance["sweep"]["key"] == point.key
        law = store[spectrum.provenance["theory"]]
        assert law.mean_square == pytest.approx(1.0, rel=1e-6)  # sigma_w = 1 and slopes of 1
        again = isometry.compare(spectrum, law)
        assert spectrum.provenance["comparison"]["raw"]["ks"] == pytest.approx(again.raw.ks)


def test_a_law_is_stored_once_for_all_seeds(tmp_path):
    """At inputs of stationary variance the ensemble does not depend on the seed."""
    fixed = {"model": "mlp", "width": 6, "q_star": 0.1}
    grid = {"kind": "compare", "seeds": 2, "fixed": fixed, "axes": {"depth": [1, 2]}}
    isometry.sweep(grid, tmp_path / "a.h5", executor=AtOnce(), progress=False)
    names = isometry.open_store(tmp_path / "a.h5").names()
    assert sum(name.startswith("theory tanh") for name in names) == 2
    assert len(names) == 4 + 2


def test_other_engines_give_the_same_file(one_process, tmp_path):
    wanted = contents(one_process)
    with ThreadPoolExecutor(3) as threads:
        isometry.sweep(GRID, tmp_path / "threads.h5", executor=threads, progress=False)
    assert contents(tmp_path / "threads.h5") == wanted
    backwards = [{"kind": "compare", **point.values} for point in reversed(points_of(GRID))]
    isometry.sweep(backwards, tmp_path / "backwards.h5", executor=AtOnce(), progress=False)
    assert contents(tmp_path / "backwards.h5") == wanted
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_four_processes_give_the_same_file(one_process, tmp_path):
    isometry.sweep(GRID, tmp_path / "four.h5", workers=4, progress=False)
    assert contents(tmp_path / "four.h5") == contents(one_process)


def test_the_contents_test_can_fail(one_process, tmp_path):
    shutil.copyfile(one_process, tmp_path / "a.h5")
    wanted = contents(one_process)
    assert contents(tmp_path / "a.h5") == wanted
    name = next(key for key in wanted if key.endswith("nodes"))
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file[name][0, 0, -1] *= 1 + 1e-15
    found = contents(tmp_path / "a.h5")
    assert [key for key in wanted if found[key] != wanted[key]] == [name]


def test_the_second_time_nothing_is_computed_and_a_larger_grid_adds_to_it(tmp_path):
    path = tmp_path / "a.h5"
    first, second, third = AtOnce(), AtOnce(), AtOnce()
    isometry.sweep(MEASURED, path, executor=first, progress=False)
    before = path.read_bytes()
    result = isometry.sweep(MEASURED, path, executor=second, progress=False)
    assert (result.finished, result.skipped, second.calls) == (0, 4, [])
    assert path.read_bytes() == before
    larger = {**MEASURED, "seeds": 3}
    result = isometry.sweep(larger, path, executor=third, progress=False)
    assert (result.finished, result.skipped) == (2, 4)
    assert not set(third.calls) & set(first.calls)


def test_a_point_that_fails_is_kept_with_its_error_and_tried_again(tmp_path):
    source = models(tmp_path)
    path, told = tmp_path / "a.h5", []
    grid = of_models(source, "fine", "fails", "when_allowed")

    def go():
        return isometry.sweep(
            grid,
            path,
            executor=AtOnce(),
            progress=False,
            on_failure=lambda point, failure: told.append(failure.line),
        )

    result = go()
    assert (result.finished, len(result.failures)) == (1, 2)
    assert any(line.endswith("raised RuntimeError: no such network") for line in told)
    store = isometry.open_store(path)
    assert store.validate() == []
    assert [row.get("attempts") for row in failures_of(store)] == [1, 1]
    assert {row.get("error_type") for row in failures_of(store)} == {"LoadError"}
    assert "models.py" in store.series(store.series_names()[0]).attributes["traceback"]
    (tmp_path / "allowed").touch()
    result = go()
    assert (result.finished, result.skipped, len(result.failures)) == (1, 1, 1)
    (row,) = failures_of(store)
    assert row.get("attempts") == 2
    assert row.settings["model"].endswith(":fails")
    assert len(rows_of(store)) == 2
    assert store.validate() == []


def test_what_a_kill_leaves_half_done_is_done_again(tmp_path):
    """A law without its measurement, training curves without their evaluations, a failure beside a success."""
    path = tmp_path / "a.h5"
    isometry.sweep(GRID, path, executor=AtOnce(), progress=False)
    store = isometry.open_store(path, "a")
    wanted = contents(path)
    for point in points_of(GRID)[:2]:
        store.remove(point.name)
    assert isometry.sweep(GRID, path, executor=AtOnce(), progress=False).finished == 2
    assert contents(path) == wanted
    training = {"kind": "train", "fixed": {"depth": 1, "channels": 2, "steps": 2, "batch": 4, "limit": 8}}
    assert isometry.sweep(training, path, executor=AtOnce(), progress=False).finished == 1
    (name,) = (point.name for point in points_of(training))
    store.remove_series(f"{name} evaluation")
    assert isometry.sweep(training, path, executor=AtOnce(), progress=False).finished == 1
    assert isometry.sweep(training, path, executor=AtOnce(), progress=False).skipped == 1


def test_every_kind_of_point(tmp_path):
    path = tmp_path / "a.h5"
    network = {"model": "mlp", "width": 6, "depth": 2, "q_star": 0.1, "init": "gaussian"}
    grid = [
        {"kind": "measure", **network, "method": "lanczos", "probes": 2, "steps": 3, "inputs": 2},
        {"kind": "compare", **network, "theory": "layers"},
        {"kind": "predict", "depth": 2, "q_star": 0.1, "init": "gaussian"},
        {"kind": "predict", "model": "resnet", "depth": 4, "activation": "tanh"},
        {"kind": "measure", "model": "torch.nn:Identity", "input": "3", "dtype": "float64"},
        {"kind": "train", "depth": 1, "channels": 2, "steps": 2, "batch": 4, "limit": 8, "spectrum_every": 1},
    ]
    result = isometry.sweep(grid, path, executor=AtOnce(), progress=False)
    assert result.failures == {}
    store = isometry.open_store(path)
    assert store.validate() == []
    measured, compared, predicted, residual, identity, trained = (
        store_point.name for store_point in points_of(grid)
    )
    assert store.info(measured)["inputs"] == 2
    assert store[compared].provenance["theory"] == f"{compared} layers"
    # The prediction is that of the ensemble which the measured network is a draw from.
    assert store[predicted].provenance["ensemble"] == store[measured].provenance["ensemble"]
    assert store[residual].provenance["ensemble"]["residual"] == pytest.approx(0.5)  # 1 / sqrt(4)
    assert store[identity].s_max == store[identity].s_min == 1.0
    assert len(store.series(trained)) == 2
    assert {f"{trained} step {step}" for step in (0, 1, 2)} <= set(store.names())
    kinds = [row.kind for row in rows_of(store)]
    assert sorted(kinds) == sorted(entry["kind"] for entry in grid)


def test_weights_are_an_axis(tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    for scale in (1, 2):
        torch.save({"weight": scale * torch.eye(3), "bias": torch.zeros(3)}, f"step{scale}.pt")
    Path("net.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(3, 3)\n")
    grid = {
        "fixed": {"model": "net.py:build", "input": "3"},
        "axes": {"weights": ["step1.pt", "step2.pt"]},
    }
    isometry.sweep(grid, "a.h5", executor=AtOnce(), progress=False)
    rows = rows_of(isometry.open_store("a.h5"))
    assert [(row.get("weights"), row.get("s_max")) for row in rows] == [("step1.pt", 1.0), ("step2.pt", 2.0)]


def test_warnings_of_a_measurement_are_kept_with_it(tmp_path):
    grid = [
        {"model": "mlp", "width": 8, "depth": 2, "method": "lanczos", "probes": 1, "steps": 1, "tol": 1e-9}
    ]
    isometry.sweep(grid, tmp_path / "a.h5", executor=AtOnce(), progress=False)
    store = isometry.open_store(tmp_path / "a.h5")
    (name,) = store.names()
    assert any("above tol" in text for text in store[name].provenance["warnings"])


def test_progress_counts_what_is_to_do(tmp_path):
    told = []
    path = tmp_path / "a.h5"
    isometry.sweep(MEASURED, path, executor=AtOnce(), progress=lambda *entry: told.append(entry[:2]))
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_second_sweep_is_told_and_changes_nothing(tmp_path):
    path = tmp_path / "a.h5"
    isometry.sweep(MEASURED, path, executor=AtOnce(), progress=False)
    before = path.read_bytes()
    began, end = threading.Event(), threading.Event()

    def first() -> None:
        with coordinating(path):
            began.set()
            end.wait(60)

    holder = threading.Thread(target=first)
    holder.start()
    began.wait(60)
    try:
        with pytest.raises(SweepError, match=r"another sweep is writing to .*process \d+ on"):
            isometry.sweep({**MEASURED, "seeds": 3}, path, executor=AtOnce(), progress=False)
        # Others may still store and read.
        isometry.open_store(path, "a").add(isometry.Spectrum.from_singular_values([1.0]), name="by hand")
    finally:
        end.set()
        holder.join()
    assert path.read_bytes()[: len(before)] != b""
    assert isometry.sweep({**MEASURED, "seeds": 3}, path, executor=AtOnce(), progress=False).finished == 2
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.h5"]


def test_what_can_not_begin_says_why(tmp_path):
    with pytest.raises(StoreError, match="there is no folder"):
        isometry.sweep(MEASURED, tmp_path / "absent" / "a.h5", executor=AtOnce())
    (tmp_path / "other.h5").write_text("not HDF5")
    with pytest.raises(StoreError, match="not an HDF5 file"):
        isometry.sweep(MEASURED, tmp_path / "other.h5", executor=AtOnce())
    with pytest.raises(InputError, match="workers is a whole number"):
        isometry.sweep(MEASURED, tmp_path / "a.h5", workers=0)
    with pytest.raises(InputError, match="an executor has its own"):
        isometry.sweep(MEASURED, tmp_path / "a.h5", workers=2, executor=AtOnce())
    with pytest.raises(SpecError):
        isometry.sweep({"fixed": {"model": "mlp", "width": "wide"}}, tmp_path / "a.h5")
    assert not (tmp_path / "a.h5").exists()


def test_a_result_that_can_not_be_sent_is_a_failure_of_its_point(tmp_path):
    class Loses(AtOnce):
        def submit(self, fn, /, *args, **kwargs):
            future = super().submit(fn, *args, **kwargs)
            if len(self.calls) == 2:
                future = Future()
                future.set_exception(TypeError("cannot pickle that"))
            return future

    result = isometry.sweep(MEASURED, tmp_path / "a.h5", executor=Loses(), progress=False)
    assert (result.finished, len(result.failures)) == (3, 1)
    (failure,) = result.failures.values()
    assert failure.line == "TypeError: cannot pickle that"


def test_an_executor_that_was_closed_ends_the_sweep_and_keeps_what_is_done(tmp_path):
    class Closes(AtOnce):
        def submit(self, fn, /, *args, **kwargs):
            if len(self.calls) == 2:
                raise RuntimeError("cannot schedule new futures after shutdown")
            return super().submit(fn, *args, **kwargs)

    with pytest.raises(SweepError, match="takes no more work"):
        isometry.sweep(MEASURED, tmp_path / "a.h5", executor=Closes(), progress=False)
    assert isometry.sweep(MEASURED, tmp_path / "a.h5", executor=AtOnce(), progress=False).total == 4


def test_a_measurement_to_a_tolerance_is_a_point_like_others(tmp_path):
    fixed = {"model": "mlp", "width": 64, "depth": 2, "method": "lanczos", "probe": "rademacher", "steps": 8}
    grid = {"fixed": fixed, "axes": {"rtol": [0.2, 0.05]}}
    isometry.sweep(grid, tmp_path / "a.h5", executor=AtOnce(), progress=False)
    coarse, fine = (isometry.open_store(tmp_path / "a.h5")[point.name] for point in points_of(grid))
    assert coarse.n_probes < fine.n_probes
    with pytest.raises(SpecError, match="budget is a whole number"):
        points_of({"fixed": {**fixed, "budget": "60s"}})


def test_a_result_that_can_not_be_stored_ends_the_sweep_and_keeps_what_is_done(tmp_path, monkeypatch):
    """As on a full disk; test_kills.py fills one really."""
    from isometry.store import journal

    path, write = tmp_path / "a.h5", journal._write_at

    def full(file, offset, data):
        if path.stat().st_size > 35_000:
            raise OSError(28, "No space left on device")
        write(file, offset, data)

    with monkeypatch.context() as patch:
        patch.setattr(journal, "_write_at", full)
        with pytest.raises(SweepError, match=r"could not be stored: .* no room left"):
            isometry.sweep(MEASURED, path, executor=AtOnce(), progress=False)
    store = isometry.open_store(path)
    done = len(rows_of(store))
    assert 0 < done < 4
    assert store.validate() == []
    assert isometry.sweep(MEASURED, path, executor=AtOnce(), progress=False).skipped == done


def test_a_part_of_a_measurement_is_no_finished_point(tmp_path):
    path = tmp_path / "a.h5"
    isometry.sweep(MEASURED, path, executor=AtOnce(), progress=False)
    store = isometry.open_store(path, "a")
    whole = store[store.names()[0]]
    stopped = {"reason": "interrupted", "inputs": "1 of 1"}
    store.add(replace(whole, provenance={**whole.provenance, "stopped": stopped}), overwrite=True)
    assert store.partial_names() == {whole.name}
    assert isometry.sweep(MEASURED, path, executor=AtOnce(), progress=False).finished == 1
    assert store.partial_names() == set()
    assert isometry.sweep(MEASURED, path, executor=AtOnce(), progress=False).finished == 0
