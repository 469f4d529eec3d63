"""A file as HDF5 sees it while it writes: changes are kept in memory, the file below stays as it was.

HDF5 changes a file in many small writes, and a process killed between two of them leaves links without targets or an
index that nothing can read. So the library writes into an `Overlay`, and what it wrote goes into the file in one
piece afterwards (`isometry.store.journal`). The file is cut into blocks of 512 bytes, the unit a disk writes whole.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512


@dataclass(frozen=True)
class Change:
    """Bytes of the file that are to be replaced: where, and what shall stand there."""

    offset: int
    after: bytes


class Overlay(io.RawIOBase):
    """A readable, writable, seekable view of ``file`` that never writes to it.

    Parameters
    ----------
    file : BinaryIO
        Open for reading, unbuffered.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._base = file.seek(0, os.SEEK_END)  # bytes the file has
        self._size = self._base  # bytes the view has
        self._blocks: dict[int, bytearray] = {}  # changed blocks within the file, by number
        self._tail = bytearray()  # everything beyond its end
        self._position = 0

    # ---- what HDF5 calls -----------------------------------------------------------------------------

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        begin, end = self._position, min(self._position + len(view), self._size)
        if end <= begin:
            return 0
        within = min(end, self._base)
        if begin < within:
            view[: within - begin] = _read(self._file, begin, within - begin)
            for number in range(begin // BLOCK, (within - 1) // BLOCK + 1):
                block = self._blocks.get(number)
                if block is not None:
                    low, high = max(begin, number * BLOCK), min(within, number * BLOCK + len(block))
                    view[low - begin : high - begin] = block[low - number * BLOCK : high - number * BLOCK]
        beyond = max(begin, self._base)
        if beyond < end:
            view[beyond - begin : end - begin] = self._tail[beyond - self._base : end - self._base]
        self._position = end
        return end - begin

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        view = memoryview(data).cast("B")
        self._grow(self._position)
        self._put(self._position, view)
        self._position += len(view)
        self._size = max(self._size, self._position)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        size = self._position if size is None else size
        self._grow(size)
        self._size = size
        del self._tail[max(size - self._base, 0) :]
        return size

    # ---- what the journal asks -----------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes the file shall have."""
        return self._size

    @property
    def file_size(self) -> int:
        """Bytes the file has."""
        return self._base

    @property
    def tail(self) -> bytes:
        """What is to be appended to the file."""
        return bytes(self._tail)

    def changes(self) -> list[Change]:
        """What is to be replaced within the file, in order of place, where it differs at all."""
        found = []
        for number in sorted(self._blocks):
            offset, after = number * BLOCK, bytes(self._blocks[number])
            if _read(self._file, offset, len(after)) != after:
                found.append(Change(offset, after))
        return found

    # ---- inside --------------------------------------------------------------------------------------

    def _grow(self, size: int) -> None:
        """Zeros up to ``size``, also where the view was cut short before and the file still holds old bytes."""
        if size > self._size:
            self._put(self._size, memoryview(bytes(size - self._size)))
            self._size = size

    def _put(self, offset: int, view: memoryview) -> None:
        end = offset + len(view)
        within = min(end, self._base)
        position = offset
        while position < within:
            number = position // BLOCK
            if number not in self._blocks:
                length = min(BLOCK, self._base - number * BLOCK)
                self._blocks[number] = bytearray(_read(self._file, number * BLOCK, length))
            stop = min(within, (number + 1) * BLOCK)
            start = position - number * BLOCK
            self._blocks[number][start : stop - number * BLOCK] = view[position - offset : stop - offset]
            position = stop
        if position < end:
            start = position - self._base
            if start > len(self._tail):
                self._tail.extend(bytes(start - len(self._tail)))
            self._tail[start : end - self._base] = view[position - offset :]


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    pieces = []
    while length > 0 and (piece := file.read(length)):
        pieces.append(piece)
        length -= len(piece)
    # Somebody cut the file under our lock: what is gone reads as zeros, and HDF5's checksums find it.
    return b"".join(pieces) + bytes(length)
