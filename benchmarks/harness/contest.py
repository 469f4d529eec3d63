"""Contestants in processes of their own, called in turn: ours, peer, ours, peer, ...

Every contestant is built once in its own process of this process group and then waits for its turn, so that only one
works at a time, each with the same number of processors. Drifts of a shared machine fall on all alike and ratios are
taken within a round. A process that overruns its time is ended; one whose package is not installed never starts. Both
are reported, as is one that fails.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from typing import Any

Answer = dict[str, Any]
"""What a contestant found, as plain numbers and NumPy arrays."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Contestant:
    """One way to do the work.

    Parameters
    ----------
    name : str
        What tables call it.
    build : callable
        ``build(**arguments)`` returns a function without arguments that does the work once and returns an `Answer`. It
        crosses a process border and so stands at the top of a module. What it does is set-up that no new input
        repeats (drawing the network); what the returned function does is timed.
    arguments : mapping
        For ``build``.
    requires : sequence of str
        Distributions without which it is missing.
    once : bool
        Run a single time, before the rounds: references, and what is too slow to repeat.
    compared : bool
        Whether a ratio of its time to ours says something: not where its work is another.
    """

    name: str
    build: Callable[..., Callable[[], Answer]]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    requires: Sequence[str] = ()
    once: bool = False
    compared: bool = True


@dataclass
class Outcome:
    """What became of a contestant: ``status`` is "done", or why not."""

    name: str
    status: str = "done"
    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)
    first_call_seconds: float = float("nan")
    peak_mebibytes: float = float("nan")
    answer: Answer = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Median wall seconds."""
        return statistics.median(self.seconds) if self.seconds else float("nan")


def hold(
    contestants: Sequence[Contestant],
    *,
    repeats: int,
    threads: int,
    timeout: float,
    without: Sequence[str] = (),
    memory_gib: float | None = None,
    tell: Callable[[str], None] = print,
) -> list[Outcome]:
    """Outcomes of all contestants after ``repeats`` rounds, in their order.

    The first call of each is not among the rounds (imports, compilation, caches); its time, with that of the start of
    its process, is kept apart. ``without`` names distributions to be treated as missing. ``timeout`` holds for set-up
    and for each call, ``memory_gib`` for what each process may allocate.
    """
    for variable in _THREAD_VARIABLES:
        os.environ[variable] = str(threads)
    outcomes = [Outcome(one.name) for one in contestants]
    seats: list[_Seat | None] = [None] * len(contestants)
    try:
        for index, (one, outcome) in enumerate(zip(contestants, outcomes, strict=True)):
            missing = [name for name in one.requires if name in without or not _installed(name)]
            if missing:
                outcome.status = f"missing: {', '.join(missing)}"
                tell(f"{one.name}: {outcome.status}")
                continue
            seat = _Seat(one, threads, memory_gib)
            outcome.status = seat.wait(timeout)[0]
            began = time.perf_counter()
            if outcome.status == "done":
                _call(seat, outcome, timeout)
            outcome.first_call_seconds = time.perf_counter() - began
            tell(f"{one.name}: {outcome.status}, first call {outcome.first_call_seconds:.2f} s")
            if one.once or outcome.status != "done":
                seat.end()
            else:
                seats[index] = seat
                outcome.seconds.clear()
                outcome.processor_seconds.clear()
        for number in range(repeats):
            for seat, outcome in zip(seats, outcomes, strict=True):
                if seat is not None and outcome.status == "done":
                    _call(seat, outcome, timeout)
            times = [o.seconds[-1] for s, o in zip(seats, outcomes, strict=True) if s and o.seconds]
            tell(f"round {number + 1} of {repeats}: " + ", ".join(f"{t:.3g} s" for t in times))
    finally:
        for seat in seats:
            if seat is not None:
                seat.end()
    return outcomes


def ratios(outcome: Outcome, ours: Outcome, clock: str = "seconds") -> dict[str, float] | None:
    """Median, smallest and largest of the ratios within each round, theirs over ours; None without both.

    ``clock`` is "seconds" or "processor_seconds": what a process worked, whoever else did, its waiting in spin loops
    included.
    """
    pairs = [a / b for a, b in zip(getattr(outcome, clock), getattr(ours, clock), strict=False)]
    if not pairs or outcome.status != "done":
        return None
    return {"median": statistics.median(pairs), "min": min(pairs), "max": max(pairs)}


def _installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def _call(seat: _Seat, outcome: Outcome, timeout: float) -> None:
    status, reply = seat.ask(timeout)
    outcome.status = status
    if status == "done":
        outcome.seconds.append(reply["seconds"])
        outcome.processor_seconds.append(reply["processor_seconds"])
        outcome.peak_mebibytes = reply["peak_mebibytes"]
        outcome.answer = reply["answer"]


class _Seat:
    """A contestant's process and the line to it."""

    def __init__(self, one: Contestant, threads: int, memory_gib: float | None) -> None:
        context = multiprocessing.get_context("spawn")
        self._line, far = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(far, one.build, dict(one.arguments), threads, memory_gib), daemon=True
        )
        self._process.start()
        far.close()

    def ask(self, timeout: float) -> tuple[str, Any]:
        self._line.send("go")
        return self.wait(timeout)

    def wait(self, timeout: float) -> tuple[str, Any]:
        if not self._line.poll(timeout):
            self.end()
            return f"timeout after {timeout:g} s", None
        try:
            return self._line.recv()
        except EOFError:
            return "failed: its process died (out of memory?)", None

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self._line.close()


def _serve(
    line: Connection,
    build: Callable[..., Callable[[], Answer]],
    arguments: dict[str, Any],
    threads: int,
    memory_gib: float | None,
) -> None:
    """The contestant's side: build once, then work whenever asked."""
    if hasattr(os, "sched_setaffinity"):
        # The one way that binds every library alike, JAX included.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    if memory_gib is not None:
        limit = int(memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    warnings.simplefilter("ignore")
    try:
        work = build(**arguments)
        line.send(("done", None))
        while line.recv() == "go":
            began, processor = time.perf_counter(), time.process_time()
            answer = work()
            line.send(
                (
                    "done",
                    {
                        "seconds": time.perf_counter() - began,
                        "processor_seconds": time.process_time() - processor,
                        "peak_mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                        "answer": answer,
                    },
                )
            )
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:
        if os.environ.get("BENCHMARK_TRACEBACK"):
            traceback.print_exc()
        first = (str(error).splitlines() or [""])[0][:200]
        line.send((f"failed: {type(error).__name__}: {first}", None))
