"""`sweep`: compute every point of a grid on an executor, into one resumable file."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isometry.errors import InputError, StoreError, SweepError
from isometry.progress import Progress, ended_as_interrupted, progress_listener
from isometry.sweeps.configuration import Point
from isometry.sweeps.grid import MAX_POINTS, Grid, Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isometry.sweeps.engines import Engine
    from isometry.sweeps.work import Failure, Outcome


@dataclass(frozen=True)
class SweepResult:
    """Counts and errors of a sweep.

    Attributes
    ----------
    path : Path
        The file.
    total : int
        Points of the grid.
    skipped : int
        Points that were finished before.
    finished : int
        Points finished by this call.
    failures : dict of str to Failure
        Names of the points that failed, with their errors. The next sweep tries them again.
    seconds : float
        Wall time.
    """

    path: Path
    total: int
    skipped: int
    finished: int
    failures: dict[str, Failure] = field(default_factory=dict)
    seconds: float = 0.0

    def __repr__(self) -> str:
        return (
            f"<SweepResult: {self.total} points, {self.finished} finished, {self.skipped} there before, "
            f"{len(self.failures)} failed>"
        )

    def to_dict(self) -> dict[str, Any]:
        """The counts and the errors as plain JSON values."""
        return {
            "file": str(self.path),
            "total": self.total,
            "skipped": self.skipped,
            "finished": self.finished,
            "failed": len(self.failures),
            "failures": [
                {"name": name, "error_type": failure.kind, "error": failure.message}
                for name, failure in self.failures.items()
            ],
            "seconds": self.seconds,
        }


def sweep(
    grid: Grid,
    path: str | Path,
    *,
    executor: Executor | None = None,
    workers: int | None = None,
    timeout: float | None = None,
    max_points: int = MAX_POINTS,
    progress: Progress | bool | None = None,
    on_failure: Callable[[Point, Failure], object] | None = None,
) -> SweepResult:
    """Measure, predict or train at every point of a grid, into one file of spectra.

    Parameters
    ----------
    grid : path, mapping, or iterable of mappings
        A TOML file, the same tables as a mapping, or the configurations themselves; see docs/sweeps.md.
    path : str or Path
        HDF5 file of spectra, created if missing. Points that it holds are skipped; failed points are tried again.
    executor : concurrent.futures.Executor, optional
        Computes the points: threads, processes, Dask (``Client(...).get_executor(pure=False)``), MPI. By
        default new processes, with one torch thread each, and a GPU each where there are several.
    workers : int, optional
        Number of such processes; by default one for each GPU, or else for each processor.
    timeout : float, optional
        Seconds that a point may take; one that takes longer fails, and its process is ended. With an executor on Dask
        alone: a sweep cannot end the threads or workers of others.
    max_points : int
        A grid of more points is refused before they are made.
    progress : callable or bool, optional
        As for `isometry.measure`: a bar with the time left on a terminal by default, False for none.
    on_failure : callable, optional
        Called with every point that fails and its error.

    Returns
    -------
    SweepResult
        How many points were finished, skipped and failed.

    Raises
    ------
    SpecError
        When a key or value of the grid is not valid; before anything is computed.
    SweepError
        When another sweep writes to the file, the executor is lost, or a result cannot be stored. Finished points are
        kept.
    StoreError
        When the file can not be opened for writing.

    Notes
    -----
    Interrupting or killing a sweep keeps finished points; the same call continues it. Each result is on disk before the
    next one is stored, and the file is valid at any moment. Apart from times the content does not depend on the
    executor, the number of workers or the order in which they finish: seeds are part of a configuration, and every
    point is computed with one thread.

    The default executor starts new interpreters, which import the main module: a script calls ``sweep`` below
    ``if __name__ == "__main__":``.

    Examples
    --------
    >>> import tempfile
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> folder = tempfile.TemporaryDirectory()
    >>> grid = {"fixed": {"model": "mlp", "width": 6, "sigma_w": 1.0}, "axes": {"depth": [1, 2]}}
    >>> with ThreadPoolExecutor(1) as threads:
    ...     print(sweep(grid, f"{folder.name}/runs.h5", executor=threads))
    <SweepResult: 2 points, 2 finished, 0 there before, 0 failed>
    """
    from isometry.sweeps.coordinator import run_all
    from isometry.sweeps.ledger import Ledger, coordinating

    began = time.monotonic()
    if executor is not None and workers is not None:
        raise InputError("workers counts the processes that a sweep starts itself; an executor has its own")
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise InputError(f"workers is a whole number of 1 or more; got {workers!r}")
    _check_timeout(timeout, executor)
    plan = Plan(grid, max_points=max_points)
    path = Path(path)
    failures: dict[str, Failure] = {}
    with ended_as_interrupted(), coordinating(path):
        # All points are made and checked here, and again one by one when it is their turn.
        known = Ledger(path, "r") if path.exists() else None
        total = skipped = 0
        for point in plan:
            total += 1
            skipped += known is not None and known.finished(point)
        ledger = Ledger(path)
        left, done = total - skipped, 0

        def take(point: Point, outcome: Outcome) -> None:
            nonlocal done
            try:
                ledger.save(point, outcome)
            except StoreError as error:
                raise SweepError(
                    f"the sweep stopped, because a result could not be stored: {error} Finished points are kept; "
                    "run again to continue"
                ) from error
            done += 1
            if outcome.failure is not None:
                failures[point.name] = outcome.failure
                if on_failure is not None:
                    on_failure(point, outcome.failure)
            listener(done, left, _text(done, left, len(failures)))

        if left:
            with (
                progress_listener(progress, "sweep") as listener,
                _engine(executor, workers, left, timeout) as engine,
            ):
                listener(0, left, "sweep")
                waiting = (point for point in plan if not ledger.finished(point))
                run_all(waiting, engine, take, folder=str(Path.cwd()))
    return SweepResult(
        path,
        total,
        skipped,
        done - len(failures),
        failures,
        time.monotonic() - began,
    )


def _check_timeout(timeout: float | None, executor: Executor | None) -> None:
    from isometry.sweeps.engines import is_dask

    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise InputError(f"timeout is a number of seconds above 0; got {timeout!r}")
    if executor is not None and not is_dask(executor):
        raise InputError(
            "timeout ends the process that computes a point: a thread cannot be ended, and the workers of an executor "
            f"({type(executor).__name__}) are not the sweep's to end. Leave executor out, or timeout"
        )


@contextmanager
def _engine(
    executor: Executor | None, workers: int | None, count: int, timeout: float | None
) -> Iterator[Engine]:
    """The engine that runs the points; it is stopped when the block ends."""
    from isometry.sweeps.engines import Processes, UserExecutor, default_workers, local_devices

    engine: Engine
    if executor is not None:
        engine = UserExecutor(executor, timeout)
    else:
        devices = local_devices()
        engine = Processes(min(workers or default_workers(devices), count), devices, timeout)
    try:
        yield engine
    finally:
        engine.stop()


def _text(done: int, total: int, failed: int) -> str:
    return f"{done} of {total} points, {failed} failed" if failed else f"{done} of {total} points"
