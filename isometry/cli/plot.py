"""`isometry plot FILE.h5 --x depth --y s_max --hue init -o OUT.png`: a number over a setting, with theory."""

from __future__ import annotations

from pathlib import Path

import click

from isometry.cli.options import file_argument, json_option
from isometry.cli.streams import note, print_json


@click.command("plot")
@file_argument
@click.option("--x", required=True, metavar="COLUMN", help="Column along x: a setting or a result.")
@click.option(
    "--y", required=True, metavar="COLUMN", help="The number to draw, such as s_max or mean_square."
)
@click.option("--hue", metavar="COLUMN", help="One colour for each of its values.")
@click.option(
    "--where",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    help="Only points such as depth>=8 or init=gaussian; several conditions must all hold.",
)
@click.option(
    "--theory/--no-theory",
    default=True,
    show_default=True,
    help="Draw the prediction of theory where there is one.",
)
@click.option(
    "--log-x/--linear-x", default=None, help="Scale of the x axis (default: what suits the values)."
)
@click.option("--log-y/--linear-y", default=None, help="Scale of the y axis.")
@click.option(
    "-o",
    "--out",
    "picture",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="OUT.png",
    help="The picture: .png, .svg or .pdf.",
)
@json_option
def plot_command(
    file: Path,
    x: str,
    y: str,
    hue: str | None,
    conditions: tuple[str, ...],
    theory: bool,
    log_x: bool | None,
    log_y: bool | None,
    picture: Path,
    as_json: bool,
) -> None:
    """Draw one number of all points of a sweep against a setting, averaged over seeds, with theory.

    `isometry table FILE.h5` lists the columns.
    """
    from isometry.report.canvas import save_figure
    from isometry.report.curves import plot_curves
    from isometry.store import open_store
    from isometry.sweeps.picture import picture_of
    from isometry.sweeps.rows import rows_of, select

    store = open_store(file, "r")
    rows = select(rows_of(store), conditions)
    if not rows:
        raise click.ClickException(
            "there are no points to draw: the file is empty, or no point meets --where"
        )
    found = picture_of(rows, store, x, y, hue=hue, theory=theory)
    ax = plot_curves(
        found.curves, x_label=found.x_label, y_label=found.y_label, categories=found.categories, log_x=log_x,
        log_y=log_y, note=found.note,
    )  # fmt: skip
    saved = save_figure(ax.figure, picture)  # type: ignore[arg-type]
    if found.left_out:
        note(f"{found.left_out} points are left out: {x} or {y} is unknown there, or no float can hold it")
    if as_json:
        curves = [
            {
                "label": curve.label,
                **{key: getattr(curve, key).tolist() for key in ("x", "y", "error", "law_x", "law_y")},
            }
            for curve in found.curves
        ]
        print_json(
            {"file": str(file), "picture": str(saved), "categories": found.categories, "curves": curves}
        )
    else:
        note(f"picture: {saved}")
