"""Engines that run the points: processes started here, or an executor of the user. Internal.

Of processes started here it is known which point a worker runs: its death, or its end after a timeout, concerns that
point alone. Nothing here imports torch: a worker sets its number of threads before torch is loaded.
"""

from __future__ import annotations

import importlib
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from queue import SimpleQueue
from typing import Any, Protocol

from isometry.errors import SweepError

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class WorkerDied(Exception):
    """The worker process that ran this call ended; the text says how. No other call was touched."""


class TookTooLong(Exception):
    """The call took longer than it may, and its worker was ended."""


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
        self._running: set[_Worker] = set()
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

    def _serve(self, device: int | None, worker: _Worker | None) -> None:
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

    def _start(self, device: int | None) -> _Worker:
        worker = _Worker(self._context, self._watched, device)
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

    def _end(self, worker: _Worker | None) -> None:
        if worker is not None:
            worker.kill()
            with self._lock:
                self._running.discard(worker)
            worker.join()


class _Worker:
    """One worker process, and the pipe to it."""

    def __init__(self, context: SpawnContext, watched: Connection, device: int | None) -> None:
        self._pipe, self._there = context.Pipe()
        self._process = context.Process(target=work, args=(self._there, watched, device))
        self._killed = False

    def begin(self) -> None:
        """Start the process and wait until it can run calls."""
        if not self._killed:
            self._process.start()
        self._there.close()
        self._answer(None)

    def run(self, call: tuple[Callable[..., Any], tuple[Any, ...]], timeout: float | None) -> Any:
        """The result of the call."""
        try:
            self._pipe.send(call)
        except OSError:
            raise self._death() from None
        return self._answer(timeout)

    def kill(self) -> None:
        """End the process, whatever it does."""
        self._killed = True
        if self._process.pid is not None:
            self._process.kill()

    def join(self) -> None:
        """Wait until the process is gone."""
        if self._process.pid is not None:
            self._process.join()
        self._pipe.close()

    def _answer(self, timeout: float | None) -> Any:
        until = math.inf if timeout is None else time.monotonic() + timeout
        # What a point has started may hold the pipe open after its worker has died.
        while not self._pipe.poll(max(0.0, min(1.0, until - time.monotonic()))):
            if self._killed or not self._process.is_alive():
                raise self._death()
            if time.monotonic() >= until:
                raise TookTooLong(f"it took longer than {timeout:g} s, and its worker was ended")
        try:
            good, value = self._pipe.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if good:
            return value
        raise value

    def _death(self) -> WorkerDied:
        if self._process.pid is None:
            return WorkerDied("its worker was not started")
        self._process.join(5.0)
        code = self._process.exitcode or 0
        try:
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        except ValueError:
            how = f"killed by signal {-code}"
        return WorkerDied(how)


class UserExecutor:
    """An executor of the user, with the interface of `concurrent.futures`. It is not shut down.

    Parameters
    ----------
    executor : Executor
        With a ``submit`` as `concurrent.futures.Executor` has it.
    """

    # Enough for every executor, and few enough to be made while others run.
    window = 10_000

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self._executor.submit(function, *arguments)

    def trouble(self) -> str:
        client = getattr(self._executor, "_client", None)
        if client is None or not hasattr(client, "scheduler_info"):
            return ""
        try:
            workers = client.scheduler_info()["workers"]
        except Exception as error:  # of distributed, which is imported by users of Dask only
            return f"the Dask scheduler does not answer ({type(error).__name__}: {error})"
        return "" if workers else "the Dask cluster has no worker left"

    def stop(self) -> None:
        pass


def work(pipe: Connection, watched: Connection, device: int | None) -> None:
    """Run the calls that come through the pipe, until it is closed: the main function of a worker."""
    prepare_worker(watched, device)
    # What every point needs, so that a timeout is not spent on loading it.
    for name in ("torch.func", "isometry.loading", "isometry.measurement"):
        importlib.import_module(name)
    pipe.send((True, None))
    while True:
        try:
            function, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = True, function(*arguments)
        except BaseException as error:
            answer = False, error
        try:
            pipe.send(answer)
        except Exception as error:  # what it returned or raised cannot be pickled
            pipe.send((False, RuntimeError(f"{type(error).__name__}: {error}")))


def prepare_worker(watched: Connection, device: int | None) -> None:
    """Set up a new worker: one thread, its GPU, interrupts ignored, exit with its parent."""
    for variable in _THREAD_VARIABLES:
        os.environ[variable] = "1"
    # Ctrl-C reaches every process of the terminal; the coordinator alone handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(watched,), daemon=True).start()
    if device is not None:
        import torch

        torch.cuda.set_device(device)


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
