"""``python -m isometry``: the command, where its script is not on the path."""

from __future__ import annotations

from isometry.cli import main

if __name__ == "__main__":
    main()
