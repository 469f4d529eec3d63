"""One writer or many readers: a lock on the data file itself that dies with the process that holds it.

``flock`` on the file, the same kind of lock HDF5 takes, so that foreign readers (h5py, xarray) and we keep out of
each other's way. The kernel drops it when its holder dies, however it dies, so a stale lock cannot exist and no lock
file is left behind. HDF5's own switch HDF5_USE_FILE_LOCKING=FALSE, set on many clusters, does not turn ours off. On
NFS, Linux turns it into a byte-range lock that the server arbitrates; where a file system has no locks at all we go on
without.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from isometry.errors import StoreError

try:
    import fcntl
except (
    ImportError
):  # Windows: no flock. One writer at a time is then up to the user, as the documentation says.
    fcntl = None  # type: ignore[assignment]

# Seconds between two tries. Short: a writer finds its gap between readers that are always there by trying often.
_LONGEST_PAUSE = 0.02
_NO_LOCKS_HERE = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a symbolic link",
}
_ACCESS = os.O_RDONLY | os.O_WRONLY | os.O_RDWR
_MODES = {os.O_RDONLY: "rb", os.O_WRONLY: "wb", os.O_RDWR: "r+b"}


@contextmanager
def locked(path: Path, *, exclusive: bool, timeout: float) -> Iterator[BinaryIO]:
    """The file, open and locked, for the length of a ``with`` block.

    Parameters
    ----------
    path : Path
        An existing file.
    exclusive : bool
        True to write (the file is open for reading and writing), False to read.
    timeout : float
        Seconds to wait for the lock.

    Raises
    ------
    StoreError
        When the lock is not free in time.
    OSError
        When the file cannot be opened.
    """
    deadline = time.monotonic() + timeout
    pause = 0.002
    while True:
        file = open_regular(path, os.O_RDWR if exclusive else os.O_RDONLY)
        try:
            if _try_lock(file, exclusive=exclusive) and _still_there(path, file):
                yield file
                return
        finally:
            file.close()
        if time.monotonic() > deadline:
            raise StoreError(
                f"{path} has been in use for {timeout:g} s, by another process or by an h5py.File still open in this "
                f"one, so it could not be {'written' if exclusive else 'read'}. Nothing was changed. Wait for that "
                "process (`fuser -v FILE` names it), close that file, or allow more time with "
                "open_store(..., timeout=SECONDS). A lock ends with its process: there is no lock file to delete."
            )
        # Random and growing, so that many waiting writers do not try in step.
        time.sleep(pause * random.uniform(0.5, 1.5))
        pause = min(2 * pause, _LONGEST_PAUSE)


def open_regular(path: Path, flags: int) -> BinaryIO:
    """The file at ``path``, unbuffered, opened with the flags of `os.open`; a link in its place is not followed.

    Raises
    ------
    StoreError
        When it is a named pipe, a device or a socket: opening one may wait for ever.
    OSError
        When it cannot be opened.
    """
    refuse_irregular(path, os.lstat(path) if not flags & os.O_CREAT else None)
    # Not blocking, for what was put in its place just now. On a regular file the flag changes nothing.
    flags |= sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOFOLLOW", "O_BINARY"))
    file = cast(
        BinaryIO,
        open(path, _MODES[flags & _ACCESS], buffering=0, opener=lambda name, _: os.open(name, flags, 0o666)),  # noqa: SIM115
    )
    try:
        refuse_irregular(path, os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def refuse_irregular(path: Path, state: os.stat_result | None) -> None:
    """Raise where what stands at ``path`` is no regular file."""
    if state is None or stat.S_ISREG(state.st_mode):
        return
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    kind = _KINDS.get(stat.S_IFMT(state.st_mode), "no regular file")
    raise StoreError(
        f"{path} is {kind}: spectra are kept in regular files. Nothing was read from it; name a file."
    )


def _try_lock(file: BinaryIO, *, exclusive: bool) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file.fileno(), (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
    return True


def _still_there(path: Path, file: BinaryIO) -> bool:
    """Whether the path still names the file we locked: it may have been replaced between opening and locking."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
