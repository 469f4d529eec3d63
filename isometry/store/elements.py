"""An element of the file: arrays with named dimensions and plain attributes, written to and read from one group.

Knows nothing of spectra. Every dataset carries ``units``, ``description`` and a ``crc32`` of its bytes, and its axes
are attached to dimension scales of the same group, so that xarray names them. A short array is an attribute of the
group instead, where it takes a tenth of the space and time; only the main arrays of a spectrum are always datasets.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from isometry.errors import NewerSchemaError, StoreError
from isometry.store.admission import attribute, holds, member, names_of
from isometry.store.attributes import NESTED, sorted_attributes
from isometry.store.digest import DIGEST, digest_of_parts
from isometry.store.layout import DATASETS, DIMENSIONS, Field
from isometry.store.writing import (
    forget,
    new_dataset,
    new_group,
    recall_heaps,
    rewrite_text,
    write_attribute,
    write_dimensions,
)

Reader = TypeVar("Reader")

_DTYPES: dict[str, np.dtype[Any]] = {"float": np.dtype("<f8"), "bool": np.dtype("i1"), "int": np.dtype("<i4")}
_KINDS = {"float": "f", "bool": "ib", "int": "i", "number": "fiu"}
_WORDS = {"float": "floats", "bool": "truth values", "int": "whole numbers", "number": "numbers"}
# Below this a compressed dataset is larger than a plain one: its chunk index outweighs what is saved.
_COMPRESSED_FROM = 64 * 1024
# The attribute of the group of all elements that says which came last.
LAST_WRITTEN = "last_written"
# The long texts of an element, and its last: the heap that was begun last holds one of them.
_IN_HEAPS = (NESTED, DIGEST, "description", "DIMENSION_LIST")
# The hidden group of elements that were removed and whose space was not reused yet.
REMOVED = ".removed"
# Bytes of a short array. HDF5's records for a dataset take some 500 bytes, those for an attribute some 60.
_SHORT = 1024


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
    return [name for name in names_of(parent) if not name.startswith(".")]


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
    """Write the element as ``parent[name]``, in place of one that is there, whose space is reused."""
    _recall_last(parent)
    if holds(parent, name):
        forget(parent, name)
    else:
        _forget_removed(parent.file)
    growing = element.encoding[0] == "series"
    fields = dict(element.fields)
    arrays = {
        key: np.ascontiguousarray(array, dtype=_stored_type(array, fields[key]))
        for key, array in element.arrays.items()
    }
    long = {
        key: array for key, array in arrays.items() if growing or key in DATASETS or array.nbytes > _SHORT
    }
    short = {key: array for key, array in arrays.items() if key not in long}
    # Dimensions of the datasets are datasets, too: those without values of their own are numbered from 0.
    dimensions = {
        dimension: size
        for key, array in long.items()
        for dimension, size in zip(fields[key].dimensions, array.shape, strict=True)
    }
    long |= {key: short.pop(key) for key in dimensions if key in short}
    numbered = {key: np.arange(size, dtype="<i4") for key, size in dimensions.items() if key not in long}

    kind, version = element.encoding
    attributes = {
        "encoding_type": kind,
        "encoding_version": np.int64(version),
        **element.header,
        **sorted_attributes(element.attributes, reserved=reserved | fields.keys()),
        **short,
    }
    described = {key: _described(array, fields[key]) for key, array in long.items()}
    if growing:
        described |= {key: _described(array, DIMENSIONS[key]) for key, array in numbered.items()}
    long = numbered | long
    attributes[DIGEST] = digest_of_parts(
        attributes, {key: (array.dtype.str, described.get(key, {})) for key, array in long.items()}
    )
    group = new_group(parent, name)
    for key, value in attributes.items():
        write_attribute(group, key, value)
    datasets = {
        key: new_dataset(group, key, array, growing=growing, compressed=array.nbytes >= _COMPRESSED_FROM)
        for key, array in long.items()
    }
    for key, dataset in datasets.items():
        for entry, value in described.get(key, {}).items():
            write_attribute(dataset, entry, value)
    write_dimensions(
        {key: datasets[key] for key in dimensions},
        {key: (datasets[key], fields[key].dimensions) for key in long if key not in dimensions},
    )
    rewrite_text(parent, LAST_WRITTEN, name)


def _recall_last(parent: h5py.Group) -> None:
    """Have the texts of the next element follow those of the last one."""
    last = attribute(parent, LAST_WRITTEN)
    group = member(parent, last) if isinstance(last, str) else None
    if isinstance(group, h5py.Group):
        recall_heaps(group, _IN_HEAPS)
    # Here it is closed again: HDF5 frees the space of nothing that is open.


def remove_element(parent: h5py.Group, name: str) -> None:
    """Take the element out of its group. Its space is freed by the next element that is added, which HDF5 then reuses.

    What HDF5 frees it remembers only until the file is closed.
    """
    file = parent.file
    if not holds(file, REMOVED):
        file.create_group(REMOVED)
    removed = member(file, REMOVED)
    if isinstance(removed, h5py.Group):
        free = next(str(number) for number in itertools.count() if not holds(removed, str(number)))
        file.move(f"{parent.name}/{name}", f"{removed.name}/{free}")
    else:
        forget(parent, name)


def _forget_removed(file: h5py.File) -> None:
    """Free the space of one element that was removed."""
    removed = member(file, REMOVED)
    if isinstance(removed, h5py.Group):
        for name in names_of(removed)[:1]:
            forget(removed, name)
        if len(removed) == 0:
            del file[REMOVED]


def examine_array(
    group: h5py.Group, name: str, what: Field, sizes: dict[str, int]
) -> tuple[NDArray[Any] | None, list[str]]:
    """One array and everything wrong with it: missing, of the wrong shape or type, changed since it was written.

    The array is None where it cannot be read or does not have its dimensions. ``sizes`` holds the lengths of the
    dimensions met so far, to which those of the array are added.
    """
    dataset = member(group, name)
    if not isinstance(dataset, h5py.Dataset):
        values = attribute(group, name)
        if not isinstance(values, np.ndarray):
            return None, [f"{name}: the array is missing"]
        problems = _shape_problems(name, values.shape, values.dtype, what, sizes)
        return (None, problems) if problems else (_native(values, what), [])
    problems = _dimension_problems(group, name, dataset.shape, what)
    problems = problems or _shape_problems(name, dataset.shape, dataset.dtype, what, sizes)
    if problems:  # no number is read of what does not have the shape it should have
        return None, problems
    try:
        values = dataset[...]
    except OSError as error:
        return None, [f"{name}: cannot be read ({error})"]
    stored = attribute(dataset, "crc32")
    if not isinstance(stored, int | np.integer):
        problems.append(f"{name}: has no crc32, so isometry did not write it")
    elif int(stored) != checksum(values):
        problems.append(f"{name}: changed since it was written (crc32 differs)")
    return _native(values, what), problems


def _native(values: NDArray[Any], what: Field) -> NDArray[Any]:
    return (
        values.astype(bool)
        if what.kind == "bool"
        else values.astype(values.dtype.newbyteorder("="), copy=False)
    )


def _shape_problems(
    name: str, shape: tuple[int, ...], dtype: np.dtype[Any], what: Field, sizes: dict[str, int]
) -> list[str]:
    if len(shape) != len(what.dimensions):
        return [f"{name}: has shape {shape}, not ({', '.join(what.dimensions)})"]
    if dtype.kind not in _KINDS[what.kind]:
        return [f"{name}: holds {dtype}, not {_WORDS[what.kind]}"]
    return [
        f"{name}: has {size} along {dimension!r}, where another array has {sizes[dimension]}"
        for dimension, size in zip(what.dimensions, shape, strict=True)
        if sizes.setdefault(dimension, size) != size
    ]


def damaged(group: h5py.Group, problems: list[str]) -> str:
    """The message for an element that cannot be trusted."""
    return (
        f"{group.file.filename}: {group.name.lstrip('/')} is damaged: {'; '.join(problems)}. Restore the file from a "
        "copy, or remove this entry and compute it again."
    )


def _dimension_problems(group: h5py.Group, name: str, shape: tuple[int, ...], what: Field) -> list[str]:
    if len(shape) != len(what.dimensions):
        return []  # said elsewhere
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


def _described(array: NDArray[Any], what: Field) -> dict[str, Any]:
    """The attributes of a dataset."""
    described = {
        "units": what.units,
        "description": what.description,
        "crc32": np.uint32(checksum(array)),
        **what.attributes,
    }
    # xarray's own mark for truth values.
    return {**described, "dtype": "bool"} if what.kind == "bool" else described
