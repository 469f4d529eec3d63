"""What an import may load, and that no module stands where a public function belongs. Each in a fresh process."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import pytest

import isometry


def fresh(code: str) -> str:
    """Standard output of a new interpreter that runs ``code``."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(*modules: str) -> set[str]:
    """Names of all modules loaded in a new interpreter that imports ``modules``."""
    imports = "; ".join(f"import {module}" for module in modules)
    return set(json.loads(fresh(f"import json, sys; {imports}; print(json.dumps(sorted(sys.modules)))")))


def submodules(package: str) -> list[str]:
    """The package and everything in it, to any depth, found without importing it."""
    names, queue = (
        [package],
        [(package, [f"{isometry.__path__[0]}/{package.partition('.')[2].replace('.', '/')}"])],
    )
    while queue:
        parent, path = queue.pop()
        for found in pkgutil.iter_modules(path):
            names.append(f"{parent}.{found.name}")
            if found.ispkg:
                queue.append((names[-1], [f"{path[0]}/{found.name}"]))
    return names


def test_import_isometry_is_light() -> None:
    loaded = loaded_by("isometry")
    heavy = {"matplotlib", "rich", "h5py", "isometry.cli", "torch", "scipy", "click", "jinja2"}
    assert not loaded & heavy
    assert "isometry" in loaded


def test_measuring_loads_no_drawing_no_files_and_no_command_line() -> None:
    loaded = json.loads(
        fresh(
            "import json, sys, torch, isometry\n"
            "isometry.measure(torch.nn.Linear(3, 3), torch.ones(3))\n"
            "print(json.dumps(sorted(sys.modules)))"
        )
    )
    assert not set(loaded) & {
        "matplotlib",
        "rich",
        "h5py",
        "isometry.cli",
        "isometry.store",
        "click",
        "jinja2",
    }


@pytest.mark.parametrize("room", ["isometry.theory", "isometry.store", "isometry.report"])
def test_rooms_that_never_load_torch(room: str) -> None:
    modules = submodules(room)
    assert len(modules) > 3
    assert "torch" not in loaded_by(*modules)


def test_the_help_of_the_command_line_does_without_torch() -> None:
    commands = [name for name in submodules("isometry.cli") if name.count(".") == 2]
    assert "isometry.cli.train" in commands
    assert "torch" not in loaded_by(*commands)


def test_a_spectrum_is_numpy_alone() -> None:
    loaded = loaded_by("isometry.spectrum", "isometry.spectrum.distribution")
    assert "numpy" in loaded
    assert not loaded & {"torch", "scipy", "h5py", "matplotlib"}


def test_every_public_name_is_there_and_is_no_module_by_accident() -> None:
    """Whatever was imported before: a module of the same name would take a function's place."""
    everything = [name for name in submodules("isometry") if not name.startswith("isometry.cli")]
    found = json.loads(
        fresh(
            "import importlib, json, types, isometry\n"
            f"[importlib.import_module(name) for name in {everything!r}]\n"
            "kinds = {n: isinstance(getattr(isometry, n), types.ModuleType) for n in isometry.__all__}\n"
            "print(json.dumps(kinds))"
        )
    )
    assert set(found) == set(isometry.__all__)
    assert {name for name, is_module in found.items() if is_module} == {"init", "nn"}


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        isometry.nonsense  # noqa: B018
    assert {"measure", "Spectrum"} <= set(dir(isometry))
