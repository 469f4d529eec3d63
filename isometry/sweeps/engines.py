"""What runs the points: processes of our own, or an executor that was lent.

Both are `concurrent.futures` executors; the difference is who may make a new one when a worker dies. Nothing here
imports torch: a worker sets its threads before it is loaded.
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
        How many may be under way at a time; None for any number.
    """

    window: int | None

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Begin a call."""
        ...

    def restart(self) -> None:
        """Make it usable again after a worker has died.

        Raises
        ------
        SweepError
            When it can not be.
        """
        ...

    def stop(self) -> None:
        """Leave nothing running, without waiting for what is under way."""
        ...


class Processes:
    """New interpreters (spawn), one torch thread each, a GPU each where there are several.

    They end when this process ends, however it ends: each watches a pipe that only this process holds open.

    Parameters
    ----------
    workers : int
        How many.
    devices : sequence of int
        Numbers of the GPUs, dealt out in turn; none by default.
    """

    def __init__(self, workers: int, devices: Sequence[int] = ()) -> None:
        self.workers = workers
        # One more than there are workers, so that none waits for the coordinator; all of them are suspects if one dies.
        self.window: int | None = workers + 1
        self._devices = [devices[index % len(devices)] for index in range(workers)] if devices else []
        self._pool, self._alive = self._start()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self._pool.submit(function, *arguments)

    def restart(self) -> None:
        self.stop()
        self._pool, self._alive = self._start()

    def stop(self) -> None:
        # The workers see the end of the pipe and leave, in the middle of a point if need be.
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
        # Kept until the workers, which start with the first calls, have taken it over.
        self._watched = watched
        try:
            # A worker that can not even start would else be taken for one that its point has killed.
            pool.submit(os.getpid).result()
        except BrokenExecutor as error:
            pool.shutdown()
            raise SweepError(
                "no worker process can be started; what it says stands above. A worker is a new interpreter that "
                'imports the main script: is sweep called below `if __name__ == "__main__":` there, and is the script '
                "a file?"
            ) from error
        return pool, alive


class UserExecutor:
    """An executor of the user's own: any of `concurrent.futures`' kind. It is not shut down.

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
        # Dask starts workers itself; a pool of processes that has lost one takes no more work, and says so at once.
        try:
            self._executor.submit(int).cancel()
        except (BrokenExecutor, RuntimeError) as error:
            raise SweepError(
                f"a worker died and took the executor with it ({type(self._executor).__name__}). What was finished is "
                "kept; run again to go on, without executor= or with a new one. With processes of its own a sweep goes "
                "on by itself"
            ) from error

    def stop(self) -> None:
        pass


def prepare_worker(watched: Connection, devices: Any) -> None:
    """What a new worker does first: one thread, its GPU, no interrupts from the terminal, a watch on its parent."""
    for variable in _THREAD_VARIABLES:
        os.environ[variable] = "1"
    # Ctrl-C reaches every process of the terminal; the coordinator alone decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(watched,), daemon=True).start()
    if devices is not None:
        import torch

        torch.cuda.set_device(devices.get())


def _leave_with(watched: Connection) -> None:
    """End this process when the other end of the pipe is closed, on purpose or by a kill."""
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
