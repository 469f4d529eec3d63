"""Which points of a sweep are in a file of spectra, and how an outcome gets there.

A measured or predicted point is finished when its spectrum is there, a training run when its curves are; what belongs
to it (its law, the spectra on the way) is written before. A failed point leaves a series named "failed ...", with its
error as attributes, until it succeeds. So a file says by itself what is done, and there is no other state.
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
from isometry.store.locking import locked
from isometry.sweeps.configuration import Point
from isometry.sweeps.names import FAILED, LAW, evaluations_of
from isometry.sweeps.work import Outcome
from isometry.training.record import write_record

# A result is not given up because somebody reads: this long a reader may keep the file to itself.
_PATIENCE = 600.0


@contextmanager
def coordinating(path: Path) -> Iterator[None]:
    """Be the only sweep that writes to the file while the ``with`` block lasts.

    The lock is on a file of its own beside it (``.NAME.sweep``), so that others may read and store meanwhile. It is the
    kernel's, and ends with this process.

    Raises
    ------
    SweepError
        When another sweep is at it.
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
                beside.touch()
                file = held.enter_context(locked(beside, exclusive=True, timeout=0.0))
                break
            except FileNotFoundError:
                continue  # another sweep ended in this moment, and took the file with it
            except StoreError as error:
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
        "r" to look only, at a file that is there.
    """

    def __init__(self, path: Path, mode: str = "a") -> None:
        self.store = open_store(path, mode, timeout=_PATIENCE)
        self._spectra = set(self.store.names())
        self._series = set(self.store.series_names())

    def finished(self, point: Point) -> bool:
        """Whether the result of the point is there."""
        if point.kind == "train":
            return {point.name, evaluations_of(point.name)} <= self._series
        return point.name in self._spectra

    def failed(self, point: Point) -> bool:
        """Whether the point has failed and not succeeded since."""
        return FAILED + point.name in self._series

    def save(self, point: Point, outcome: Outcome) -> None:
        """Store what a point gave; it is on disk when this returns."""
        if outcome.failure is not None:
            self._save_failure(point, outcome)
            return
        for spectrum in outcome.spectra:
            # The law of an ensemble belongs to many points. All else that is there is what a kill left half done.
            if spectrum.provenance.get("role") == LAW and spectrum.name in self._spectra:
                continue
            self.store.add(spectrum, overwrite=spectrum.name in self._spectra)
            self._spectra.add(spectrum.name)
        if outcome.record is not None:
            write_record(self.store.path, outcome.record, name=point.name)
            self._series |= {point.name, evaluations_of(point.name)}
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
