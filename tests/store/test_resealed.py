"""Files changed and sealed again: checksums and digests agree, and every reader still ends in an error of ours.

A mutant changes an attribute, a number, a type, a shape, a link or a property of one element, the way a program with a
fault or a stranger would, and writes the checksums that belong to it. What comes out is then whatever the file says: it
may be read, as another spectrum, but nothing else is raised, nothing hangs, and what is read can be shown, stored and
validated.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_samples import dense, measured, predicted

from isometry.errors import IsometryError
from isometry.store import open_store
from isometry.store.digest import DIGEST, digest_of
from isometry.store.elements import checksum

STRANGE_NUMBERS = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1e9,
    -1e9,
    1e300,
    -1e300,
    5e-324,
    np.inf,
    -np.inf,
    np.nan,
    2**53,
    2**63,
)
STRANGE_VALUES: tuple[Any, ...] = (
    "", "x", "exact", "measured", "predicted", "none", "\x1b[31m", "9" * 5000, "[" * 20_000, "{}", "[]", "null",
    '{"stopped": 1}',
    '{"stopped": {"reason": "interrupted"}}', '{"stopped": {"reason": "rtol", "error": "x"}}', '{"created": [1]}',
    np.int64(-1), np.int64(0), np.int64(2**62), np.uint64(2**64 - 1), np.float64(np.nan), np.float64(np.inf),
    np.bool_(True), np.int8([1, 2]), np.float64([]), np.zeros((2, 3)), np.zeros((1, 1, 1)), np.float32([np.inf]),
    np.bytes_(b"\xff"),
    np.array([b"a", b"b"]), np.int64([0, 0]), np.int64([12]), np.int64([1, 1]), np.int64([2**62, 1]),
)  # fmt: skip


def mutate(file: h5py.File, pick: random.Random) -> None:
    """Change something about one element, or about the file."""
    kind = pick.choice(["spectra"] * 6 + ["series", "about"])
    group = file[kind] if kind == "about" else file[kind][pick.choice(sorted(file[kind]))]
    acts: list[Callable[[], None]] = [
        lambda: _attribute(pick.choice([group, *group.values()]) if kind != "about" else group, pick),
        lambda: _attribute(group, pick),
        lambda: _number(group, pick),
        lambda: _number(group, pick),
        lambda: _dataset(group, pick),
        lambda: _name(group, pick),
    ]
    for _ in range(pick.choice([1, 1, 1, 2, 4])):
        try:
            pick.choice(acts)()
        except (ValueError, TypeError, OverflowError, LookupError, OSError, RuntimeError, AttributeError):
            continue  # h5py itself does not write this, or a link leads nowhere
    if kind != "about":
        _seal(group)


def _attribute(node: h5py.Group | h5py.Dataset, pick: random.Random) -> None:
    names = sorted(node.attrs)
    if not names:
        return
    name = pick.choice(names)
    if pick.random() < 0.15:
        del node.attrs[name]
    else:
        value = pick.choice(STRANGE_VALUES)
        node.attrs[name] = node.attrs[pick.choice(names)] if pick.random() < 0.3 else value


def _number(group: h5py.Group, pick: random.Random) -> None:
    """One number, or all, of an array."""
    places = [key for key in group if isinstance(group[key], h5py.Dataset) and group[key].dtype.kind in "fi"]
    places += [key for key in group.attrs if isinstance(group.attrs[key], np.ndarray)]
    if not places:
        return
    key = pick.choice(places)
    values = np.asarray(group[key][...] if key in group else group.attrs[key])
    if values.size == 0 or values.dtype.hasobject:
        return  # an h5py.Empty among them
    with np.errstate(all="ignore"):
        number = np.asarray(pick.choice(STRANGE_NUMBERS)).astype(values.dtype)
    if pick.random() < 0.2:
        values = np.full_like(values, number)
    elif pick.random() < 0.2:
        values = values[::-1] if values.ndim == 1 else values[..., ::-1]
    else:
        values.flat[pick.randrange(values.size)] = number
    if key in group:
        group[key][...] = values
    else:
        group.attrs[key] = values


def _dataset(group: h5py.Group, pick: random.Random) -> None:
    """Another dataset in the place of one, or one where an attribute was."""
    key = pick.choice([*group, *(name for name in group.attrs if isinstance(group.attrs[name], np.ndarray))])
    old = group[key][...] if key in group else group.attrs[key]
    kept = dict(group[key].attrs) if key in group else {}
    made: list[Any] = [
        old, old.astype("f4"), old.astype("i2", casting="unsafe"), old.astype(complex), np.float64(1.0), np.zeros(0),
        old[None], np.zeros((old.size + 1,)), np.repeat(old, 2, axis=-1) if np.ndim(old) else old, "text", [b"a"],
        h5py.Empty("f8"),
    ]  # fmt: skip
    if key in group:
        del group[key]
    if key in group.attrs:
        del group.attrs[key]
    choice = pick.randrange(len(made) + 4)
    if choice < len(made):
        group[key] = made[choice]
        for name, value in kept.items():
            if name not in ("DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME"):
                group[key].attrs[name] = value
    elif choice == len(made):
        group.create_group(key)
    elif choice == len(made) + 1:
        group[key] = h5py.SoftLink("weights")
    elif choice == len(made) + 2:
        group[key] = np.dtype("f8")


def _name(group: h5py.Group, pick: random.Random) -> None:
    if len(group) > 1:
        first, second = pick.sample(sorted(group), 2)
        group.move(first, "moved")
        if pick.random() < 0.5:
            group.move(second, first)
        group.move("moved", second) if second not in group else None


def _seal(group: h5py.Group) -> None:
    for key in group:
        if isinstance(group.get(key, getlink=True), h5py.HardLink):
            dataset = group[key]
            if (
                isinstance(dataset, h5py.Dataset)
                and dataset.dtype.kind in "fiub"
                and dataset.shape is not None
            ):
                dataset.attrs["crc32"] = np.uint32(checksum(dataset[...]))
    try:
        group.attrs[DIGEST] = digest_of(group)
    except IsometryError:
        group.attrs[DIGEST] = "0" * 64


def outcome(path: Path) -> str:
    """ "refused" or "read"; whatever else is raised comes out. What is read is used as the commands use it."""
    words = set()

    def attempt(act: Callable[[], object]) -> Any:
        try:
            return act()
        except IsometryError:
            words.add("refused")
            return None

    store = attempt(lambda: open_store(path, timeout=5.0))
    if store is None:
        return "refused"
    attempt(store.listing)
    attempt(store.partial_names) if hasattr(store, "partial_names") else None
    for name in attempt(store.names) or ():
        attempt(lambda name=name: store.info(name))
        spectrum = attempt(lambda name=name: store[name])
        if spectrum is not None:
            spectrum.reported.text()
            spectrum.reported.json()
    for listed in (attempt(store.listing) or {}).values():
        if not isinstance(listed, IsometryError):
            listed.summary.cells()
            listed.summary.json()
    for name in attempt(store.series_names) or ():
        attempt(lambda name=name: store.series(name))
    for problem in store.validate():
        assert isinstance(problem, str)
        # What no reader foresaw.
        assert "cannot be read (" not in problem or "HDF5" in problem or "synchronously" in problem, problem
    return "refused" if words else "read"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("resealed") / "original.h5"
    store = open_store(path, "a")
    store.add(measured())
    store.add(predicted())
    store.add(dense())
    store.add_series("curve", {"step": [1, 2], "loss": [0.5, 0.25]}, {"note": "a text", "options": [1, None]})
    return path


MANY = int(os.environ.get("ISOMETRY_FUZZ", 8))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(
    max_examples=MANY, deadline=None, derandomize="ISOMETRY_FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(seed=st.integers(0, 2**32))
def test_a_mutant_that_was_sealed_again_is_read_or_refused(seed, original, tmp_path):
    path = tmp_path / "mutant.h5"
    path.write_bytes(original.read_bytes())
    with h5py.File(path, "r+") as file:
        mutate(file, random.Random(seed))
    assert outcome(path) in ("read", "refused")
