"""Output of commands: data on standard output, messages on standard error."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import click

from isometry.spectrum.formatting import json_ready, plain


def note(text: str) -> None:
    """A line on standard error, without control characters."""
    lines = [plain(line) for line in text.splitlines()] or [""]
    # Standard error may be closed.
    with contextlib.suppress(BrokenPipeError):
        click.echo("\n".join(lines), err=True)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on standard output; what JSON cannot hold (nan, inf) becomes null."""
    text = json.dumps(json_ready(value), indent=2, allow_nan=False, ensure_ascii=False)
    # Control characters as escapes, so that a program reads every text as it is stored.
    print_text(
        "".join(letter if plain(letter, keep="\n") == letter else json.dumps(letter)[1:-1] for letter in text)
    )


def print_text(text: str) -> None:
    """Text and a line end on standard output, without control characters; a closed pipe (`| head`) is no error."""
    text = plain(text, keep="\n\t")
    try:
        click.echo(text)
        sys.stdout.flush()
    except BrokenPipeError:
        silence_closed_output()
    except UnicodeEncodeError:
        click.echo(text.encode("ascii", "backslashreplace").decode("ascii"))


@contextlib.contextmanager
def quiet_when_closed() -> Iterator[None]:
    """While a library (rich) prints: a closed pipe is no error."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        silence_closed_output()


def stand_in_for_closed_streams() -> None:
    """Replace streams that were closed at the start (`>&-`), for which Python has None, by ones that discard."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open until the process ends


def silence_closed_output() -> None:
    """Redirect standard output to the null device, so that the interpreter's last flush raises nothing."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
