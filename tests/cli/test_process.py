"""The command as a process: exit codes, streams, a closed pipe, an interrupt, a quick help."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from isometry.cli.entry import COMMANDS
from isometry.store import open_store

COMMAND = [sys.executable, "-c", "from isometry.cli import main; main()"]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(Path(__file__).parents[2]),
    "COLUMNS": "100",
}


def command(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *(str(argument) for argument in arguments)],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=False, **options,
    )  # fmt: skip


def test_help_is_quick_and_loads_no_torch() -> None:
    code = (
        "import sys; from isometry.cli.entry import run; code = run(['--help'])\n"
        "heavy = {'torch', 'matplotlib', 'h5py', 'scipy', 'jinja2'} & set(sys.modules)\n"
        "assert code == 0 and not heavy, (code, heavy)"
    )
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    # 0.1 s on an idle machine; the bound leaves room for a busy one.
    assert time.perf_counter() - began < 3.0
    assert "measure" in done.stdout


def test_json_alone_on_standard_output_and_everything_else_on_standard_error(isometry, tmp_path) -> None:
    """Here in this process; the measurements that are interrupted below say the same of processes of their own."""
    done = isometry("measure", "mlp:depth=2,width=6,sigma_w=1", "-o", tmp_path / "a.h5", "--json")
    assert done.code == 0
    assert done.json["shape"] == [6, 6]
    assert "stored" in done.err


@pytest.mark.parametrize("arguments", [["measure"], ["meassure", "x"], ["measure", "nothing"], ["list"]])
def test_usage_errors_are_code_2(isometry, arguments: list[str]) -> None:
    done = isometry(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert "error:" in done.err


def test_the_code_of_an_error_is_that_of_the_process() -> None:
    done = command("meassure", "x")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "error:" in done.stderr


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help_and_json(isometry, name: str) -> None:
    done = isometry(name, "--help")
    assert done.code == 0
    assert "--json" in done.out
    assert done.err == ""


def test_a_reader_that_leaves_is_no_error() -> None:
    process = subprocess.Popen(
        [*COMMAND, "measure", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 0


@pytest.mark.parametrize("redirection", [">&-", "2>&-"])
def test_a_closed_stream_is_no_fault(tmp_path, redirection: str) -> None:
    command = f'"{sys.executable}" -c "from isometry.cli import main; main()" critical --help {redirection}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_behind_standard_output_is_code_1() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, check=False
        )
    assert done.returncode == 1
    assert done.stderr.strip() == "error: No space left on device"


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C is heard here: a shell starts background jobs with interrupts ignored, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupt_is_code_130_without_a_traceback(isometry, tmp_path) -> None:
    """Before the first product, when there is nothing to store."""
    model = tmp_path / "interrupted.py"
    model.write_text(
        "import signal\nfrom torch import nn\n"
        "class Interrupted(nn.Module):\n"
        "    def forward(self, x):\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "        return x\n"
    )
    done = isometry("measure", f"{model}:Interrupted", "--input", "3")
    assert done.code == 130
    assert done.out == ""
    assert "interrupted" in done.err


def part(width: int, file: Path) -> list[str]:
    """The arguments of a measurement that takes a while."""
    return [
        "measure", f"mlp:depth=4,width={width},init=gaussian,sigma_w=1", "--method", "lanczos", "--probes", "16",
        "--steps", f"{width - 10}", "-o", str(file), "--name", "part", "--json",
    ]  # fmt: skip


def assert_a_part_is_stored(width: int, file: Path, out: str, err: str) -> None:
    found = json.loads(out)
    assert found["stopped"] == {"reason": "interrupted", "inputs": "1 of 1"}
    assert 0 < found["products"] < 2 * 16 * (width - 10)
    assert "interrupted" in err
    assert f"stored as 'part (partial)' in {file}" in err
    assert "Traceback" not in err
    stored = open_store(file, "r")["part (partial)"]
    assert stored.provenance["stopped"]["reason"] == "interrupted"
    assert stored.n_probes == 16


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupt_on_the_way_stores_what_is_known(isometry, tmp_path, monkeypatch) -> None:
    """Ctrl-C at the tenth product, in this process."""
    from isometry.jacobian import JacobianOperator

    products, matmat = iter(range(1000)), JacobianOperator.matmat

    def interrupted(self, vectors):
        if next(products) == 10:
            signal.raise_signal(signal.SIGINT)
        return matmat(self, vectors)

    monkeypatch.setattr(JacobianOperator, "matmat", interrupted)
    file = tmp_path / "runs.h5"
    done = isometry(*part(40, file))
    assert done.code == 130
    assert_a_part_is_stored(40, file, done.out, done.err)


def test_a_terminated_process_stores_what_is_known(tmp_path) -> None:
    """Soon after the start of 990 steps of 16 probes, which take a processor ten seconds or more."""
    file = tmp_path / "runs.h5"
    began = time.perf_counter()
    process = subprocess.Popen(
        [*COMMAND, *part(1000, file)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert process.stderr is not None
    said = process.stderr.readline()
    assert said.startswith("about ")
    assert "at the peak: bases of 16 probes of 990 steps" in said
    # Some steps take a fraction of the time that the imports took, on a busy machine too.
    time.sleep(0.2 * (time.perf_counter() - began))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert_a_part_is_stored(1000, file, out, err)


def test_an_unexpected_fault_is_one_line_and_a_way_to_learn_more(monkeypatch, capsys) -> None:
    from isometry.cli import entry

    def fault(*_: object, **__: object) -> None:
        raise KeyError("a fault")

    monkeypatch.setattr(entry.group, "invoke", fault)
    assert entry.run(["list"]) == 1
    quiet = capsys.readouterr().err
    assert "KeyError" in quiet
    assert "ISOMETRY_DEBUG=1" in quiet
    assert "Traceback" not in quiet
    monkeypatch.setenv("ISOMETRY_DEBUG", "1")
    assert entry.run(["list"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")]
)
def test_out_of_memory_names_the_cures(error: Exception, capsys) -> None:
    from isometry.cli.entry import report_failure

    assert report_failure(error) == 1
    assert "--memory-limit" in capsys.readouterr().err


def test_a_full_disk_is_named(capsys) -> None:
    from isometry.cli.entry import report_failure

    assert report_failure(OSError(28, "No space left on device", "results.h5")) == 1
    assert "No space left on device (results.h5)" in capsys.readouterr().err
