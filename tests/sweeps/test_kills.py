"""Coordinators and workers that are really killed, a full disk, a file that may not be written, readers meanwhile."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import h5py
import pytest
from coordinator_process import LONG
from sweep_samples import GRID, MEASURED, contents, models, of_models

import isometry
from isometry.errors import StoreError, SweepError
from isometry.sweeps import points_of
from isometry.sweeps.rows import failures_of, rows_of

COORDINATOR = Path(__file__).parent / "coordinator_process.py"


def start(path: Path, task: str, argument: object) -> subprocess.Popen[str]:
    paths = f"{COORDINATOR.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return subprocess.Popen(
        [sys.executable, COORDINATOR, path, task, str(argument)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )


def kill_at_random(path: Path, rounds: int, seed: int, kind: str) -> tuple[int, int]:
    """Kill ``rounds`` coordinators in turn; how many points they had stored, and how many were begun."""
    moments = random.Random(seed)
    stored: set[str] = set()
    begun = 0
    with start(path, "forker", f"{kind} {min(100, 12 * rounds)}") as forker:
        assert forker.stdin is not None
        assert forker.stdout is not None
        while forker.stdout.readline().strip() != "ready":
            pass
        for _ in range(rounds):
            forker.stdin.write("go\n")
            forker.stdin.flush()
            lines: list[str] = []
            while not (lines and lines[-1].startswith("process ")):
                lines.append(forker.stdout.readline().strip())
            process = int(lines[-1].split()[1])
            # So many lines late, and then somewhere within the next step: moments that suit any machine.
            lines += [forker.stdout.readline().strip() for _ in range(moments.randrange(16))]
            time.sleep(moments.uniform(0.0, 0.1))
            os.kill(process, signal.SIGKILL)
            while lines[-1] != "dead":
                lines.append(forker.stdout.readline().strip())
            known = set(stored)
            for line in lines:
                word, _, name = line.partition(" ")
                if word == "begun":
                    # What an earlier coordinator said to be stored is not computed again.
                    assert name not in known, name
                    begun += 1
                elif word == "stored":
                    stored.add(name)
            if not path.exists():
                assert not stored
                continue
            with h5py.File(path, "r") as file:  # any other program, before we open it
                assert file.attrs["format"] == "isometry-spectra"
            assert stored <= set(isometry.open_store(path).names())
        forker.stdin.close()
    assert isometry.open_store(path).validate() == []
    return len(stored), begun


def the_rest(path: Path, kind: str) -> None:
    """Take the sweep up after the kills, and compare with one that nobody disturbed."""
    done = len(rows_of(isometry.open_store(path)))
    some = {**LONG, "kind": kind, "seeds": max(2, done // 8)}
    with ThreadPoolExecutor(1) as threads:
        result = isometry.sweep(some, path, executor=threads, progress=False)
        isometry.sweep(some, path.with_name("undisturbed.h5"), executor=threads, progress=False)
    assert result.failures == {}
    found, wanted = contents(path), contents(path.with_name("undisturbed.h5"))
    assert wanted.items() <= found.items()


def test_four_coordinators_killed_at_random_lose_nothing(tmp_path):
    stored, begun = kill_at_random(tmp_path / "a.h5", 4, seed=0, kind="measure")
    # Some must have been stored for this to mean anything. What was computed and not stored is begun again.
    assert stored > 2
    assert begun >= stored
    the_rest(tmp_path / "a.h5", "measure")


@pytest.mark.slow
def test_fifty_coordinators_killed_at_random_lose_nothing(tmp_path):
    stored, begun = kill_at_random(tmp_path / "a.h5", 50, seed=1, kind="compare")
    print(f"50 kills: {stored} points acknowledged, {begun} begun")
    assert stored > 50
    assert begun >= stored
    the_rest(tmp_path / "a.h5", "compare")


def children_of(process: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True, check=False
    )
    return [int(word) for word in listed.stdout.split()]


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc here")
def test_the_workers_of_a_killed_coordinator_leave(tmp_path):
    path = tmp_path / "a.h5"
    with start(path, "processes", 2) as coordinator:
        assert coordinator.stdout is not None
        stored = [coordinator.stdout.readline().split(" ", 1)[1].strip() for _ in range(3)]
        workers = children_of(coordinator.pid)
        assert len(workers) >= 2
        with (
            ThreadPoolExecutor(1) as threads,
            pytest.raises(SweepError, match=f"process {coordinator.pid} on"),
        ):
            isometry.sweep(GRID, path, executor=threads, progress=False)
        coordinator.kill()
    until = time.monotonic() + 20
    while any(is_alive(worker) for worker in workers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(is_alive(worker) for worker in workers)
    assert set(stored) <= set(isometry.open_store(path).names())
    assert isometry.open_store(path).validate() == []


@pytest.mark.slow
def test_a_point_that_kills_its_worker_fails_alone(tmp_path):
    grid = of_models(models(tmp_path), "fine", "dies", seeds=2)
    path = tmp_path / "a.h5"
    result = isometry.sweep(grid, path, workers=2, progress=False)
    assert (result.finished, len(result.failures)) == (2, 2)
    assert all(":dies" not in row.get("model") for row in rows_of(isometry.open_store(path)))
    rows = failures_of(isometry.open_store(path))
    assert {row.get("error_type") for row in rows} == {"WorkerDied"}
    assert all("each of the 3 times that it ran (killed by SIGKILL)" in row.get("error") for row in rows)


@pytest.mark.slow
def test_a_worker_killed_from_outside_loses_nothing(tmp_path):
    """Not the point's fault: its points are run again, and have their results."""
    path, killed = tmp_path / "a.h5", []
    grid = {**GRID, "seeds": 30}

    def kill_one(done: float, total: float, text: str = "") -> None:
        if done in (5, 20):
            workers = [child for child in children_of(os.getpid()) if is_worker(child)]
            os.kill(workers[0], signal.SIGKILL)
            killed.append(workers[0])

    result = isometry.sweep(grid, path, workers=2, progress=kill_one)
    assert len(killed) == 2
    assert (result.finished, result.failures) == (60, {})


def is_worker(process: int) -> bool:
    with contextlib.suppress(OSError):  # it may have ended
        return "multiprocessing.spawn" in Path(f"/proc/{process}/cmdline").read_text()
    return False


@pytest.mark.slow
def test_a_lent_pool_that_breaks_ends_the_sweep_and_keeps_what_is_done(tmp_path):
    import multiprocessing

    grid = of_models(models(tmp_path), "fine", "dies", "fine")
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, mp_context=context) as pool,
        pytest.raises(SweepError, match="took the executor with it"),
    ):
        isometry.sweep(grid, tmp_path / "a.h5", executor=pool, progress=False)
    assert len(rows_of(isometry.open_store(tmp_path / "a.h5"))) == 1


@pytest.mark.slow
def test_a_full_disk_stops_the_sweep_and_keeps_what_is_done(tmp_path):
    path = tmp_path / "a.h5"
    with start(path, "limited", 400_000) as process:
        said, _ = process.communicate(timeout=120)
    lines = said.splitlines()
    stored = [line.partition(" ")[2] for line in lines if line.startswith("stored ")]
    assert "could not be stored" in lines[-1]
    assert "no room left" in lines[-1]
    assert len(stored) > 3
    assert set(stored) <= set(isometry.open_store(path).names())
    assert isometry.open_store(path).validate() == []
    # With room again it goes on where it was.
    points = [point for point in points_of(LONG) if point.name in stored]
    with ThreadPoolExecutor(1) as threads:
        result = isometry.sweep(
            [{"kind": "compare", **point.values} for point in points], path, executor=threads, progress=False
        )
    assert result.skipped == len(stored)


def test_a_file_that_may_not_be_written_is_told_before_anything_runs(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    isometry.open_store(path, "a")
    path.chmod(0o444)
    if os.access(path, os.W_OK):
        # Root may write everything: have the system say what it says to others.
        monkeypatch.setattr(os, "access", lambda *_, **__: False)
    ran = []
    with ThreadPoolExecutor(1) as threads, pytest.raises(StoreError, match="no permission"):
        isometry.sweep(GRID, path, executor=threads, progress=lambda *told: ran.append(told))
    assert not ran


def test_readers_see_whole_results_while_a_sweep_writes(tmp_path):
    path = tmp_path / "a.h5"
    isometry.open_store(path, "a")
    ended, seen, troubles = threading.Event(), [], []

    def look() -> None:
        store = isometry.open_store(path)
        while not ended.is_set():
            try:
                names = store.names()
                seen.append(len(names))
                for name in names[-3:]:
                    assert store[name].mean_square > 0
                time.sleep(0.05)  # a lock that is always shared would keep the writer waiting
            except Exception as error:
                troubles.append(error)

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        with ThreadPoolExecutor(1) as threads:
            # The points take a moment each, so that readers come in between whatever the machine's speed.
            result = isometry.sweep(
                {**MEASURED, "seeds": 5}, path, executor=threads, progress=lambda *told: time.sleep(0.1)
            )
    finally:
        ended.set()
        for reader in readers:
            reader.join()
    assert troubles == []
    assert result.finished == 10
    assert seen == sorted(seen)
    assert len(set(seen)) > 3


@pytest.mark.slow
def test_an_interrupt_keeps_what_is_done_and_leaves_nobody(tmp_path):
    (tmp_path / "grid.toml").write_text(
        'kind = "compare"\nseeds = 200\n[fixed]\nmodel = "mlp"\nwidth = 6\nactivation = "linear"\nsigma_w = 1.0\n'
    )
    path = tmp_path / "a.h5"
    process = subprocess.Popen(
        [sys.executable, "-m", "isometry", "sweep", tmp_path / "grid.toml", "-o", path, "--workers", "2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # A shell starts background jobs with interrupts ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    until = time.monotonic() + 120
    while time.monotonic() < until and not (path.exists() and len(isometry.open_store(path)) > 3):
        time.sleep(0.1)
    workers = children_of(process.pid)
    # As a terminal does: to every process of the group.
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not any(is_alive(worker) for worker in workers)
    assert isometry.open_store(path).validate() == []
    assert len(rows_of(isometry.open_store(path))) >= 2
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.h5", "grid.toml"]


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_what_is_missing(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"import isometry\nisometry.sweep({GRID!r}, {str(tmp_path / 'a.h5')!r}, workers=1)\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert 'below `if __name__ == "__main__":`' in done.stderr
    assert rows_of(isometry.open_store(tmp_path / "a.h5")) == []
