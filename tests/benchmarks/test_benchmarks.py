"""The benchmarks run, at tiny sizes and with their peers missing; and the contest keeps its promises.

Each script starts a process for each contestant and loads torch in it, so the scripts themselves are slow tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# As a script has its own folder on the path; the processes of a contest inherit it.
sys.path[:0] = [str(BENCHMARKS), str(Path(__file__).parent)]

from harness import accuracy, networks  # noqa: E402
from harness.contest import Contestant, Outcome, hold, ratios  # noqa: E402
from stand_ins import answering  # noqa: E402

PEERS = ["matfree", "cola-ml", "curvlinops-for-pytorch", "skerch", "scikit-learn", "scipy"]
TINY = {
    "density": ["--channels", "4", "--depth", "2", "--probes", "4", "--steps", "4"],
    "full_spectrum": ["--channels", "4", "--depth", "2", "--dtypes", "float32"],
    "leading_values": ["--size", "32", "--width", "4", "--classes", "30", "--count", "5"],
    "largest_value": ["--channels", "2", "--depth", "3", "--size", "4"],
    "deep_values": ["--channels", "2", "--depth", "10"],
    "resnet50": ["--dense", "--size", "32", "--width", "4", "--classes", "10"],
    "scaling": ["--tiny"],
}


def test_a_contest_reports_who_is_missing_too_slow_or_failing() -> None:
    contestants = [
        Contestant("ours", answering, {"value": 1.0}),
        Contestant("absent", answering, {"value": 2.0}, requires=("no-such-distribution",)),
        Contestant("left out", answering, {"value": 2.0}, requires=("numpy",)),
        Contestant("slow", answering, {"value": 3.0, "seconds": 60.0}),
        Contestant("failing", answering, {"value": 4.0, "fails": True}),
    ]
    ours, absent, left_out, slow, failing = hold(
        contestants, repeats=3, threads=1, timeout=4, without=["numpy"], tell=lambda text: None
    )
    assert (ours.status, ours.answer["value"], len(ours.seconds)) == ("done", 1.0, 3)
    assert absent.status == "missing: no-such-distribution"
    assert left_out.status == "missing: numpy"
    assert slow.status == "timeout after 4 s"
    assert failing.status == "failed: ValueError: no such value"
    assert all(not outcome.seconds for outcome in (absent, left_out, slow, failing))


def test_contestants_take_turns() -> None:
    """In the last round the second worked after the first, and each call took as long as it sleeps."""
    contestants = [
        Contestant("first", answering, {"value": 1.0, "seconds": 0.05}),
        Contestant("second", answering, {"value": 2.0, "seconds": 0.1}),
    ]
    first, second = hold(contestants, repeats=2, threads=1, timeout=60, tell=lambda text: None)
    assert first.answer["at"] <= second.answer["at"] - 0.1
    assert all(0.05 <= seconds < 0.1 for seconds in first.seconds)
    assert all(0.1 <= seconds < 0.5 for seconds in second.seconds)


def test_ratios_are_taken_within_rounds() -> None:
    """A drift that doubles both times of a round leaves every ratio alone."""
    ours, theirs = Outcome("ours", seconds=[1.0, 2.0, 4.0]), Outcome("theirs", seconds=[3.0, 6.0, 12.0])
    assert ratios(theirs, ours) == {"median": 3.0, "min": 3.0, "max": 3.0}
    assert ratios(Outcome("missing", status="missing: it"), ours) is None


def test_errors_against_known_values() -> None:
    values = np.array([4.0, 2.0, 1.0])
    answer = {"top": np.array([4.0, 1.9]), "residuals": np.array([0.1, 0.2]), "upper": np.array([4.4, 2.0])}
    found = accuracy.of_top(answer, values, 2)
    assert found["top error"] == pytest.approx(0.05)
    assert found["certified to"] == pytest.approx(0.1)
    assert found["residual"] == pytest.approx(0.2 / 1.9)
    assert accuracy.of_top({"top": np.array([4.0])}, values, 2) == {"top error": float("inf")}
    assert accuracy.of_all({"top": np.array([1.0, 2.0, 4.2])}, values)["error / s_max"] == pytest.approx(0.05)
    exact = {"nodes": values[None], "weights": np.full((1, 3), 1 / 3)}
    assert accuracy.of_density(exact, values) == pytest.approx(
        {"distance / mean s": 0.0, "mean square error": 0.0}
    )
    # All mass moved by one: the earth mover's distance is 1, of a mean of 7/3.
    moved = {"nodes": values[None] + 1, "weights": np.full((1, 3), 1 / 3)}
    assert accuracy.of_density(moved, values)["distance / mean s"] == pytest.approx(3 / 7)


@pytest.mark.parametrize(("kind", "parameters"), [("resnet18", 11_689_512), ("resnet50", 25_557_032)])
def test_the_resnets_are_those_of_the_paper(kind: str, parameters: int) -> None:
    """Numbers of parameters of the published networks with 1,000 classes; evaluation mode."""
    model, x = networks.build({"family": "resnet", "kind": kind, "size": 32})
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert not model.training
    assert model(x).shape == (1, 1000)
    if kind == "resnet50":
        return
    # The same weights in float64, which do not depend on the kind of block.
    double, z = networks.build({"family": "resnet", "kind": kind, "size": 32}, dtype="float64")
    torch.testing.assert_close(double(z).float(), model(x), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_every_script_runs_without_its_peers(name: str, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    command = [
        sys.executable,
        str(BENCHMARKS / f"{name}.py"),
        *TINY[name],
        "--threads",
        "1",
        "--repeats",
        "1",
    ]
    done = subprocess.run(
        [*command, "--out", str(out), "--without", *PEERS],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert set(record["machine"]) == {
        "processor", "cores", "threads_used", "memory_gib", "system", "python",
    }  # fmt: skip
    assert record["versions"]["torch"].startswith(torch.__version__)
    if name == "scaling":
        assert [row["quantity"] for row in record["rows"]] == ["n", "depth", "probes", "steps"]
        return
    status = {row["name"]: row["status"] for row in record["rows"]}
    for contestant, text in status.items():
        own = contestant.startswith("isometry") or contestant in ("jacrev, svdvals", "jacrev, svd_lowrank")
        assert text == "done" if own else text.startswith("missing: "), (contestant, text)
    assert all(_small_errors(row) for row in record["rows"])


def _small_errors(row: dict[str, Any]) -> bool:
    """The leading values to the tolerance asked for; a density of four probes says nothing here."""
    return row["errors"].get("top error", 0.0) <= 1e-2 and row["errors"].get("error / s_max", 0.0) <= 1e-5


def test_the_readme_quotes_the_committed_results() -> None:
    from harness.summary import summary

    readme = (BENCHMARKS.parent / "README.md").read_text()
    table = summary()
    assert table.count("\n") >= 2
    assert table in readme, "make the table again: python benchmarks/harness/summary.py"


def test_committed_results_tell_no_names_and_are_of_full_size() -> None:
    from harness.summary import RESULTS, WORK

    found = [RESULTS / f"{name}.json" for name in (*WORK, "scaling")]
    for path in filter(Path.exists, found):
        record = json.loads(path.read_text())
        assert record["full"], path.name
        # The claim for the largest network is one of minutes and memory, not of a ratio.
        assert record["repeats"] >= (1 if path.stem == "resnet50" else 5), path.name
        assert all("/" not in value for value in record["versions"].values())
