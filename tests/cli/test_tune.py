"""`isometry tune`: the weights that it saves are those that it reports."""

from __future__ import annotations

import pytest

MODELS = """
import torch
from torch import nn

def chain():
    return nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(6, 6), nn.Tanh())), nn.Linear(6, 6))

def frozen():
    return chain().requires_grad_(False)
"""


@pytest.fixture
def models(tmp_path) -> str:
    path = tmp_path / "models.py"
    path.write_text(MODELS)
    return str(path)


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_tuned_weights_are_saved_and_load_again(isometry, models, tmp_path, ending: str) -> None:
    path = tmp_path / f"tuned{ending}"
    done = isometry("tune", f"{models}:chain", "--input", "6", "-o", path, "--json")
    assert done.code == 0
    report = done.json
    assert report["file"] == str(path)
    assert report["before"]["mean_square"] < 0.1
    assert {w["module"] for w in report["weights"]} == {"0", "2", "4", "6", "8"}
    again = isometry("measure", f"{models}:chain", "--input", "6", "--weights", path, "--json")
    # The same network at the same input, measured exactly: to the tolerance of 1 %.
    assert again.json["mean_square"] == pytest.approx(1.0, rel=0.011)
    assert again.json["mean_square"] == report["after"]["mean_square"]
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_without_a_file_it_is_advice(isometry, models) -> None:
    done = isometry("tune", f"{models}:chain", "--input", "6")
    assert done.code == 0
    assert "5 factors: weights would be scaled" in done.out
    assert "nothing is kept without -o" in done.err
    assert "nothing is kept" not in isometry("tune", f"{models}:chain", "--input", "6", "--dry-run").err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--overwrite",), 2, "give -o FILE"),
        (("--dry-run", "-o", "a.pt"), 2, "leave -o out"),
        (("-o", "a.h5"), 2, "its ending is to be .safetensors"),
        (("-o", "there/is/no/a.pt"), 2, "there is no folder"),
        (("--sweeps", "1"), 5, "no convergence in 1 sweeps"),
        (("--leave", "("), 1, "no regular expression"),
        (("--leave", ".*"), 1, "nothing to tune"),
        (("--require-isometry", "1"), 3, "threshold missed"),
    ],
)
def test_what_cannot_be_has_its_exit_code(isometry, models, arguments, code: int, words: str) -> None:
    done = isometry("tune", f"{models}:chain", "--input", "6", *arguments)
    assert done.code == code
    assert words in done.err


def test_a_file_that_is_there_stays(isometry, models, tmp_path) -> None:
    path = tmp_path / "a.pt"
    path.write_text("mine")
    done = isometry("tune", f"{models}:chain", "--input", "6", "-o", path)
    assert done.code == 2
    assert "replace it with --overwrite" in done.err
    assert path.read_text() == "mine"
    assert isometry("tune", f"{models}:frozen", "--input", "6", "-o", path, "--overwrite").code == 1
    assert path.read_text() == "mine"


def test_reports_advise_with_the_command_that_does_it(isometry, tmp_path) -> None:
    spec, path, page = (
        "mlp:depth=6,width=5,activation=tanh,sigma_w=0.6",
        tmp_path / "a.h5",
        tmp_path / "a.html",
    )
    done = isometry("measure", spec, "--seed", "3", "--per-block", "-o", path)
    command = f"isometry tune {spec} --seed 3 -o tuned.safetensors"
    # Of the spectrum and of its blocks.
    assert done.out.count(f"\n  {command}\n") == 2
    assert "advice: sigma_w is 0.6; critical is 1 (q* = 0)" in done.out
    assert "multiply their weights by" in " ".join(done.out.split())
    report = isometry("report", path, "--html", page)
    assert report.out.count(f"\n  {command}\n") == 2
    assert page.read_text(encoding="utf-8").count(f"<code>{command}</code>") == 2
    (spectrum,) = [s for s in isometry("report", path, "--json").json["spectra"] if s["name"] == "mlp"]
    assert [one["command"] for one in spectrum["advice"]] == ["isometry.critical_init_(model, x)", command]
    assert (
        "advice" not in isometry("measure", "mlp:depth=2,width=5,init=orthogonal,sigma_w=1.2", "--json").json
    )
