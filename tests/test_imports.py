"""Which modules an import loads, and that no module stands where a public function belongs: in new interpreters."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from typing import Any

import pytest

import isometry


def fresh(code: str) -> str:
    """Standard output of a new interpreter that runs ``code``."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


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


# The command line imports torch inside its commands: its help appears at once.
WITHOUT_TORCH = ["isometry.theory", "isometry.store", "isometry.report", "isometry.cli"]


@pytest.fixture(scope="module")
def without_torch() -> dict[str, set[str]]:
    """Names of the modules that are loaded after each import, one import after another in one new interpreter."""
    steps = [["isometry"], ["isometry.spectrum", "isometry.spectrum.distribution"]]
    steps += [submodules(package) for package in WITHOUT_TORCH]
    found = json.loads(
        fresh(
            "import importlib, json, sys\nfound = {}\n"
            f"for names in {steps!r}:\n"
            "    [importlib.import_module(name) for name in names]\n"
            "    found[names[0]] = sorted(sys.modules)\n"
            "print(json.dumps(found))"
        )
    )
    return {name: set(modules) for name, modules in found.items()}


@pytest.fixture(scope="module")
def with_torch() -> dict[str, Any]:
    """Modules loaded by a measurement, and then, with every module imported, whether each public name is a module."""
    everything = [name for name in submodules("isometry") if not name.startswith("isometry.cli")]
    return json.loads(
        fresh(
            "import importlib, json, sys, torch, types, isometry\n"
            "isometry.measure(torch.nn.Linear(3, 3), torch.ones(3))\n"
            "loaded = sorted(sys.modules)\n"
            f"[importlib.import_module(name) for name in {everything!r}]\n"
            "kinds = {n: isinstance(getattr(isometry, n), types.ModuleType) for n in isometry.__all__}\n"
            "print(json.dumps({'loaded': loaded, 'kinds': kinds}))"
        )
    )


def test_import_isometry_is_light(without_torch: dict[str, set[str]]) -> None:
    loaded = without_torch["isometry"]
    heavy = {"matplotlib", "rich", "h5py", "isometry.cli", "torch", "scipy", "click", "jinja2"}
    assert not loaded & heavy
    assert "isometry" in loaded


def test_measuring_loads_no_drawing_no_files_and_no_command_line(with_torch: dict[str, Any]) -> None:
    assert not set(with_torch["loaded"]) & {
        "matplotlib",
        "rich",
        "h5py",
        "isometry.cli",
        "isometry.store",
        "click",
        "jinja2",
    }


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_packages_that_never_load_torch(package: str, without_torch: dict[str, set[str]]) -> None:
    modules = submodules(package)
    assert len(modules) > 3
    assert set(modules) <= without_torch[package]
    assert "torch" not in without_torch[package]


def test_a_spectrum_is_numpy_alone(without_torch: dict[str, set[str]]) -> None:
    loaded = without_torch["isometry.spectrum"]
    assert "numpy" in loaded
    assert not loaded & {"torch", "scipy", "h5py", "matplotlib"}


def test_every_public_name_is_there_and_is_no_module_by_accident(with_torch: dict[str, Any]) -> None:
    """Whatever was imported before: a module of the same name would take a function's place."""
    found = with_torch["kinds"]
    assert set(found) == set(isometry.__all__)
    assert {name for name, is_module in found.items() if is_module} == {"init", "nn"}


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        isometry.nonsense  # noqa: B018
    assert {"measure", "Spectrum"} <= set(dir(isometry))
