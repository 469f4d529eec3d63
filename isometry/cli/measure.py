"""`isometry measure MODEL`: model and input -> spectrum -> file and standard output."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isometry.cli.blocks import block_options, check_blocks, profile_of, show_with_profile, store_profile
from isometry.cli.model_errors import explain_model_error
from isometry.cli.options import (
    TYPED,
    Budget,
    ByteCount,
    json_option,
    load_inputs,
    model_options,
    output_path,
    require_isometry_option,
)
from isometry.cli.results import finish, refuse_taken_name, show_spectrum, store_spectrum
from isometry.cli.streams import note
from isometry.errors import IsometryError
from isometry.loading.models import MODEL_HELP

if TYPE_CHECKING:
    from isometry.loading import LoadedCall
    from isometry.spectrum import Spectrum


@click.command("measure", help=f"Measure the singular values of a model's Jacobian.\n\n{MODEL_HELP}")
@click.argument("model_spec", metavar="MODEL")
@model_options
@click.option(
    "--method",
    type=click.Choice(["auto", "exact", "lanczos", "randomized", "chain"]),
    default="auto",
    show_default=True,
    help="exact builds J; lanczos samples it with random probes; randomized finds the leading values; chain finds all "
    "over any number of decades, from the factors of J; auto takes exact where that is no dearer.",
)
@click.option(
    "--probes", type=click.IntRange(1), metavar="N", help="Random probes of each input (16; randomized 8)."
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    metavar="N",
    help="Golub-Kahan steps of each probe (50; randomized 30).",
)
@click.option(
    "--top",
    type=click.IntRange(1),
    metavar="N",
    help="How many of the largest values to report with residual bounds.",
)
@click.option(
    "--rank", type=click.IntRange(1), metavar="N", help="Leading triplets of the randomized method."
)
@click.option(
    "--tol",
    type=click.FloatRange(0, min_open=True),
    metavar="TOL",
    help="Relative residual the top values must reach; exit code 5 if they do not.",
)
@click.option(
    "--rtol",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="RTOL",
    help="Add probes and steps until the error of --quantity is at most this; exit code 5 if it is not reached.",
)
@click.option(
    "--quantity",
    type=click.Choice(["mean_square", "cdf", "top", "s_max"]),
    help="What --rtol is about [mean_square].",
)
@click.option(
    "--budget",
    type=Budget(),
    metavar="BUDGET",
    help="What may be spent: a number of products such as 20000, or a time such as 60s, 5min, 2h.",
)
@click.option(
    "--probe",
    type=click.Choice(["gaussian", "rademacher", "orthogonal"]),
    default="gaussian",
    show_default=True,
    help="Kind of random probes.",
)
@click.option(
    "--dtype", type=click.Choice(["float32", "float64"]), help="Precision (default: the model's own)."
)
@click.option(
    "--device", metavar="DEVICE", help="Where to compute: cpu, cuda, cuda:1 (default: where the model is)."
)
@click.option(
    "--tf32",
    is_flag=True,
    help="Let a GPU round factors to TF32 (10 bits): faster, and values are off by about 1e-3 of s_max.",
)
@click.option(
    "--memory-limit",
    type=ByteCount(),
    metavar="BYTES",
    help="For intermediates, such as 500MB or 2GiB [2GiB].",
)
@click.option(
    "--source", metavar="NAME", help="Measure from what enters this module (see `isometry layers`)."
)
@click.option("--target", metavar="NAME", help="Measure to what leaves this module.")
@click.option(
    "--wrt",
    multiple=True,
    metavar="PATH",
    help="The input that J is taken with respect to, by position from 0, name or path; several are joined.",
)
@click.option(
    "--output",
    "chosen",
    metavar="PATH",
    help="Which tensor, where the model returns several: a name, an index, or a path such as decoder.0.logits.",
)
@click.option(
    "-o", "--out", "file", type=click.Path(path_type=Path), metavar="FILE.h5", help="Store the spectrum here."
)
@click.option("--name", metavar="NAME", help="Its name in reports and in the file.")
@click.option("--overwrite", is_flag=True, help="Replace a stored spectrum of that name.")
@block_options
@require_isometry_option
@json_option
@click.pass_context
def measure_command(
    context: click.Context,
    /,
    model_spec: str,
    inputs: int | None,
    seed: int,
    weights: Path | None,
    evaluation: bool,
    file: Path | None,
    name: str | None,
    overwrite: bool,
    per_block: bool,
    blocks: str | None,
    require_isometry: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Parse, measure, store, print, exit with a code."""
    from isometry.depth.advice import with_theory
    from isometry.loading import load_model, load_weights
    from isometry.measurement.distributed import process_group, started_by_torchrun
    from isometry.measurement.provenance import recorded_ensemble

    if overwrite and file is None:
        raise click.UsageError("--overwrite replaces a spectrum in a file: give -o FILE.h5 with it")
    if blocks is not None and not per_block:
        raise click.UsageError("--blocks says what a block is: give --per-block with it")
    group = context.with_resource(process_group())
    if started_by_torchrun():
        options["shared"] = True
        if per_block:
            raise click.UsageError("--per-block is not shared out among processes: run it without torchrun")
    model = load_model(model_spec, seed=seed, evaluation=evaluation)
    name = name or model.name
    if per_block:
        check_blocks(model.module, file, name, pattern=blocks, overwrite=overwrite, options=options)
    if file is not None:
        # Before the work, not after it.
        refuse_taken_name(file, name, overwrite=overwrite)
    if weights is not None:
        load_weights(model.module, weights)
    point = load_inputs(model, options, count=inputs, seed=seed)
    further: dict[str, Any] = {"args": point.args, "kwargs": dict(point.kwargs)}
    if chosen_inputs := options.pop("wrt"):
        further["wrt"] = chosen_inputs[0] if len(chosen_inputs) == 1 else list(chosen_inputs)
    options |= {name: value for name, value in further.items() if value}
    provenance: dict[str, Any] = {
        "model_spec": model.spec,
        "input_spec": point.description,
        "weights_file": str(weights) if weights is not None else None,
        "command": context.meta.get(TYPED, "isometry measure"),
    }
    part = bool(options["source"] or options["target"] or further["args"] or further["kwargs"])
    if point.x is not None:
        provenance["ensemble"] = recorded_ensemble(
            model.module, point.x, part=part, loaded=weights is not None, stationary=point.stationary
        )
    spectrum = _measure(
        model.module, point, seed=seed, name=name, provenance=provenance, quiet=not group.is_main, **options
    )
    if not group.is_main:
        return
    spectrum = with_theory(spectrum)
    failure = store_spectrum(file, spectrum, overwrite=overwrite) if file is not None else None
    if per_block and not spectrum.partial:
        try:
            profile = profile_of(model.module, point, spectrum, pattern=blocks, options=options)
        except IsometryError:
            # What was measured is shown all the same.
            show_spectrum(spectrum, as_json=as_json)
            raise
        if file is not None:
            failure = failure or store_profile(file, profile, overwrite=overwrite)
        show_with_profile(spectrum, profile, as_json=as_json)
    else:
        show_spectrum(spectrum, as_json=as_json)
    finish(
        context, [spectrum], failure=failure, require_isometry=require_isometry,
        tol=options["tol"], top=options["top"],
    )  # fmt: skip


def _measure(
    module: Any,
    point: LoadedCall,
    *,
    chosen: str | None,
    dtype: str | None,
    memory_limit: int | None,
    quiet: bool,
    **options: Any,
) -> Spectrum:
    """`isometry.measure`, with what the model itself raises told apart from what the measurement does."""
    import torch

    from isometry.measurement import measure

    options["output"] = output_path({"chosen": chosen})
    if dtype is not None:
        options["dtype"] = getattr(torch, dtype)
    if memory_limit is not None:
        options["memory_limit"] = memory_limit
    try:
        # What a model prints must not mix with the data.
        said = contextlib.nullcontext() if quiet else _said_by_the_library()
        with contextlib.redirect_stdout(sys.stderr), said:
            return measure(module, point.x, options.pop("method"), batched=point.batched, **options)
    except IsometryError:
        raise
    except Exception as error:
        raised_by_model = explain_model_error(error, point.in_words)
        if raised_by_model is None:
            raise
        raise raised_by_model from error


@contextlib.contextmanager
def _said_by_the_library() -> Iterator[None]:
    """Print the log of the library, such as the predicted memory, on standard error."""
    logger, handler = logging.getLogger("isometry"), logging.Handler()
    handler.emit = lambda record: note(record.getMessage())  # type: ignore[method-assign]
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
