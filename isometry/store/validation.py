"""Every problem of a file of spectra, not only the first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py

from isometry.errors import StoreError
from isometry.store import series, spectra
from isometry.store.elements import stored_names
from isometry.store.hdf5_file import reading
from isometry.store.layout import SERIES, SPECTRA

_CHECKS: dict[str, Callable[[h5py.Group, str], list[str]]] = {
    SPECTRA: spectra.problems_of,
    SERIES: series.problems_of,
}


def validate(path: str | Path, *, timeout: float = 60.0) -> list[str]:
    """Every problem of a file of spectra, each as "group/dataset: what is wrong"; empty where there is none.

    A file that cannot be opened at all is one problem, said as :func:`isometry.open_store` says it. All data are read:
    checksums, shapes, types, dimension scales, signs, sums of weights, moments, encodings. Groups of other programs
    outside of /spectra and /series are nobody's business here.
    """
    problems: list[str] = []
    try:
        with reading(Path(path).expanduser().resolve(), timeout=timeout) as file:
            for kind, check in _CHECKS.items():
                if not isinstance(file.get(kind), h5py.Group):
                    problems.append(f"{kind}: the group is missing")
                    continue
                for name in stored_names(file[kind]):
                    problems += _checked(check, file[kind], name)
    except StoreError as error:
        problems.append(str(error))
    return problems


def _checked(check: Callable[[h5py.Group, str], list[str]], parent: h5py.Group, name: str) -> list[str]:
    """Problems of one element; damage that keeps it from being read at all is one of them."""
    place = f"{parent.name.lstrip('/')}/{name}"
    try:
        group = parent[name]
        if not isinstance(group, h5py.Group):
            return [f"{place}: is not a group"]
        return [f"{place}/{problem}" for problem in check(group, name)]
    except StoreError as error:
        return [f"{place}: {error}"]
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        return [f"{place}: cannot be read ({error})"]
