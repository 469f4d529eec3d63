"""A report a person reads in ten seconds: a table of numbers, a histogram of log10 s, a verdict.

Several spectra stand side by side, as many as the terminal is wide. Output that is no terminal gets plain
text of 80 columns; NO_COLOR is honoured (rich does both); an encoding without block characters gets '#'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from isometry.errors import InputError
from isometry.report.concentration import cell_masses, shown_range
from isometry.report.numbers import headline_rows, plain
from isometry.report.tables import encoded_output
from isometry.spectrum import Spectrum
from isometry.spectrum.wording import stopping_text

Array = NDArray[np.float64]

LN10 = math.log(10)
HISTOGRAM_ROWS = 16
# Cell widths in decades, from which the narrowest is taken that gives at most HISTOGRAM_ROWS rows.
CELL_WIDTHS = tuple(m * 10.0**k for k in range(-3, 4) for m in (1, 2, 5))
LABEL_COLUMN = 18
NARROWEST_COLUMN = 26
WIDEST_COLUMN = 44


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
    console = Console(file=file, width=width, highlight=False)
    console.width = max(console.width, LABEL_COLUMN + NARROWEST_COLUMN)
    per_row = (console.width - LABEL_COLUMN) // NARROWEST_COLUMN
    with encoded_output(console):
        for start in range(0, len(spectra), per_row):
            if start:
                console.print()
            _print_block(console, spectra[start : start + per_row])


def _print_block(console: Console, spectra: Sequence[Spectrum]) -> None:
    column = min(WIDEST_COLUMN, (console.width - LABEL_COLUMN) // len(spectra) - 2)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column(Text(""), width=LABEL_COLUMN - 2, no_wrap=True, style="dim")
    for spectrum in spectra:
        table.add_column(Text(plain(spectrum.name) or spectrum.method, style="bold"), width=column)
    rows = [headline_rows(spectrum) for spectrum in spectra]
    for label in rows[0]:
        table.add_row(
            Text(label), *(_value_text(label, row[label], s) for row, s in zip(rows, spectra, strict=True))
        )
    table.add_row()
    for line in _histogram_rows(spectra, column, ascii_only=console.options.ascii_only):
        table.add_row(*line)
    console.print(table)
    console.print()
    for spectrum in spectra:
        lead = f"{plain(spectrum.name)}: " if len(spectra) > 1 else ""
        stop = stopping_text(spectrum)
        if stop is not None:
            console.print(Text(f"{lead}{stop}", style="dim"))
        console.print(Text(f"{lead}{spectrum.verdict()}", style=_verdict_style(spectrum)))


def _value_text(label: str, value: str, spectrum: Spectrum) -> Text:
    return Text(value, style=_verdict_style(spectrum) if label.startswith("in [0.5") else "", overflow="fold")


def _verdict_style(spectrum: Spectrum) -> str:
    share = spectrum.isometry()
    return "green" if share >= 0.95 else "yellow" if share >= 0.5 else "red"


# ---- the histogram -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Histogram:
    """Masses of common cells of log10 s.

    Parameters
    ----------
    edges : (b + 1,) array
        In log10 s, increasing. The width is round and s = 1 is the middle of a cell, not an edge, so that an
        isometry fills one cell whichever side of 1 rounding leaves it.
    masses : (spectra, b) array
        Fractions of each spectrum's singular values.
    at_zero : (spectra,) array
        Mass at zero or below the floor.
    open_below : bool
        Whether the first cell also holds a long thin tail below its lower edge.
    """

    edges: Array
    masses: Array
    at_zero: Array
    open_below: bool = False


def histogram(spectra: Sequence[Spectrum], *, rows: int = HISTOGRAM_ROWS) -> Histogram:
    """The masses of the spectra in at most ``rows`` common cells of log10 s with round edges."""
    ranges = [shown_range(spectrum.distribution) for spectrum in spectra]
    finite = [(a / LN10, b / LN10) for a, b in ranges if not math.isnan(a)]
    at_zero = np.array([spectrum.zero_mass for spectrum in spectra])
    if not finite:
        return Histogram(np.empty(0), np.empty((len(spectra), 0)), at_zero)
    low, high = min(a for a, _ in finite), max(b for _, b in finite)
    # One value to the eye: at least a few hundredths of a decade, so that the labels tell the cells apart.
    for width in CELL_WIDTHS:
        first = math.floor(low / width + 0.5)
        count = math.floor(high / width + 0.5) - first + 1
        if count <= rows and width >= 0.02:
            break
    edges = width * (np.arange(first, first + count + 1, dtype=np.float64) - 0.5)
    # The outermost values belong to the outermost cells: those that rounding puts just outside, and a long tail.
    logs: Array = edges * LN10
    lowest = min(a for a in (spectrum.distribution.log_range[0] for spectrum in spectra) if not math.isnan(a))
    logs[0], logs[-1] = min(logs[0], lowest), max(logs[-1], high * LN10)
    masses = np.array([cell_masses(spectrum.distribution, logs) for spectrum in spectra])
    return Histogram(edges, masses, at_zero, open_below=bool(lowest / LN10 < edges[0] - 0.01 * width))


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
    """A bar with its percentage; what is there at all is never drawn as nothing."""
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
