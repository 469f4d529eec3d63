"""validate names every problem of a file, and the reader refuses what it names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from store_samples import dense, measured, predicted

from isometry.errors import StoreError
from isometry.store import open_store, validate
from isometry.store.elements import checksum


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("validate") / "original.h5"
    store = open_store(path, "a")
    store.add(measured())
    store.add(predicted())
    store.add_series("curve", {"step": [1, 2], "loss": [0.5, 0.25]})
    return path.read_bytes()


@pytest.fixture
def stored(original, tmp_path) -> Path:
    path = tmp_path / "a.h5"
    path.write_bytes(original)
    return path


def put(dataset: h5py.Dataset, values: np.ndarray) -> None:
    """New values with the checksum that belongs to them, as a program with a fault would write."""
    dataset[...] = values
    dataset.attrs["crc32"] = np.uint32(checksum(dataset[...]))


def scaled(key: str, factor: float) -> Callable[[h5py.Group], None]:
    return lambda group: put(group[key], factor * group[key][...])


def first(key: str, value: float) -> Callable[[h5py.Group], None]:
    def change(group: h5py.Group) -> None:
        values = group[key][...]
        values.flat[0] = value
        put(group[key], values)

    return change


def without(key: str) -> Callable[[h5py.Group], None]:
    def change(group: h5py.Group) -> None:
        del group[key]

    return change


def replaced(key: str, values: np.ndarray) -> Callable[[h5py.Group], None]:
    def change(group: h5py.Group) -> None:
        del group[key]
        group[key] = values
        group[key].attrs["crc32"] = np.uint32(checksum(values))

    return change


def raised(key: str) -> Callable[[h5py.Group], None]:
    def change(group: h5py.Group) -> None:
        replaced(key, np.ones(group[key].shape))(group)
        group[key].dims[0].attach_scale(group["band_s"])

    return change


def silently(group: h5py.Group) -> None:
    """One bit-flip in the data that nothing but a checksum can see."""
    group["top_residual"][0, 0] *= 1 + 1e-15


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        (
            "measured",
            scaled("weights", 0.5),
            r"measured/weights: the rows of 6 of 6 .* do not sum to 1; .* sums to 0\.5",
        ),
        ("measured", first("weights", -0.1), r"measured/weights: 1 negative values"),
        ("measured", first("nodes", np.nan), r"measured/nodes: 1 values are NaN or inf"),
        ("measured", first("nodes", -1.0), r"measured/nodes: 1 negative values"),
        ("measured", first("top", -1.0), r"measured/top: 1 negative values"),
        ("measured", scaled("moment", 1.001), r"measured/moment: does not follow from the distribution"),
        ("measured", without("band_lower"), r"measured/band_lower: the dataset is missing"),
        ("measured", first("band_s", 1e9), r"measured/band_s: is not a grid"),
        ("measured", first("band_lower", 0.9), r"measured/band_lower: is not a cdf"),
        ("measured", first("band_lower", np.nan), r"measured/band_lower: is not a cdf"),
        ("measured", scaled("band_upper", 1.5), r"measured/band_upper: is not a cdf"),
        ("measured", scaled("band_upper", 0.6), r"measured/band_upper: lies below what the nodes give"),
        ("measured", raised("band_lower"), r"measured/band_lower: lies above what the nodes give"),
        ("measured", silently, r"measured/top_residual: changed since it was written"),
        ("measured", without("resolved"), r"measured/resolved: the dataset is missing"),
        ("measured", without("node"), r"measured/node: the dimension scale of nodes is missing"),
        ("measured", without("bottom"), r"measured/bottom: the dataset is missing"),
        ("measured", without("quantile"), r"measured/quantile: the dataset is missing"),
        (
            "measured",
            replaced("floor", np.zeros(3)),
            r"measured/floor: has 3 along 'input', whose scale has 2",
        ),
        (
            "measured",
            replaced("floor", np.zeros((2, 1))),
            r"measured/floor: has shape \(2, 1\), not \(input\)",
        ),
        ("measured", replaced("floor", np.array([b"a", b"b"])), r"measured/floor: holds \|S1, not floats"),
        (
            "measured",
            lambda group: group.attrs.__delitem__("method"),
            r"measured/method: the attribute is missing",
        ),
        (
            "measured",
            lambda group: group.attrs.__delitem__("encoding_type"),
            r"measured: .* no encoding type",
        ),
        ("measured", lambda group: group.attrs.__setitem__("nested", "{"), r"measured"),
        ("predicted", first("log_s", 1e6), r"predicted/log_s: does not increase strictly"),
        ("predicted", first("log_s", -np.inf), r"predicted/log_s: 1 values are NaN or inf"),
        ("predicted", first("cdf", 0.4), r"predicted/cdf: falls somewhere"),
        (
            "predicted",
            first("atom_mass", 0.5),
            r"predicted/cdf: its last value and atom_mass add up to 1\.25",
        ),
    ],
)
def test_a_damaged_spectrum_is_named(name, change, problem, stored):
    with h5py.File(stored, "r+") as file:
        change(file["spectra"][name])
    problems = validate(stored)
    assert problems == open_store(stored).validate()
    assert [text for text in problems if not text.startswith(f"spectra/{name}")] == []
    assert any(re.match("spectra/" + problem, text) for text in problems), problems


@pytest.mark.parametrize(
    "change", [scaled("weights", 0.5), first("nodes", np.nan), silently, without("resolved"), without("top")]
)
def test_a_damaged_spectrum_is_refused_by_the_reader_and_the_others_are_read(change, stored):
    with h5py.File(stored, "r+") as file:
        change(file["spectra/measured"])
    store = open_store(stored)
    with pytest.raises(
        StoreError, match=r"a\.h5: spectra/measured is damaged: .*Restore the file from a copy"
    ):
        store["measured"]
    assert store["predicted"].name == "predicted"


def test_every_problem_is_named_not_only_the_first(stored):
    with h5py.File(stored, "r+") as file:
        scaled("weights", 0.5)(file["spectra/measured"])
        first("nodes", np.inf)(file["spectra/measured"])
        silently(file["spectra/measured"])
        without("floor")(file["spectra/measured"])
        first("cdf", 0.4)(file["spectra/predicted"])
        file["series/curve/loss"][0] = 7.0
        file["spectra/stray"] = np.arange(3)
        file["spectra"].create_group("empty")
    problems = validate(stored)
    for start in (
        "spectra/measured/weights: the rows",
        "spectra/measured/nodes: 1 values",
        "spectra/measured/top_residual: changed",
        "spectra/measured/floor: the dataset is missing",
        "spectra/predicted/cdf: falls",
        "series/curve/loss: changed",
        "spectra/stray: is not a group",
        "spectra/empty: ",
    ):
        assert any(problem.startswith(start) for problem in problems), (start, problems)


def test_a_missing_room_is_a_problem_and_a_foreign_one_is_not(stored):
    with h5py.File(stored, "r+") as file:
        file.create_group("theirs")["data"] = np.arange(3)
    assert validate(stored) == []
    with h5py.File(stored, "r+") as file:
        del file["series"]
    assert validate(stored) == ["series: the group is missing"]


def test_a_damaged_compressed_dataset_is_named(tmp_path):
    store = open_store(tmp_path / "a.h5", "a")
    store.add(dense())
    with h5py.File(store.path, "r") as file:
        chunk = file["spectra/dense/nodes"].id.get_chunk_info(0)
    content = bytearray(store.path.read_bytes())
    content[chunk.byte_offset + 100 : chunk.byte_offset + 200] = bytes(100)
    store.path.write_bytes(bytes(content))
    problems = store.validate()
    assert [problem.split(":")[0] for problem in problems] == ["spectra/dense/nodes"]
    with pytest.raises(StoreError, match="nodes"):
        store["dense"]


def test_what_cannot_be_opened_is_one_problem(tmp_path):
    assert "there is no file" in validate(tmp_path / "absent.h5")[0]
    (tmp_path / "text.h5").write_text("text")
    assert "is not an HDF5 file" in validate(tmp_path / "text.h5")[0]


def test_hidden_leftovers_are_ignored_and_removed_by_the_next_writer(stored):
    with h5py.File(stored, "r+") as file:
        file["spectra"].create_group(".new half")["nodes"] = np.arange(3)
    store = open_store(stored, "a")
    assert store.names() == ["measured", "predicted"]
    assert store.validate() == []
    store.add(measured(), name="half")
    with h5py.File(stored, "r") as file:
        assert sorted(file["spectra"]) == ["half", "measured", "predicted"]
