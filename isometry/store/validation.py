"""Every problem of a file of spectra, not only the first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py

from isometry.errors import StoreError
from isometry.store import series, spectra
from isometry.store.admission import member
from isometry.store.elements import stored_names
from isometry.store.hdf5_file import place_of, reading
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
        with reading(place_of(path), timeout=timeout) as file:
            for kind, check in _CHECKS.items():
                group = member(file, kind)
                if not isinstance(group, h5py.Group):
                    problems.append(f"{kind}: the group is missing")
                    continue
                for name in stored_names(group):
                    problems += _checked(check, group, name)
    except StoreError as error:
        problems.append(str(error))
    return problems


def _checked(check: Callable[[h5py.Group, str], list[str]], parent: h5py.Group, name: str) -> list[str]:
    """Problems of one element; damage that keeps it from being read at all is one of them."""
    place = f"{parent.name.lstrip('/')}/{name}"
    try:
        group = member(parent, name)
        if not isinstance(group, h5py.Group):
            return [f"{place}: is not a group"]
        return [f"{place}/{problem}" for problem in check(group, name)]
    except StoreError as error:
        return [f"{place}: {error}"]
    except Exception as error:  # as in hdf5_file: it is the file that makes h5py and NumPy raise
        return [f"{place}: cannot be read ({type(error).__name__}: {error})"]
