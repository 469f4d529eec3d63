"""A plain table of text: no lines, nothing cut off, the same columns in a terminal, a pipe and a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from isometry.report.text import encodable
from isometry.spectrum.advice import Advice
from isometry.spectrum.formatting import plain


class PlainConsole(Console):
    """A console on which no text, from wherever, steers the terminal: only styles of our own do."""

    def __init__(self, file: TextIO | None = None, width: int | None = None) -> None:
        super().__init__(file=file, width=width, highlight=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """The segments of what is printed, their texts without control characters."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else plain(text, keep="\n"), style, control)


def print_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str] = (),
    file: TextIO | None = None,
) -> None:
    """Print rows under headings.

    Parameters
    ----------
    headings : sequence of str
    rows : sequence of sequences of str
        One text per heading.
    right : sequence of str
        The headings of columns that are set flush right.
    file : text file, optional
        Standard output if None.
    """
    console = PlainConsole(file)
    lines = _lines(headings, rows, right)
    if not console.is_terminal:
        # Into a pipe or a file: one line for each row, however long, so that other programs can read it.
        _write(console, "".join(lines))
        return
    if max(map(cell_len, lines)) <= console.width:
        with encoded_output(console):
            console.print(Text(lines[0].rstrip("\n"), style="bold"))
        _write(console, "".join(lines[1:]))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(
            Text(plain(heading)),
            justify="right" if heading in right else "left",
            overflow="fold",
            no_wrap=False,
        )
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    with encoded_output(console):
        console.print(table)


def _write(console: Console, text: str) -> None:
    """Write text in what the stream's encoding can hold."""
    console.file.write(encodable(text, console.encoding))
    console.file.flush()


def _lines(headings: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> list[str]:
    """The table as rich sets it where no cell is folded, in a hundredth of its time."""
    columns = [[plain(cell) for cell in column] for column in zip(headings, *rows, strict=True)]
    lengths = [[cell_len(cell) for cell in column] for column in columns]
    padded = []
    for heading, column, widths in zip(headings, columns, lengths, strict=True):
        widest = max(widths)
        spaces = [" " * (widest - width) for width in widths]
        pairs = zip(spaces, column, strict=True) if heading in right else zip(column, spaces, strict=True)
        padded.append([left + rest for left, rest in pairs])
    return ["  ".join(line).rstrip() + "\n" for line in zip(*padded, strict=True)]


@contextmanager
def encoded_output(console: Console) -> Iterator[None]:
    """Collect what the block prints and write it in what the stream's encoding can hold."""
    with console.capture() as captured:
        yield
    _write(console, captured.get())


def print_advice(console: Console, advice: Advice, lead: str = "") -> None:
    """A sentence, and its command in a line of its own that can be copied."""
    console.print(Text(plain(f"{lead}advice: {advice.sentence}"), style="bold"))
    console.print(Text(plain(f"  {advice.command}")), soft_wrap=True)
