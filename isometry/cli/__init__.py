"""The `isometry` command: thin commands that parse, call, print, and exit with a code.

What is not in ``__all__`` is internal to isometry.
"""

from __future__ import annotations

from isometry.cli.entry import main

__all__ = ["main"]
