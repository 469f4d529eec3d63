"""`isometry layers MODEL`: the names that --source and --target take, with shapes."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import click

from isometry.cli.model_errors import explain_model_error
from isometry.cli.options import json_option, load_inputs, model_options
from isometry.cli.streams import print_json, quiet_when_closed
from isometry.loading.models import MODEL_HELP


@click.command(
    "layers",
    help=f"List a model's modules in the order they run, with what enters and leaves them.\n\n{MODEL_HELP}",
)
@click.argument("model_spec", metavar="MODEL")
@model_options
@json_option
def layers_command(
    model_spec: str,
    inputs: int | None,
    seed: int,
    weights: Path | None,
    evaluation: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Run the model once and print its modules."""
    from isometry.errors import IsometryError
    from isometry.jacobian import named_layers
    from isometry.loading import load_model, load_weights

    model = load_model(model_spec, seed=seed, evaluation=evaluation)
    if weights is not None:
        load_weights(model.module, weights)
    call = load_inputs(model, options, count=inputs, seed=seed)
    shape = None if call.x is None else tuple(call.x.shape)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            layers = named_layers(model.module, call.x, args=call.args, kwargs=call.kwargs)
    except IsometryError:
        raise
    except Exception as error:
        explained = explain_model_error(error, call.in_words)
        if explained is None:
            raise
        raise explained from error
    if as_json:
        rows = [
            {
                "name": layer.name,
                "type": layer.kind,
                "input_shape": layer.input_shape,
                "output_shape": layer.output_shape,
                "parameters": layer.parameters,
            }
            for layer in layers
        ]
        print_json({"model": model.spec, "input_shape": shape, "layers": rows})
        return
    from isometry.report.tables import print_table

    with quiet_when_closed():
        print_table(
            ["name", "type", "input", "output", "parameters"],
            [
                [
                    layer.name,
                    layer.kind,
                    _shape(layer.input_shape),
                    _shape(layer.output_shape),
                    f"{layer.parameters:,}",
                ]
                for layer in layers
            ],
            right=("parameters",),
        )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else "x".join(map(str, shape)) or "scalar"
