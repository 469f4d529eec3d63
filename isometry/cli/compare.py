"""`isometry compare`: two stored spectra, or a stored one and the theory of its recorded architecture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from isometry.cli import codes
from isometry.cli.options import json_option
from isometry.cli.streams import note, print_json, print_text

if TYPE_CHECKING:
    from isometry.spectrum import Spectrum

_output = click.Path(path_type=Path, dir_okay=False)


@click.command("compare")
@click.argument("measured", metavar="FILE.h5:NAME")
@click.argument("predicted", metavar="[FILE.h5:NAME]", required=False)
@click.option(
    "--theory",
    is_flag=True,
    help="Compare with the prediction for the architecture recorded with the spectrum.",
)
@click.option(
    "--width",
    type=click.FloatRange(1),
    metavar="N",
    help="Independent units of a layer, which set the expected fluctuation: width, or channels of a convolution "
    "(default: as recorded, else min(m, n)); inf for two measurements of one network.",
)
@click.option(
    "--floor", type=click.FloatRange(0), metavar="S", help="Compare nothing below this s but the total mass."
)
@click.option("--png", type=_output, metavar="FILE", help="Draw the densities and cdfs into a PNG picture.")
@click.option("--svg", type=_output, metavar="FILE", help="Draw them into an SVG picture.")
@click.option(
    "--require-agreement",
    is_flag=True,
    help="Exit with code 3 unless the two agree within the expected fluctuation.",
)
@json_option
@click.pass_context
def compare_command(
    context: click.Context,
    measured: str,
    predicted: str | None,
    theory: bool,
    width: float | None,
    floor: float | None,
    png: Path | None,
    svg: Path | None,
    require_agreement: bool,
    as_json: bool,
) -> None:
    """Compare a spectrum with a second one, or with theory: distances, moment ratios, edges, and a verdict.

    The second is taken as the law. The expected fluctuation of a network of finite width, measured with
    finitely many probes, is printed beside each distance.
    """
    if theory == (predicted is not None):
        raise click.UsageError("compare with a second FILE.h5:NAME, or with --theory: one of the two")
    first = stored_spectrum(measured)
    second = predicted_for(first, measured) if predicted is None else stored_spectrum(predicted)
    from isometry.comparison import compare

    comparison = compare(first, second, width=width, floor=floor)
    if as_json:
        print_json(comparison.to_dict())
    else:
        print_text(comparison.summary())
    if png is not None or svg is not None:
        from isometry.report.canvas import save_figure

        figure = comparison.plot()
        for path, kind in ((png, "png"), (svg, "svg")):
            if path is not None:
                note(f"picture: {save_figure(figure, path, kind=kind)}")
    if require_agreement and comparison.agrees is not True:
        note(
            "threshold missed: --require-agreement asks for two spectra that agree within the expected fluctuation"
        )
        context.exit(codes.THRESHOLD_MISSED)


def stored_spectrum(place: str) -> Spectrum:
    """The spectrum that FILE.h5:NAME names; without NAME, the only one in the file.

    Raises
    ------
    click.UsageError
        No name is given and there are several, or there is none of that name.
    StoreError
        The file cannot be read.
    """
    from isometry.cli.selection import pick
    from isometry.store import open_store

    path, name = split_place(place)
    store = open_store(path, "r")
    if not name:
        names = list(store.names())
        if len(names) != 1:
            raise click.UsageError(
                f"{path} holds {len(names)} spectra: say which, {path}:NAME ({', '.join(names[:8])})"
            )
        name = names[0]
    return pick(store, [name])[0]


def split_place(place: str) -> tuple[Path, str]:
    """(file, name) of FILE.h5:NAME. A colon may stand in either: the first that ends in a file that exists counts."""
    for index, letter in enumerate(place):
        if letter == ":" and Path(place[:index]).exists():
            return Path(place[:index]), place[index + 1 :]
    if Path(place).exists():
        return Path(place), ""
    file, _, name = place.partition(":")
    return Path(file), name


def predicted_for(spectrum: Spectrum, place: str) -> Spectrum:
    """The prediction for the ensemble recorded with a measured spectrum.

    Raises
    ------
    click.ClickException
        No ensemble was recorded.
    """
    ensemble = spectrum.provenance.get("ensemble")
    if not isinstance(ensemble, Mapping):
        raise click.ClickException(
            f"no architecture is recorded with {place}, so there is no theory to compare with. It is recorded for "
            "untrained built-ins (vanilla-cnn, mlp, resnet) and the networks of isometry.nn, measured whole; for "
            "others store a prediction (`isometry predict ... -o FILE.h5`) and compare with that"
        )
    from isometry.theory.ensemble import Ensemble
    from isometry.theory.prediction import predict

    return predict(Ensemble.from_dict(ensemble))
