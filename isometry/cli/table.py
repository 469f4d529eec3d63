"""`isometry table FILE.h5`: the points of a file as rows, for people, spreadsheets and programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isometry.cli.options import file_argument, json_option
from isometry.cli.streams import note, print_json, print_text, quiet_when_closed
from isometry.spectrum.formatting import number_text

if TYPE_CHECKING:
    from isometry.sweeps.rows import Row


# Beginnings of formulas for spreadsheets, in both widths, and signs that some of them skip before one.
_FORMULAS = frozenset("=+-@\uff1d\uff0b\uff0d\uff20")
_SEPARATORS = frozenset("\t\r\n")


class Names(click.ParamType):
    """Column names, separated by commas."""

    name = "columns"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """The names in a text such as 'depth,s_max'."""
        if isinstance(value, tuple):
            return value
        names = tuple(part.strip() for part in str(value).split(",") if part.strip())
        if not names:
            self.fail("give column names, separated by commas", param, ctx)
        return names


@click.command("table")
@file_argument
@click.option(
    "--columns",
    type=Names(),
    metavar="A,B,...",
    help="Which columns (default: what differs, and the main numbers).",
)
@click.option(
    "--where",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    help="Only rows such as depth>=8 or init=gaussian; several conditions must all hold.",
)
@click.option(
    "--sort", "by", type=Names(), metavar="A,-B,...", help="Sort by these columns, -B from the largest down."
)
@click.option("--failed", is_flag=True, help="The points of a sweep that failed, with their errors.")
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated values with all their digits.")
@json_option
def table_command(
    file: Path,
    columns: tuple[str, ...] | None,
    conditions: tuple[str, ...],
    by: tuple[str, ...] | None,
    failed: bool,
    as_csv: bool,
    as_json: bool,
) -> None:
    """List the points of a sweep, or any spectra, as a table of settings and numbers.

    Columns are the keys of the configurations and numbers such as s_max, median, mean_square, mean_square_stderr,
    quantile_0.99, isometry, ks, agrees, loss, test_accuracy; a name that is none lists them all.
    """
    from isometry.store import open_store
    from isometry.sweeps.rows import check_columns, failures_of, main_columns, rows_of, select, sort

    if as_csv and as_json:
        raise click.UsageError("--csv or --json: one of the two")
    store = open_store(file, "r")
    rows = select(failures_of(store) if failed else rows_of(store), conditions)
    rows = sort(rows, by) if by else rows
    if columns:
        check_columns(rows, columns)
    chosen = list(columns or main_columns(rows))
    if as_json:
        found = [{column: row.get(column) for column in chosen} if columns else row.flat() for row in rows]
        print_json({"file": str(file), "rows": found})
    elif as_csv:
        print_text(_csv(rows, chosen))
    else:
        from isometry.report.tables import print_table

        cells = [[_cell(row.get(column)) for column in chosen] for row in rows]
        right = [c for c in chosen if any(_is_number(row.get(c)) for row in rows)]
        with quiet_when_closed():
            print_table(chosen, cells, right=right)
    missing = 0 if failed else len(failures_of(store))
    if missing:
        note(f"{missing} points have failed; --failed lists their errors")


def _csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_csv_cell(column) for column in columns])
    for row in rows:
        writer.writerow([_csv_cell(row.get(column)) for column in columns])
    return text.getvalue().rstrip("\n")


def _csv_cell(value: Any) -> Any:
    """The value of a cell; an apostrophe before text that a spreadsheet would compute as a formula."""
    if value is None or isinstance(value, bool | int | float):
        return "" if value is None else value
    words = str(value)
    return f"'{words}" if words.lstrip()[:1] in _FORMULAS or words[:1] in _SEPARATORS else words


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number_text(value) if isinstance(value, float) else " ".join(str(value).split())
