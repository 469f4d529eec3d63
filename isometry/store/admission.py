"""What of HDF5 a file of spectra may use; checked before anything of a group or dataset is read.

HDF5 does what a file says. A dataset may keep its numbers in another file (external storage, virtual datasets), a link
may lead into another file, a filter may load a library, a declared size may exceed all memory. isometry writes nothing
of the kind, so whoever finds it in a file refuses it.

Groups and datasets are therefore taken from a group with `member` and `datasets_of` alone, and attributes with
`attributes_of`: h5py's own ``group[name]``, ``name in group`` and ``group.get`` follow every link.
"""

from __future__ import annotations

import math
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5l, h5t, h5z

from isometry.errors import StoreError

_LINKS = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "a link into another file"}
_LAYOUTS = {h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED}
_FILTERS = {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32}
# Deflate makes at most this many bytes of one (zlib's technical notes give 1032).
_EXPANSION = 1032
# HDF5 unpacks a chunk as a whole; h5py makes none above 1 MiB by itself.
_LARGEST_CHUNK = 8 * 2**20
MOST_DIMENSIONS = 8
_NUMBERS = {h5t.INTEGER, h5t.FLOAT}
_ATTRIBUTES = _NUMBERS | {h5t.STRING, h5t.ENUM}
# Longest array that an attribute may hold. What isometry writes is shorter, and the format ends at 64 kB.
_MOST_ENTRIES = 8192
_TEXT = h5py.string_dtype()
# What other programs add when they open the file: dimension scales, netCDF. References among them, which are not read.
FOREIGN = frozenset({"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "DIMENSION_LABELS"})


def names_of(holder: h5py.Group | h5py.AttributeManager) -> list[str]:
    """Names of the members of a group, or of attributes, in their order.

    h5py gives those that are not UTF-8 as bytes; here, as elsewhere, their bytes are kept as surrogates.
    """
    return [name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name for name in holder]


def holds(parent: h5py.Group, name: str) -> bool:
    """Whether the group has a link of that name, wherever it leads."""
    # A path would be walked, through links of every kind, and HDF5 reads a name up to its first zero.
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        return False
    try:
        return bool(parent.id.links.exists(_bytes(name)))
    except UnicodeEncodeError:
        return False


def link_kind(parent: h5py.Group, name: str) -> int:
    """Kind of a link that is there, as one of ``h5py.h5l.TYPE_HARD`` and its fellows."""
    return int(parent.id.links.get_info(_bytes(name)).type)


def member(parent: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    """The group or dataset of that name, or None where there is no such link.

    Raises
    ------
    StoreError
        When the link is not a plain one, or names a dataset that isometry cannot have written.
    """
    if not holds(parent, name):
        return None
    kind = link_kind(parent, name)
    where = _place(parent, name)
    if kind != h5l.TYPE_HARD:
        raise StoreError(
            f"{where} is {_LINKS.get(kind, 'a link of another program')}, and was not followed. isometry writes none: "
            "do not trust this file."
        )
    node = parent[_bytes(name)]
    if isinstance(node, h5py.Dataset):
        _check_dataset(node, where)
    elif not isinstance(node, h5py.Group):
        raise StoreError(f"{where} is neither a group nor a dataset: isometry did not write it.")
    return node


def datasets_of(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """All datasets of a group by name, each checked as by `member`."""
    nodes = {name: member(group, name) for name in names_of(group)}
    return {name: node for name, node in nodes.items() if isinstance(node, h5py.Dataset)}


def attributes_of(node: h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """The attributes of a group or dataset by name, in their order, without those of other programs.

    Raises
    ------
    StoreError
        When one is not a text, a number or a short array of numbers.
    """
    return {
        name: _read(node, name, h5a.open(node.id, _bytes(name)))
        for name in names_of(node.attrs)
        if name not in FOREIGN and not name.startswith("_")
    }


def attribute(node: h5py.Group | h5py.Dataset, name: str) -> Any:
    """One attribute, checked as by `attributes_of`; None where there is none of that name."""
    try:
        found = h5a.open(node.id, _bytes(name))
    except KeyError:
        if h5a.exists(node.id, _bytes(name)):  # and cannot be read
            raise
        return None
    return _read(node, name, found)


def _check_dataset(dataset: h5py.Dataset, where: str) -> None:
    properties = dataset.id.get_create_plist()
    # Before the shape is asked for: that of a virtual dataset is found by opening the other files.
    if properties.get_layout() not in _LAYOUTS or properties.get_external_count():
        raise StoreError(
            f"{where} keeps its numbers in another file, which was not opened. isometry writes no such dataset: do "
            "not trust this file."
        )
    filters = [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]
    if not _FILTERS.issuperset(filters):
        raise StoreError(
            f"{where} is packed by the HDF5 filters {filters}, of which isometry uses gzip, shuffle and fletcher32 "
            "alone: repack it with h5repack -f GZIP=4."
        )
    kind = dataset.id.get_type()
    # Texts are refused by their readers, who know what should be there; here goes what has parts or leads elsewhere.
    if kind.get_class() not in _ATTRIBUTES or kind.committed() or dataset.dtype.hasobject:
        raise StoreError(f"{where}: holds {dataset.dtype}, not numbers")
    shape = dataset.shape
    if shape is None or len(shape) > MOST_DIMENSIONS:
        raise StoreError(f"{where}: has shape {shape}, which no dataset of isometry has")
    _check_size(dataset, shape, bool(filters), where)


def _check_size(dataset: h5py.Dataset, shape: tuple[int, ...], filtered: bool, where: str) -> None:
    """Refuse a dataset that declares more bytes than the file can hold for it: they would be made of nothing."""
    wanted = math.prod(shape) * dataset.dtype.itemsize
    if dataset.chunks is not None and math.prod(dataset.chunks) * dataset.dtype.itemsize > _LARGEST_CHUNK:
        raise StoreError(
            f"{where}: is stored in chunks of shape {dataset.chunks}, larger than isometry writes any"
        )
    # An index of pieces may name one piece many times; the whole file is all there is.
    stored = min(dataset.id.get_storage_size(), dataset.file.id.get_filesize())
    if wanted > stored * (_EXPANSION if filtered else 1):
        raise StoreError(
            f"{where}: declares {wanted:,} bytes of numbers in shape {shape}, for which the file holds {stored:,} bytes"
        )


def _read(node: h5py.Group | h5py.Dataset, name: str, found: h5a.AttrID) -> Any:
    """As h5py reads it, in a third of its time: text as str, a single number as NumPy's."""
    kind, shape = found.get_type(), found.shape
    # An array of texts of any length may name one long text many times.
    text = isinstance(kind, h5t.TypeStringID) and kind.is_variable_str()
    most = 1 if text else _MOST_ENTRIES
    if kind.get_class() not in _ATTRIBUTES or shape is None or math.prod(shape) > most:
        raise StoreError(
            f"{_place(node)}: the attribute {name!r} is neither a text nor a few numbers, so isometry did not write it"
        )
    values = np.empty(shape, dtype=_TEXT if text else kind.dtype)
    if values.size:
        found.read(values)
    if text and values.size:
        raw = values.item()
        return raw.decode("utf-8", "surrogateescape") if isinstance(raw, bytes) else str(raw)
    return values[()]


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")  # as h5py reads names


def _place(node: h5py.Group | h5py.Dataset, name: str = "") -> str:
    """Where it lies, as messages say it: "spectra/NAME/nodes"."""
    return f"{node.name or ''}/{name}".strip("/") or "the file"
