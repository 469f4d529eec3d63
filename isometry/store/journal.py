"""Changes to a file as one act: after a kill at any moment the file is as before, or as after, never between.

1. What grows beyond the end is appended; nothing in the file points there yet. Synced.
2. The new bytes of what changes within the file are written into a journal beside it (``.NAME.journal``) that ends in
   its own SHA-256. Synced: from here on the change is decided.
3. The new bytes are put in place, the file is cut to its size. Synced. The journal is deleted.

Whoever next takes the lock finds no journal (nothing to do), a journal that is not whole (step 2 was not completed: it
is deleted), or a whole one (step 3 is done again). What the blocks of the file hold then plays no part: a block that
was cut short in step 3 holds neither its old bytes nor its new ones. This is the redo logging of data bases (Mohan et
al., ARIES, 1992). It is there because "write under a hidden name, flush, rename, flush" alone leaves, at about one
write boundary in seven, a file whose index HDF5 refuses; tests/store/test_kills.py stops after every single write.
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
from isometry.store.locking import open_regular
from isometry.store.overlay import Change, Overlay

_MAGIC = b"isometry journal, version 2\n"
# Version 1 held the old bytes of every block before its new ones.
_MAGIC_1 = b"isometry journal, version 1\n"
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
        # The lock is ours and recovery came first, so nothing of ours stands there; a link is not written through.
        with open_regular(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as target:
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


def is_left(path: Path) -> bool:
    """Whether a journal lies beside the file, or something else under its name."""
    return os.path.lexists(journal_path(path))


def recover(path: Path, file: BinaryIO) -> None:
    """Finish, or forget, what a killed writer began. The caller holds the exclusive lock."""
    beside = journal_path(path)
    if not is_left(path):
        return
    size = file.seek(0, os.SEEK_END)
    with open_regular(beside, os.O_RDONLY) as source:
        # More than a journal of this file can have is not read at all.
        packed = source.read(4 * size + 4096) or b""
    journal = _unpack(packed)
    # Another size: the file was exchanged for another one since the kill.
    if journal is not None and size in (journal.extended_size, journal.final_size):
        _apply(path, file, journal)
    else:
        beside.unlink(missing_ok=True)


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


def _pack(journal: Journal) -> bytes:
    parts = [_MAGIC, _HEADER.pack(journal.extended_size, journal.final_size, len(journal.changes))]
    for change in journal.changes:
        parts += [_ENTRY.pack(change.offset, len(change.after)), change.after]
    body = b"".join(parts)
    return body + hashlib.sha256(body).digest()


def _unpack(packed: bytes) -> Journal | None:
    """The journal, or None where it is not whole."""
    body, digest = packed[:-32], packed[-32:]
    if hashlib.sha256(body).digest() != digest or not body.startswith((_MAGIC, _MAGIC_1)):
        return None
    position, copies = len(_MAGIC), 2 if body.startswith(_MAGIC_1) else 1
    changes = []
    try:
        extended_size, final_size, count = _HEADER.unpack_from(body, position)
        position += _HEADER.size
        for _ in range(count):
            offset, length = _ENTRY.unpack_from(body, position)
            end = position + _ENTRY.size + copies * length
            changes.append(Change(offset, body[end - length : end]))
            position = end
    except struct.error:
        return None
    # A digest is no proof of who made it: what was made by hand may not make the file grow.
    if final_size > extended_size or any(c.offset + len(c.after) > extended_size for c in changes):
        return None
    return Journal(extended_size, final_size, tuple(changes)) if position == len(body) else None


def _write_at(file: BinaryIO, offset: int, data: bytes) -> None:
    """Write all of it: an unbuffered write may take less than it was given."""
    file.seek(offset)
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _sync(file: BinaryIO) -> None:
    os.fsync(file.fileno())
