"""A sweep on a Dask cluster of this machine: the same file, and workers that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from sweep_samples import GRID, MEASURED, contents, models

import isometry
from isometry.cli.entry import run
from isometry.sweeps.beside import run_beside
from isometry.sweeps.rows import failures_of, rows_of

distributed = pytest.importorskip("distributed", reason="the extra 'distributed' is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client():
    import dask

    # Three by default: each death costs a new interpreter.
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def test_dask_gives_the_same_file_as_one_process(client, tmp_path):
    isometry.sweep(GRID, tmp_path / "one.h5", workers=1, progress=False)
    with client.get_executor(pure=False) as executor:
        result = isometry.sweep(GRID, tmp_path / "dask.h5", executor=executor, progress=False)
    assert result.finished == 4
    assert contents(tmp_path / "dask.h5") == contents(tmp_path / "one.h5")


def test_the_command_takes_an_address(client, tmp_path, capsys):
    (tmp_path / "grid.toml").write_text('kind = "predict"\n[axes]\ndepth = [1, 2]\n')
    address = client.scheduler.address
    assert run(["sweep", str(tmp_path / "grid.toml"), "-o", str(tmp_path / "a.h5"), "--dask", address]) == 0
    assert "2 points finished" in capsys.readouterr().out


def test_a_worker_killed_in_the_middle_loses_nothing(client, tmp_path):
    killed = []

    def kill_one(done: float, total: float, text: str = "") -> None:
        if done in (3, 20):
            worker = next(iter(client.run(os.getpid).values()))
            os.kill(worker, signal.SIGKILL)
            killed.append(worker)

    with client.get_executor(pure=False) as executor:
        result = isometry.sweep(
            {**GRID, "seeds": 20}, tmp_path / "a.h5", executor=executor, progress=kill_one
        )
    assert len(set(killed)) == 2
    assert (result.finished, result.failures) == (40, {})


def test_points_that_kill_their_process_fail_alone_and_cost_no_worker(client, tmp_path):
    path: Path = tmp_path / "a.h5"
    source = models(tmp_path)
    fine = [{"model": f"{source}:fine", "input": "4", "seed": seed} for seed in range(4)]
    dies = [{"model": f"{source}:dies", "input": "4", "seed": seed} for seed in range(3)]
    before = client.run(os.getpid)
    with client.get_executor(pure=False) as executor:
        result = isometry.sweep([*dies, *fine], path, executor=executor, progress=False)
    assert client.run(os.getpid) == before
    assert (result.finished, len(result.failures)) == (4, 3)
    assert all(":fine" in row.get("model") for row in rows_of(isometry.open_store(path)))
    assert {row.get("error_type") for row in failures_of(isometry.open_store(path))} == {"WorkerDied"}
    for failure in result.failures.values():
        assert "each of the 3 times that it ran (killed by SIGKILL)" in failure.message


def test_a_point_that_takes_too_long_is_ended_there(client, tmp_path):
    source = models(tmp_path)
    points = [{"model": f"{source}:{name}", "input": "4"} for name in ("slow", "fine")]
    with client.get_executor(pure=False) as executor:
        result = isometry.sweep(points, tmp_path / "a.h5", executor=executor, timeout=45, progress=False)
    (failure,) = result.failures.values()
    assert (failure.kind, result.finished) == ("TimeoutError", 1)


def test_processes_beside_a_worker_end_when_they_are_idle_and_with_it(monkeypatch):
    """Here the worker of Dask is this process, or a short one."""
    monkeypatch.setattr("isometry.sweeps.beside._IDLE", 0.5)
    first, again = run_beside(None, os.getpid), run_beside(None, os.getpid)
    assert first == again != os.getpid()
    wait_until_gone(first)
    assert run_beside(None, os.getpid) != first
    script = "import os; from isometry.sweeps.beside import run_beside; print(run_beside(None, os.getpid))"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    wait_until_gone(int(said.stdout))


def wait_until_gone(process: int) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError(f"the process {process} is still there")


def test_a_cluster_without_workers_is_told_within_30_seconds_and_waited_for(tmp_path):
    """As several points leave it that kill their workers until the nannies give up."""
    said = []

    with (
        distributed.LocalCluster(
            n_workers=0, threads_per_worker=1, processes=False, dashboard_address=None, silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as alone,
    ):
        began = time.monotonic()

        def listen(message, *_, **__):
            said.append((time.monotonic() - began, str(message)))
            cluster.scale(1)

        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = listen
            executor = alone.get_executor(pure=False)
            result = isometry.sweep(MEASURED, tmp_path / "a.h5", executor=executor, progress=False)
    (first,) = [entry for entry in said if "the Dask cluster has no worker left: the sweep waits" in entry[1]]
    assert first[0] < 30
    assert (result.finished, result.failures) == (4, {})
