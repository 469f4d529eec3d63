"""A sweep on a Dask cluster of this machine: the same file, and workers that are killed."""

from __future__ import annotations

import os
import signal
import time
import warnings
from pathlib import Path

import pytest
from sweep_samples import GRID, MEASURED, contents, models

import isometry
from isometry.cli.entry import run
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


def test_a_point_that_kills_its_worker_fails_alone(client, tmp_path):
    path: Path = tmp_path / "a.h5"
    source = models(tmp_path)
    fine = [{"model": f"{source}:fine", "input": "4", "seed": seed} for seed in range(4)]
    dies = [{"model": f"{source}:dies", "input": "4"}]
    with client.get_executor(pure=False) as executor:
        result = isometry.sweep([*fine, *dies], path, executor=executor, progress=False)
    assert (result.finished, len(result.failures)) == (4, 1)
    assert all(":fine" in row.get("model") for row in rows_of(isometry.open_store(path)))
    assert {row.get("error_type") for row in failures_of(isometry.open_store(path))} == {"WorkerDied"}


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
