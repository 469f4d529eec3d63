"""Packed files that would unpack to far more than they take: refused before anything is unpacked."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

from isometry.errors import LoadError

# Bytes that any file may unpack to, and how often its own size. Numbers pack to a half or a tenth.
_PLENTY, _RATIO = 2**28, 100


def limit_of(path: Path) -> int:
    """Bytes to which a file may unpack."""
    return max(_PLENTY, _RATIO * path.stat().st_size)


def refuse_bomb(path: Path) -> None:
    """Raise where the entries of a zip archive (.npz, .pt) declare more bytes than that; another file is let pass.

    NumPy and PyTorch unpack as much as an entry declares, and no more.

    Raises
    ------
    LoadError
        When it does.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
    except Exception:  # no archive, or a damaged one: its reader says so
        return
    if total > limit_of(path):
        raise _refusal(path, f"{total:,} bytes")


def unpacked(path: Path) -> bytes:
    """The content of a .gz file.

    Raises
    ------
    LoadError
        When there is more of it than that.
    OSError, EOFError, zlib.error
        When it is damaged.
    """
    limit = limit_of(path)
    with gzip.open(path, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise _refusal(path, f"more than {limit:,} bytes")
    return content


def _refusal(path: Path, much: str) -> LoadError:
    return LoadError(
        f"{path} takes {path.stat().st_size:,} bytes and would unpack to {much}, as no measured numbers do. It was not "
        "unpacked; if it is yours, save it without compression"
    )
