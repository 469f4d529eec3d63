"""A file as HDF5 sees it while it reads, with one thing looked at that HDF5 does not look at itself.

Texts of attributes lie in "global heap collections". Where such a collection was overwritten with zeros, HDF5 (up to
2.0 at least) goes round it for ever: an entry of length 0 is skipped by its length. Here that is an error instead.
"""

from __future__ import annotations

import io
import os
import struct
from typing import BinaryIO

_SIGNATURE = b"GCOL\x01\0\0\0"
_HEADER, _ENTRY = 16, 16


class GuardedFile(io.RawIOBase):
    """A readable, seekable view of ``file``, opened unbuffered for reading."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file

    def __repr__(self) -> str:
        """The path: h5py takes this for the name of the file, and messages give it."""
        return str(self._file.name)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        count = 0
        # One call may give less than was asked for; HDF5 takes that for the end of the file.
        while count < len(view) and (more := self._file.readinto(view[count:])):  # type: ignore[attr-defined]
            count += more
        if count >= _HEADER and view[:8] == _SIGNATURE:
            refuse_endless(view[:count])
        return count


def refuse_endless(collection: memoryview) -> None:
    """Raise OSError where an entry of a global heap collection, as far as it was read, does not lead to the next one.

    The format is in "HDF5 File Format Specification", III.E: a header with the size of the whole, then entries of 16
    bytes (number, references, length) with their data; number 0 is the free space, whose length counts its header.
    """
    (size,) = struct.unpack_from("<Q", collection, 8)
    end, place = min(size, len(collection)), _HEADER
    while place + _ENTRY <= end:
        number, length = struct.unpack_from("<H6xQ", collection, place)
        step = length if number == 0 else _ENTRY + -(-length // 8) * 8
        if step < _ENTRY or place + step > size:
            raise OSError("the heap of the texts is damaged")
        place += step
