"""Spectra along steps or depths on the terminal: a line of quantiles for each, over one axis of log10 s.

step      0        ──────━━━━━●━━━━──▲
step    100     ───────━━━━━━●━━━━━───────▲
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TextIO

import numpy as np
from rich.table import Table
from rich.text import Text

from isometry.report.tables import PlainConsole, encoded_output
from isometry.spectrum import Spectrum
from isometry.spectrum.block_profile import band_values
from isometry.spectrum.formatting import plain, power_text
from isometry.spectrum.summary import LABELS

ROWS = 24
# 5 to 95 %, the middle half, the median, s_max, s = 1, below the floor.
SIGNS, ASCII_SIGNS = "─━●▲┊◂", "-=o^|<"


def print_bands(
    title: str,
    word: str,
    places: Sequence[int],
    spectra: Sequence[Spectrum],
    *,
    file: TextIO | None = None,
    width: int | None = None,
) -> None:
    """Print one line for each spectrum: quantiles 0.05, 0.25, 0.5, 0.75, 0.95 and s_max on an axis of log10 s.

    Parameters
    ----------
    title : str
    word : str
        What the places are: "step", "blocks".
    places : sequence of int
    spectra : sequence of Spectrum
        One for each place. Of more than 24 evenly spaced ones are shown, with the first and the last.
    file, width : optional
        As for `isometry.report.terminal.print_report`.
    """
    console = PlainConsole(file, width)
    kept = np.unique(np.linspace(0, len(spectra) - 1, min(ROWS, len(spectra))).round().astype(int))
    quantiles, top = band_values([spectra[k] for k in kept])
    seen = np.concatenate([quantiles[np.isfinite(quantiles)], top[np.isfinite(top)], [0.0]])
    low, high = float(seen.min()), float(seen.max())
    low, high = (low - 0.5, high + 0.5) if high - low < 0.2 else (low, high)
    columns = max(20, console.width - 46)
    signs = ASCII_SIGNS if console.options.ascii_only else SIGNS
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False, header_style="bold")
    shown = ("quantile_0.5", "mean_square", "isometry")
    for heading in (word, *(LABELS[key] for key in shown)):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    axis, end = power_text(low), power_text(high)
    table.add_column(
        Text(axis + "s".center(max(1, columns - len(axis) - len(end))) + end, style="dim"), no_wrap=True
    )
    for row, k in enumerate(kept):
        cells = spectra[k].reported.cells()
        table.add_row(
            Text(str(places[k])),
            *(Text(cells[key]) for key in shown),
            Text(band_line(quantiles[row], float(top[row]), low, high, columns, signs), style="cyan"),
        )
    with encoded_output(console):
        console.print(Text(plain(title), style="bold"))
        console.print(table)
        below = f", {signs[5]} below the floor" if np.any(np.isneginf(quantiles)) else ""
        legend = f"{signs[0]} 5 to 95 %, {signs[1]} middle half, {signs[2]} median, {signs[3]} s_max, {signs[4]} s = 1"
        console.print(Text(legend + below, style="dim"))


def band_line(
    quantiles: np.ndarray, top: float, low: float, high: float, columns: int, signs: str = SIGNS
) -> str:
    """The line of one spectrum: its quantiles and s_max (as log10) on ``columns`` cells from low to high."""
    cells = [" "] * columns

    def cell(value: float) -> int:
        share = 0.0 if value == -math.inf else (value - low) / (high - low)
        return min(columns - 1, max(0, round(share * (columns - 1))))

    cells[cell(0.0)] = signs[4]
    p05, p25, p50, p75, p95 = (cell(float(value)) for value in quantiles)
    cells[p05 : p95 + 1] = signs[0] * (p95 + 1 - p05)
    cells[p25 : p75 + 1] = signs[1] * (p75 + 1 - p25)
    if quantiles[0] == -math.inf:
        cells[0] = signs[5]
    if math.isfinite(top):
        cells[cell(top)] = signs[3]
    if math.isfinite(quantiles[2]):
        cells[p50] = signs[2]
    return "".join(cells)
