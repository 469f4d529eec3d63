"""A small grid, models that misbehave, and what two files have to have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

# Four measurements with their laws (two of them), each in some milliseconds.
GRID: dict[str, Any] = {
    "kind": "compare",
    "seeds": 2,
    "fixed": {"model": "mlp", "width": 6, "activation": "linear", "sigma_w": 1.0, "init": "gaussian"},
    "axes": {"depth": [1, 3]},
}

# The same without laws and comparisons, which take longest.
MEASURED = {**GRID, "kind": "measure"}

MODELS = '''
import os, signal, time
import torch
from torch import nn

def fine():
    return nn.Linear(4, 4)

def fails():
    raise RuntimeError("no such network\\nand more")

def dies():
    os.kill(os.getpid(), signal.SIGKILL)

def slow():
    time.sleep(60)
    return nn.Linear(4, 4)

def when_allowed():
    """Fails as long as there is no file `allowed` beside this one."""
    if not os.path.exists(os.path.join(os.path.dirname(__file__), "allowed")):
        raise RuntimeError("not yet")
    return nn.Linear(4, 4)
'''


def models(folder: Path) -> Path:
    """A file of models, some of which fail."""
    path = folder / "models.py"
    path.write_text(MODELS)
    return path


def of_models(path: Path, *names: str, seeds: int = 1) -> dict[str, Any]:
    """The grid that measures these models."""
    return {"seeds": seeds, "fixed": {"input": "4"}, "axes": {"model": [f"{path}:{name}" for name in names]}}


# The digest of the attributes holds the times among them.
_OF_THE_RUN = {
    "summary",
    "last_written",
    "created",
    "seconds",
    "written_by",
    "traceback",
    "worker",
    "attributes_sha256",
}


def contents(path: Path) -> dict[str, Any]:
    """Everything in a file, bit for bit, but times and versions; the order of adding does not count."""
    found: dict[str, Any] = {}

    def keep(name: str, item: h5py.HLObject) -> None:
        if name.rpartition("/")[2] in _OF_THE_RUN:
            return
        attributes = {key: _plain(value) for key, value in item.attrs.items() if key not in _OF_THE_RUN}
        # Object references of dimension scales are addresses in the file.
        attributes = {key: value for key, value in attributes.items() if "LIST" not in key}
        found[name] = (attributes, item[...].tobytes() if isinstance(item, h5py.Dataset) else None)

    with h5py.File(path, "r") as file:
        file.visititems(keep)
    return found


def _plain(value: Any) -> Any:
    return value.tobytes() if isinstance(value, np.ndarray) else value
