"""`isometry report FILE.h5 [NAME...]`: the table and histogram, a picture, an HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from isometry.cli.options import file_argument, json_option, require_isometry_option
from isometry.cli.results import finish
from isometry.cli.streams import note, print_json, print_text, quiet_when_closed

if TYPE_CHECKING:
    from isometry.report.histories import History
    from isometry.spectrum import Spectrum
    from isometry.spectrum.block_profile import BlockProfile
    from isometry.store import Store

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
    """Report spectra of a file side by side: s_max, quantiles, mean square, histogram of log10 s, verdict.

    Without NAME, all of them. Spectra over the steps of a training run are drawn as bands, networks measured with
    --per-block block by block.
    """
    from isometry.cli.selection import pick
    from isometry.report.histories import histories_of
    from isometry.store import open_store

    store = open_store(file, "r")
    spectra = pick(store, names)
    profiles = stored_profiles(store, [spectrum.name for spectrum in spectra])
    # Spectra asked for by name stand side by side.
    histories, shown = ([], spectra) if names else histories_of(without_products(spectra, profiles))
    if as_json:
        print_json(
            {
                "file": str(file),
                "spectra": [spectrum.to_dict() for spectrum in spectra],
                "profiles": [profile.to_dict() for profile in profiles],
                "histories": [{"name": history.name, "steps": history.steps} for history in histories],
            }
        )
    else:
        with quiet_when_closed():
            print_all(shown, profiles, histories)
    pictures = [path for path in (png, svg) if path is not None]
    if pictures:
        from isometry.report.canvas import save_figure
        from isometry.report.plots import figure_of_spectra

        figure = figure_of_spectra(shown)
        for path, wanted in ((png, "png"), (svg, "svg")):
            if path is not None:
                note(f"picture: {save_figure(figure, path, kind=wanted)}")
    if html is not None:
        from isometry.report.html import write_html

        note(f"report: {write_html(shown, html, profiles=profiles, histories=histories, title=file.name)}")
    finish(context, spectra, require_isometry=require_isometry)


def stored_profiles(store: Store, names: Sequence[str]) -> list[BlockProfile]:
    """The profiles in the file of the networks whose spectra are called so."""
    from isometry.store.profiles import profile_names, read_profile

    return [read_profile(store, name) for name in profile_names(store) if name in names]


def without_products(spectra: Sequence[Spectrum], profiles: Sequence[BlockProfile]) -> list[Spectrum]:
    """The spectra without those of running products, which a profile shows along the depth."""
    inner = {
        one.name for profile in profiles for depth, one in profile.running.items() if depth < len(profile)
    }
    return [spectrum for spectrum in spectra if spectrum.name not in inner]


def print_all(
    spectra: Sequence[Spectrum], profiles: Sequence[BlockProfile], histories: Sequence[History]
) -> None:
    """Print spectra side by side, then profiles along depth and histories along training."""
    from isometry.cli.blocks import print_profile_and_product
    from isometry.report.terminal import print_report
    from isometry.report.terminal_bands import print_bands

    print_report(spectra)
    for profile in profiles:
        print_profile_and_product(profile)
    for history in histories:
        print_text("")
        print_bands(f"{history.name}: singular values over steps", "step", history.steps, history.spectra)
        if history.cost:
            print_text(history.cost)
