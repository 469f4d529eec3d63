"""Contestants that stand in for real ones; a module of its own, so that their processes start without torch."""

from __future__ import annotations

import time
from collections.abc import Callable

from harness.contest import Answer


def answering(value: float, *, seconds: float = 0.0, fails: bool = False) -> Callable[[], Answer]:
    """A contestant that takes its time."""

    def work() -> Answer:
        if fails:
            raise ValueError("no such value")
        time.sleep(seconds)
        return {"value": value, "at": time.monotonic()}

    return work
