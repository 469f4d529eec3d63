"""Open, act, close: one HDF5 file of spectra for the length of one ``with`` block, read or changed as one act.

Every failure, ours or the library's, leaves here as a StoreError that names the path, the cause and the cure.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from isometry.errors import IsometryError, NewerSchemaError, StoreError
from isometry.store.admission import attribute, holds, member
from isometry.store.digest import PROMISE
from isometry.store.guard import GuardedFile
from isometry.store.journal import commit, is_left, journal_path, recover, sync_folder
from isometry.store.layout import (
    BAND_FIELDS,
    CURVE_FIELDS,
    DERIVED_FIELDS,
    EXTREME_FIELDS,
    FORMAT,
    QUADRATURE_FIELDS,
    SCHEMA_VERSION,
    SERIES,
    SPECTRA,
)
from isometry.store.locking import locked, refuse_irregular
from isometry.store.overlay import Overlay
from isometry.store.summaries import NUMBERS, SUMMARY
from isometry.store.writing import write_attribute

# The group whose attributes say what the arrays of spectra mean.
ABOUT = "about"

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Readable by HDF5 1.8 and later. "latest" would mark the file as open, and refuse it after a kill.
_LIBRARY_VERSIONS = ("v108", "v108")
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def place_of(path: str | Path) -> Path:
    """The file that a path names, links followed: the journal lies beside it, and a replacement takes its place.

    Raises
    ------
    StoreError
        When it is there and no regular file: a pipe or a device is not even opened.
    """
    place = Path(path)
    with _explained(place, "read"):
        place = place.expanduser()
        if place.exists():
            refuse_irregular(place, place.stat())
        return place.resolve()


def group_of(file: h5py.File, kind: str) -> h5py.Group:
    """The group of all spectra, or of all series.

    Raises
    ------
    StoreError
        When there is none.
    """
    group = member(file, kind)
    if not isinstance(group, h5py.Group):
        raise StoreError(
            f"{file.filename} is damaged: it has no group /{kind}. Restore the file from a copy."
        )
    return group


@contextmanager
def reading(path: Path, *, timeout: float) -> Iterator[h5py.File]:
    """The file, open for reading; writers wait until the block ends."""
    with _explained(path, "read"):
        while True:
            with locked(path, exclusive=False, timeout=timeout) as raw:
                # Under our shared lock no writer is alive, so a journal is what a killed one left.
                if not is_left(path):
                    _check_signature(path, raw)
                    with h5py.File(GuardedFile(raw), "r") as file:
                        _check_format(path, file)
                        yield file
                    return
            _finish_killed_writer(path, timeout)


@contextmanager
def writing(path: Path, *, timeout: float) -> Iterator[h5py.File]:
    """The file, open for changes; they take effect together when the block ends, and not at all if it raises."""
    with _explained(path, "written"), locked(path, exclusive=True, timeout=timeout) as raw:
        recover(path, raw)
        _check_signature(path, raw)
        overlay = Overlay(raw)
        with h5py.File(overlay, "r+", libver=_LIBRARY_VERSIONS) as file:
            _check_format(path, file)
            for kind in (SPECTRA, SERIES):
                if member(file, kind) is None:
                    file.create_group(kind, track_order=True)
                group_of(file, kind)
            if not holds(file, ABOUT):
                _describe(file)
            yield file
        commit(path, raw, overlay)


@contextmanager
def rewriting(
    path: Path, *, timeout: float
) -> Iterator[tuple[h5py.File, Callable[[Callable[[h5py.File], None]], None]]]:
    """The file, open for reading, and what puts another in its place that a function has filled.

    Nobody else reads or writes meanwhile.
    """
    with _explained(path, "written"), locked(path, exclusive=True, timeout=timeout) as raw:
        recover(path, raw)
        _check_signature(path, raw)
        with h5py.File(GuardedFile(raw), "r") as file:
            _check_format(path, file)
            yield file, lambda fill: _place(path, os.replace, fill)


def create(path: Path, *, replace: bool, timeout: float) -> None:
    """An empty file of spectra at ``path``, there as a whole or not at all.

    With ``replace``, in place of one that is there, which must be a file of spectra; without, one that is there stays.
    """
    with _explained(path, "written"):
        if not path.parent.is_dir():
            raise StoreError(f"{path} cannot be created: there is no folder {path.parent}. Make it first.")
        if not path.exists():
            # A journal without its file belongs to one that was deleted.
            journal_path(path).unlink(missing_ok=True)
            try:
                _place(path, os.link)
            except FileExistsError:  # somebody was quicker, and that is as good
                pass
            except OSError as error:
                if error.errno not in (
                    errno.EPERM,
                    errno.ENOTSUP,
                    errno.EOPNOTSUPP,
                    errno.ENOSYS,
                    errno.EMLINK,
                ):
                    raise
                _place(path, os.replace)  # a file system without hard links
        elif replace:
            with locked(path, exclusive=True, timeout=timeout) as raw:
                recover(path, raw)
                _check_signature(path, raw)
                with h5py.File(Overlay(raw), "r") as file:
                    _check_format(path, file)
                _place(path, os.replace)
        elif path.is_file() and not (_writable(path) and _writable(path.parent)):
            # Said now, and not after the hours of work whose result was to be stored.
            raise PermissionError(errno.EACCES, "Permission denied")


@cache
def written_by() -> str:
    """Versions of what writes a file, and that its elements have digests."""
    try:
        own = version("isometry")
    except PackageNotFoundError:  # run from a source tree that is on the path but not installed
        own = "unknown"
    return f"isometry {own}, h5py {h5py.__version__}, HDF5 {h5py.version.hdf5_version}, {PROMISE}"


def _place(
    path: Path, put: Callable[[Path, Path], None], fill: Callable[[h5py.File], None] = lambda file: None
) -> None:
    """Make a file under a hidden name, fill it, and put it in its place."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")
    try:
        with open(draft, "xb") as target:
            target.write(_made(fill))
            target.flush()
            os.fsync(target.fileno())
        if path.exists():
            draft.chmod(stat.S_IMODE(path.stat().st_mode))
        put(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path)


def _made(fill: Callable[[h5py.File], None]) -> memoryview:
    """A file of spectra in memory: HDF5 gives no errors of the disk as they are."""
    memory = io.BytesIO()
    with h5py.File(memory, "w", libver=_LIBRARY_VERSIONS) as file:
        file.attrs["format"] = FORMAT
        file.attrs["schema_version"] = SCHEMA_VERSION
        file.attrs["written_by"] = written_by()
        file.create_group(SPECTRA, track_order=True)
        file.create_group(SERIES, track_order=True)
        _describe(file)
        fill(file)
    return memory.getbuffer()


def _describe(file: h5py.File) -> None:
    """What the short arrays of all spectra mean, once for the file: datasets say it themselves."""
    about = file.create_group(ABOUT, track_order=True)
    fields = (QUADRATURE_FIELDS, CURVE_FIELDS, EXTREME_FIELDS, DERIVED_FIELDS, BAND_FIELDS)
    for name, what in {key: what for group in fields for key, what in group.items()}.items():
        write_attribute(
            about.id, name, f"({', '.join(what.dimensions)}) {what.description}; units: {what.units}"
        )
    write_attribute(about.id, SUMMARY, f"what a list shows: {', '.join(NUMBERS)}; last a CRC-32")


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _finish_killed_writer(path: Path, timeout: float) -> None:
    try:
        with locked(path, exclusive=True, timeout=timeout) as raw:
            recover(path, raw)
    except PermissionError as error:
        raise StoreError(
            f"{path}: a writer was killed in its last instant, and the journal {journal_path(path).name} beside the "
            "file completes it. That takes permission to write: open the file once as a user who has it."
        ) from error


def _check_signature(path: Path, raw: BinaryIO) -> None:
    raw.seek(0)
    start = raw.read(len(_SIGNATURE))
    if not start:
        raise StoreError(f"{path} is empty: it is not a file of spectra. Delete it, or choose another name.")
    if start != _SIGNATURE:
        raise StoreError(
            f"{path} is not an HDF5 file (it begins with {start!r}). Give a file that isometry wrote, or another "
            "name to write to."
        )


def _check_format(path: Path, file: h5py.File) -> None:
    found, schema = attribute(file, "format"), attribute(file, "schema_version")
    if not isinstance(found, str) or found != FORMAT:
        raise StoreError(
            f"{path} is an HDF5 file of another program: its attribute 'format' is "
            f"{'missing' if found is None else repr(found)}, not {FORMAT!r}. It was left as it is; choose another file."
        )
    if not isinstance(schema, int | np.integer) or schema < 1:
        raise StoreError(
            f"{path} is damaged: its attribute 'schema_version' is {schema!r}, not a whole number from 1 on. Restore "
            "the file from a copy."
        )
    if schema > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"{path} was written by a newer isometry (schema {schema}; this one knows up to {SCHEMA_VERSION}): you may "
            "need to update, `pip install --upgrade isometry`."
        )


@contextmanager
def _explained(path: Path, act: str) -> Iterator[None]:
    """Turn every failure inside into a StoreError with path, cause and cure."""
    try:
        yield
    except IsometryError:
        raise
    except FileNotFoundError as error:
        raise StoreError(
            f"there is no file {path}. Check the path, or make the file with open_store(path, 'a')."
        ) from error
    except IsADirectoryError as error:
        raise StoreError(
            f"{path} is a folder. Give the path of a file, such as {path / 'spectra.h5'}."
        ) from error
    except PermissionError as error:
        where = path if act == "read" else f"{path} and its folder"
        raise StoreError(
            f"{path} cannot be {act}: no permission. You need the right to "
            f"{'read' if act == 'read' else 'write'} {where}; choose another place, or ask for it."
        ) from error
    except OSError as error:
        if error.errno in DISK_FULL:
            raise StoreError(
                f"{path} cannot be {act}: no room left ({error.strerror}). The file holds what it held before. Free "
                "some space or raise the quota or size limit, then try again; or write to another disk."
            ) from error
        if error.errno == errno.EROFS:
            raise StoreError(
                f"{path} cannot be {act}: its file system is read-only. Choose another place."
            ) from error
        raise _damaged(path, act, error) from error
    except Exception as error:
        # h5py, NumPy and json raise what they like, depending on where the damage sits; nothing else runs in here.
        raise _damaged(path, act, error) from error


def _damaged(path: Path, act: str, error: Exception) -> StoreError:
    cause = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if "truncated file" in cause:
        return StoreError(
            f"{path} is truncated: its end is missing ({cause[cause.find('truncated file') :].rstrip(')')}). It was "
            "cut by a copy or a transfer that stopped; copy it again."
        )
    return StoreError(
        f"{path} cannot be {act}: the file is damaged, or not as isometry wrote it ({type(error).__name__}: {cause}). "
        "`isometry validate FILE` names what is wrong; restore it from a copy."
    )
