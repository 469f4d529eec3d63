"""Curves kept beside spectra: a table of equally long columns of numbers, such as step, loss and accuracy.

Columns can grow: appending writes only what is new.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from isometry.errors import StoreError
from isometry.store.admission import attribute, datasets_of, names_of
from isometry.store.attributes import plain, read_attributes
from isometry.store.digest import digest_problems
from isometry.store.elements import Element, checksum, chosen, damaged, examine_array
from isometry.store.layout import DIMENSIONS, SERIES_ENCODING, Field, checked_name

HEADER = frozenset({"encoding_type", "encoding_version", "written_by"})
_ROW = "row"


@dataclass(frozen=True, eq=False)
class Series:
    """Columns of numbers of one length, with attributes.

    Parameters
    ----------
    columns : mapping of str to (rows,) array
        By name.
    attributes : mapping
        Plain JSON values: what was run, with which options and versions.
    name : str
        Its name in the file.
    units, descriptions : mapping of str to str
        Of the columns, where they are known.
    """

    columns: Mapping[str, NDArray[Any]]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    units: Mapping[str, str] = field(default_factory=dict)
    descriptions: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, column: str) -> NDArray[Any]:
        if column not in self.columns:
            raise StoreError(
                f"the series {self.name!r} has no column {column!r}; it has {', '.join(self.columns)}."
            )
        return self.columns[column]


def checked_columns(columns: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]:
    """The columns as arrays of a kind a file holds.

    Raises
    ------
    StoreError
        When there are none, their lengths differ, one is not a one-dimensional array of real numbers, or a name cannot
        be that of a dataset.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, values in columns.items():
        if checked_name(name, "a column") == _ROW:
            raise StoreError(
                "a column cannot be named 'row', the name of the dimension; call it 'step', say."
            )
        array = np.asarray(values)
        if array.dtype == np.longdouble:
            array = array.astype(float)
        if array.ndim != 1 or array.dtype.kind not in "fiub":
            raise StoreError(
                f"the column {name!r} is not a one-dimensional array of numbers: its shape is {array.shape}, its type "
                f"{array.dtype}. Give one number per row."
            )
        arrays[name] = array
    lengths = {name: array.size for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise StoreError(
            f"the columns of a series are of one length, at least one column; got {lengths}. Curves with different "
            "steps are different series."
        )
    return arrays


def encode(
    columns: Mapping[str, ArrayLike],
    attributes: Mapping[str, Any] | None,
    *,
    units: Mapping[str, str] | None,
    descriptions: Mapping[str, str] | None,
    written_by: str,
) -> Element:
    """The element that holds a series."""
    arrays = checked_columns(columns)
    units, descriptions = units or {}, descriptions or {}
    for what, texts in (("units", units), ("descriptions", descriptions)):
        for key in texts:
            if key not in arrays:
                raise StoreError(f"{what} are given for {key!r}, which is not a column: {', '.join(arrays)}.")
    fields = {
        name: Field(
            (_ROW,),
            units.get(name, ""),
            descriptions.get(name, ""),
            "bool" if array.dtype == bool else "number",
        )
        for name, array in arrays.items()
    }
    values = plain(attributes or {}, what="attributes")
    values.setdefault("created", datetime.now(UTC).isoformat(timespec="seconds"))
    return Element(SERIES_ENCODING, fields, arrays, {"written_by": written_by}, values)


def append(group: h5py.Group, columns: Mapping[str, ArrayLike]) -> int:
    """Add rows to a stored series; the number of rows it has then.

    Raises
    ------
    StoreError
        When the columns are not those of the series, or hold numbers of a kind it cannot hold.
    """
    arrays = checked_columns(columns)
    datasets = chosen(group, _COLUMNS)(group)
    names, rows = [name for name in datasets if name != _ROW], datasets.get(_ROW)
    if set(arrays) != set(names):
        raise StoreError(
            f"the series {group.name} has the columns {', '.join(names)}; got {', '.join(arrays)}. Rows are appended "
            "to all columns at once."
        )
    if rows is None or any(dataset.shape != (len(rows),) for dataset in datasets.values()):
        raise StoreError(damaged(group, ["its columns are not of one length"]))
    start, added = len(rows), len(next(iter(arrays.values())))
    for name, array in arrays.items():
        column = datasets[name]
        wanted = np.dtype(bool) if attribute(column, "dtype") == "bool" else column.dtype
        if not np.can_cast(array.dtype, wanted, "same_kind"):
            raise StoreError(
                f"the column {name!r} holds {wanted}, and {array.dtype} does not fit into it: convert it first, or "
                "store the series anew with overwrite=True."
            )
        _extend(column, array.astype(wanted).astype(column.dtype))
    _extend(rows, np.arange(start, start + added, dtype=rows.dtype))
    return start + added


def decode(group: h5py.Group, name: str) -> Series:
    """The series a group holds.

    Raises
    ------
    StoreError
        When something in it is missing or damaged.
    """
    arrays, problems = _read(group)
    if problems:
        raise StoreError(damaged(group, problems))
    columns = datasets_of(group)
    texts: dict[str, dict[str, str]] = {
        key: {column: str(text) for column in arrays if (text := attribute(columns[column], key))}
        for key in ("units", "description")
    }
    attributes = read_attributes(group, reserved=HEADER)
    return Series(arrays, attributes, name, texts["units"], texts["description"])


def problems_of(group: h5py.Group, name: str) -> list[str]:
    """Everything that is wrong with a stored series."""
    problems = _read(group)[1]
    problems += examine_array(group, _ROW, DIMENSIONS[_ROW], {})[1]
    return problems + [
        f"{key}: the attribute is missing" for key in sorted(HEADER - set(names_of(group.attrs)))
    ]


def _read(group: h5py.Group) -> tuple[dict[str, NDArray[Any]], list[str]]:
    arrays: dict[str, NDArray[Any]] = {}
    problems: list[str] = []
    sizes: dict[str, int] = {}
    for column, dataset in chosen(group, _COLUMNS)(group).items():
        if column == _ROW:
            continue
        kind = "bool" if attribute(dataset, "dtype") == "bool" else "number"
        values, found = examine_array(group, column, Field((_ROW,), "", "", kind), sizes)
        problems += found
        if values is not None:
            arrays[column] = values
    if not arrays and not problems:
        problems.append("it has no columns")
    return arrays, problems + digest_problems(group)


# What reads the datasets of a series, the rows among them.
_COLUMNS = {SERIES_ENCODING: datasets_of}


def _extend(dataset: h5py.Dataset, values: NDArray[Any]) -> None:
    start = dataset.shape[0]
    dataset.resize((start + values.size,))
    dataset[start:] = values
    before = attribute(dataset, "crc32")
    if not isinstance(before, int | np.integer):
        raise StoreError(f"{dataset.name} has no crc32, so isometry did not write it: no rows were added.")
    dataset.attrs["crc32"] = np.uint32(checksum(values, int(before)))
