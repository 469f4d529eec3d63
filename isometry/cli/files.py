"""`isometry list`, `show` and `validate`: the contents of a file of spectra."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isometry.cli import codes
from isometry.cli.options import file_argument, json_option
from isometry.cli.results import PARTIAL
from isometry.cli.streams import note, print_json, print_text, quiet_when_closed
from isometry.errors import StoreError
from isometry.spectrum.formatting import plain

if TYPE_CHECKING:
    from isometry.store import Series
    from isometry.store.summaries import Listed


@click.command("list")
@file_argument
@json_option
@click.pass_context
def list_command(context: click.Context, file: Path, as_json: bool) -> None:
    """List the spectra in a file."""
    from isometry.store import open_store

    store = open_store(file, "r")
    spectra: list[tuple[str, Listed]] = []
    damaged = False
    for name, found in store.listing().items():
        if isinstance(found, StoreError):
            # A damaged spectrum does not hide the others.
            note(f"error: {found}")
            damaged = True
        else:
            spectra.append((name, found))
    curves = store.series_names()
    if as_json:
        print_json(
            {"file": str(file), "spectra": [_record(one, name) for name, one in spectra], "series": curves}
        )
    else:
        _print_spectra(spectra)
        if curves:
            print_text("series: " + ", ".join(plain(name) for name in curves))
    if damaged:
        context.exit(codes.UNREADABLE)


def _record(listed: Listed, name: str) -> dict[str, Any]:
    numbers = listed.summary.json()
    kept = ("kind", "method", "shape", "inputs", "s_max", "mean_square", "isometry")
    return {
        "name": name,
        **{key: numbers[key] for key in kept},
        "created": listed.created,
        "partial": listed.partial,
    }


def _print_spectra(spectra: Sequence[tuple[str, Listed]]) -> None:
    from isometry.report.tables import print_table
    from isometry.spectrum.summary import LABELS

    shown = ("method", "shape", "s_max", "mean_square", "isometry")
    rows = []
    for name, listed in spectra:
        cells = listed.summary.cells()
        if listed.partial and not name.endswith(PARTIAL):
            name += PARTIAL
        rows.append([name, *(cells[key] for key in shown), str(listed.created or "-")])
    with quiet_when_closed():
        print_table(
            ["name", *(LABELS[key] for key in shown), "created"],
            rows,
            right=[LABELS[key] for key in shown[2:]],
        )


@click.command("show")
@file_argument
@click.argument("name")
@json_option
def show_command(file: Path, name: str, as_json: bool) -> None:
    """Show all numbers of one spectrum or series, and its provenance."""
    from isometry.cli.selection import pick
    from isometry.report.reproduction import provenance_rows
    from isometry.store import open_store

    store = open_store(file, "r")
    if name not in store.names() and name in store.series_names():
        _show_series(store.series(name), as_json=as_json)
        return
    (spectrum,) = pick(store, [name])
    if as_json:
        print_json({**spectrum.to_dict(), "provenance": dict(spectrum.provenance)})
        return
    rows = [*spectrum.rows(), ("", ""), *provenance_rows(spectrum)]
    width = max(len(plain(label)) for label, _ in rows)
    lines = [plain(spectrum.name)]
    lines += [f"  {plain(label):<{width}}  {plain(value)}".rstrip() for label, value in rows]
    print_text("\n".join(lines))


def _show_series(series: Series, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {"name": series.name, "columns": dict(series.columns), "provenance": dict(series.attributes)}
        )
        return
    from isometry.report.reproduction import flattened
    from isometry.report.tables import print_table

    columns = list(series.columns)
    kept = _shown_rows(len(series))
    with quiet_when_closed():
        print_table(
            columns,
            [["..." if row is None else f"{series[column][row]:.6g}" for column in columns] for row in kept],
            right=columns,
        )
    print_text(f"\n{len(series)} rows")
    for label, text in flattened(series.attributes):
        print_text(f"  {plain(label)}  {plain(text)}")


def _shown_rows(count: int) -> list[int | None]:
    """All rows of a short table; the ends of a long one, with a gap between."""
    return list(range(count)) if count <= 20 else [*range(10), None, *range(count - 10, count)]


@click.command("validate")
@file_argument
@json_option
@click.pass_context
def validate_command(context: click.Context, file: Path, as_json: bool) -> None:
    """Check a file; name every problem. Exit code 4 where there is one."""
    from isometry.store import open_store

    store = open_store(file, "r")
    problems = [str(problem) for problem in store.validate()]
    count = len(store.names())
    if as_json:
        print_json({"file": str(file), "spectra": count, "valid": not problems, "problems": problems})
    elif problems:
        print_text("\n".join(plain(problem) for problem in problems))
    else:
        print_text(f"{plain(str(file))}: {count} spectra, no problem found")
    if problems:
        context.exit(codes.UNREADABLE)


@click.command("compact")
@file_argument
@json_option
def compact_command(file: Path, as_json: bool) -> None:
    """Write a file anew without unused space.

    Replacing and removing leave some, and short spectra of earlier versions take four times the space. Spectra and
    series stay as they are. Killed at any moment, the file is the old or the new one.
    """
    from isometry.store import open_store

    open_store(file, "r")  # one that is not there is not made
    before, after = open_store(file, "a").compact()
    if as_json:
        print_json({"file": str(file), "bytes_before": before, "bytes_after": after})
    else:
        print_text(f"{plain(str(file))}: {before:,} bytes before, {after:,} after")
