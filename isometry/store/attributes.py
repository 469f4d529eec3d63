"""Plain JSON values <-> attributes of an HDF5 group, without loss.

Text, truth values, whole numbers and floats become attributes under their own names, which any tool shows. What
HDF5 has no plain form for (lists, mappings, None, whole numbers beyond 64 bits) goes together into one attribute,
``nested``, as a JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import h5py
import numpy as np

from isometry.errors import StoreError
from isometry.store.admission import FOREIGN, attributes_of
from isometry.store.digest import DIGEST

NESTED = "nested"
# Names that HDF5's dimension scales, netCDF, xarray and the layout itself give a meaning of their own.
_TAKEN = FOREIGN | {DIGEST}


def plain(values: Mapping[str, Any], *, what: str = "provenance") -> dict[str, Any]:
    """The values as JSON would give them back: tuples as lists, NumPy numbers as Python's.

    Raises
    ------
    StoreError
        When something is not plain JSON; the message names where.
    """
    if not isinstance(values, Mapping):
        raise StoreError(f"{what} is a mapping of names to plain values; got {type(values).__name__}.")
    result = _plain(values, what)
    assert isinstance(result, dict)
    return result


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    # The plain type, also of an enumeration's member or a version object that is text underneath.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise StoreError(f"{where} has the key {key!r}; keys are text. Write {str(key)!r}.")
        return {str(key): _plain(entry, f"{where}[{key!r}]") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, f"{where}[{index}]") for index, entry in enumerate(value)]
    raise StoreError(
        f"{where} is a {type(value).__name__}, which a file cannot hold: attributes are plain JSON values (text, "
        "numbers, true, false, null, lists, mappings). Give its str(), or leave it out."
    )


def sorted_attributes(values: Mapping[str, Any], *, reserved: Iterable[str] = ()) -> dict[str, Any]:
    """Plain values (see `plain`) as attributes; those whose names are reserved for the layout go into ``nested``."""
    taken = _TAKEN | {NESTED} | set(reserved)
    native, nested = {}, {}
    for key, value in values.items():
        if key in taken or key.startswith("_") or not _native_text(key) or not _native(value):
            nested[key] = value
        else:
            native[key] = np.int64(value) if type(value) is int else value
    return {**native, NESTED: json.dumps(nested)} if nested else native


def read_attributes(source: h5py.Group, *, reserved: Iterable[str] = ()) -> dict[str, Any]:
    """What `sorted_attributes` sorted.

    Raises
    ------
    StoreError
        When ``nested`` is not the JSON text of a mapping.
    """
    taken = _TAKEN | set(reserved)
    found = {key: value for key, value in attributes_of(source).items() if key not in taken}
    nested = found.pop(NESTED, "{}")
    values = {
        key: value.tolist() if isinstance(value, np.generic | np.ndarray) else value
        for key, value in found.items()
    }
    try:
        more = json.loads(nested)
    except (ValueError, TypeError, RecursionError) as error:
        raise StoreError(f"{source.name}: the attribute {NESTED!r} is not JSON ({error})") from error
    if not isinstance(more, dict):
        raise StoreError(f"{source.name}: the attribute {NESTED!r} is not the JSON text of a mapping")
    return values | more


def _native(value: Any) -> bool:
    if type(value) is int:
        return -(2**63) <= value < 2**63
    return isinstance(value, bool | float) or (isinstance(value, str) and _native_text(value))


def _native_text(text: str) -> bool:
    """Whether HDF5 can hold it: UTF-8 without a zero character (and as a name, not empty)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return bool(text) and "\0" not in text
