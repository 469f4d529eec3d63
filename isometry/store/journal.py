"""Changes to a file as one act: after a kill at any moment the file is as before, or as after, never between.

1. What grows beyond the end is appended; nothing in the file points there yet. Synced.
2. What changes within the file is written, old bytes and new, into a journal beside it (``.NAME.journal``) that ends
   in its own SHA-256. Synced: from here on the change is decided.
3. The new bytes are put in place, the file is cut to its size. Synced. The journal is deleted.

Whoever next takes the lock finds no journal (nothing to do), a journal that is not whole (step 2 was not reached: it is
deleted), or a whole one (step 3 is done again). This is the redo logging of data bases (Mohan et al., ARIES, 1992). It
is there because "write under a hidden name, flush, rename, flush" alone leaves, at about one write boundary in seven,
a file whose index HDF5 refuses; tests/store/test_kills.py stops after every single write.
"""

from __future__ import annotations

import hashlib
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from isometry.errors import StoreError
from isometry.store.overlay import Change, Overlay

_MAGIC = b"isometry journal, version 1\n"
_HEADER = struct.Struct("<QQQ")  # size with the tail appended, size at the end, number of changes
_ENTRY = struct.Struct("<QI")  # offset, length


@dataclass(frozen=True)
class Journal:
    """A decided change: the size the file had when it was decided, its size at the end, the blocks to replace."""

    extended_size: int
    final_size: int
    changes: tuple[Change, ...]


def journal_path(path: Path) -> Path:
    """Where the journal of a file lies: beside it, hidden."""
    return path.with_name(f".{path.name}.journal")


def commit(path: Path, file: BinaryIO, overlay: Overlay) -> None:
    """Put everything the overlay holds into the file. The caller holds the exclusive lock.

    Raises
    ------
    OSError
        When there is no room or no permission; the file is then as before.
    StoreError
        When the last step fails; the change is then done when the file is next opened.
    """
    changes, tail = overlay.changes(), overlay.tail
    before = overlay.file_size
    if not changes and not tail and overlay.size == before:
        return
    beside = journal_path(path)
    try:
        _write_at(file, before, tail)
        _sync(file)
        journal = Journal(before + len(tail), overlay.size, tuple(changes))
        with open(beside, "wb", buffering=0) as target:
            _write_at(target, 0, _pack(journal))
            _sync(target)
        sync_folder(path)
    except OSError:
        beside.unlink(missing_ok=True)
        with suppress(OSError):
            file.truncate(before)
        raise
    try:
        _apply(path, file, journal)
    except OSError as error:
        raise StoreError(
            f"{path}: the change is decided, but putting it in place failed ({error.strerror}). It is safe in "
            f"{beside.name} beside the file, and done when the file is next opened: free some space, then open it."
        ) from error


def recover(path: Path, file: BinaryIO) -> None:
    """Finish, or forget, what a killed writer began. The caller holds the exclusive lock."""
    try:
        packed = journal_path(path).read_bytes()
    except FileNotFoundError:
        return
    journal = _unpack(packed)
    if journal is not None and _belongs(file, journal):
        _apply(path, file, journal)
    else:
        journal_path(path).unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Make the names in the file's folder durable, where the system can."""
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _apply(path: Path, file: BinaryIO, journal: Journal) -> None:
    for change in journal.changes:
        _write_at(file, change.offset, change.after)
    if file.seek(0, os.SEEK_END) != journal.final_size:
        file.truncate(journal.final_size)
    _sync(file)
    journal_path(path).unlink(missing_ok=True)


def _belongs(file: BinaryIO, journal: Journal) -> bool:
    """Whether every block holds its old or its new bytes: else the file was exchanged since the kill."""
    if file.seek(0, os.SEEK_END) not in (journal.extended_size, journal.final_size):
        return False
    for change in journal.changes:
        file.seek(change.offset)
        held = file.read(len(change.after))
        # Shorter than the block where the file has been cut to its final size already.
        if not (change.before.startswith(held) or change.after.startswith(held)):
            return False
    return True


def _pack(journal: Journal) -> bytes:
    parts = [_MAGIC, _HEADER.pack(journal.extended_size, journal.final_size, len(journal.changes))]
    for change in journal.changes:
        parts += [_ENTRY.pack(change.offset, len(change.after)), change.before, change.after]
    body = b"".join(parts)
    return body + hashlib.sha256(body).digest()


def _unpack(packed: bytes) -> Journal | None:
    """The journal, or None where it is not whole."""
    body, digest = packed[:-32], packed[-32:]
    if not body.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
        return None
    position = len(_MAGIC)
    extended_size, final_size, count = _HEADER.unpack_from(body, position)
    position += _HEADER.size
    changes = []
    for _ in range(count):
        offset, length = _ENTRY.unpack_from(body, position)
        position += _ENTRY.size
        before, after = body[position : position + length], body[position + length : position + 2 * length]
        position += 2 * length
        changes.append(Change(offset, before, after))
    return Journal(extended_size, final_size, tuple(changes))


def _write_at(file: BinaryIO, offset: int, data: bytes) -> None:
    """Write all of it: an unbuffered write may take less than it was given."""
    file.seek(offset)
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _sync(file: BinaryIO) -> None:
    os.fsync(file.fileno())
