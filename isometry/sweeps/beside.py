"""A call in a process beside this one, a worker of Dask, kept for the next call of the same thread. Internal."""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from isometry.errors import SweepError
from isometry.sweeps.worker_process import Interpreter, TookTooLong, Worker, WorkerDied

# Seconds without a call after which the process is ended.
_IDLE = 60.0


def run_beside(timeout: float | None, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of the call, or what it raised.

    Raises
    ------
    WorkerDied, TookTooLong
        When the process died, or was ended after ``timeout`` seconds.
    SweepError
        When no process can be started.
    """
    if os.name != "posix":  # its pipes cannot be handed on
        return function(*arguments)
    if not hasattr(_of_thread, "place"):
        _of_thread.place = _Place()
    return _of_thread.place.run((function, arguments), timeout)


class _Place:
    """The process of one thread."""

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def run(self, call: tuple[Callable[..., Any], tuple[Any, ...]], timeout: float | None) -> Any:
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            try:
                if self._worker is None:
                    self._worker = _started()
                return self._worker.run(call, timeout)
            except (WorkerDied, TookTooLong):
                self._end()
                raise
            finally:
                self._timer = threading.Timer(_IDLE, self._end_if_idle)
                self._timer.daemon = True
                self._timer.start()

    def _end_if_idle(self) -> None:
        if self._lock.acquire(blocking=False):
            try:
                self._end()
            finally:
                self._lock.release()

    def _end(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()
            worker.join()


def _started() -> Worker:
    watched, _ = _watched()
    worker = Worker(lambda pipe: Interpreter(pipe, watched))
    try:
        worker.begin()
    except (WorkerDied, OSError) as error:
        worker.kill()
        worker.join()
        raise SweepError(f"no process can be started on a worker of Dask ({error})") from error
    return worker


@functools.cache
def _watched() -> tuple[Connection, Connection]:
    """Both ends of a pipe of which this process alone holds the second: whoever watches the first exits with it."""
    return multiprocessing.Pipe(duplex=False)


_of_thread = threading.local()
