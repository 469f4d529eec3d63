"""Lets the tests of this folder import the samples they share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are killed here, not machines: what the kernel has been given is not lost. Child processes do sync."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
