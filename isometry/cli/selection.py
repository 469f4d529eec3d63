"""Spectra of a file by name, with the nearest names where one is not there."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from isometry.spectrum import Spectrum
    from isometry.store import Store


def pick(store: Store, names: Sequence[str]) -> list[Spectrum]:
    """The spectra of those names, all of them where no name is given.

    Raises
    ------
    click.UsageError
        A name is not in the file, or the file is empty.
    """
    known = list(store.names())
    if not names and not known:
        raise click.ClickException(
            "the file holds no spectra yet; `isometry measure MODEL -o FILE.h5` stores one"
        )
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=3, cutoff=0.4)
            hint = (
                f"did you mean {', '.join(near)}?" if near else f"it holds {', '.join(known[:10]) or 'none'}"
            )
            raise click.UsageError(f"the file has no spectrum named {name!r}; {hint}")
    return [store[name] for name in (names or known)]
