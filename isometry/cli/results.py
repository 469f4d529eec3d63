"""Results of commands: store a spectrum, print it, choose the exit code."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from isometry.cli import codes
from isometry.cli.streams import note, print_json, quiet_when_closed
from isometry.errors import IsometryError, StoreError

if TYPE_CHECKING:
    from isometry.spectrum import Spectrum
    from isometry.store import Store

# End of the name under which the part of an interrupted measurement is stored.
PARTIAL = " (partial)"


def refuse_taken_name(file: Path, name: str, *, overwrite: bool) -> None:
    """Raise before any work is done where the result could not be stored under that name.

    Raises
    ------
    click.ClickException
        The name is taken, or there is no such folder.
    StoreError
        The file is there and is not one of ours.
    """
    from isometry.store import open_store
    from isometry.store.layout import checked_name

    try:
        checked_name(name)
    except StoreError as error:
        raise click.UsageError(f"--name: {error}") from error
    if not file.parent.is_dir():
        raise click.UsageError(f"there is no folder {str(file.parent)!r} to write {file.name} into")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise click.ClickException(
            f"{file} may not be written to, so nothing was measured: permission denied"
        )
    if not file.exists():
        return
    store = open_store(file, "r")
    if not overwrite and name in store.names() and not _holds_part(store, name):
        raise click.ClickException(
            f"{file} already holds a spectrum named {name!r}, so nothing was measured: choose another --name, "
            "or replace it with --overwrite"
        )


def store_spectrum(file: Path, spectrum: Spectrum, *, overwrite: bool) -> Exception | None:
    """Store it; a failure is returned, not raised, so that the result is printed before it is reported.

    The part of an interrupted measurement is stored as "NAME (partial)": a whole one of that name stays, and the next
    whole one takes the place of the part.
    """
    from isometry.store import open_store

    part = _partial_name(spectrum.name)
    name = part if spectrum.partial else spectrum.name
    try:
        store = open_store(file, "a")
        store.add(
            spectrum, name=name, overwrite=_holds_part(store, name) or (overwrite and not spectrum.partial)
        )
        if not spectrum.partial and _holds_part(store, part):
            store.remove(part)
    except (IsometryError, OSError) as error:
        return error
    note(f"stored as {name!r} in {file}")
    return None


def _partial_name(name: str) -> str:
    """ "NAME (partial)", shortened to the 200 bytes of a name."""
    return name.encode()[: 200 - len(PARTIAL)].decode(errors="ignore").rstrip() + PARTIAL


def _holds_part(store: Store, name: str) -> bool:
    """Whether the file has the part of an interrupted measurement under that name."""
    return name in store.partial_names()


def show_spectrum(spectrum: Spectrum, *, as_json: bool) -> None:
    """One spectrum on standard output: its fields as JSON, or the report."""
    if as_json:
        print_json(spectrum.to_dict())
        return
    from isometry.report.terminal import print_report

    with quiet_when_closed():
        print_report([spectrum])


def finish(
    context: click.Context,
    spectra: Sequence[Spectrum],
    *,
    failure: Exception | None = None,
    require_isometry: float | None = None,
    tol: float | None = None,
    top: int | None = None,
) -> None:
    """Exit with the code of the results, by the most severe problem: not stored, interrupted, not converged, threshold
    missed.
    """
    from isometry.measurement.convergence import converged, stopped_short

    if failure is not None:
        note(f"error: the result above could not be stored: {failure}")
        context.exit(codes.FAILED)
    if any(spectrum.partial for spectrum in spectra):
        # A warning has been printed.
        context.exit(codes.INTERRUPTED)
    if any(stopped_short(spectrum) for spectrum in spectra):
        context.exit(codes.NOT_CONVERGED)
    if tol is not None and not all(converged(spectrum, tol, top=top) for spectrum in spectra):
        note(f"not converged: a residual of the top values is above --tol {tol:g}")
        context.exit(codes.NOT_CONVERGED)
    if require_isometry is not None:
        missed = [s for s in spectra if not s.isometry() >= require_isometry]
        for spectrum in missed:
            least, most = spectrum.isometry_bounds()
            unresolved = (
                f"; up to {100 * most:.4g} % may, with those below the floor {spectrum.floor:.2g} that this "
                "measurement does not resolve: take more --steps, or --method exact"
                if most >= require_isometry
                else ""
            )
            note(
                f"threshold missed: {100 * least:.4g} % of the singular values of {spectrum.name!r} lie in [0.5, 2], "
                f"less than the {100 * require_isometry:.4g} % that --require-isometry asks for{unresolved}"
            )
        if missed:
            context.exit(codes.THRESHOLD_MISSED)
