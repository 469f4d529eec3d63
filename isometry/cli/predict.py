"""`isometry predict`: the spectrum a random network should have, without sampling one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isometry.cli.options import TYPED, json_option, out_option, require_isometry_option, setting_options
from isometry.cli.results import finish, refuse_taken_name, store_spectrum
from isometry.cli.streams import note, print_json, print_text, quiet_when_closed
from isometry.nn.options import NETWORKS
from isometry.spectrum.formatting import power_text

if TYPE_CHECKING:
    from isometry.spectrum import Spectrum

LN10 = math.log(10)
MOMENT_ORDERS = range(1, 7)
_output = click.Path(path_type=Path, dir_okay=False)


class Widths(click.ParamType):
    """N_0,N_1,...,N_L."""

    name = "widths"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """The widths in a text such as '784,512,512'."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} are not widths; write N_0,N_1,...,N_L such as 784,512,512", param, ctx)


class MapSize(click.ParamType):
    """HxW."""

    name = "map"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Height and width in a text such as '8x8'."""
        if isinstance(value, tuple):
            return value
        parts = str(value).lower().split("x")
        if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is no map; write its height and width, such as 8x8", param, ctx)
        return int(parts[0]), int(parts[1])


class PerLayer(click.ParamType):
    """One number, or one for each layer, separated by commas."""

    name = "number,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | tuple[float, ...]:
        """The number or numbers of a text such as '1.4' or '1,1.2,1'."""
        if isinstance(value, (float, tuple)):
            return value
        try:
            numbers = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no number and no list such as 1,1.2,1, one for each layer", param, ctx)
        return numbers if len(numbers) > 1 else numbers[0]


@click.command("predict")
@click.option(
    "--activation",
    required=True,
    metavar="NAME",
    help="tanh, relu, leaky_relu(0.2), hard_tanh, erf, gelu, ..., or one for each layer, separated by commas.",
)
@click.option(
    "--depth",
    required=True,
    type=click.IntRange(1),
    metavar="L",
    help="Layers, each a weight and an activation.",
)
@click.option(
    "--weights",
    default="gaussian",
    show_default=True,
    metavar="LAW",
    help="gaussian or orthogonal, or one for each layer, separated by commas.",
)
@click.option(
    "--widths", type=Widths(), metavar="N_0,...,N_L", help="Widths of the layers (default: all equal)."
)
@setting_options(NETWORKS["mlp"].options[name] for name in ("q_star", "residual"))
@click.option(
    "--sigma-w",
    type=PerLayer(),
    metavar="SIGMA",
    help="Standard deviation of the weights, times sqrt(fan_in); or a list.",
)
@click.option(
    "--sigma-b",
    type=PerLayer(),
    metavar="SIGMA",
    help="Standard deviation of the biases; or a list, one for each layer.",
)
@click.option(
    "--q0",
    type=float,
    metavar="Q",
    help="Variance of the first pre-activations (default: q* from the first on).",
)
@click.option("--readout", is_flag=True, help="One more linear layer at the end.")
@click.option(
    "--width",
    type=click.IntRange(1),
    metavar="N",
    help="Units of a layer, or channels: say how far one network of that width strays from the law.",
)
@click.option(
    "--positions",
    type=MapSize(),
    metavar="HxW",
    help="Map of a convolution (a delta kernel) of --width channels.",
)
@out_option("Store the prediction here.", required=False)
@click.option("--name", metavar="NAME", help="Its name in reports and in the file.")
@click.option("--overwrite", is_flag=True, help="Replace a stored spectrum of that name.")
@click.option("--png", type=_output, metavar="FILE", help="Draw it into a PNG picture.")
@click.option("--svg", type=_output, metavar="FILE", help="Draw it into an SVG picture.")
@require_isometry_option
@json_option
@click.pass_context
def predict_command(
    context: click.Context,
    activation: str,
    depth: int,
    weights: str,
    file: Path | None,
    name: str | None,
    overwrite: bool,
    png: Path | None,
    svg: Path | None,
    require_isometry: float | None,
    width: int | None,
    positions: tuple[int, ...] | None,
    as_json: bool,
    **numbers: Any,
) -> None:
    """Predict the singular values of a wide random network's Jacobian by mean-field theory and free probability."""
    if overwrite and file is None:
        raise click.UsageError("--overwrite replaces a spectrum in a file: give -o FILE.h5 with it")
    name = name or f"{activation}, {weights}, depth {depth}"
    if file is not None:
        refuse_taken_name(file, name, overwrite=overwrite)
    from dataclasses import replace

    from isometry.errors import InputError
    from isometry.theory.ensemble import Ensemble
    from isometry.theory.prediction import predict

    laws: str | tuple[str, ...] = tuple(weights.split(",")) if "," in weights else weights
    functions: str | tuple[str, ...] = tuple(activation.split(",")) if "," in activation else activation
    try:
        ensemble = Ensemble(functions, depth, weights=laws, **numbers)
    except InputError as error:
        raise click.UsageError(str(error)) from error
    law = predict(ensemble, width=width, positions=positions or ())
    command = context.meta.get(TYPED, "isometry predict")
    spectrum = replace(law, name=name, provenance={**law.provenance, "command": command})
    failure = store_spectrum(file, spectrum, overwrite=overwrite) if file is not None else None
    if as_json:
        print_json(prediction_record(spectrum))
    else:
        from isometry.report.terminal import print_report

        with quiet_when_closed():
            print_report([spectrum])
        if width is not None:
            print_text(finite_width_text(spectrum.provenance["finite_width"], width))
    if png is not None or svg is not None:
        from isometry.report.canvas import save_figure
        from isometry.report.plots import figure_of_spectra

        figure = figure_of_spectra([spectrum])
        for path, kind in ((png, "png"), (svg, "svg")):
            if path is not None:
                note(f"picture: {save_figure(figure, path, kind=kind)}")
    finish(context, [spectrum], failure=failure, require_isometry=require_isometry)


def finite_width_text(record: Mapping[str, Any], width: int) -> str:
    """What networks of one width do, in 95 % of draws, and how that is known."""
    lines = [f"Networks of width {width}, 95 % of them:"]
    for label, key in (("mean s²", "log_mean_square"), ("s_max", "log_s_max")):
        if record[key] is None:
            continue
        mean, spread = record[key]["mean"], 1.96 * record[key]["std"]
        low, high = (power_text((mean + side * spread) / LN10) for side in (-1, 1))
        lines.append(f"  {label:8s}{low} .. {high}")
    if "signal" in record:
        place = power_text(record["signal"]["log_s"] / LN10)
        lines.append(
            f"  the direction of the signal, {record['signal']['mass']:.2g} of the mass, at s = {place}"
        )
    how = "closed form for the mean square; " if record["closed_mean_square"] else ""
    return "\n".join([*lines, f"  by {how}{record['source']}"])


def prediction_record(spectrum: Spectrum) -> dict[str, Any]:
    """A prediction as plain JSON values: what every spectrum says, and what only a theory knows exactly.

    A number outside the range of floats is None, and stands in the field named ``log10_...``.
    """
    known = spectrum.provenance
    low, high = known.get("log_lambda_min"), known.get("log_lambda_max")
    moments = [spectrum.moment(order) for order in MOMENT_ORDERS]
    places, masses = spectrum.distribution.point_masses
    # Where the support reaches down to zero, or mass sits there, the smallest eigenvalue is zero.
    lambda_min = 0.0 if low is None else _within_floats(low)
    return {
        **spectrum.to_dict(),
        "q_star": known.get("q_star"),
        "sigma_w": known.get("sigma_w"),
        "sigma_b": known.get("sigma_b"),
        "chi": known.get("chi"),
        "moments": [value if value > 0 else None for value in moments],
        "log10_moments": [spectrum.log10_moment(order) for order in MOMENT_ORDERS],
        "lambda_min": lambda_min,
        "lambda_max": None if high is None else _within_floats(high),
        "log10_lambda_min": None if low is None else low / LN10,
        "log10_lambda_max": None if high is None else high / LN10,
        "atoms": [
            [_within_floats(float(place)), float(mass)] for place, mass in zip(places, masses, strict=True)
        ],
        "log10_atoms": [
            [float(place) / LN10, float(mass)] for place, mass in zip(places, masses, strict=True)
        ],
        "provenance": dict(known),
    }


def _within_floats(log: float) -> float | None:
    """exp(log) where that is a float; None where it over- or underflows. exp(-inf) is zero."""
    if log == -math.inf:
        return 0.0
    return math.exp(log) if -708.0 < log < 709.0 else None
