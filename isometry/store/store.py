"""`Store`: many spectra, and curves beside them, in one HDF5 file.

Every method opens the file, acts, and closes it again, so that many processes can share a file and a killed one leaves
nothing open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
from numpy.typing import ArrayLike

from isometry.errors import StoreError
from isometry.spectrum import Spectrum
from isometry.store import series as series_element
from isometry.store import spectra as spectrum_element
from isometry.store.admission import holds, member
from isometry.store.compaction import compact
from isometry.store.elements import Element, remove_element, stored_names, write_element
from isometry.store.hdf5_file import DISK_FULL, create, group_of, place_of, reading, writing, written_by
from isometry.store.layout import SERIES, SPECTRA, checked_name
from isometry.store.series import Series
from isometry.store.summaries import Listed
from isometry.store.validation import validate
from isometry.store.writing import forget

_WORDS = {SPECTRA: "spectrum", SERIES: "series"}


class Store:
    """A file of spectra. Made by :func:`open_store`.

    Usable as a context manager or without one: no file is held open between two calls. Each change takes effect as a
    whole and is on disk when the method returns; a process killed in between leaves the file as it was. A store is
    cheap to pickle and may be shared between threads and processes.

    Attributes
    ----------
    path : Path
        The file.
    mode : {"r", "a"}
        Whether it may be changed.
    timeout : float
        Seconds to wait for another process that writes.
    """

    def __init__(self, path: Path, mode: str, timeout: float) -> None:
        self.path = path
        self.mode = mode
        self.timeout = timeout
        self._closed = False

    # ---- spectra -------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Names of the spectra, in the order they were added."""
        return self._names(SPECTRA)

    def partial_names(self) -> set[str]:
        """Names of the spectra that are parts of interrupted measurements."""
        with self._reading() as file:
            parent = group_of(file, SPECTRA)
            return {
                name for name in stored_names(parent) if spectrum_element.is_partial(member(parent, name))
            }

    def __len__(self) -> int:
        return len(self.names())

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __getitem__(self, name: str) -> Spectrum:
        """The spectrum of that name.

        Raises
        ------
        StoreError
            When there is none, or it is damaged.
        NewerSchemaError
            When a newer version wrote it.
        """
        with self._reading() as file:
            return spectrum_element.decode(self._group(file, SPECTRA, name), name)

    def info(self, name: str) -> dict[str, Any]:
        """What is known of a spectrum without reading its arrays, as plain JSON values.

        Returns
        -------
        dict
            name, encoding, kind, method, shape, null_dimension, inputs, probes, products, seconds, written_by and
            provenance (model, input, dtype, device, seed, versions, created, ...).
        """
        with self._reading() as file:
            return spectrum_element.describe(self._group(file, SPECTRA, name), name)

    def listing(self) -> dict[str, Listed | StoreError]:
        """What a list shows of each spectrum, by name, in the order they were added; an error where one is damaged.

        Read from the summaries that are stored with the spectra, without their arrays.
        """
        found: dict[str, Listed | StoreError] = {}
        with self._reading() as file:
            parent = group_of(file, SPECTRA)
            for name in stored_names(parent):
                try:
                    group = member(parent, name)
                    if not isinstance(group, h5py.Group):
                        raise StoreError(
                            f"{self.path}: spectra/{name} is not a group: isometry did not write it."
                        )
                    found[name] = spectrum_element.listed(group, name)
                except StoreError as error:
                    found[name] = error
        return found

    def add(self, spectrum: Spectrum, name: str | None = None, *, overwrite: bool = False) -> str:
        """Store a spectrum; it is safe on disk when this returns.

        Parameters
        ----------
        spectrum : Spectrum
            Measured or predicted; it comes back equal, bit for bit, under the name it is stored by.
        name : str, optional
            By default the spectrum's own. Up to 200 bytes of printable characters, no slash, no leading dot.
        overwrite : bool
            Replace a spectrum of that name. Killed at any moment, the file holds the old one or the new one.

        Returns
        -------
        str
            The name.

        Raises
        ------
        StoreError
            When the name is taken or impossible, the disk is full, the file may not be written, or the provenance
            is not plain JSON. The file is then as it was.
        """
        name = checked_name(spectrum.name if name is None else name)
        # The spectrum itself where it has this name: what was computed for a report is then there already.
        named = spectrum if spectrum.name == name else replace(spectrum, name=name)
        element = spectrum_element.encode(named, written_by=written_by())
        self._put(SPECTRA, name, element, spectrum_element.HEADER, overwrite)
        return name

    def remove(self, name: str) -> None:
        """Remove a spectrum. Its space is reused by those added later; :meth:`compact` gives it back to the disk."""
        self._remove(SPECTRA, name)

    # ---- series --------------------------------------------------------------------------------------

    def series_names(self) -> list[str]:
        """Names of the series, in the order they were added."""
        return self._names(SERIES)

    def series(self, name: str) -> Series:
        """The series of that name."""
        with self._reading() as file:
            return series_element.decode(self._group(file, SERIES, name), name)

    def add_series(
        self,
        name: str,
        columns: Mapping[str, ArrayLike],
        attributes: Mapping[str, Any] | None = None,
        *,
        units: Mapping[str, str] | None = None,
        descriptions: Mapping[str, str] | None = None,
        overwrite: bool = False,
    ) -> str:
        """Store curves: one-dimensional arrays of one length, by name.

        Parameters
        ----------
        name : str
            Its name among the series; a spectrum may have the same.
        columns : mapping of str to (rows,) array of numbers
            Such as ``{"step": ..., "loss": ...}``. They come back with the types they have.
        attributes : mapping, optional
            Plain JSON values; ``created`` is added where it is missing.
        units, descriptions : mapping of str to str, optional
            Of the columns.
        overwrite : bool
            Replace a series of that name.
        """
        name = checked_name(name, "a series")
        element = series_element.encode(
            columns, attributes, units=units, descriptions=descriptions, written_by=written_by()
        )
        self._put(SERIES, name, element, series_element.HEADER, overwrite)
        return name

    def append_series(self, name: str, columns: Mapping[str, ArrayLike]) -> int:
        """Add rows to a series that is there, all or none of them; only what is new is written.

        Parameters
        ----------
        name : str
            A series stored before.
        columns : mapping of str to (rows,) array of numbers
            New rows for exactly the columns it has.

        Returns
        -------
        int
            How many rows it has now: a run that resumes knows from it where it was.
        """
        with self._writing() as file:
            group = self._group(file, SERIES, name)
            return series_element.append(group, columns)

    def remove_series(self, name: str) -> None:
        """Remove a series."""
        self._remove(SERIES, name)

    # ---- the file ------------------------------------------------------------------------------------

    def validate(self) -> list[str]:
        """Every problem of the file, in words; empty where there is none. See :func:`isometry.store.validate`."""
        return validate(self.path, timeout=self.timeout)

    def compact(self) -> tuple[int, int]:
        """Write the file anew, without unused space and in the present layout; returns its size before and after.

        Spectra and series stay as they were, bit for bit. Killed at any moment, the file is the old or the new one.

        Raises
        ------
        StoreError
            When something in the file is damaged, or belongs to another program: the file is then as it was.
        """
        self._check_writable()
        return compact(self.path, timeout=self.timeout)

    def close(self) -> None:
        """Forbid further use; there is no open file to close."""
        self._closed = True

    def __enter__(self) -> Store:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Store {str(self.path)!r}, mode {self.mode!r}>"

    # ---- inside --------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"this store of {self.path} was closed. Open it again with open_store.")

    def _reading(self) -> AbstractContextManager[h5py.File]:
        self._check_open()
        return reading(self.path, timeout=self.timeout)

    def _check_writable(self) -> None:
        self._check_open()
        if self.mode == "r":
            raise StoreError(
                f"{self.path} was opened for reading. Open it with open_store(path, 'a') to change it."
            )

    def _writing(self) -> AbstractContextManager[h5py.File]:
        self._check_writable()
        return writing(self.path, timeout=self.timeout)

    def _names(self, kind: str) -> list[str]:
        with self._reading() as file:
            return stored_names(group_of(file, kind))

    def _group(self, file: h5py.File, kind: str, name: str) -> h5py.Group:
        parent = group_of(file, kind)
        if isinstance(name, str) and not name.startswith(".") and holds(parent, name):
            group = member(parent, name)
            if isinstance(group, h5py.Group):
                return group
            raise StoreError(f"{self.path}: {kind}/{name} is not a group: isometry did not write it.")
        known = stored_names(parent)
        near = get_close_matches(str(name), known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else _listing(known)
        raise StoreError(f"{self.path} has no {_WORDS[kind]} named {name!r}; {hint}")

    def _remove(self, kind: str, name: str) -> None:
        try:
            self._remove_by(remove_element, kind, name)
        except StoreError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in DISK_FULL:
                raise
            self._remove_by(forget, kind, name)  # takes no room

    def _remove_by(self, act: Callable[[h5py.Group, str], None], kind: str, name: str) -> None:
        with self._writing() as file:
            if not holds(group_of(file, kind), name):
                self._group(file, kind, name)  # says what is near
            act(group_of(file, kind), name)

    def _put(self, kind: str, name: str, element: Element, header: frozenset[str], overwrite: bool) -> None:
        with self._writing() as file:
            parent = group_of(file, kind)
            if holds(parent, name) and not overwrite:
                raise StoreError(
                    f"{self.path} already holds a {_WORDS[kind]} named {name!r}, and it was kept. Choose another name, "
                    "or replace it with overwrite=True."
                )
            write_element(parent, name, element, reserved=header)


def open_store(path: str | Path, mode: str = "r", *, timeout: float = 60.0) -> Store:
    """The store in an HDF5 file.

    Parameters
    ----------
    path : str or Path
        The file.
    mode : {"r", "a", "w"}
        "r": read a file that is there. "a": read and change, made where it is missing. "w": as "a", emptied first; only
        a file of spectra is ever emptied.
    timeout : float
        Seconds to wait for another process that writes, in every call.

    Returns
    -------
    Store
        Usable as a context manager or without one.

    Raises
    ------
    StoreError
        When the file is missing, unreadable, truncated, not HDF5, or of another program.
    NewerSchemaError
        When a newer version wrote it.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> store = open_store(f"{folder.name}/runs.h5", "a")
    >>> store.add(Spectrum.from_singular_values([2.0, 1.0]), name="two by two")
    'two by two'
    >>> store.names(), store["two by two"].s_max
    (['two by two'], 2.0)
    """
    if mode not in ("r", "a", "w"):
        raise StoreError(f"mode is 'r' (read), 'a' (add) or 'w' (empty first); got {mode!r}.")
    place = place_of(path)
    if mode != "r":
        create(place, replace=mode == "w", timeout=timeout)
    with reading(place, timeout=timeout):
        pass
    return Store(place, "r" if mode == "r" else "a", timeout)


def _listing(known: list[str]) -> str:
    if not known:
        return "it holds none."
    more = f" and {len(known) - 10} more" if len(known) > 10 else ""
    return f"it holds {', '.join(map(repr, known[:10]))}{more}."
