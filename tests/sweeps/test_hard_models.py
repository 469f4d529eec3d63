"""Models that end their process, never end, or change while a sweep is under way; signals to the sweep itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sweep_samples import of_models

import isometry
from isometry.cli.entry import run
from isometry.errors import InputError, SpecError
from isometry.progress import ended_as_interrupted
from isometry.sweeps import points_of
from isometry.sweeps.engines import Processes, UserExecutor
from isometry.sweeps.picture import picture_of
from isometry.sweeps.rows import failures_of, rows_of, select
from isometry.sweeps.sources import imported_files
from isometry.sweeps.worker_process import TookTooLong, WorkerDied

HARD = '''
import ctypes, os, signal, subprocess, sys, time
import torch
from torch import nn

def fine():
    return nn.Linear(4, 4)

def interrupts():
    raise KeyboardInterrupt

class Interrupts(nn.Module):
    def forward(self, x):
        raise KeyboardInterrupt("in the forward pass")

def exits():
    sys.exit(3)

def recurses():
    def down(): return down()
    return down()

class Own(BaseException):
    pass

def own():
    raise Own("of my own")

class Mute(Exception):
    def __str__(self): raise RuntimeError("no words")

def mute():
    raise Mute

def long_words():
    raise ValueError("x" * 10**7)

def leaves():
    os._exit(0)

def leaves_seven():
    os._exit(7)

def overflows():
    """The C stack: each call of the comparison goes through C."""
    sys.setrecursionlimit(10**9)
    ctypes.string_at(0)

def leaves_a_child():
    """One that holds the pipes of the worker open."""
    if os.fork() == 0:
        time.sleep(20)
        os._exit(0)
    os._exit(5)

def sleeps():
    time.sleep(600)
    return nn.Linear(4, 4)

def stubborn():
    """Ends by SIGKILL only."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while True:
        pass
'''


@pytest.fixture
def hard(tmp_path) -> Path:
    (tmp_path / "code").mkdir()
    path = tmp_path / "code" / "hard.py"
    path.write_text(HARD)
    return path


class AtOnce(Executor):
    def submit(self, fn, /, *args, **kwargs):
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


RAISED = {
    "interrupts": "KeyboardInterrupt", "Interrupts": "KeyboardInterrupt", "exits": "LoadError",
    "recurses": "LoadError", "own": "Own", "mute": "RuntimeError", "long_words": "LoadError",
}  # fmt: skip


# A thread may take otherwise what is no Exception; whatever is one, it takes alike.
@pytest.mark.parametrize(
    ("executor", "names"),
    [(AtOnce, [*RAISED]), (lambda: ThreadPoolExecutor(1), ["interrupts", "Interrupts", "exits", "own"])],
    ids=["at once", "thread"],
)
def test_what_a_model_raises_fails_its_point_alone(hard, tmp_path, executor, names):
    path = tmp_path / "a.h5"
    grid = of_models(hard, "fine", *names)
    expected = {name: RAISED[name] for name in names}
    for attempt in (1, 2):
        result = isometry.sweep(grid, path, executor=executor(), progress=False)
        assert (result.finished + result.skipped, len(result.failures)) == (1, len(names))
        rows = failures_of(isometry.open_store(path))
        assert {row.get("model").rpartition(":")[2]: row.get("error_type") for row in rows} == expected
        assert {row.get("attempts") for row in rows} == {attempt}
    assert path.stat().st_size < 10**6


def test_an_interrupt_from_the_keyboard_ends_a_sweep_in_the_main_thread(hard, tmp_path):
    """Not so one that the model raises."""
    grid = of_models(hard, "sleeps", "fine")
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        isometry.sweep(grid, tmp_path / "a.h5", executor=AtOnce(), progress=False)
    assert time.monotonic() - began < 30
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.h5", "code"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# ---- processes -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_models_that_end_their_process_fail_after_three_deaths_and_nothing_else_is_run_again(hard, tmp_path):
    path = tmp_path / "a.h5"
    ending = {"leaves": "exit code 0", "leaves_seven": "exit code 7", "overflows": "SIGSEGV",
              "leaves_a_child": "exit code 5"}  # fmt: skip
    grid = of_models(hard, "fine", "interrupts", *ending)
    result = isometry.sweep(grid, path, workers=2, progress=False)
    assert (result.finished, len(result.failures)) == (1, 5)
    for row in failures_of(isometry.open_store(path)):
        name = row.get("model").rpartition(":")[2]
        if name in ending:
            assert row.get("error_type") == "WorkerDied"
            assert f"each of the 3 times that it ran ({ending[name]}" in row.get("error").replace(
                "killed by ", ""
            )
    assert not isometry.open_store(path).validate()


@pytest.mark.slow
def test_a_point_that_takes_too_long_fails_and_its_process_is_ended(hard, tmp_path, capsys):
    path = tmp_path / "a.h5"
    grid = of_models(hard, "sleeps", "stubborn", "fine")
    began = time.monotonic()
    result = isometry.sweep(grid, path, workers=2, timeout=12, progress=False)
    assert time.monotonic() - began < 120
    assert (result.finished, len(result.failures)) == (1, 2)
    rows = failures_of(isometry.open_store(path))
    assert {row.get("error_type") for row in rows} == {"TimeoutError"}
    assert all(row.get("error") == "it took longer than 12 s, and its worker was ended" for row in rows)
    text = "".join(f'"{hard}:{name}",' for name in ("fine", "sleeps"))
    (tmp_path / "grid.toml").write_text(f'[fixed]\ninput = "4"\n[axes]\nmodel = [{text}]\n')
    assert run(["sweep", str(tmp_path / "grid.toml"), "-o", str(path), "--timeout", "2"]) == 1
    done = capsys.readouterr()
    assert "TimeoutError: it took longer than 2 s" in done.err
    assert "0 points finished, 1 there before, 1 failed" in done.out


def test_a_timeout_is_refused_where_nothing_can_be_ended(hard, tmp_path):
    grid = of_models(hard, "fine")
    with ThreadPoolExecutor(1) as threads, pytest.raises(InputError, match="a thread cannot be ended"):
        isometry.sweep(grid, tmp_path / "a.h5", executor=threads, timeout=5)
    for timeout in (0, -1, float("nan"), float("inf"), True, "5s"):
        with pytest.raises(InputError, match="timeout is a number of seconds"):
            isometry.sweep(grid, tmp_path / "a.h5", timeout=timeout)
    assert not (tmp_path / "a.h5").exists()


@pytest.mark.slow
def test_processes_run_calls_report_deaths_and_leave_nobody():
    import multiprocessing

    engine = Processes(2, timeout=20)
    try:
        assert engine.submit(pow, 2, 5).result(60) == 32
        with pytest.raises(ZeroDivisionError):
            engine.submit(divmod, 1, 0).result(60)
        with pytest.raises(RuntimeError, match="pickle"):
            engine.submit(eval, "lambda: 1").result(60)
        with pytest.raises(WorkerDied, match="exit code 9"):
            engine.submit(os._exit, 9).result(60)
        with pytest.raises(WorkerDied, match="killed by SIGABRT"):
            engine.submit(os.abort).result(60)
        assert engine.submit(len, b"x" * 10**7).result(60) == 10**7
        with pytest.raises(TookTooLong, match="20 s"):
            engine.submit(time.sleep, 60).result(60)
        futures = [engine.submit(time.sleep, 60) for _ in range(5)]
    finally:
        began = time.monotonic()
        engine.stop()
    assert time.monotonic() - began < 10
    assert not multiprocessing.active_children()
    assert not any(
        future.done() and future.exception() is None for future in futures if not future.cancelled()
    )


# ---- code that changes -----------------------------------------------------------------------------------------


def code(folder: Path, scale: float) -> Path:
    """A model whose J is scale times the identity, the scale being two imports away."""
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    (folder / "net.py").write_text(
        "from torch import nn\nimport torch\n"
        "def build():\n"
        "    from helper import factor\n"
        "    layer = nn.Linear(3, 3, bias=False)\n"
        "    layer.weight.data = factor() * torch.eye(3)\n"
        "    return layer\n"
    )
    (folder / "helper.py").write_text("from parts.deep import SCALE\ndef factor():\n    return SCALE\n")
    (folder / "parts" / "__init__.py").write_text("from . import other\n")
    (folder / "parts" / "other.py").write_text("import importlib\nlate = importlib.import_module('late')\n")
    (folder / "late.py").write_text("")
    deep = folder / "parts" / "deep.py"
    deep.write_text(f"# a scale\nSCALE = {scale!r}\n")
    # Python takes a compiled file for that of a source of the same size and second.
    os.utime(deep, (10**9, 10**9 + round(1000 * scale)))
    (folder / "unrelated.py").write_text("raise RuntimeError\n")
    return folder / "net.py"


def measured(path: Path) -> list[tuple]:
    return [
        (row.get("model_version"), row.get("seed"), row.get("s_max"))
        for row in rows_of(isometry.open_store(path))
    ]


def test_what_a_model_imports_from_its_own_folder_belongs_to_its_key(tmp_path):
    net = code(tmp_path / "code", 2.0)
    found = [file.relative_to(net.parent).as_posix() for file in imported_files(net)]
    assert found == ["helper.py", "late.py", "parts/__init__.py", "parts/deep.py", "parts/other.py"]
    grid = of_models(net, "build")
    grid["fixed"]["input"] = "3"
    (before,) = points_of(grid)
    (net.parent / "unrelated.py").write_text("x = 1\n")
    assert points_of(grid) == [before]
    for file in found:
        text = (net.parent / file).read_text()
        (net.parent / file).write_text(text + "# changed\n")
        assert points_of(grid)[0].key != before.key, file
        (net.parent / file).write_text(text)
        assert points_of(grid)[0].key == before.key, file
    # A new file that an import finds first is noticed, too.
    (net.parent / "torch.py").write_text("")
    assert points_of(grid)[0].key != before.key


def test_results_of_changed_code_are_told_apart_and_not_mixed(tmp_path):
    """In one process, whose modules are imported already: each measurement is of the code that its key names."""
    net, path = code(tmp_path / "code", 2.0), tmp_path / "a.h5"
    grid = of_models(net, "build", seeds=2)
    grid["fixed"]["input"] = "3"
    assert isometry.sweep(grid, path, executor=AtOnce(), progress=False).finished == 2
    assert measured(path) == [(None, 0, 2.0), (None, 1, 2.0)]
    code(tmp_path / "code", 3.0)
    only_one = {**grid, "seeds": 1}
    assert isometry.sweep(only_one, path, executor=AtOnce(), progress=False).finished == 1
    assert sorted(measured(path)) == [(1, 0, 2.0), (1, 1, 2.0), (2, 0, 3.0)]
    store = isometry.open_store(path)
    with pytest.raises(SpecError, match="differ in model_version"):
        picture_of(rows_of(store), store, "model", "s_max")
    kept = select(rows_of(store), ["model_version=2"])
    assert [row.get("s_max") for row in kept] == [3.0]
    # Back again: what was computed then counts.
    code(tmp_path / "code", 2.0)
    assert isometry.sweep(grid, path, executor=AtOnce(), progress=False).skipped == 2


def test_a_module_of_the_working_directory_is_code_of_the_user_too(tmp_path, monkeypatch):
    net = code(tmp_path, 2.0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    grid = {"fixed": {"model": "net:build", "input": "3"}}
    isometry.sweep(grid, "a.h5", executor=AtOnce(), progress=False)
    code(tmp_path, 3.0)
    isometry.sweep(grid, "a.h5", executor=AtOnce(), progress=False)
    assert sorted(measured(Path("a.h5"))) == [(1, 0, 2.0), (2, 0, 3.0)]
    assert set(points_of({"fixed": {"model": "torch.nn:Identity", "input": "3"}})[0].files) == set()
    assert net.exists()


def test_code_and_weights_that_change_during_a_sweep_fail_their_points(tmp_path):
    net, path = code(tmp_path / "code", 2.0), tmp_path / "a.h5"
    np.save(tmp_path / "x.npy", np.ones(3, np.float32))
    grid = of_models(net, "build", seeds=3)
    grid["fixed"]["input"] = str(tmp_path / "x.npy")

    def change(done: float, total: float, text: str = "") -> None:
        if done == 1:
            code(tmp_path / "code", 3.0)
        if done == 2:
            code(tmp_path / "code", 2.0)
            np.save(tmp_path / "x.npy", np.zeros(4, np.float32))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UserExecutor, "window", 1)  # the next point is computed after the change
        result = isometry.sweep(grid, path, executor=AtOnce(), progress=change)
    assert result.finished == 1
    told = sorted(failure.message.partition(" changed")[0] for failure in result.failures.values())
    assert told == ["input", "model imports"]


# ---- signals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_of_the_system_end_work_as_an_interrupt_does(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    try:
        signal.signal(number, signal.SIG_DFL)
        with pytest.raises(KeyboardInterrupt), ended_as_interrupted():
            signal.raise_signal(number)
        assert signal.getsignal(number) is signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN)  # as under nohup
        with ended_as_interrupted():
            signal.raise_signal(number)
    finally:
        signal.signal(number, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("moment", ["at the beginning", "in the middle"])
def test_a_signal_leaves_the_file_alone_and_nobody_behind(hard, tmp_path, name, moment):
    path = tmp_path / "a.h5"
    text = "".join(f'"{hard}:{name}",' for name in ("fine", "sleeps", "stubborn"))
    (tmp_path / "grid.toml").write_text(f'[fixed]\ninput = "4"\n[axes]\nmodel = [{text}]\n')

    def usual() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    process = subprocess.Popen(
        [sys.executable, "-m", "isometry", "sweep", tmp_path / "grid.toml", "-o", path, "--workers", "2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=usual,
    )  # fmt: skip
    until = time.monotonic() + 120
    begun = path.with_name(".a.h5.sweep")
    while time.monotonic() < until and not (
        begun.exists()
        if moment == "at the beginning"
        else path.exists() and len(isometry.open_store(path)) > 0
    ):
        time.sleep(0.02)
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    left = {entry.name for entry in tmp_path.iterdir()}
    assert left - {"a.h5"} == {"grid.toml", "code"}


def test_modules_of_one_name_in_two_folders_are_two_modules(tmp_path):
    models = [f"{code(tmp_path / name, scale)}:build" for name, scale in (("one", 2.0), ("two", 3.0))]
    grid = {"fixed": {"input": "3"}, "axes": {"model": models}, "seeds": 2}
    path = tmp_path / "a.h5"
    isometry.sweep({**grid, "axes": {"model": models}}, path, executor=AtOnce(), progress=False)
    found = {
        (row.get("model"), row.get("seed")): row.get("s_max") for row in rows_of(isometry.open_store(path))
    }
    assert found == {
        (model, seed): scale for model, scale in zip(models, (2.0, 3.0), strict=True) for seed in (0, 1)
    }
