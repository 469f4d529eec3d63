"""A process that writes, to be killed or limited by the tests: ``python writer_process.py FILE TASK ARGUMENT``.

Says the name of everything that is stored, each after the call has returned.
"""

from __future__ import annotations

import itertools
import sys

from store_samples import measured

from isometry.store import open_store


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def endless(path: str, label: str) -> None:
    """Adds, replaces and appends until it is killed."""
    store = open_store(path, "a")
    for number in itertools.count():
        name = f"{label}-{number}"
        store.add(measured(number), name=name)
        say(name)
        store.add(measured(number), name="replaced", overwrite=True)
        if not store.series_names():
            store.add_series("curve", {"step": [0]})
        store.append_series("curve", {"step": [number]})


def forker(path: str, _: str) -> None:
    """For every label on standard input, a process that writes until it is killed; quicker than an interpreter."""
    import os

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            endless(path, line.strip())
        say(f"process {child}")
        os.waitpid(child, 0)
        say("dead")


def some(path: str, label: str) -> None:
    """Adds five spectra, in competition with others."""
    store = open_store(path, "a")
    for number in range(5):
        say(store.add(measured(number), name=f"{label}-{number}"))


def limited(path: str, limit: str) -> None:
    """Adds until the file may not grow further, and says the error."""
    import resource

    from isometry.errors import StoreError

    store = open_store(path, "a")
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    try:
        for number in itertools.count():
            say(store.add(measured(number), name=f"limited-{number}"))
    except StoreError as error:
        say(f"error: {error}")


def hold(path: str, _: str) -> None:
    """Takes the lock and keeps it."""
    import fcntl
    import signal

    with open(path, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        say("ready")
        signal.pause()


if __name__ == "__main__":
    {"forker": forker, "some": some, "limited": limited, "hold": hold}[sys.argv[2]](sys.argv[1], sys.argv[3])
