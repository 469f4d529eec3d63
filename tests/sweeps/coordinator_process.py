"""A process that sweeps, to be killed or limited by the tests: ``python coordinator_process.py FILE TASK ARGUMENT``.

Says "begun NAME" before a point is computed and "stored NAME" after its result was stored.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sweep_samples import GRID

import isometry
from isometry.sweeps import coordinator, ledger

# Points of some milliseconds, more than are done before any of the kills.
LONG = {**GRID, "seeds": 100}


def say(text: str) -> None:
    os.write(1, (text + "\n").encode())


def announce_begun() -> None:
    """Have `run_point` say what it begins; only where it is called in this process."""
    run = coordinator.run_point

    def saying_run(point: Any, folder: str) -> Any:
        say(f"begun {point.name}")
        return run(point, folder)

    coordinator.run_point = saying_run


def announce_stored() -> None:
    """Have the ledger say what it has stored."""
    save = ledger.Ledger.save

    def saying_save(self: Any, point: Any, outcome: Any) -> None:
        save(self, point, outcome)
        say(f"stored {point.name}")

    ledger.Ledger.save = saying_save  # type: ignore[method-assign]


def forker(path: str, argument: str) -> None:
    """For every line on standard input, a process that sweeps until it is killed; quicker than an interpreter."""
    kind, seeds = argument.split()
    announce_begun()
    announce_stored()
    # Everything is imported before the first fork.
    with ThreadPoolExecutor(1) as threads:
        isometry.sweep({**GRID, "kind": kind, "seeds": 1}, f"{path}.warm", executor=threads, progress=False)
    say("ready")
    for _line in sys.stdin:
        child = os.fork()
        if child == 0:
            with ThreadPoolExecutor(1) as threads:
                isometry.sweep(
                    {**LONG, "kind": kind, "seeds": int(seeds)}, path, executor=threads, progress=False
                )
            os._exit(0)
        say(f"process {child}")
        os.waitpid(child, 0)
        say("dead")


def processes(path: str, workers: str) -> None:
    """Sweeps with processes of its own."""
    announce_stored()
    isometry.sweep(LONG, path, workers=int(workers), progress=False)


def limited(path: str, limit: str) -> None:
    """Sweeps until the file may not grow further, and says the error."""
    import resource

    isometry.open_store(path, "a")
    announce_stored()
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    try:
        with ThreadPoolExecutor(1) as threads:
            isometry.sweep(LONG, path, executor=threads, progress=False)
    except isometry.errors.SweepError as error:
        say(f"error: {error}")


if __name__ == "__main__":
    tasks = {"forker": forker, "processes": processes, "limited": limited}
    tasks[sys.argv[2]](sys.argv[1], sys.argv[3])
