"""A progress bar with a time estimate on standard error; silent when that is not a terminal.

Long work takes a callable ``progress(done, total, text)`` and calls it now and then. It need not know who
listens: :func:`progress_bar` makes one that draws with rich, and rich is loaded only when there is a terminal
to draw on; :func:`progress_listener` makes one from the option ``progress`` of a public function.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

__all__ = ["Progress", "StepProgress", "ended_as_interrupted", "progress_bar", "progress_listener"]

# What a computation with one kind of step calls: (done, total).
StepProgress = Callable[[int, int], Any]


class Progress(Protocol):
    """What long work calls: how far it is.

    ``done`` and ``total`` count the same thing, whatever it is (probes, steps, points of a grid); ``total`` is
    0 while it is not known. ``text`` says in a few words what is going on.
    """

    def __call__(self, done: float, total: float, text: str = "") -> None: ...


def _silent(done: float, total: float, text: str = "") -> None:
    pass


@contextmanager
def ended_as_interrupted() -> Iterator[None]:
    """While the block lasts, SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does.

    Batch systems send the first and a closed terminal the second: work under way stores what it knows and removes what
    it keeps beside its files. A signal that is ignored (`nohup`) or handled by the program stays so.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress_listener(progress: Progress | Callable[..., Any] | bool | None, text: str) -> Iterator[Progress]:
    """The :class:`Progress` that an option stands for: a bar for None or True, nothing for False, or the callable."""
    if progress is None or progress is True:
        with progress_bar(text) as bar:
            yield bar
    else:
        yield progress or _silent


@contextmanager
def progress_bar(text: str = "", *, stream: TextIO | None = None) -> Iterator[Progress]:
    """A :class:`Progress` that draws a bar while the ``with`` block lasts.

    Parameters
    ----------
    text : str
        What is shown before the first call.
    stream : text file, optional
        Standard error if None. Where it is not a terminal, nothing is written at all.

    Examples
    --------
    >>> with progress_bar("counting") as progress:
    ...     for done in range(3):
    ...         progress(done + 1, 3)
    """
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        yield _silent
        return
    # Loaded here: a library call in a batch job needs no terminal library.
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import TimeElapsedColumn as Elapsed

    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), Elapsed(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    # Transient: the bar is gone at the end, and what the command prints stands alone.
    with Progress(*columns, console=Console(file=stream), transient=True) as bar:
        task = bar.add_task(escape(text), total=None)

        def draw(done: float, total: float, text: str = "") -> None:
            description = {"description": escape(text)} if text else {}
            bar.update(task, completed=done, total=total or None, **description)  # type: ignore[arg-type]

        yield draw
