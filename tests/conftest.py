"""The one place where tests change the import path, listen to Ctrl-C, and stop waiting for the disk."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Samples that several folders share are imported by their file's name: store_samples, sweep_samples, ...
sys.path += [str(Path(__file__).parent / folder) for folder in (".", "store", "sweeps")]

# A background job of a shell inherits that SIGINT is ignored: tests that raise one would hang.
if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Processes are killed here, not machines: the kernel keeps all it was given. Child processes do sync."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
