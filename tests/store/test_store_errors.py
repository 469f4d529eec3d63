"""Bad files, names and values: an error of ours that names the path, the cause and the cure; nothing is lost."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from store_samples import assert_same, dense, measured, predicted

from isometry.errors import NewerSchemaError, StoreError
from isometry.spectrum import Extremes, Quadrature, Spectrum
from isometry.store import open_store, validate

WRITER = Path(__file__).parent / "writer_process.py"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("errors") / "original.h5"
    store = open_store(path, "a")
    store.add(measured())
    store.add(predicted())
    store.add_series("curve", {"step": [1, 2], "loss": [0.5, 0.25]})
    return path.read_bytes()


@pytest.fixture
def stored(original, tmp_path) -> Path:
    """A file of its own with two spectra and a series."""
    path = tmp_path / "a.h5"
    path.write_bytes(original)
    return path


# ---- the file -----------------------------------------------------------------------------------------


def test_a_missing_file(tmp_path):
    with pytest.raises(StoreError, match=r"there is no file .*absent\.h5.*open_store\(path, 'a'\)"):
        open_store(tmp_path / "absent.h5")


def test_a_missing_folder(tmp_path):
    with pytest.raises(StoreError, match=r"there is no folder .*Make it first"):
        open_store(tmp_path / "absent" / "a.h5", "a")


@pytest.mark.parametrize("mode", ["r", "a", "w"])
def test_a_folder(mode, tmp_path):
    with pytest.raises(StoreError, match="is a folder"):
        open_store(tmp_path, mode)


@pytest.mark.parametrize("mode", ["r", "a", "w"])
@pytest.mark.parametrize(
    ("content", "cause"),
    [(b"", "is empty"), (b"abc", "is not an HDF5 file"), (b"%PDF-1.7 and so on" * 50, "is not an HDF5 file")],
)
def test_a_file_that_is_not_hdf5_is_refused_and_kept(content, cause, mode, tmp_path):
    path = tmp_path / "thesis.pdf"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=f"thesis.pdf {cause}"):
        open_store(path, mode)
    assert path.read_bytes() == content


@pytest.mark.parametrize("mode", ["r", "a", "w"])
def test_an_hdf5_file_of_another_program_is_refused_and_kept(mode, tmp_path):
    path = tmp_path / "theirs.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.arange(3)
    content = path.read_bytes()
    with pytest.raises(StoreError, match=r"of another program: its attribute 'format' is missing"):
        open_store(path, mode)
    assert path.read_bytes() == content


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("mode", ["r", "a"])
def test_a_truncated_file(mode, share, stored):
    content = stored.read_bytes()
    stored.write_bytes(content[: max(int(share * len(content)), 20)])
    with pytest.raises(StoreError, match=r"a\.h5 (is truncated: its end is missing|cannot be)"):
        open_store(stored, mode)
    assert len(validate(stored)) == 1


def test_a_file_of_zeros_after_its_signature(stored):
    content = stored.read_bytes()
    stored.write_bytes(content[:8] + bytes(len(content) - 8))
    with pytest.raises(StoreError, match=r"damaged"):
        open_store(stored)


def test_a_newer_schema(stored):
    with h5py.File(stored, "r+") as file:
        file.attrs["schema_version"] = 2
    for mode in ("r", "a", "w"):
        with pytest.raises(
            NewerSchemaError, match=r"written by a newer isometry \(schema 2.*you may need to update"
        ):
            open_store(stored, mode)
    assert "newer isometry" in validate(stored)[0]


def test_a_schema_that_is_no_number(stored):
    with h5py.File(stored, "r+") as file:
        file.attrs["schema_version"] = "one"
    with pytest.raises(StoreError, match=r"'schema_version' is 'one'"):
        open_store(stored)


@pytest.mark.parametrize("change", [("encoding_version", 9), ("encoding_type", "spectrum-wavelet")])
def test_a_newer_element_is_named_and_the_others_are_read(change, stored):
    with h5py.File(stored, "r+") as file:
        for group in ("spectra/measured", "series/curve"):
            file[group].attrs[change[0]] = change[1]
    store = open_store(stored, "a")
    newer = r"written by a newer isometry .*you may need to update"
    for act in (
        lambda: store["measured"],
        lambda: store.info("measured"),
        lambda: store.series("curve"),
        lambda: store.append_series("curve", {"step": [3], "loss": [0.1]}),
    ):
        with pytest.raises(NewerSchemaError, match=newer):
            act()
    assert store.names() == ["measured", "predicted"]
    assert_same(predicted(), store["predicted"])
    problems = store.validate()
    assert len(problems) == 2
    assert all(re.search(newer, problem) for problem in problems)


@contextmanager
def ordinary_user() -> Iterator[Path]:
    """A folder, and a block in which permissions bind, also where the tests run as root."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o777)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            own = place / "own"
            own.mkdir()
            yield own
        finally:
            own.chmod(0o755)
            if root:
                os.seteuid(0)


def test_a_read_only_folder_and_a_read_only_file():
    with ordinary_user() as folder:
        path = folder / "a.h5"
        store = open_store(path, "a")
        store.add(measured())
        content = path.read_bytes()
        path.chmod(0o444)
        with pytest.raises(StoreError, match=r"a\.h5 cannot be written: no permission"):
            open_store(path, "a")
        with pytest.raises(StoreError, match=r"a\.h5 cannot be written: no permission.*choose another place"):
            store.add(predicted())
        path.chmod(0o644)
        folder.chmod(0o555)
        with pytest.raises(StoreError, match=r"b\.h5 cannot be written: no permission.*choose another place"):
            open_store(folder / "b.h5", "a")
        with pytest.raises(StoreError, match=r"a\.h5 cannot be written: no permission.*its folder"):
            store.add(predicted())
        assert path.read_bytes() == content
        # Reading needs neither.
        path.chmod(0o444)
        assert_same(measured(), open_store(path)["measured"])
        path.chmod(0o000)
        with pytest.raises(StoreError, match=r"cannot be read: no permission"):
            open_store(path)


def test_a_limit_on_the_size_of_files(stored):
    """RLIMIT_FSIZE: the one full disk every Linux can make. Everything before is kept, and the file goes on."""
    limit = stored.stat().st_size + 100_000
    done = subprocess.run(
        [sys.executable, WRITER, stored, "limited", str(limit)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(WRITER.parent)},
    )
    *added, message = done.stdout.splitlines()
    assert added
    assert re.search(r"error: .*a\.h5 cannot be written: no room left.*holds what it held before", message)
    store = open_store(stored, "a")
    assert store.names() == ["measured", "predicted", *added]
    assert store.validate() == []
    store.add(measured(), name="after")
    assert store.validate() == []


def test_a_full_disk(tmp_path):
    """A real one, of 200 kB; compare test_kills.py, which fills the disk at every step of a commit."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(
            f"no small file system can be mounted here ({mounted.stderr.strip()}): no real full disk was tried"
        )
    try:
        store = open_store(tmp_path / "a.h5", "a")
        added = []

        def add_many() -> None:
            for number in range(100):
                added.append(store.add(measured(number), name=f"x{number}"))

        with pytest.raises(StoreError, match=r"no room left \(No space left on device\)"):
            add_many()
        assert len(added) > 2
        assert store.names() == added
        assert store.validate() == []
        store.remove(added[0])
        with pytest.raises(StoreError, match="no room left"):
            open_store(tmp_path / "b.h5", "a").add(dense())
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_any_other_failure_of_the_disk(stored, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    store = open_store(stored, "a")
    monkeypatch.setattr("isometry.store.journal._sync", fail)
    with pytest.raises(StoreError, match="Input/output error"):
        store.add(measured(), name="x")
    monkeypatch.undo()
    assert store.names() == ["measured", "predicted"]
    assert store.validate() == []


# ---- names and modes ----------------------------------------------------------------------------------


def test_an_unknown_name_says_what_is_near(stored):
    store = open_store(stored)
    with pytest.raises(StoreError, match=r"no spectrum named 'mesured'; did you mean 'measured'\?"):
        store["mesured"]
    with pytest.raises(StoreError, match=r"no spectrum named 'xyz'; it holds 'measured', 'predicted'\."):
        store.info("xyz")
    for strange in ("", "measured/nodes", ".", "..", "/spectra/measured", 7):
        with pytest.raises(StoreError, match="no spectrum named"):
            store[strange]
    with pytest.raises(StoreError, match=r"no series named 'curves'; did you mean 'curve'\?"):
        store.series("curves")
    with pytest.raises(StoreError, match="no series named"):
        open_store(stored, "a").append_series("other", {"step": [1]})
    with pytest.raises(StoreError, match="no spectrum named"):
        open_store(stored, "a").remove("other")
    with pytest.raises(StoreError, match="it holds none"):
        open_store(stored, "w")["measured"]


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("models/net.py:make", "'models-net.py:make'"),
        (".hidden", "'hidden'"),
        (" padded ", "'padded'"),
        ("two\nlines", "'two lines'"),
        ("x" * 300, "'xxx"),
        ("/", "'-'"),
        ("..", "'spectrum'"),
    ],
)
def test_an_impossible_name_is_refused_with_one_that_works(name, cure, stored):
    store = open_store(stored, "a")
    with pytest.raises(StoreError, match=re.escape("cannot be the name of a spectrum")) as refusal:
        store.add(measured(), name=name)
    suggestion = re.search(r"Try '(.*)'\.$", str(refusal.value))
    assert suggestion
    assert cure.rstrip("'") in str(refusal.value)
    assert store.add(measured(), name=suggestion[1]) == suggestion[1]


def test_no_name_at_all(stored):
    with pytest.raises(StoreError, match=r"there is none: give name="):
        open_store(stored, "a").add(replace(measured(), name=""))


def test_a_store_opened_for_reading_is_not_changed(stored):
    store = open_store(stored)
    for act in (
        lambda: store.add(measured(), name="x"),
        lambda: store.remove("measured"),
        lambda: store.add_series("x", {"step": [1]}),
        lambda: store.append_series("curve", {"step": [1], "loss": [1.0]}),
        lambda: store.remove_series("curve"),
    ):
        with pytest.raises(StoreError, match=r"opened for reading. Open it with open_store\(path, 'a'\)"):
            act()


def test_an_unknown_mode(stored):
    with pytest.raises(StoreError, match="mode is 'r'"):
        open_store(stored, "rw")


# ---- values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provenance", "message"),
    [
        ({"device": np.dtype("f8")}, r"provenance\['device'\] is a .*Give its str\(\)"),
        ({"options": {"a": [1, {2}]}}, r"provenance\['options'\]\['a'\]\[1\] is a set"),
        ({"options": {1: 2}}, r"has the key 1; keys are text"),
    ],
)
def test_provenance_that_is_not_plain_is_refused_by_name(provenance, message, stored):
    store = open_store(stored, "a")
    with pytest.raises(StoreError, match=message):
        store.add(replace(measured(), provenance=provenance), name="x")
    assert store.names() == ["measured", "predicted"]


def test_numpy_numbers_and_tuples_in_the_provenance_come_back_plain(stored):
    store = open_store(stored, "a")
    given = {
        "a": np.float32(0.5),
        "b": (np.int64(3), np.True_),
        "c": np.float64(2.0),
        "d": "\0",
        "e": "\ud800",
    }
    store.add(replace(measured(), provenance=given), name="x")
    found = store["x"].provenance
    assert {key: found[key] for key in given} == {
        "a": 0.5,
        "b": [3, True],
        "c": 2.0,
        "d": "\0",
        "e": "\ud800",
    }
    assert {type(value) for value in found.values()} <= {float, list, str}


def test_extremes_of_other_inputs_are_refused(stored):
    spectrum = Spectrum(
        Quadrature(np.ones((2, 1, 1)), np.ones((2, 1, 1)), np.zeros(2), np.ones((2, 1, 1), bool)),
        method="exact",
        extremes=Extremes(np.ones((3, 1)), np.zeros((3, 1)), np.ones(3), np.zeros(3), np.ones(3, bool)),
    )
    with pytest.raises(StoreError, match=r"top has 3 along 'input', where another array has 2"):
        open_store(stored, "a").add(spectrum, name="x")


def test_a_method_that_is_not_text(stored):
    with pytest.raises(StoreError, match=r"the method of a spectrum is printable text"):
        open_store(stored, "a").add(replace(measured(), method=""), name="x")
