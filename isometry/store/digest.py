"""A digest over what the checksums of the datasets do not hold: attributes, names and types of an element.

HDF5 keeps no checksum of its own for attributes in the layout that 1.8 reads: a changed byte reads as another model,
seed or time, and nobody is told.
"""

from __future__ import annotations

import hashlib
from typing import Any

import h5py
import numpy as np

DIGEST = "attributes_sha256"
# What `written_by` of an element ends with where it has a digest: an older version, which writes none, does not say so.
PROMISE = "attributes checked"
# What other programs add when they open the file (dimension scales, netCDF), and what grows with a series.
_NOT_COUNTED = {DIGEST, "CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "DIMENSION_LABELS", "crc32"}


def digest_of(group: h5py.Group) -> str:
    """SHA-256, as hexadecimal digits, of the attributes of a group and of its datasets, their names and types."""
    digest = hashlib.sha256()
    _add_attributes(digest, group)
    for name in sorted(group):
        item = group[name]
        if isinstance(item, h5py.Dataset):
            _add(digest, name, item.dtype.str)
            _add_attributes(digest, item)
    return digest.hexdigest()


def digest_problems(group: h5py.Group) -> list[str]:
    """What the digest of an element says: nothing where it agrees, or where it is older than digests are."""
    stored = group.attrs.get(DIGEST)
    if stored is None:
        promised = str(group.attrs.get("written_by", "")).endswith(PROMISE)
        return [f"{DIGEST}: the attribute is missing, so the others cannot be trusted"] if promised else []
    return (
        []
        if stored == digest_of(group)
        else [f"{DIGEST}: attributes, names or types changed since it was written"]
    )


def _add_attributes(digest: Any, item: h5py.Group | h5py.Dataset) -> None:
    for key in sorted(item.attrs):
        if key not in _NOT_COUNTED and not key.startswith("_"):
            _add(digest, key, item.attrs[key])


def _add(digest: Any, key: str, value: Any) -> None:
    if isinstance(value, np.ndarray | np.generic):
        value = (value.dtype.str, value.shape, value.tobytes())
    digest.update(repr((key, value)).encode("utf-8", "surrogatepass"))
