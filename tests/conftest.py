"""The one place where tests change the import path, listen to Ctrl-C, and stop waiting for the disk.

The garbage collector does not look through what was imported and collected, a million objects, again and again.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Samples that several folders share are imported by their file's name: store_samples, sweep_samples, ...
sys.path += [str(Path(__file__).parent / folder) for folder in (".", "jacobian", "store", "sweeps")]

gc.disable()


def _freeze_survivors(phase: str, info: dict[str, int]) -> None:
    """What a full collection leaves is imported or kept; the next one need not look at it again."""
    if phase == "stop" and info["generation"] == 2:
        gc.freeze()


def pytest_collection_finish() -> None:
    """From here on garbage is collected, among the objects of the tests alone."""
    gc.freeze()
    gc.enable()
    gc.callbacks.append(_freeze_survivors)


# A background job of a shell inherits that SIGINT is ignored: tests that raise one would hang.
if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Processes are killed here, not machines: the kernel keeps all it was given. Child processes do sync."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def few_networks() -> Iterator[None]:
    """Where a test runs a comparison, a page or a sweep through, and does not ask how many right networks agree.

    Few networks of finite width are drawn, and narrow ones. Nobody outside the module gets them from the cache.
    """
    from isometry.theory.finitewidth import spread

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spread, "BUDGET", 0.05)
        patch.setattr(spread, "MOST_DRAWS", 24)
        patch.setattr(spread, "CHAIN_DRAWS", 4)
        spread._cached.cache_clear()
        yield
    spread._cached.cache_clear()
