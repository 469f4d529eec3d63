"""`isometry critical`: the point of the critical line, chi_1 = 1, where gradients neither grow nor shrink."""

from __future__ import annotations

import math

import click

from isometry.cli.options import json_option
from isometry.cli.streams import note, print_json, print_text


@click.command("critical")
@click.option(
    "--activation",
    required=True,
    metavar="NAME",
    help="tanh, relu, leaky_relu(0.2), hard_tanh, erf, gelu, ...",
)
@click.option("--q-star", type=float, metavar="Q", help="Stationary variance of the pre-activations.")
@click.option("--sigma-b", type=float, metavar="B", help="Standard deviation of the biases.")
@click.option(
    "--sigma-w", type=float, metavar="W", help="Standard deviation of the weights, times sqrt(fan_in)."
)
@json_option
def critical_command(
    activation: str, q_star: float | None, sigma_b: float | None, sigma_w: float | None, as_json: bool
) -> None:
    """Find the critical point with a given q*, sigma_b or sigma_w.

    Exactly one of the three is given, one number for all layers: layers that differ have no critical point, and
    `isometry predict` takes lists of theirs. In JSON, null stands for an infinite depth scale.
    """
    if sum(value is not None for value in (q_star, sigma_b, sigma_w)) != 1:
        raise click.UsageError(
            "give exactly one of --q-star, --sigma-b and --sigma-w: the critical line has one parameter"
        )
    from isometry.theory.meanfield import critical_point

    point = critical_point(activation, q_star=q_star, sigma_b=sigma_b, sigma_w=sigma_w)
    if as_json:
        print_json(
            {
                "activation": point.activation,
                "q_star": point.q_star,
                "sigma_w2": point.sigma_w2,
                "sigma_b2": point.sigma_b2,
                "sigma_w": point.sigma_w,
                "sigma_b": point.sigma_b,
                "chi_1": point.chi_1,
                "xi_c": point.xi_c,
                "xi_q": point.xi_q,
                "q_slope": point.q_slope,
                "stable": point.stable,
                "note": point.note,
            }
        )
        return
    rows = [
        ("q*", f"{point.q_star:.10g}", "variance of the pre-activations"),
        ("sigma_w", f"{point.sigma_w:.10g}", f"sigma_w^2 = {point.sigma_w2:.10g}"),
        ("sigma_b", f"{point.sigma_b:.10g}", f"sigma_b^2 = {point.sigma_b2:.10g}"),
        ("chi_1", f"{point.chi_1:.10g}", "gradient factor of a layer"),
        ("xi_c", _layers(point.xi_c), "depth scale of correlations"),
        (
            "xi_q",
            _layers(point.xi_q),
            "depth scale of the variance, " + ("stable" if point.stable else "not stable"),
        ),
    ]
    lines = [f"Critical point of {point.activation}"]
    lines += [f"  {label:<8}  {value:<18}  {meaning}" for label, value, meaning in rows]
    print_text("\n".join(lines))
    if point.note:
        note(f"note: {point.note}")


def _layers(scale: float) -> str:
    return "infinite" if math.isinf(scale) else f"{scale:.6g} layers"
