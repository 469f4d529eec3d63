"""Coverage-guided fuzz of the readers, by atheris; not part of the tests.

``pip install atheris``, then ``python tests/store/fuzz_atheris.py -runs=20000``. Every input is a sound file with a few
bytes exchanged, sealed again where it still opens; an exception that is not ours ends the run, and atheris writes
the input that raised it beside.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["isometry.store", "isometry.spectrum"]):
    from isometry.errors import IsometryError
    from isometry.spectrum import Spectrum
    from isometry.store import open_store, validate
    from isometry.store.digest import DIGEST, digest_of

import h5py

FOLDER = Path(tempfile.mkdtemp())
ORIGINAL, MUTANT = FOLDER / "original.h5", FOLDER / "mutant.h5"


def make() -> bytes:
    """A small file with a spectrum and a series."""
    store = open_store(ORIGINAL, "a")
    store.add(Spectrum.from_singular_values([2.0, 1.0, 0.5], name="x"))
    store.add_series("curve", {"step": [1, 2], "loss": [0.5, 0.25]})
    return ORIGINAL.read_bytes()


def one_input(data: bytes) -> None:
    """Exchange bytes at places that the input names, and read the file as the commands do."""
    given = atheris.FuzzedDataProvider(data)
    content = bytearray(SOUND)
    for _ in range(given.ConsumeIntInRange(1, 8)):
        place = given.ConsumeIntInRange(8, len(content) - 9)
        piece = given.ConsumeBytes(given.ConsumeIntInRange(1, 8))
        content[place : place + len(piece)] = piece
    MUTANT.write_bytes(bytes(content))
    if given.ConsumeBool():
        try:
            with h5py.File(MUTANT, "r+") as file:
                for name in ("spectra/x", "series/curve"):
                    file[name].attrs[DIGEST] = digest_of(file[name])
        except Exception:  # it is the readers that are tried here
            return
    try:
        store = open_store(MUTANT, timeout=1.0)
        store.listing()
        for name in store.names():
            store[name].reported.text()
        for name in store.series_names():
            store.series(name)
    except IsometryError:
        pass
    validate(MUTANT, timeout=1.0)


if __name__ == "__main__":
    SOUND = make()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
