"""A digest over what the checksums of the datasets do not hold: attributes, names and types of an element.

HDF5 keeps no checksum of its own for attributes in the layout that 1.8 reads: a changed byte reads as another model,
seed or time, and nobody is told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from isometry.store.admission import attribute, attributes_of, datasets_of

DIGEST = "attributes_sha256"
# What `written_by` of an element ends with where it has a digest: an older version, which writes none, does not say so.
PROMISE = "attributes checked"
# Itself, and what grows with a series.
_NOT_COUNTED = {DIGEST, "crc32"}


def digest_of(group: h5py.Group) -> str:
    """SHA-256, as hexadecimal digits, of the attributes of a group and of its datasets, their names and types."""
    return digest_of_parts(
        attributes_of(group),
        {name: (dataset.dtype.str, attributes_of(dataset)) for name, dataset in datasets_of(group).items()},
    )


def digest_of_parts(
    attributes: Mapping[str, Any], datasets: Mapping[str, tuple[str, Mapping[str, Any]]]
) -> str:
    """The same from the attributes of the group, and from the types and attributes of its datasets by name."""
    digest = hashlib.sha256()
    _add_attributes(digest, attributes)
    for name, (dtype, described) in sorted(datasets.items()):
        _add(digest, name, dtype)
        _add_attributes(digest, described)
    return digest.hexdigest()


def digest_problems(group: h5py.Group) -> list[str]:
    """What the digest of an element says: nothing where it agrees, or where it is older than digests are."""
    stored = attribute(group, DIGEST)
    if stored is None:
        promised = str(attribute(group, "written_by")).endswith(PROMISE)
        return [f"{DIGEST}: the attribute is missing, so the others cannot be trusted"] if promised else []
    return (
        []
        if str(stored) == digest_of(group)
        else [f"{DIGEST}: attributes, names or types changed since it was written"]
    )


def _add_attributes(digest: Any, attributes: Mapping[str, Any]) -> None:
    for key in sorted(attributes.keys() - _NOT_COUNTED):
        _add(digest, key, attributes[key])


def _add(digest: Any, key: str, value: Any) -> None:
    if not isinstance(value, str):
        value = np.asarray(value)
        value = (value.dtype.str, value.shape, value.tobytes())
    digest.update(repr((key, value)).encode("utf-8", "surrogatepass"))
