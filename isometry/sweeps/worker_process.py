"""A process of its own that runs one call after another; its death concerns the call that it runs. Internal.

Nothing here imports torch: a worker sets its number of threads before torch is loaded.
"""

from __future__ import annotations

import importlib
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class WorkerDied(Exception):
    """The worker process that ran this call ended; the text says how. No other call was touched."""


class TookTooLong(Exception):
    """The call took longer than it may, and its worker was ended."""


class Child(Protocol):
    """A process, as `multiprocessing.Process` is one."""

    @property
    def pid(self) -> int | None: ...
    @property
    def exitcode(self) -> int | None: ...
    def start(self) -> None: ...
    def kill(self) -> None: ...
    def is_alive(self) -> bool: ...
    def join(self, timeout: float | None = None) -> None: ...


class Worker:
    """One worker process, and the pipe to it.

    Parameters
    ----------
    child : callable
        What makes the process: it runs `work` on the end of a pipe that it is given.
    """

    def __init__(self, child: Callable[[Connection], Child]) -> None:
        self._pipe, self._there = multiprocessing.Pipe()
        self._process = child(self._there)
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


class Interpreter:
    """A new interpreter that runs `work`, where multiprocessing may start none: a worker of Dask is a daemon.

    Parameters
    ----------
    pipe, watched : Connection
        As for `work`.
    """

    def __init__(self, pipe: Connection, watched: Connection) -> None:
        self._files = (pipe.fileno(), watched.fileno())
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def exitcode(self) -> int | None:
        return self._process.poll() if self._process else None

    def start(self) -> None:
        code = (
            "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); "
            f"from {__name__} import work_on; work_on{self._files}"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(sys.path)],
            pass_fds=self._files,
            stdin=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        if self._process:
            self._process.kill()

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def join(self, timeout: float | None = None) -> None:
        if self._process:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)


def work_on(pipe: int, watched: int) -> None:
    """`work` on the numbers of two open pipes: the main function of an `Interpreter`."""
    work(Connection(pipe), Connection(watched, writable=False), None)


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
