"""`isometry list`, `show` and `validate`: what is in a file of spectra."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from isometry.cli import codes
from isometry.cli.options import file_argument, json_option
from isometry.cli.streams import print_json, print_text, quiet_when_closed
from isometry.report.numbers import plain


@click.command("list")
@file_argument
@json_option
def list_command(file: Path, as_json: bool) -> None:
    """List the spectra in a file."""
    from isometry.store import open_store

    store = open_store(file, "r")
    records = []
    for name in store.names():
        numbers = store[name].to_dict()
        kept = ("name", "kind", "method", "shape", "inputs", "s_max", "mean_square", "isometry")
        created = store[name].provenance.get("created")
        records.append({**{key: numbers[key] for key in kept}, "name": name, "created": created})
    if as_json:
        print_json({"file": str(file), "spectra": records})
        return
    from isometry.report.tables import print_table

    with quiet_when_closed():
        print_table(
            ["name", "known by", "J", "s max", "mean s²", "in [0.5, 2]", "created"],
            [
                [
                    record["name"],
                    record["method"],
                    "x".join(map(str, record["shape"])) if record["shape"] else "infinite",
                    _number(record["s_max"]),
                    _number(record["mean_square"]),
                    f"{100 * record['isometry']['fraction']:.3g} %",
                    str(record["created"] or "-"),
                ]
                for record in records
            ],
            right=("s max", "mean s²", "in [0.5, 2]"),
        )


@click.command("show")
@file_argument
@click.argument("name")
@json_option
def show_command(file: Path, name: str, as_json: bool) -> None:
    """Show all numbers of one spectrum, and where it came from."""
    from isometry.cli.selection import pick
    from isometry.store import open_store

    (spectrum,) = pick(open_store(file, "r"), [name])
    if as_json:
        print_json({**spectrum.to_dict(), "provenance": dict(spectrum.provenance)})
        return
    rows = list(spectrum.rows())
    rows += [("products", str(spectrum.products)), ("seconds", f"{spectrum.seconds:.3g}"), ("", "")]
    rows += flattened(spectrum.provenance)
    width = max(len(plain(label)) for label, _ in rows)
    lines = [plain(spectrum.name)]
    lines += [f"  {plain(label):<{width}}  {plain(value)}".rstrip() for label, value in rows]
    print_text("\n".join(lines))


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


def flattened(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested plain values as (label, text) rows."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += flattened(value, f"{prefix}{key}.")
        elif value is not None:
            rows.append((f"{prefix}{key}", str(value)))
    return rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
