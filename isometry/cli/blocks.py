"""`isometry measure --per-block`: the gain of every block of a network."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isometry.cli.options import Command, output_path
from isometry.cli.streams import note, print_json, print_text, quiet_when_closed
from isometry.errors import IsometryError

if TYPE_CHECKING:
    from isometry.loading import LoadedCall
    from isometry.spectrum import Spectrum
    from isometry.spectrum.block_profile import BlockProfile


_PARTS = ("args", "kwargs", "wrt", "source", "target")


def block_options(command: Command) -> Command:
    """The options that ask for a measurement block by block."""
    for option in (
        click.option(
            "--blocks", metavar="REGEX",
            help="What a block is: every module whose whole name matches (see `isometry layers`).",
        ),
        click.option(
            "--per-block", is_flag=True,
            help="Measure every block of the network and the running product as well, and name the block at "
            "fault.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def check_blocks(
    module: Any,
    file: Path | None,
    name: str,
    *,
    pattern: str | None,
    overwrite: bool,
    options: Mapping[str, Any],
) -> None:
    """Raise, before any work, where --per-block cannot measure.

    Raises
    ------
    click.UsageError
        With --tf32.
    click.ClickException
        The file holds a profile of that name.
    InputError
        No module matches the pattern.
    """
    from isometry.depth.sequential_blocks import block_pattern

    if options.get("tf32"):
        raise click.UsageError("--per-block measures in full precision: leave --tf32 out")
    block_pattern(module, pattern)
    if file is not None and file.exists() and not overwrite:
        from isometry.store import open_store
        from isometry.store.profiles import profile_names

        if name in profile_names(open_store(file, "r")):
            raise click.ClickException(
                f"{file} already holds a block profile of {name!r}, so nothing was measured: choose another --name, or "
                "replace it with --overwrite"
            )


def profile_of(
    module: Any, point: LoadedCall, spectrum: Spectrum, *, pattern: str | None, options: Mapping[str, Any]
) -> BlockProfile:
    """The profile of the network of this spectrum, in the same dtype and on the same device."""
    import torch

    from isometry.depth.block_gains import measure_blocks

    chosen = {
        key: options[key] for key in ("device", "memory_limit", *_PARTS) if options.get(key) is not None
    }
    with contextlib.redirect_stdout(sys.stderr):
        return measure_blocks(
            module, point.x, blocks=pattern, output=output_path(options), batched=point.batched,
            dtype=getattr(torch, str(spectrum.provenance["dtype"])), seed=int(spectrum.provenance["seed"]),
            name=spectrum.name, whole=spectrum, **chosen,
        )  # fmt: skip


def store_profile(file: Path, profile: BlockProfile, *, overwrite: bool) -> Exception | None:
    """Store it beside its spectrum; a failure is returned, so that the result is printed before it is reported."""
    from isometry.store import open_store
    from isometry.store.profiles import add_profile

    try:
        stored = add_profile(open_store(file, "a"), profile, overwrite=overwrite)
    except (IsometryError, OSError) as error:
        return error
    note(f"blocks stored as {stored!r} in {file}")
    return None


def show_with_profile(spectrum: Spectrum, profile: BlockProfile, *, as_json: bool) -> None:
    """A spectrum and its blocks on standard output: one JSON object, or the reports one after another."""
    if as_json:
        print_json({**spectrum.to_dict(), "profile": profile.to_dict()})
        return
    from isometry.report.terminal import print_report

    with quiet_when_closed():
        print_report([spectrum])
        print_profile_and_product(profile)


def print_profile_and_product(profile: BlockProfile) -> None:
    """The table of blocks, and the singular values of the product so far."""
    from isometry.report.terminal_bands import print_bands
    from isometry.report.terminal_profile import print_profile

    print_text("")
    print_profile(profile)
    depths = sorted(profile.running)
    if len(depths) > 1:
        print_text("")
        title = "singular values of the product so far"
        print_bands(title, "blocks", depths, [profile.running[depth] for depth in depths])
