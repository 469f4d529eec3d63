"""What the documentation shows must run: README blocks, README command lines, docstring examples."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isometry
from isometry.cli.entry import run
from isometry.sweeps.engines import UserExecutor

pytestmark = pytest.mark.usefixtures("few_networks")

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

MY_MODEL = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    features = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(8)))
    return nn.Sequential(__import__("collections").OrderedDict(
        features=features, norm=nn.BatchNorm2d(3), flat=nn.Flatten(), head=nn.Linear(3 * 32 * 32, 4)))
"""


# What makes a page smaller: that its lines run as they stand is what is tested.
SMALLER = {
    "comparing.md": {"500": "100"},
    "devices.md": {"randn(20, 64": "randn(2, 64"},
    "measuring.md": {"depth=8, channels=4": "depth=4, channels=2", "randn(4, 8, 8": "randn(2, 8, 8"},
    "sweeps.md": {"[2, 4, 8]": "[2, 4]", "seeds = 2": "seeds = 1", '"seeds": 2': '"seeds": 1'},
}

# Other pages are doctests or describe files; their own tests run them (tests/nn, tests/store).
PAGES = sorted({path.name for path in (ROOT / "docs").glob("*.md")} - {"file-format.md", "initialisers.md"})


def modules() -> list[str]:
    """Those with examples; test_imports.py imports every one."""
    found = pkgutil.walk_packages(isometry.__path__, "isometry.")
    specs = (module.module_finder.find_spec(module.name, None) for module in found)
    return sorted(spec.name for spec in specs if ">>>" in Path(spec.origin).read_text())


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A sweep runs in a thread, not in new interpreters, each of which loads torch for a handful of points."""
    with ThreadPoolExecutor(1) as threads:
        monkeypatch.setattr("isometry.sweeps.engines.Processes", lambda *_: UserExecutor(threads))
        yield


@pytest.mark.parametrize("name", modules())
def test_docstring_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples in {name}"


def test_readme_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        # The same lines on a smaller network: what is tested is that they run as they stand.
        exec(block.replace("depth=100", "depth=10"), names)
    spectrum = names["spectrum"]
    assert isinstance(spectrum, isometry.Spectrum)
    assert spectrum.shape == (1024, 1024)
    assert isometry.open_store("runs.h5").names() == ["delta, depth 100"]


def test_readme_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command line of "The command line in one screen", on small stand-ins for the reader's own files."""
    import torch

    monkeypatch.chdir(tmp_path)
    Path("my_model.py").write_text(MY_MODEL)
    Path("grid.toml").write_text('kind = "predict"\n[axes]\ndepth = [2, 4]\n')
    scope: dict[str, object] = {}
    exec(MY_MODEL, scope)
    torch.save(scope["build"]().state_dict(), "checkpoint.pt")  # type: ignore[operator]
    np.save("images.npy", np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype("float32"))
    screen = README.split("## The command line in one screen")[1].split("## ")[0]
    lines = [
        part for line in screen.splitlines() if line.startswith("    isometry") for part in line.split(";")
    ]
    assert len(lines) >= 10
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        small = [word.replace("depth=32", "depth=4").replace("channels=16", "channels=4") for word in words]
        code = run(small)
        assert code == 0, f"{line.strip()} -> {code}\n{capsys.readouterr().err}"


def blocks_of(text: str) -> list[tuple[str, str]]:
    """(language, code) of every block of a page but those below a line ``<!-- not run: why -->``."""
    found = re.findall(r"(<!-- not run: .+? -->\n)?```(\w+)\n(.*?)```", text, flags=re.DOTALL)
    return [(language, code) for excused, language, code in found if not excused]


@pytest.mark.parametrize("page", PAGES)
def test_pages_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page one after another, as a reader runs them: Python in one session, commands in one folder."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    text = (ROOT / "docs" / page).read_text()
    for large, small in SMALLER.get(page, {}).items():
        assert large in text
        text = text.replace(large, small)
    for language, code in blocks_of(text):
        file = re.match(r"# (\S+\.toml)\n", code)
        if language == "toml" and file:
            Path(file[1]).write_text(code)
        elif language == "python":
            exec(code, names)
        elif language == "sh":
            for line in code.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["isometry"]:
                    assert run(words[1:]) == 0, line


def resolve(name: str) -> None:
    """Raise AttributeError where a dotted name is no module, class, function, attribute or dataclass field."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, "__dataclass_fields__", {}).get(part) or getattr(found, part)
        return


def test_every_name_of_the_glossary_is_there() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text()
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("| ")]
    assert {len(row) for row in rows} == {4}
    names = [
        name for row in rows if row[1].strip() != "name in code" for name in re.findall(r"`(.+?)`", row[1])
    ]
    assert len(names) > 50
    missing = []
    for name in names:
        try:
            resolve(name)
        except AttributeError:
            missing.append(name)
    assert missing == []


def test_every_name_of_the_table_of_places_is_there() -> None:
    """The first name of a row in the file of its row, others somewhere in the package."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| .+? \| \[.+?\]\((isometry/\S+)\) \| (.+?) \|$", text, flags=re.MULTILINE)
    package = "\n".join(path.read_text() for path in (ROOT / "isometry").rglob("*.py"))
    assert len(rows) > 20
    missing = []
    for path, words in rows:
        first, *others = [name.split(".")[-1] for name in re.findall(r"`@?(\w[\w.]*)`", words)] or [""]
        missing += [f"{first} in {path}"] * (not re.search(rf"\b{first}\b", (ROOT / path).read_text()))
        missing += [name for name in others if not re.search(rf"\b(def|class) {name}\b", package)]
    assert missing == []


@pytest.mark.parametrize(
    "page", sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")])
)
def test_every_path_that_a_page_links_is_there(page: str) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / page).read_text(), flags=re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    paths = [target for target in targets if target and "://" not in target]
    beside = (ROOT / page).parent
    assert [
        path for path in paths if not (beside / path).exists() and not (beside / f"{path}.md").exists()
    ] == []
    if page == "CONTRIBUTING.md":
        # Every package of the layers has its row.
        packages = {
            path.stem for path in (ROOT / "isometry").iterdir() if not path.name.startswith((".", "_"))
        }
        assert packages - {"py"} <= {Path(path).stem for path in paths}
