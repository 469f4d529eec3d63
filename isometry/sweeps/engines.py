"""Engines that run the points: processes started here, or an executor of the user. Internal.

Both use `concurrent.futures`; only processes started here can be replaced when a worker dies. Nothing here imports
torch: a worker sets its number of threads before torch is loaded.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from isometry.errors import SweepError

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Engine(Protocol):
    """Runs functions somewhere else.

    Attributes
    ----------
    window : int or None
        Largest number of calls in progress; None for no limit.
    """

    window: int | None

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Start a call."""
        ...

    def restart(self) -> None:
        """Make the engine usable again after a worker has died.

        Raises
        ------
        SweepError
            When that is not possible.
        """
        ...

    def stop(self) -> None:
        """Stop all work, without waiting for calls in progress."""
        ...


class Processes:
    """New interpreters (spawn), one torch thread each, a GPU each where there are several.

    A worker exits when this process exits, also by a kill: it watches a pipe that only this process holds open.

    Parameters
    ----------
    workers : int
        How many.
    devices : sequence of int
        Numbers of the GPUs, assigned in turn; none by default.
    """

    def __init__(self, workers: int, devices: Sequence[int] = ()) -> None:
        self.workers = workers
        # One more than workers, so that no worker waits for the coordinator. All of them are suspects when one dies.
        self.window: int | None = workers + 1
        self._devices = [devices[index % len(devices)] for index in range(workers)] if devices else []
        self._pool, self._alive = self._start()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self._pool.submit(function, *arguments)

    def restart(self) -> None:
        self.stop()
        self._pool, self._alive = self._start()

    def stop(self) -> None:
        # The workers see the end of the pipe and exit, also in the middle of a point.
        self._alive.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _start(self) -> tuple[ProcessPoolExecutor, Connection]:
        context = multiprocessing.get_context("spawn")
        watched, alive = context.Pipe(duplex=False)
        free = context.SimpleQueue()
        for device in self._devices:
            free.put(device)
        pool = ProcessPoolExecutor(
            self.workers,
            mp_context=context,
            initializer=prepare_worker,
            initargs=(watched, free if self._devices else None),
        )
        # Kept open until the workers, which start with the first calls, have inherited it.
        self._watched = watched
        try:
            # Otherwise a worker that cannot start would look like one that its point has killed.
            pool.submit(os.getpid).result()
        except BrokenExecutor as error:
            pool.shutdown()
            raise SweepError(
                "no worker process can be started; its own message stands above. A worker is a new interpreter that "
                'imports the main script: is sweep called below `if __name__ == "__main__":` there, and is the script '
                "a file?"
            ) from error
        return pool, alive


class UserExecutor:
    """An executor of the user, with the interface of `concurrent.futures`. It is not shut down.

    Parameters
    ----------
    executor : Executor
        With a ``submit`` as `concurrent.futures.Executor` has it.
    """

    window: int | None = None

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self._executor.submit(function, *arguments)

    def restart(self) -> None:
        # Dask replaces workers itself; a process pool that has lost one refuses further work at once.
        try:
            self._executor.submit(int).cancel()
        except (BrokenExecutor, RuntimeError) as error:
            raise SweepError(
                f"a worker died and broke the executor ({type(self._executor).__name__}). Finished points are kept; "
                "run again to continue, without executor= or with a new one. With processes of its own a sweep "
                "continues by itself"
            ) from error

    def stop(self) -> None:
        pass


def prepare_worker(watched: Connection, devices: Any) -> None:
    """Set up a new worker: one thread, its GPU, interrupts ignored, exit with its parent."""
    for variable in _THREAD_VARIABLES:
        os.environ[variable] = "1"
    # Ctrl-C reaches every process of the terminal; the coordinator alone handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(watched,), daemon=True).start()
    if devices is not None:
        import torch

        torch.cuda.set_device(devices.get())


def _leave_with(watched: Connection) -> None:
    """Exit when the other end of the pipe is closed, also by a kill."""
    wait([watched])
    os._exit(0)


def local_devices() -> list[int]:
    """Numbers of the GPUs of this machine."""
    import torch

    return list(range(torch.cuda.device_count()))


def default_workers(devices: Sequence[int]) -> int:
    """A worker for each GPU, or else for each processor that this process may use."""
    if devices:
        return len(devices)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
