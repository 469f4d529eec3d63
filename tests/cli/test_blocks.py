"""`isometry measure --per-block`, and what `isometry report` makes of it."""

from __future__ import annotations

import json

import pytest

SPEC = "mlp:depth=6,width=5,activation=tanh,sigma_w=1.1"


def test_blocks_are_measured_stored_and_reported(isometry, tmp_path) -> None:
    path, page = tmp_path / "a.h5", tmp_path / "a.html"
    done = isometry("measure", SPEC, "--per-block", "-o", path, "--name", "net")
    assert done.code == 0
    assert "net: block by block" in done.out
    assert "after 6 blocks" in done.out
    listed = isometry("list", path, "--json").json
    assert [row["name"] for row in listed["spectra"]] == ["net", "net to trunk.0", "net to trunk.3"]
    assert listed["series"] == ["net blocks"]
    report = isometry("report", path, "--html", page)
    assert report.code == 0
    assert "trunk.5" in report.out
    # The spectra of running products are drawn along the depth, not side by side.
    assert "net to trunk" not in report.out
    assert "Block by block" in page.read_text(encoding="utf-8")
    (profile,) = isometry("report", path, "--json").json["profiles"]
    assert profile["blocks"] == [f"trunk.{k}" for k in range(6)]
    assert isometry("report", path, "net to trunk.3", "--json").json["profiles"] == []
    assert isometry("validate", path).code == 0


def test_the_json_is_one_object_with_the_profile(isometry) -> None:
    done = isometry("measure", SPEC, "--per-block", "--json", "--blocks", r"trunk\.[024]")
    profile = json.loads(done.out)["profile"]
    assert profile["blocks"] == [
        "trunk.0", "trunk.1 to trunk.1.activation", "trunk.2", "trunk.3 to trunk.3.activation", "trunk.4",
        "trunk.5 to trunk.5.activation",
    ]  # fmt: skip
    assert len(profile["chi"]) == 6
    assert profile["running"]["6"]["mean_square"] == json.loads(done.out)["mean_square"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--blocks", "x"), 2, "give --per-block"),
        (("--per-block", "--output", "0"), 1, "the model returned one tensor"),
        (("--per-block", "--blocks", "nothing"), 1, "no module's whole name matches"),
        (("--per-block", "--blocks", "("), 1, "no regular expression"),
    ],
)
def test_what_cannot_be_is_refused(isometry, arguments, code: int, words: str) -> None:
    done = isometry("measure", SPEC, *arguments)
    assert done.code == code
    assert words in done.err


def test_what_cannot_be_recorded_is_measured_as_a_whole_and_refused_block_by_block(
    isometry, tmp_path
) -> None:
    models = tmp_path / "models.py"
    models.write_text(
        "import torch\n"
        "class Cube(torch.autograd.Function):\n"
        "    @staticmethod\n"
        "    def forward(ctx, x):\n"
        "        ctx.save_for_backward(x)\n"
        "        return x**3\n"
        "    @staticmethod\n"
        "    def backward(ctx, u):\n"
        "        return 3 * ctx.saved_tensors[0]**2 * u\n"
        "class Custom(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.inner = torch.nn.Linear(3, 3)\n"
        "    def forward(self, x):\n"
        "        return Cube.apply(self.inner(x))\n"
    )
    done = isometry("measure", f"{models}:Custom", "--input", "3", "--no-batch-axis", "--per-block")
    assert done.code == 1
    assert "cannot be recorded: no linear map for" in done.err
    assert "3 x 3" in done.out


def test_a_taken_profile_is_refused_and_replaced_when_asked(isometry, tmp_path) -> None:
    path = tmp_path / "a.h5"
    assert isometry("measure", SPEC, "--per-block", "-o", path).code == 0
    assert isometry("measure", SPEC, "--per-block", "-o", path).code == 1
    assert isometry("measure", SPEC, "--per-block", "-o", path, "--overwrite").code == 0
