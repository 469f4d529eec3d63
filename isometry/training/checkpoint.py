"""The state of a training run in one file: weights, optimizer, random streams and curves.

Written with torch.save, read with ``weights_only=True``: no code of the file is run. A new checkpoint replaces the
old one atomically. Internal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isometry.errors import InputError, StoreError

VERSION = 1
# Options that do not change the curve may differ on resumption. With a schedule, `steps` changes it.
_FREE_OPTIONS = ("checkpoint_every",)


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    plan: Mapping[str, Any],
    step: int,
    curves: Mapping[str, list[float]],
) -> None:
    """Write the state after `step` updates.

    Raises
    ------
    StoreError
        When the file cannot be written.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    state = {
        "version": VERSION,
        "step": step,
        "plan": json.dumps(plan, sort_keys=True),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "curves": {name: torch.tensor(values, dtype=torch.float64) for name, values in curves.items()},
    }
    try:
        with open(draft, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except (OSError, RuntimeError) as error:
        raise StoreError(f"the checkpoint cannot be written to {path}: {error}.") from error
    finally:
        draft.unlink(missing_ok=True)


def load_checkpoint(
    path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer, plan: Mapping[str, Any]
) -> tuple[int, dict[str, list[float]]]:
    """Load a saved state into model, optimizer and random streams; return its step and its curves.

    Raises
    ------
    StoreError
        When the file is no checkpoint of this package, or of a newer version.
    InputError
        When it belongs to another run: other options, data or network.
    """
    if not Path(path).is_file():  # a pipe would be waited for
        raise StoreError(f"{path} cannot be read as a checkpoint of isometry: there is no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        version, saved = int(state["version"]), json.loads(state["plan"])
        saved["options"] = dict(saved["options"])
    except Exception as error:  # torch.load raises what it likes where a file is damaged
        raise StoreError(f"{path} cannot be read as a checkpoint of isometry: {error}") from error
    if version > VERSION:
        raise StoreError(
            f"{path} is a checkpoint of version {version}, this isometry reads up to {VERSION}: update it."
        )
    _require_same_plan(path, saved, json.loads(json.dumps(plan)))
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path} holds another network than the one given: {error}") from error
    except Exception as error:
        raise StoreError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    try:
        torch.set_rng_state(state["random"])
        if state["random_cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["random_cuda"])
        return int(state["step"]), {name: values.tolist() for name, values in state["curves"].items()}
    except Exception as error:
        raise StoreError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _require_same_plan(path: str | Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    free = set(_FREE_OPTIONS)
    if saved["options"].get("schedule") == "constant":
        free.add("steps")
    differences = [
        f"{name} was {saved['options'].get(name)!r} and is {wanted['options'].get(name)!r}"
        for name in sorted(set(saved["options"]) | set(wanted["options"]))
        if name not in free and saved["options"].get(name) != wanted["options"].get(name)
    ]
    differences += [
        f"{name} was {saved.get(name)} and is {wanted.get(name)}"
        for name in sorted((set(saved) | set(wanted)) - {"options"})
        if saved.get(name) != wanted.get(name)
    ]
    if differences:
        raise InputError(
            f"{path} belongs to another run: {'; '.join(differences)}. Resume with the same settings, or start "
            "anew under another name."
        )
