"""The report on a terminal: a table of numbers, a histogram of log10 s, a verdict.

Several spectra stand side by side, as many as the terminal is wide. Output that is no terminal gets plain
text of 80 columns; NO_COLOR is honoured (rich does both); an encoding without block characters gets '#'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TextIO

import numpy as np
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from isometry.errors import InputError
from isometry.report.tables import PlainConsole, encoded_output, print_advice
from isometry.spectrum import Spectrum, Summary
from isometry.spectrum.formatting import plain
from isometry.spectrum.histogram import histogram
from isometry.spectrum.summary import table

LABEL_COLUMN = 18
NARROWEST_COLUMN = 26
WIDEST_COLUMN = 44
STYLES = {"good": "green", "partly": "yellow", "bad": "red"}


def print_report(
    spectra: Sequence[Spectrum], *, file: TextIO | None = None, width: int | None = None
) -> None:
    """Print the report of the spectra to ``file`` (standard output if None).

    Parameters
    ----------
    spectra : sequence of Spectrum
    file : text file, optional
    width : int, optional
        Columns; the terminal's own, or 80 where there is none.
    """
    if not spectra:
        raise InputError("there is no spectrum to report: the list is empty")
    console = PlainConsole(file, width)
    console.width = max(console.width, LABEL_COLUMN + NARROWEST_COLUMN)
    per_row = (console.width - LABEL_COLUMN) // NARROWEST_COLUMN
    with encoded_output(console):
        for start in range(0, len(spectra), per_row):
            if start:
                console.print()
            _print_block(console, spectra[start : start + per_row])


def _print_block(console: Console, spectra: Sequence[Spectrum]) -> None:
    column = min(WIDEST_COLUMN, (console.width - LABEL_COLUMN) // len(spectra) - 2)
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    grid.add_column(Text(""), width=LABEL_COLUMN - 2, no_wrap=True, style="dim")
    summaries = [spectrum.reported for spectrum in spectra]
    for summary in summaries:
        grid.add_column(Text(plain(summary.name) or summary.method, style="bold"), width=column)
    for name, label, texts in table(summaries):
        styles = [STYLES[summary.level] if name == "spread" else "" for summary in summaries]
        grid.add_row(
            Text(label),
            *(Text(text, style=style, overflow="fold") for text, style in zip(texts, styles, strict=True)),
        )
    grid.add_row()
    for line in _histogram_rows(spectra, column, ascii_only=console.options.ascii_only):
        grid.add_row(*line)
    console.print(grid)
    console.print()
    for summary in summaries:
        _print_sentences(console, summary, f"{plain(summary.name)}: " if len(spectra) > 1 else "")


def _print_sentences(console: Console, summary: Summary, lead: str) -> None:
    if summary.shares:
        console.print(Text(plain(f"{lead}shares of mean s²: {summary.shares_text}")))
    if summary.stopped_text:
        console.print(Text(f"{lead}stopped: {summary.stopped_text}", style="dim"))
    console.print(Text(f"{lead}{summary.verdict}", style=STYLES[summary.level]))
    for advice in summary.advice:
        print_advice(console, advice, lead)


# ---- the histogram -------------------------------------------------------------------------------------


def _histogram_rows(spectra: Sequence[Spectrum], column: int, *, ascii_only: bool) -> list[list[Text]]:
    cells = histogram(spectra)
    highest = max(float(cells.masses.max(initial=0.0)), float(cells.at_zero.max(initial=0.0)))
    length = column - 7
    lines = []
    if cells.edges.size:
        half = 0.5 * float(cells.edges[1] - cells.edges[0])
        title = Text(f"log10 s ± {half:.3g}", style="dim")
        lines.append([title, *(Text("share of all", style="dim") for _ in spectra)])
    for k in range(cells.edges.size - 2, -1, -1):
        middle = round(0.5 * float(cells.edges[k] + cells.edges[k + 1]), 4) + 0.0
        inside = abs(middle) <= math.log10(2.0)
        number = f"{middle:+.4g}" if middle else "0"
        number = f"≤ {number}" if k == 0 and cells.open_below else number
        label = Text(f"{number:>11}", style="green" if inside else "dim")
        bars = [
            _bar(mass, highest, length, ascii_only=ascii_only, inside=inside) for mass in cells.masses[:, k]
        ]
        lines.append([label, *bars])
    if np.any(cells.at_zero > 0):
        word = "below floor" if any(spectrum.floor > 0 for spectrum in spectra) else "at zero"
        bars = [_bar(mass, highest, length, ascii_only=ascii_only, inside=False) for mass in cells.at_zero]
        lines.append([Text(word, style="red"), *bars])
    return lines


def _bar(mass: float, highest: float, length: int, *, ascii_only: bool, inside: bool) -> Text:
    """A bar with its percentage; any positive mass has a bar."""
    if mass <= 0:
        return Text("")
    eighths = max(1, round(8 * length * mass / highest))
    full, rest = divmod(eighths, 8)
    bar = "#" * max(1, round(eighths / 8)) if ascii_only else "█" * full + " ▏▎▍▌▋▊▉"[rest].strip()
    percent = f"{100 * mass:.1f}" if mass < 0.9995 else "100"
    percent = percent if mass >= 0.0005 else "<0.1"
    text = Text(bar, style="green" if inside else "cyan")
    assert cell_len(bar) <= length, "a bar is never wider than its column"
    return text.append(f" {percent}%", style="default")
