"""`isometry tune MODEL`: scale the weights of a model until its blocks keep the signal, and save them."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isometry.cli import codes
from isometry.cli.model_errors import explain_model_error
from isometry.cli.options import (
    ByteCount,
    json_option,
    load_inputs,
    model_options,
    output_path,
    require_isometry_option,
)
from isometry.cli.results import finish
from isometry.cli.streams import note, print_json, print_text
from isometry.errors import IsometryError
from isometry.loading.models import MODEL_HELP

if TYPE_CHECKING:
    from isometry.depth import TuningReport
    from isometry.loading import LoadedCall


@click.command(
    "tune",
    help="Scale a model's weights until the mean square singular value is 1 behind every layer, at these inputs.\n\n"
    f"Without -o nothing is kept, as with --dry-run: the report says what would be scaled.\n\n{MODEL_HELP}",
)
@click.argument("model_spec", metavar="MODEL")
@model_options
@click.option(
    "-o", "--out", "file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Save the tuned state dictionary here: .safetensors, or .pt or .pth. Load it with --weights.",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace that file.")
@click.option("--dry-run", is_flag=True, help="Report alone; save nothing.")
@click.option(
    "--branch-gain", type=click.FloatRange(0, min_open=True), default=0.5, show_default=True, metavar="C",
    help="A branch of x + f(x) may have C^2 / (number of branches) of the mean square of its stream.",
)  # fmt: skip
@click.option(
    "--q-star", type=click.FloatRange(0, min_open=True), metavar="Q",
    help="Mean square of the signal behind the first layer (default: as it comes, or 1/layers where that spreads).",
)  # fmt: skip
@click.option(
    "--leave", metavar="REGEX", help="Modules and parameters to leave as they are, by their whole names."
)
@click.option(
    "--probes", type=click.IntRange(2), default=32, show_default=True, metavar="N", help="Random tangents."
)
@click.option(
    "--tolerance", type=click.FloatRange(0, 1, min_open=True), default=0.01, show_default=True, metavar="TOL",
    help="How far a running mean square may be off, relative; exit code 5 if it is not reached.",
)  # fmt: skip
@click.option(
    "--sweeps", type=click.IntRange(1), metavar="N", help="Most recordings of the model [60 and one a layer]."
)
@click.option(
    "--dtype", type=click.Choice(["float32", "float64"]), help="Precision (default: the model's own)."
)
@click.option(
    "--device", metavar="DEVICE", help="Where to compute: cpu, cuda, cuda:1 (default: where the model is)."
)
@click.option(
    "--memory-limit", type=ByteCount(), metavar="BYTES", help="For intermediates, such as 500MB [2GiB]."
)
@click.option(
    "--wrt", multiple=True, metavar="PATH", help="The input that J is taken with respect to, as in measure."
)
@click.option("--output", "chosen", metavar="PATH", help="Which tensor, where the model returns several.")
@require_isometry_option
@json_option
@click.pass_context
def tune_command(
    context: click.Context,
    /,
    model_spec: str,
    inputs: int | None,
    seed: int,
    weights: Path | None,
    evaluation: bool,
    file: Path | None,
    overwrite: bool,
    dry_run: bool,
    require_isometry: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Parse, tune, save, print, exit with a code."""
    from isometry.loading import load_model, load_weights
    from isometry.loading.weights import check_savable, save_weights

    if dry_run and file is not None:
        raise click.UsageError("--dry-run saves nothing: leave -o out, or --dry-run")
    if overwrite and file is None:
        raise click.UsageError("--overwrite replaces a file of weights: give -o FILE with it")
    if file is not None:
        # Before the work, not after it.
        check_savable(file, overwrite=overwrite)
    model = load_model(model_spec, seed=seed, evaluation=evaluation)
    if weights is not None:
        load_weights(model.module, weights)
    point = load_inputs(model, options, count=inputs, seed=seed)
    report = _tuned(model.module, point, seed=seed, dry_run=file is None, name=model.name, **options)
    failure = None
    if file is not None:
        try:
            save_weights(model.module, file)
        except (IsometryError, OSError) as error:
            failure = error
        else:
            note(f"tuned weights saved in {file}")
    elif not dry_run:
        note("nothing is kept without -o FILE.safetensors")
    if as_json:
        print_json({"model": model.spec, "file": None if file is None else str(file), **report.to_dict()})
    else:
        print_text(report.text())
    if failure is not None:
        note(f"error: the tuned weights could not be saved: {failure}")
        context.exit(codes.FAILED)
    finish(context, [report.after], require_isometry=require_isometry)


def _tuned(
    module: Any,
    point: LoadedCall,
    *,
    chosen: str | None,
    dtype: str | None,
    memory_limit: int | None,
    wrt: tuple[str, ...],
    **options: Any,
) -> TuningReport:
    """`isometry.tune_`, with what the model itself raises told apart from what tuning does."""
    import torch

    from isometry.depth import tune_

    further: dict[str, Any] = {"args": point.args, "kwargs": dict(point.kwargs)}
    further["wrt"] = (wrt[0] if len(wrt) == 1 else list(wrt)) if wrt else None
    if dtype is not None:
        further["dtype"] = getattr(torch, dtype)
    if memory_limit is not None:
        further["memory_limit"] = memory_limit
    try:
        # What a model prints must not mix with the data.
        with contextlib.redirect_stdout(sys.stderr):
            return tune_(
                module,
                point.x,
                batched=point.batched,
                output=output_path({"chosen": chosen}),
                **further,
                **options,
            )
    except IsometryError:
        raise
    except Exception as error:
        explained = explain_model_error(error, point.in_words)
        if explained is None:
            raise
        raise explained from error
