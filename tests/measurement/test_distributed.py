"""One measurement on several processes: the same numbers for any number of them, and a killed one is made up for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import isometry
from isometry.cli.entry import run
from isometry.errors import InputError
from isometry.measurement.distributed import ProcessGroup, started_by_torchrun

# One torch thread each. Standalone: a free port of its own, so that several tests run side by side.
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
MODEL = "vanilla-cnn:depth=3,channels=4,size=6,init=gaussian,sigma_w=1.1"


def torchrun(count: int, *command: str, cwd: Path, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    options = ["--nproc-per-node", str(count), "--max-restarts", str(restarts)]
    return subprocess.run(
        [*TORCHRUN, *options, *command],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip


def numbers(spectrum: isometry.Spectrum) -> list[np.ndarray]:
    e = spectrum.extremes
    assert e is not None
    d = spectrum.distribution
    return [d.nodes, d.weights, d.floor, d.resolved, e.top, e.top_residual, e.bottom, e.bottom_residual]  # type: ignore[union-attr]


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


def test_units_are_shared_out_evenly_and_once() -> None:
    units = list(range(10))
    shares = [ProcessGroup(rank, 3).share(units) for rank in range(3)]
    assert sorted(unit for share in shares for unit in share) == units
    assert {len(share) for share in shares} == {3, 4}


def test_torchrun_is_known_by_its_variables() -> None:
    assert not started_by_torchrun({})
    assert started_by_torchrun(
        {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    )


@pytest.mark.parametrize("method", ["lanczos", "exact", "randomized"])
def test_alone_sharing_changes_nothing_but_rounding(method: str) -> None:
    torch.manual_seed(0)
    model, x = (
        torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.Tanh()).double(),
        torch.randn(9, 30).double(),
    )
    options = {"batched": True, "probes": 6, "steps": 10, "progress": False}
    one, other = (isometry.measure(model, x, method, **options, shared=shared) for shared in (False, True))
    assert one.products == other.products
    for a, b in zip(numbers(one), numbers(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)


def test_no_stopping_rule_is_shared() -> None:
    with pytest.raises(InputError, match="rtol"):
        isometry.measure(torch.nn.Linear(3, 3), torch.ones(3), rtol=0.1, shared=True)


def test_two_processes_have_the_numbers_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Started by the variables of torchrun, the first of them in this process; the slow tests use torchrun itself."""
    command = [
        "measure", MODEL, "--method", "lanczos", "--probes", "12", "--steps", "8", "--name", "net", "-o",
    ]  # fmt: skip
    environment = {
        "MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2",
        "RANK": "0", "LOCAL_RANK": "0",
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    second = subprocess.Popen(
        [sys.executable, "-m", "isometry", *command, str(tmp_path / "2.h5")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "RANK": "1", "LOCAL_RANK": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    threads = torch.get_num_threads()
    with second:
        assert run([*command, str(tmp_path / "2.h5")]) == 0
        said = second.communicate(timeout=280)
    assert second.returncode == 0, said
    # The first process prints for all.
    assert "s_max" in capsys.readouterr().out
    assert said[0] == ""
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("MASTER_PORT", free_port())
    assert run([*command, str(tmp_path / "1.h5")]) == 0
    torch.set_num_threads(threads)
    assert "s_max" in capsys.readouterr().out
    one, two = (isometry.open_store(tmp_path / f"{count}.h5")["net"] for count in (1, 2))
    assert two.provenance["processes"] == 2
    assert all(np.array_equal(a, b) for a, b in zip(numbers(one), numbers(two), strict=True))
    assert one.products == two.products == 2 * 12 * 8


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--method", "lanczos"], ["--method", "exact", "--inputs", "5"],
                                     ["--method", "lanczos", "--inputs", "20", "--probes", "3"]])  # fmt: skip
def test_any_number_of_processes(tmp_path: Path, options: list[str]) -> None:
    for count in (1, 2, 3):
        command = ["-m", "isometry", "measure", MODEL, *options, "-o", f"{count}.h5", "--name", "net"]
        done = torchrun(count, *command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    one, *more = (isometry.open_store(tmp_path / f"{count}.h5")["net"] for count in (1, 2, 3))
    for other in more:
        assert all(np.array_equal(a, b) for a, b in zip(numbers(one), numbers(other), strict=True))


DYING = """
import os, signal
from pathlib import Path
import torch

class Dying(torch.nn.Module):
    "The second process kills itself in mid-measurement, the first time round."

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Linear(20, 20)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        mark = Path("died")
        if os.environ["RANK"] == "1" and self.calls == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner(x).tanh()

def build():
    return Dying()
"""


@pytest.mark.slow
def test_a_killed_process_is_made_up_for(tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text(DYING)
    command = [
        "-m",
        "isometry",
        "measure",
        "dying.py:build",
        "--input",
        "20",
        "--method",
        "lanczos",
        "-o",
        "a.h5",
    ]
    done = torchrun(2, *command, "--name", "net", cwd=tmp_path, restarts=2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").exists()
    again = torchrun(1, *command, "--name", "alone", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    store = isometry.open_store(tmp_path / "a.h5")
    assert all(
        np.array_equal(a, b) for a, b in zip(numbers(store["net"]), numbers(store["alone"]), strict=True)
    )


DIFFERENT = """
import os, torch, isometry
from isometry.measurement.distributed import process_group

with process_group() as group:
    torch.manual_seed(group.rank)
    model = torch.nn.Linear(4, 4)
    try:
        isometry.measure(model, torch.ones(4), "lanczos", shared=True, progress=False)
    except isometry.errors.InputError as error:
        print("refused" if "different models" in str(error) else error, flush=True)
"""


@pytest.mark.slow
def test_different_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "different.py").write_text(DIFFERENT)
    done = torchrun(2, "different.py", cwd=tmp_path)
    assert done.stdout.count("refused") == 2, done.stdout + done.stderr
