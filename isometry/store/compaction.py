"""A file of spectra written anew: without the space that removing and replacing left, and in the present layout."""

from __future__ import annotations

from pathlib import Path

import h5py

from isometry.errors import StoreError
from isometry.store import series, spectra
from isometry.store.admission import member, names_of
from isometry.store.elements import REMOVED, stored_names, write_element
from isometry.store.hdf5_file import ABOUT, group_of, rewriting, written_by
from isometry.store.layout import SERIES, SPECTRA


def compact(path: Path, *, timeout: float) -> tuple[int, int]:
    """See :meth:`isometry.store.Store.compact`."""
    with rewriting(path, timeout=timeout) as (source, replace):
        foreign = sorted(set(names_of(source)) - {SPECTRA, SERIES, REMOVED, ABOUT})
        if foreign:
            raise StoreError(
                f"{path} holds {', '.join(map(repr, foreign))} of another program, which would be lost: it was left as "
                "it is. `h5repack FILE NEW` drops unused space and keeps everything."
            )
        before = path.stat().st_size
        replace(lambda target: _copy(source, target))
        return before, path.stat().st_size


def _copy(source: h5py.File, target: h5py.File) -> None:
    for name in stored_names(group_of(source, SPECTRA)):
        group = _group(source, SPECTRA, name)
        element = spectra.encode(spectra.decode(group, name), written_by=written_by())
        write_element(group_of(target, SPECTRA), name, element, reserved=spectra.HEADER)
    for name in stored_names(group_of(source, SERIES)):
        found = series.decode(_group(source, SERIES, name), name)
        element = series.encode(
            found.columns,
            found.attributes,
            units=found.units,
            descriptions=found.descriptions,
            written_by=written_by(),
        )
        write_element(group_of(target, SERIES), name, element, reserved=series.HEADER)


def _group(source: h5py.File, kind: str, name: str) -> h5py.Group:
    group = member(group_of(source, kind), name)
    if not isinstance(group, h5py.Group):
        raise StoreError(f"{source.filename}: {kind}/{name} is not a group: isometry did not write it.")
    return group
