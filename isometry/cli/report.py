"""`isometry report FILE.h5 [NAME...]`: the table and histogram, a picture, an HTML file."""

from __future__ import annotations

from pathlib import Path

import click

from isometry.cli.options import file_argument, json_option, require_isometry_option
from isometry.cli.results import finish
from isometry.cli.streams import note, print_json, quiet_when_closed

_output = click.Path(path_type=Path, dir_okay=False)


@click.command("report")
@file_argument
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--png", type=_output, metavar="FILE", help="Draw the distributions into a PNG picture.")
@click.option("--svg", type=_output, metavar="FILE", help="Draw them into an SVG picture.")
@click.option("--html", type=_output, metavar="FILE", help="Write one self-contained HTML file.")
@require_isometry_option
@json_option
@click.pass_context
def report_command(
    context: click.Context,
    file: Path,
    names: tuple[str, ...],
    png: Path | None,
    svg: Path | None,
    html: Path | None,
    require_isometry: float | None,
    as_json: bool,
) -> None:
    """Report spectra of a file side by side: s max, quantiles, mean square, histogram of log10 s, verdict.

    Without NAME, all of them.
    """
    from isometry.cli.selection import pick
    from isometry.store import open_store

    spectra = pick(open_store(file, "r"), names)
    if as_json:
        print_json({"file": str(file), "spectra": [spectrum.to_dict() for spectrum in spectra]})
    else:
        from isometry.report.terminal import print_report

        with quiet_when_closed():
            print_report(spectra)
    pictures = [path for path in (png, svg) if path is not None]
    if pictures:
        from isometry.report.plots import figure_of_spectra, save_figure

        figure = figure_of_spectra(spectra)
        for path, wanted in ((png, "png"), (svg, "svg")):
            if path is not None:
                note(f"picture: {save_figure(figure, path, kind=wanted)}")
    if html is not None:
        from isometry.report.html import write_html

        note(f"report: {write_html(spectra, html, title=file.name)}")
    finish(context, spectra, require_isometry=require_isometry)
