"""The exit codes."""

from __future__ import annotations

FAILED = 1
USAGE = 2
THRESHOLD_MISSED = 3
UNREADABLE = 4
NOT_CONVERGED = 5
INTERRUPTED = 130
