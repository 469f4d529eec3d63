"""Engines that run the points: processes started here, or an executor of the user. Internal.

Of processes started here it is known which point a worker runs: its death, or its end after a timeout, concerns that
point alone. Nothing here imports torch: a worker sets its number of threads before torch is loaded.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Protocol

from isometry.errors import SweepError
from isometry.sweeps.beside import run_beside
from isometry.sweeps.worker_process import Child, TookTooLong, Worker, WorkerDied, work


class Engine(Protocol):
    """Runs functions somewhere else.

    Attributes
    ----------
    window : int
        Largest number of calls in progress.
    """

    window: int

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Start a call."""
        ...

    def trouble(self) -> str:
        """Why no call may ever end; empty where no reason is known."""
        ...

    def stop(self) -> None:
        """Stop all work, without waiting for calls in progress."""
        ...


class Processes:
    """New interpreters (spawn), one torch thread each, a GPU each where there are several.

    A worker that dies takes the call with it that it runs, and no other; the next call starts a new one. A worker exits
    when this process exits, also by a kill: it watches a pipe that only this process holds open.

    Parameters
    ----------
    workers : int
        How many.
    devices : sequence of int
        Numbers of the GPUs, assigned in turn; none by default.
    timeout : float, optional
        Seconds that a call may take.
    """

    def __init__(self, workers: int, devices: Sequence[int] = (), timeout: float | None = None) -> None:
        # One more than workers, so that no worker waits for the coordinator.
        self.window = workers + 1
        self._timeout = timeout
        self._context = multiprocessing.get_context("spawn")
        self._watched, self._alive = self._context.Pipe(duplex=False)
        self._calls: SimpleQueue[tuple[Future[Any], Any] | None] = SimpleQueue()
        self._lock, self._stopped = threading.Lock(), False
        self._running: set[Worker] = set()
        given = [devices[index % len(devices)] if devices else None for index in range(workers)]
        # Before any call: where no worker can be started, no point is to blame.
        first = self._start(given[0])
        self._threads = [
            threading.Thread(target=self._serve, args=(device, None if index else first), daemon=True)
            for index, device in enumerate(given)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._calls.put((future, (function, arguments)))
        return future

    def trouble(self) -> str:
        return ""

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for worker in self._running:
                worker.kill()
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()
        self._alive.close()

    def _serve(self, device: int | None, worker: Worker | None) -> None:
        """Run calls one after another in a worker process; a thread does this for each."""
        while (entry := self._calls.get()) is not None:
            future, call = entry
            if self._stopped or not future.set_running_or_notify_cancel():
                continue
            try:
                worker = worker or self._start(device)
                result = worker.run(call, self._timeout)
            except BaseException as error:
                if isinstance(error, WorkerDied | TookTooLong):
                    self._end(worker)
                    worker = None
                future.set_exception(error)
            else:
                future.set_result(result)
        self._end(worker)

    def _start(self, device: int | None) -> Worker:
        def child(pipe: Connection) -> Child:
            return self._context.Process(target=work, args=(pipe, self._watched, device))

        worker = Worker(child)
        with self._lock:
            self._running.add(worker)
        try:
            worker.begin()
        except BaseException as error:
            self._end(worker)
            if not isinstance(error, WorkerDied) or self._stopped:
                raise
            raise SweepError(
                "no worker process can be started; its own message stands above. A worker is a new interpreter that "
                'imports the main script: is sweep called below `if __name__ == "__main__":` there, and is the script '
                "a file?"
            ) from error
        return worker

    def _end(self, worker: Worker | None) -> None:
        if worker is not None:
            worker.kill()
            with self._lock:
                self._running.discard(worker)
            worker.join()


class UserExecutor:
    """An executor of the user, with the interface of `concurrent.futures`. It is not shut down.

    On Dask each call runs in a process beside the worker. One that dies does not take the worker with it, whose nanny
    may give up, nor other calls, and it is known which call it was.

    Parameters
    ----------
    executor : Executor
        With a ``submit`` as `concurrent.futures.Executor` has it.
    timeout : float, optional
        Seconds that a call may take; on Dask alone.
    """

    # Enough for every executor, and few enough to be made while others run.
    window = 10_000

    def __init__(self, executor: Executor, timeout: float | None = None) -> None:
        self._executor, self._timeout = executor, timeout

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        if is_dask(self._executor):
            return self._executor.submit(run_beside, self._timeout, function, *arguments)
        return self._executor.submit(function, *arguments)

    def trouble(self) -> str:
        if not is_dask(self._executor):
            return ""
        try:
            # Asked of the scheduler: what the client remembers of it may be old.
            workers = self._executor._client.nthreads()  # type: ignore[attr-defined]
        except Exception as error:  # of distributed, which is imported by users of Dask only
            return f"the Dask scheduler does not answer ({type(error).__name__}: {error})"
        return "" if workers else "the Dask cluster has no worker left"

    def stop(self) -> None:
        pass


def is_dask(executor: Executor) -> bool:
    """Whether it is the executor of a Dask client."""
    return hasattr(getattr(executor, "_client", None), "scheduler_info")


def local_devices() -> list[int]:
    """Numbers of the GPUs of this machine."""
    import torch

    return list(range(torch.cuda.device_count()))


def default_workers(devices: Sequence[int]) -> int:
    """A worker for each GPU, or else for each processor that this process may use."""
    if devices:
        return len(devices)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
