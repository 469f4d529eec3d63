"""Which modules an import loads, in new interpreters, and that no module stands where a public function belongs."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
import types

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


def test_importing_loads_no_more_than_it_needs() -> None:
    """One import after another in one new interpreter, and the modules that are loaded after each."""
    packages = [submodules(package) for package in WITHOUT_TORCH]
    steps = [["isometry"], ["isometry.spectrum", "isometry.spectrum.distribution"], *packages]
    found = json.loads(
        fresh(
            "import importlib, json, sys\nfound = {}\n"
            f"for names in {steps!r}:\n"
            "    [importlib.import_module(name) for name in names]\n"
            "    found[names[0]] = sorted(sys.modules)\n"
            "print(json.dumps(found))"
        )
    )
    loaded = {name: set(modules) for name, modules in found.items()}
    heavy = {"matplotlib", "rich", "h5py", "isometry.cli", "torch", "scipy", "click", "jinja2"}
    assert "isometry" in loaded["isometry"]
    assert not loaded["isometry"] & heavy
    # A spectrum is NumPy alone.
    assert "numpy" in loaded["isometry.spectrum"]
    assert not loaded["isometry.spectrum"] & {"torch", "scipy", "h5py", "matplotlib"}
    for modules in packages:
        assert len(modules) > 3
        assert set(modules) <= loaded[modules[0]]
        assert "torch" not in loaded[modules[0]], modules[0]


MEASURING = """
import json, sys, torch, isometry
isometry.measure(torch.nn.Linear(3, 3), torch.ones(3))
loaded = sorted(sys.modules)

class CompilesItself(torch.nn.Module):
    def forward(self, x):
        return torch.compile(lambda z: 2 * z, backend=backend)(x)

def backend(graph, inputs):
    compiled.append(graph)
    return graph.forward

compiled = []
s_max = isometry.measure(CompilesItself(), torch.ones(3)).s_max
inside = len(compiled)
CompilesItself()(torch.ones(3))
print(json.dumps([loaded, "torch._dynamo" in sys.modules, s_max, inside, len(compiled)]))
"""


def test_measuring_loads_no_drawing_no_files_no_command_line_and_no_compiler() -> None:
    loaded, compiler, s_max, compiled_inside, compiled_after = json.loads(fresh(MEASURING))
    # A model that loads the compiler itself is measured as it was written, and compiled again afterwards.
    assert (compiler, s_max, compiled_inside, compiled_after) == (True, 2.0, 0, 1)
    assert "isometry.measurement" in loaded
    assert not set(loaded) & {
        "matplotlib",
        "rich",
        "h5py",
        "isometry.cli",
        "isometry.store",
        "click",
        "jinja2",
        "torch._dynamo",
    }


def test_every_public_name_is_there_and_is_no_module_by_accident() -> None:
    """With every module imported: a module of the same name would have taken a function's place."""
    for name in submodules("isometry"):
        if not name.startswith("isometry.cli"):
            importlib.import_module(name)
    modules = {name for name in isometry.__all__ if isinstance(getattr(isometry, name), types.ModuleType)}
    assert modules == {"init", "nn"}


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        isometry.nonsense  # noqa: B018
    assert {"measure", "Spectrum"} <= set(dir(isometry))
