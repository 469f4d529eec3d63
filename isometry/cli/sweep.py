"""`isometry sweep GRID.toml -o FILE.h5`: every point of a grid into one file, resumable."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isometry.cli import codes
from isometry.cli.options import json_option, out_option
from isometry.cli.streams import note, print_json, print_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor

    from isometry.sweeps import Point
    from isometry.sweeps.work import Failure


@click.command("sweep")
@click.argument("grid", metavar="GRID.toml", type=click.Path(path_type=Path))
@out_option("Results go here; points that it holds already are skipped.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    metavar="N",
    help="Processes (default: one for each GPU, or else for each processor).",
)
@click.option(
    "--dask",
    "address",
    metavar="ADDRESS",
    help="Compute on the Dask cluster of this scheduler (tcp://host:8786, or its --scheduler-file) instead.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="A point that takes longer fails, and its process is ended.",
)
@click.option(
    "--max-points",
    type=click.IntRange(1),
    default=10**6,
    show_default=True,
    metavar="N",
    help="Refuse a grid of more points, before they are made.",
)
@click.option("--dry-run", is_flag=True, help="Count the points and estimate what they cost; compute none.")
@json_option
@click.pass_context
def sweep_command(
    context: click.Context,
    grid: Path,
    file: Path,
    workers: int | None,
    address: str | None,
    timeout: float | None,
    max_points: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Measure, predict, compare or train at every point of a grid.

    GRID.toml has [axes], [[zip]], seeds and [fixed]; docs/sweeps.md lists the keys. Interrupting keeps finished
    points; the same command continues, and tries failed points again. Exit code 1 where points failed.
    """
    if address is not None and workers is not None:
        raise click.UsageError(
            "--workers counts processes of this machine; a Dask cluster has its own workers"
        )
    if dry_run:
        _dry_run(grid, file, workers, max_points, as_json=as_json)
        return
    from isometry.sweeps import sweep

    def say(point: Point, failure: Failure) -> None:
        note(f"failed: {point.name}: {failure.line}")

    with _executor(address) as executor:
        result = sweep(
            grid,
            file,
            executor=executor,
            workers=workers,
            timeout=timeout,
            max_points=max_points,
            on_failure=say,
        )
    if as_json:
        print_json(result.to_dict())
    else:
        print_text(
            f"{file}: {result.finished} points finished, {result.skipped} there before, "
            f"{len(result.failures)} failed, of {result.total}; {result.seconds:.3g} s"
        )
    if result.failures:
        note("the same command tries failed points again; `isometry table FILE --failed` lists their errors")
        context.exit(codes.FAILED)


@contextmanager
def _executor(address: str | None) -> Iterator[Executor | None]:
    """The executor of a Dask cluster; None for processes of our own."""
    if address is None:
        yield None
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise click.ClickException(
            "--dask needs the distributed package: pip install 'isometry[distributed]'"
        ) from error
    where: dict[str, Any] = {"scheduler_file": address} if address.endswith(".json") else {"address": address}
    try:
        client = Client(**where)
    except (OSError, ValueError) as error:
        raise click.ClickException(f"there is no Dask scheduler at {address}: {error}") from error
    with client:
        yield client.get_executor(pure=False)


def _dry_run(grid: Path, file: Path, workers: int | None, max_points: int, *, as_json: bool) -> None:
    from isometry.sweeps.estimate import estimate

    found = estimate(grid, file, workers=workers, max_points=max_points)
    if as_json:
        print_json(found.to_dict())
    else:
        print_text("\n".join(found.lines()))
