"""The progress bar: drawn on a terminal, silent elsewhere."""

from __future__ import annotations

import io
import subprocess
import sys

from isometry.progress import progress_bar


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_silent_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with progress_bar("work", stream=stream) as progress:
        progress(1, 2, "half")
    assert stream.getvalue() == ""


def test_drawn_on_a_terminal(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    with progress_bar("work", stream=stream) as progress:
        progress(1, 4, "a [quarter]")
        progress(4, 4, "a [quarter]")
    assert "a [quarter]" in stream.getvalue()
    assert "100%" in stream.getvalue()


def test_rich_is_loaded_only_for_a_terminal() -> None:
    code = (
        "import sys; from isometry.progress import progress_bar\n"
        "with progress_bar() as progress: progress(1, 2)\n"
        "assert 'rich' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.PIPE)
