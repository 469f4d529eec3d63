"""Groups, datasets and attributes as HDF5 stores them in least space and time.

h5py's own ``create_dataset`` and ``attrs[...] = ...`` take some 200 microseconds for each, five times what HDF5 takes,
and leave its defaults: an index of several kB for more than eight attributes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5ds, h5g, h5l, h5p, h5r, h5s, h5t
from numpy.typing import NDArray

from isometry.store.admission import MOST_DIMENSIONS, link_kind, names_of

# Bytes of a dataset that lies within its own header.
_WITHIN_HEADER = 2048
_IN_ORDER = h5p.CRT_ORDER_TRACKED | h5p.CRT_ORDER_INDEXED


def new_group(parent: h5py.Group, name: str) -> h5g.GroupID:
    """A group whose members and attributes keep the order they are written in."""
    return h5g.create(parent.id, name.encode(), gcpl=_group_properties())


def new_dataset(
    group: h5g.GroupID, name: str, array: NDArray[Any], *, growing: bool, compressed: bool
) -> h5d.DatasetID:
    """A dataset that holds the array: in chunks where it shall grow, packed where that is asked for."""
    properties = _dataset_properties().copy()
    most = (h5s.UNLIMITED,) * array.ndim if growing else None
    if growing:
        properties.set_chunk((512,) * array.ndim)
    elif compressed:
        properties.set_chunk(h5py._hl.filters.guess_chunk(array.shape, None, array.dtype.itemsize))
        properties.set_shuffle()
        properties.set_deflate(4)
    elif array.nbytes <= _WITHIN_HEADER:
        properties.set_layout(h5d.COMPACT)
    space = h5s.create_simple(array.shape, most)
    dataset = h5d.create(group, name.encode(), h5t.py_create(array.dtype), space, properties)
    if array.size:
        dataset.write(h5s.ALL, h5s.ALL, array)
    return dataset


def write_attribute(node: h5g.GroupID | h5d.DatasetID, name: str, value: Any) -> None:
    """A new attribute: a text, a number, or an array of numbers."""
    if isinstance(value, str):
        made = h5a.create(node, name.encode(), _text_type(), _scalar())
        made.write(np.array(value, dtype=h5py.string_dtype()))
        return
    array = np.asarray(value)
    space = h5s.create_simple(array.shape) if array.ndim else _scalar()
    made = h5a.create(node, name.encode(), h5t.py_create(array.dtype, logical=True), space)
    if array.size:
        made.write(array)


def recall_heaps(group: h5py.Group, keys: Iterable[str]) -> None:
    """Read some texts and lists of an element, and of its last dataset, so that HDF5 goes on filling their heaps.

    It fills those alone that it has met since the file was opened, and begins another one of 4 kB otherwise.
    """
    for node in [group, *_hard(group, names_of(group)[-1:])]:
        for key in keys:
            if h5a.exists(node.id, key.encode()):
                found = h5a.open(node.id, key.encode())
                if _is_text(found) or _is_list(found):
                    found.read(np.empty(found.shape, dtype=found.dtype))


def forget(group: h5py.Group, name: str) -> None:
    """Delete a member of a group. HDF5 frees its space, but not its texts and lists in heaps: they are emptied here."""
    for node in _hard(group, [name]):
        for part in [node, *(_hard(node, names_of(node)) if isinstance(node, h5py.Group) else ())]:
            for key in names_of(part.attrs):
                _empty(h5a.open(part.id, key.encode("utf-8", "surrogateescape")))
    del group[name]


def _hard(group: h5py.Group, names: Iterable[str]) -> list[Any]:
    """The nodes of these names, without what a link leads to elsewhere."""
    return [
        group[name.encode("utf-8", "surrogateescape")]
        for name in names
        if link_kind(group, name) == h5l.TYPE_HARD
    ]


def rewrite_text(node: h5py.Group, name: str, value: str) -> None:
    """A text in place of one that is there, in the heap that is being filled."""
    if name in node.attrs:
        _empty(h5a.open(node.id, name.encode()))
        del node.attrs[name]
    write_attribute(node.id, name, value)


def _empty(attribute: h5a.AttrID) -> None:
    """Give back the space that an attribute has in a heap."""
    if _is_text(attribute):
        attribute.write(np.array("", dtype=h5py.string_dtype()))
    elif _is_list(attribute):
        lists = np.empty(attribute.shape, dtype=h5py.vlen_dtype(h5py.ref_dtype))
        for place in np.ndindex(attribute.shape):
            lists[place] = np.empty(0, dtype=h5py.ref_dtype)
        attribute.write(lists)


def _is_text(attribute: h5a.AttrID) -> bool:
    kind = attribute.get_type()
    return isinstance(kind, h5t.TypeStringID) and kind.is_variable_str() and attribute.shape == ()


def _is_list(attribute: h5a.AttrID) -> bool:
    """Whether it holds lists of references, one for each dimension."""
    kind, shape = attribute.get_type(), attribute.shape
    listed = isinstance(kind, h5t.TypeVlenID) and kind.get_super().get_class() == h5t.REFERENCE
    return listed and shape is not None and math.prod(shape) <= MOST_DIMENSIONS


def write_dimensions(
    scales: Mapping[str, h5d.DatasetID], arrays: Mapping[str, tuple[h5d.DatasetID, tuple[str, ...]]]
) -> None:
    """Make dimension scales of some datasets, and attach the axes of others to them, by name.

    As H5DSattach_scale does, which writes its lists anew for every axis.
    """
    uses: dict[str, list[tuple[Any, int]]] = {key: [] for key in scales}
    references = {key: h5r.create(scale, b".", h5r.OBJECT) for key, scale in scales.items()}
    for dataset, dimensions in arrays.values():
        own = h5r.create(dataset, b".", h5r.OBJECT)
        listed = np.empty(len(dimensions), dtype=h5py.vlen_dtype(h5py.ref_dtype))
        for axis, key in enumerate(dimensions):
            listed[axis] = np.array([references[key]], dtype=h5py.ref_dtype)
            uses[key].append((own, axis))
        space = h5s.create_simple(listed.shape)
        h5a.create(dataset, b"DIMENSION_LIST", h5t.py_create(listed.dtype, logical=True), space).write(listed)
    for key, scale in scales.items():
        h5ds.set_scale(scale, key.encode())
        if uses[key]:
            entries = np.array(uses[key], dtype=[("dataset", h5py.ref_dtype), ("dimension", "<i4")])
            space = h5s.create_simple(entries.shape)
            kind = h5t.py_create(entries.dtype, logical=True)
            h5a.create(scale, b"REFERENCE_LIST", kind, space).write(entries)


@cache
def _group_properties() -> h5p.PropGCID:
    properties = h5p.create(h5p.GROUP_CREATE)
    properties.set_obj_track_times(False)
    properties.set_link_creation_order(_IN_ORDER)
    properties.set_attr_creation_order(_IN_ORDER)
    # All attributes in the header of the group. One above 64 kB goes elsewhere by itself.
    properties.set_attr_phase_change(4096, 0)
    return properties


@cache
def _dataset_properties() -> h5p.PropDCID:
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    properties.set_fill_time(h5d.FILL_TIME_IFSET)
    return properties


@cache
def _text_type() -> h5t.TypeID:
    return h5t.py_create(h5py.string_dtype(), logical=True)


@cache
def _scalar() -> h5s.SpaceID:
    return h5s.create(h5s.SCALAR)
