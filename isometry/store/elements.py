"""An element of the file: arrays with named dimensions and plain attributes, written to and read from one group.

Knows nothing of spectra. Every dataset carries ``units``, ``description`` and a ``crc32`` of its bytes, and its axes
are attached to dimension scales of the same group, so that xarray names them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from isometry.errors import NewerSchemaError, StoreError
from isometry.store.admission import attribute, holds, member
from isometry.store.attributes import write_attributes
from isometry.store.digest import DIGEST, digest_of
from isometry.store.layout import DIMENSIONS, Field

Reader = TypeVar("Reader")

_DTYPES: dict[str, np.dtype[Any]] = {"float": np.dtype("<f8"), "bool": np.dtype("i1"), "int": np.dtype("<i4")}
_KINDS = {"float": "f", "bool": "ib", "int": "i", "number": "fiu"}
_WORDS = {"float": "floats", "bool": "truth values", "int": "whole numbers", "number": "numbers"}
# Below this a compressed dataset is larger than a plain one: its chunk index outweighs what is saved.
_COMPRESSED_FROM = 64 * 1024


@dataclass(frozen=True)
class Element:
    """What one group shall hold.

    Parameters
    ----------
    encoding : (str, int)
        Type and version; readers are chosen by the pair.
    fields : mapping
        What each array means.
    arrays : mapping of str to array
        By name; a name that is itself a dimension holds that dimension's values.
    header : mapping
        Attributes that belong to the layout.
    attributes : mapping
        Plain values of the user's.
    """

    encoding: tuple[str, int]
    fields: Mapping[str, Field]
    arrays: Mapping[str, NDArray[Any]]
    header: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def dimension_sizes(self) -> dict[str, int]:
        """Length of every dimension.

        Raises
        ------
        StoreError
            When two arrays disagree.
        """
        sizes: dict[str, int] = {}
        for name, array in self.arrays.items():
            wanted = self.fields[name].dimensions
            if np.ndim(array) != len(wanted):
                raise StoreError(
                    f"{name} has the dimensions ({', '.join(wanted)}); got an array of shape {np.shape(array)}."
                )
            for dimension, size in zip(wanted, np.shape(array), strict=True):
                if sizes.setdefault(dimension, size) != size:
                    raise StoreError(
                        f"{name} has {size} along {dimension!r}, where another array has {sizes[dimension]}: they must "
                        "agree."
                    )
        return sizes


def encoding_of(group: h5py.Group) -> tuple[str, int]:
    """Encoding type and version of a group.

    Raises
    ------
    StoreError
        When they are missing or of the wrong kind.
    """
    kind, number = attribute(group, "encoding_type"), attribute(group, "encoding_version")
    if isinstance(kind, str) and isinstance(number, int | np.integer):
        return kind, int(number)
    raise StoreError(
        f"the group {group.name} has no encoding type and version (found {kind!r}, {number!r}): isometry did not write "
        "it. Remove it, or keep it outside of /spectra and /series."
    )


def stored_names(parent: h5py.Group) -> list[str]:
    """Names of the elements of a group in the order they were added; what begins with a dot is not one."""
    return [name for name in parent if not name.startswith(".")]


def chosen(group: h5py.Group, known: Mapping[tuple[str, int], Reader]) -> Reader:
    """What of ``known`` reads a group of this encoding.

    Raises
    ------
    NewerSchemaError
        When this version knows no such encoding.
    """
    encoding = encoding_of(group)
    if encoding not in known:
        ours = ", ".join(f"{kind!r} {number}" for kind, number in sorted(known))
        raise NewerSchemaError(
            f"{group.file.filename}: {group.name.lstrip('/')} has the encoding {encoding[0]!r} {encoding[1]} and was "
            f"written by a newer isometry (this one reads {ours}): you may need to update, "
            "`pip install --upgrade isometry`. Other entries of the file can be read."
        )
    return known[encoding]


def write_element(parent: h5py.Group, name: str, element: Element, *, reserved: frozenset[str]) -> None:
    """Write the element as ``parent[name]``, in place of one that is there.

    It is complete under a hidden name before it takes the name, and most of the space of what it replaces is reused.
    """
    if holds(parent, name):
        del parent[name]
    hidden = f".new {name}"
    group = parent.create_group(hidden, track_order=True)
    group.attrs["encoding_type"], group.attrs["encoding_version"] = element.encoding
    for key, value in element.header.items():
        group.attrs[key] = value
    write_attributes(group, element.attributes, reserved=reserved)
    sizes = element.dimension_sizes()
    growing = element.encoding[0] == "series"
    for dimension, size in sizes.items():
        if dimension not in element.arrays:
            _write_dataset(group, dimension, np.arange(size), DIMENSIONS[dimension], growing)
    for key, array in element.arrays.items():
        _write_dataset(group, key, array, element.fields[key], growing)
    for dimension in sizes:
        group[dimension].make_scale(dimension)
    for key in element.arrays:
        for axis, dimension in enumerate(element.fields[key].dimensions):
            if key != dimension:
                group[key].dims[axis].attach_scale(group[dimension])
    group.attrs[DIGEST] = digest_of(group)
    parent.move(hidden, name)


def examine_array(group: h5py.Group, name: str, what: Field) -> tuple[NDArray[Any] | None, list[str]]:
    """One array and everything wrong with it: missing, of the wrong shape or type, changed since it was written.

    The array is None where it cannot be read or does not have its dimensions.
    """
    dataset = member(group, name)
    if not isinstance(dataset, h5py.Dataset):
        return None, [f"{name}: the dataset is missing"]
    if len(dataset.shape) != len(what.dimensions):
        return None, [f"{name}: has shape {dataset.shape}, not ({', '.join(what.dimensions)})"]
    problems = _dimension_problems(group, name, dataset.shape, what)
    if dataset.dtype.kind not in _KINDS[what.kind]:
        problems.append(f"{name}: holds {dataset.dtype}, not {_WORDS[what.kind]}")
    if problems:  # no number is read of what does not have the shape it should have
        return None, problems
    try:
        values: NDArray[Any] = dataset[...]
    except OSError as error:
        return None, [f"{name}: cannot be read ({error})"]
    stored = attribute(dataset, "crc32")
    if not isinstance(stored, int | np.integer):
        problems.append(f"{name}: has no crc32, so isometry did not write it")
    elif int(stored) != checksum(values):
        problems.append(f"{name}: changed since it was written (crc32 differs)")
    if what.kind == "bool":
        return values.astype(bool), problems
    return values.astype(values.dtype.newbyteorder("="), copy=False), problems


def damaged(group: h5py.Group, problems: list[str]) -> str:
    """The message for an element that cannot be trusted."""
    return (
        f"{group.file.filename}: {group.name.lstrip('/')} is damaged: {'; '.join(problems)}. Restore the file from a "
        "copy, or remove this entry and compute it again."
    )


def _dimension_problems(group: h5py.Group, name: str, shape: tuple[int, ...], what: Field) -> list[str]:
    problems = []
    for size, dimension in zip(shape, what.dimensions, strict=True):
        scale = member(group, dimension)
        if not isinstance(scale, h5py.Dataset) or scale.ndim != 1:
            problems.append(f"{dimension}: the dimension scale of {name} is missing")
        elif size != scale.shape[0]:
            problems.append(f"{name}: has {size} along {dimension!r}, whose scale has {scale.shape[0]}")
    return problems


def checksum(values: NDArray[Any], start: int = 0) -> int:
    """CRC-32 of the little-endian bytes in C order, continuing from ``start``."""
    little = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"), copy=False))
    return zlib.crc32(little.tobytes(), start)


def _stored_type(values: NDArray[Any], what: Field) -> np.dtype[Any]:
    return _DTYPES.get(what.kind) or values.dtype


def _write_dataset(group: h5py.Group, name: str, values: NDArray[Any], what: Field, growing: bool) -> None:
    data: NDArray[Any] = np.ascontiguousarray(values, dtype=_stored_type(values, what))
    options: dict[str, Any] = {}
    if growing:
        options = {"maxshape": (None,) * data.ndim, "chunks": (512,) * data.ndim}
    elif data.nbytes >= _COMPRESSED_FROM:
        options = {"compression": "gzip", "compression_opts": 4, "shuffle": True}
    dataset = group.create_dataset(name, data=data, **options)
    dataset.attrs["units"] = what.units
    dataset.attrs["description"] = what.description
    dataset.attrs["crc32"] = np.uint32(checksum(data))
    for key, value in what.attributes.items():
        dataset.attrs[key] = value
    if what.kind == "bool":
        dataset.attrs["dtype"] = "bool"  # xarray's own mark for truth values
