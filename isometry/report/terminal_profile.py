"""Gains block by block on the terminal: a table with a bar for the mean square so far."""

from __future__ import annotations

import math
from typing import TextIO

import numpy as np
from rich.table import Table
from rich.text import Text

from isometry.report.tables import PlainConsole, encoded_output, print_advice
from isometry.spectrum.block_profile import BlockProfile
from isometry.spectrum.formatting import plain

ROWS = 20
BAR = 16


def print_profile(profile: BlockProfile, *, file: TextIO | None = None, width: int | None = None) -> None:
    """Print the blocks of a profile and the sentence that names the block at fault.

    Parameters
    ----------
    profile : BlockProfile
        Of more than 20 blocks evenly spaced ones are shown, and the one at fault.
    file, width : optional
        As for `isometry.report.terminal.print_report`.
    """
    console = PlainConsole(file, width)
    shown = profile.shown(ROWS)
    fault = profile.at_fault()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False, header_style="bold")
    headings = profile.headings
    kept = [k for k, heading in enumerate(headings) if console.width >= 100 or heading not in ("kind", "J")]
    for k in kept:
        left = headings[k] in ("block", "kind")
        table.add_column(Text(headings[k]), justify="left" if left else "right", overflow="fold")
    # Eighty columns hold the numbers without bars.
    with_bars = console.width >= 110
    if with_bars:
        table.add_column(Text("log10"))
    for block in shown:
        row = profile.row(block)
        cells = [Text(plain(row[k])) for k in kept]
        if with_bars:
            cells.append(Text(_bar(profile, block, ascii_only=console.options.ascii_only), style="cyan"))
        table.add_row(*cells, style="red" if block == fault else "")
    with encoded_output(console):
        title = plain(profile.name)
        left_out = f", {len(shown)} of {len(profile)} shown" if len(shown) < len(profile) else ""
        console.print(
            Text(f"{title}: block by block{left_out}" if title else f"block by block{left_out}", style="bold")
        )
        console.print(table)
        console.print()
        console.print(Text(plain(profile.verdict()), style="red" if fault is not None else ""))
        for advice in profile.advice():
            print_advice(console, advice)


def _bar(profile: BlockProfile, block: int, *, ascii_only: bool) -> str:
    """log10 of the mean square so far as a bar that begins at its largest value along the depth, or at zero."""
    values = profile.log10_mean_square
    finite = values[np.isfinite(values)]
    low = min(float(finite.min()) if finite.size else 0.0, 0.0)
    high = max(float(finite.max()) if finite.size else 0.0, 0.0)
    if not math.isfinite(values[block]) or high - low < 0.05:
        return ""
    length = max(1, round(BAR * (float(values[block]) - low) / (high - low)))
    return ("#" if ascii_only else "█") * length
