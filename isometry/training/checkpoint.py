"""The state of a training run in one file: weights, optimizer, random streams and curves.

Written with torch.save, read with ``weights_only=True``: no code of the file is run. The comment of the ZIP archive
that torch.save writes holds the SHA-256 of all bytes before it. A new checkpoint replaces the old one atomically once
it was read back; the one before stays as ``NAME.previous``. Internal.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isometry.errors import InputError, StoreError
from isometry.training.archives import refuse_bomb

# Version 1 had no digest.
VERSION = 2
_MARK = b"isometry sha256 "
_COMMENT_BYTES = len(_MARK) + 64
# Beginning and length of the last record of a ZIP archive without a comment.
_END, _END_BYTES = b"PK\x05\x06", 22
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
        _seal(draft)
        if not _is_whole(draft):
            raise OSError("the file system returns other bytes than were written; the one before is kept")
        _keep_previous(path)
        os.replace(draft, path)
    except (OSError, RuntimeError) as error:
        raise StoreError(f"the checkpoint cannot be written to {path}: {error}.") from error
    finally:
        draft.unlink(missing_ok=True)


def previous_checkpoint(path: str | Path) -> Path:
    """Where the checkpoint before the one at ``path`` is kept."""
    return Path(f"{path}.previous")


def _seal(path: Path) -> None:
    """Write the SHA-256 of an archive as its comment."""
    with open(path, "r+b") as file:
        file.seek(-_END_BYTES, os.SEEK_END)
        if file.read(4) != _END:
            raise RuntimeError("torch.save has not written a ZIP archive")
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", _COMMENT_BYTES))
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0, os.SEEK_END)
        file.write(_MARK + digest.encode())
        file.flush()
        os.fsync(file.fileno())


def _is_whole(path: Path) -> bool | None:
    """Whether the bytes of a checkpoint are those of its digest; None where it has none."""
    with open(path, "rb") as file:
        count = max(os.fstat(file.fileno()).st_size - _COMMENT_BYTES, 0)
        file.seek(count)
        comment = file.read()
        if not comment.startswith(_MARK):
            return None
        file.seek(0)
        digest = hashlib.sha256()
        while count > 0:
            part = file.read(min(count, 1 << 20))
            if not part:
                return False
            digest.update(part)
            count -= len(part)
    return comment == _MARK + digest.hexdigest().encode()


def _keep_previous(path: Path) -> None:
    """Give the checkpoint at ``path`` the name of the previous one too."""
    if not path.is_file():
        return
    kept = previous_checkpoint(path)
    draft = kept.with_name(f".{kept.name}.{os.getpid()}.part")
    try:
        try:
            os.link(path, draft)
        except OSError:  # a file system without links
            shutil.copyfile(path, draft)
        os.replace(draft, kept)
    finally:
        draft.unlink(missing_ok=True)


def _last_good(path: str | Path) -> str:
    """The sentence that names the checkpoint before a damaged one; empty where there is none."""
    previous = previous_checkpoint(path)
    try:
        if not previous.is_file() or _is_whole(previous) is False:
            return ""
        refuse_bomb(previous)
        step = int(torch.load(previous, map_location="cpu", weights_only=True)["step"])
    except Exception:  # torch.load raises what it likes where a file is damaged
        return ""
    return (
        f" The last good one, after {step} updates, is {previous}: rename it to {Path(path).name} and resume."
    )


def load_checkpoint(
    path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer, plan: Mapping[str, Any]
) -> tuple[int, dict[str, list[float]]]:
    """Load a saved state into model, optimizer and random streams; return its step and its curves.

    Raises
    ------
    StoreError
        When the file is no checkpoint of this package, of a newer version, or has changed since it was written; the
        message names the last good one.
    InputError
        When it belongs to another run: other options, data or network.
    """
    if not Path(path).is_file():  # a pipe would be waited for
        raise StoreError(f"{path} cannot be read as a checkpoint of isometry: there is no such file")
    changed = f"{path} is damaged: its bytes are not those that were written (SHA-256), and it was not resumed from."
    try:
        whole = _is_whole(Path(path))
        if whole is False:
            raise StoreError(changed + _last_good(path))
        refuse_bomb(Path(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
        version, saved = int(state["version"]), json.loads(state["plan"])
        saved["options"] = dict(saved["options"])
    except StoreError:
        raise
    except Exception as error:  # torch.load raises what it likes where a file is damaged
        raise StoreError(
            f"{path} cannot be read as a checkpoint of isometry: {error}.{_last_good(path)}"
        ) from error
    if whole is None and version != 1:
        raise StoreError(changed + _last_good(path))
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
