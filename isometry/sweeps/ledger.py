"""`Ledger`: which points of a sweep a file of spectra holds, and how an outcome is stored. Internal.

A measured or predicted point is finished when the file has its spectrum, a training run when it has its curves; the
law of a comparison and the spectra measured during training are written before. A failed point leaves a series named
"failed ...", with its error as attributes, until it succeeds. The file is the only state of a sweep.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from isometry.errors import StoreError, SweepError
from isometry.store import open_store
from isometry.store.locking import locked, open_regular
from isometry.sweeps.configuration import Point
from isometry.sweeps.names import FAILED, LAW
from isometry.sweeps.work import Outcome
from isometry.training.record import evaluation_name, write_record

# Seconds to wait for a reader to release the file before a result is given up.
_PATIENCE = 600.0


@contextmanager
def coordinating(path: Path) -> Iterator[None]:
    """Hold the lock by which only one sweep writes to a file.

    The lock is on a separate file beside it (``.NAME.sweep``), so that other processes can read and store meanwhile. It
    is a lock of the kernel, which ends with this process.

    Raises
    ------
    SweepError
        When another sweep holds the lock.
    """
    place = path.expanduser().resolve()
    if not place.parent.is_dir():
        raise StoreError(f"{path} cannot be created: there is no folder {path.parent}. Make it first.")
    beside = place.with_name(f".{place.name}.sweep")
    with ExitStack() as held:
        file = held.enter_context(_own(beside, path))
        held.callback(beside.unlink, missing_ok=True)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


@contextmanager
def _own(beside: Path, path: Path) -> Iterator[BinaryIO]:
    """The lock file, made, locked and open."""
    with ExitStack() as held:
        while True:
            try:
                open_regular(beside, os.O_RDWR | os.O_CREAT).close()
                file = held.enter_context(locked(beside, exclusive=True, timeout=0.0))
                break
            except FileNotFoundError:
                continue  # another sweep has just ended and removed the file
            except StoreError as error:
                if not beside.is_file():
                    raise
                raise SweepError(
                    f"another sweep is writing to {path} ({_holder(beside)}); nothing was changed. Wait until it is "
                    "done, or choose another file. Its lock ends with its process: there is nothing to delete"
                ) from error
            except OSError as error:
                raise StoreError(
                    f"{path} cannot be written: no lock can be made beside it ({error.strerror}). You need the right "
                    f"to write {path.parent}, and room on its disk"
                ) from error
        yield file


def _holder(beside: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return beside.read_text().strip() or "unknown process"
    return "unknown process"


class Ledger:
    """The points of a sweep in a file.

    Parameters
    ----------
    path : Path
        The file; made where it is missing.
    mode : {"a", "r"}
        "r" to read an existing file.
    """

    def __init__(self, path: Path, mode: str = "a") -> None:
        self.store = open_store(path, mode, timeout=_PATIENCE)
        # A part of an interrupted measurement is measured again.
        self._parts = self.store.partial_names()
        self._spectra = set(self.store.names())
        self._series = set(self.store.series_names())

    def finished(self, point: Point) -> bool:
        """Whether the file has the result of the point."""
        if point.kind == "train":
            return {point.name, evaluation_name(point.name)} <= self._series
        return point.name in self._spectra - self._parts

    def failed(self, point: Point) -> bool:
        """Whether the point has failed and not succeeded since."""
        return FAILED + point.name in self._series

    def save(self, point: Point, outcome: Outcome) -> None:
        """Store the outcome of a point; it is on disk when this returns."""
        if outcome.failure is not None:
            self._save_failure(point, outcome)
            return
        for spectrum in outcome.spectra:
            # Many points share the law of an ensemble. Any other spectrum of that name is left by a killed sweep.
            if spectrum.provenance.get("role") == LAW and spectrum.name in self._spectra:
                continue
            self.store.add(spectrum, overwrite=spectrum.name in self._spectra)
            self._spectra.add(spectrum.name)
            self._parts.discard(spectrum.name)
        if outcome.record is not None:
            write_record(self.store.path, outcome.record, name=point.name)
            self._series |= {point.name, evaluation_name(point.name)}
        if self.failed(point):
            self.store.remove_series(FAILED + point.name)
            self._series.discard(FAILED + point.name)

    def _save_failure(self, point: Point, outcome: Outcome) -> None:
        failure = outcome.failure
        assert failure is not None
        name = FAILED + point.name
        attempts = int(self.store.series(name)["attempt"][-1]) if name in self._series else 0
        self.store.add_series(
            name,
            {"attempt": [attempts + 1], "seconds": [outcome.seconds]},
            {
                "sweep": point.record(),
                "worker": outcome.worker,
                "error": failure.message,
                "error_type": failure.kind,
                "traceback": failure.trace,
            },
            units={"seconds": "s"},
            descriptions={
                "attempt": "how often the point was tried",
                "seconds": "wall time of the last attempt",
            },
            overwrite=True,
        )
        self._series.add(name)
