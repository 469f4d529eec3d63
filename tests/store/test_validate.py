"""validate names every problem of a file, and the reader refuses what it names."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from store_samples import dense, measured, predicted

from isometry.errors import StoreError
from isometry.store import open_store, validate
from isometry.store.digest import DIGEST, digest_of
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


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, bytes]:
    """Each form beside a sound measurement, of which a check is quicker than of a prediction."""
    found = {}
    for spectrum in (measured(), predicted()):
        store = open_store(tmp_path_factory.mktemp("validate") / "original.h5", "a")
        store.add(spectrum)
        store.add(measured(1, name="other"))
        found[spectrum.name] = store.path.read_bytes()
    return found


@pytest.fixture
def beside(originals, name, tmp_path) -> Path:
    path = tmp_path / "a.h5"
    path.write_bytes(originals[name])
    return path


def stored_array(group: h5py.Group, key: str) -> np.ndarray:
    """An array of an element: a dataset, or an attribute where it is short."""
    return group[key][...] if key in group else group.attrs[key]


def put(group: h5py.Group, key: str, values: np.ndarray) -> None:
    """New values with the checksum that belongs to them, as a program with a fault would write."""
    if key not in group:
        group.attrs[key] = values
        return
    group[key][...] = values
    group[key].attrs["crc32"] = np.uint32(checksum(group[key][...]))


def scaled(key: str, factor: float) -> Callable[[h5py.Group], None]:
    return lambda group: put(group, key, factor * stored_array(group, key))


def logarithm_of(key: str, factor: float) -> Callable[[h5py.Group], None]:
    """An array that is left out where it says nothing."""
    return lambda group: put(group, f"log10_{key}", factor * np.log10(stored_array(group, key)))


def first(key: str, value: float) -> Callable[[h5py.Group], None]:
    def change(group: h5py.Group) -> None:
        values = stored_array(group, key)
        values.flat[0] = value
        put(group, key, values)

    return change


def without(key: str) -> Callable[[h5py.Group], None]:
    def change(group: h5py.Group) -> None:
        if key in group:
            del group[key]
        else:
            del group.attrs[key]

    return change


def replaced(key: str, values: np.ndarray) -> Callable[[h5py.Group], None]:
    def change(group: h5py.Group) -> None:
        if key in group.attrs:
            group.attrs[key] = values
            return
        del group[key]
        group[key] = values
        group[key].attrs["crc32"] = np.uint32(checksum(values))

    return change


def raised(key: str) -> Callable[[h5py.Group], None]:
    return lambda group: put(group, key, np.ones(stored_array(group, key).shape))


def silently(group: h5py.Group) -> None:
    """One bit-flip in the data that nothing but a checksum can see."""
    group["nodes"][0, 0, 0] *= 1 + 1e-15


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
        ("measured", without("band_lower"), r"measured/band_lower: the array is missing"),
        ("measured", first("band_s", 1e9), r"measured/band_s: is not a grid"),
        ("measured", first("band_lower", 0.9), r"measured/band_lower: is not a cdf"),
        ("measured", first("band_lower", np.nan), r"measured/band_lower: is not a cdf"),
        ("measured", scaled("band_upper", 1.5), r"measured/band_upper: is not a cdf"),
        ("measured", scaled("band_upper", 0.6), r"measured/band_upper: lies below what the nodes give"),
        ("measured", raised("band_lower"), r"measured/band_lower: lies above what the nodes give"),
        ("measured", silently, r"measured/nodes: changed since it was written"),
        ("measured", without("resolved"), r"measured/resolved: the array is missing"),
        ("measured", without("node"), r"measured/node: the dimension scale of nodes is missing"),
        ("measured", without("bottom"), r"measured/bottom: the array is missing"),
        ("measured", without("quantile"), r"measured/quantile: the array is missing"),
        (
            "measured",
            replaced("floor", np.zeros(3)),
            r"measured/floor: has 3 along 'input', where another array has 2",
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
def test_a_damaged_spectrum_is_named(name, change, problem, beside):
    with h5py.File(beside, "r+") as file:
        change(file["spectra"][name])
    problems = validate(beside)
    assert [text for text in problems if not text.startswith(f"spectra/{name}")] == []
    assert any(re.match("spectra/" + problem, text) for text in problems), problems


def attribute(key: str, value: object) -> Callable[[h5py.Group], None]:
    return lambda group: group.attrs.__setitem__(key, value)


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("measured", scaled("top", 1e9), r"top: its largest value exceeds what the mean square of the nodes allows"),
        ("measured", scaled("top", 1e-9), r"bottom: lies above the largest value of top"),
        ("measured", scaled("nodes", 1e9), r"(top: its largest value is less than half|moment)"),
        ("measured", first("top", np.inf), r"top: 1 values are negative or infinite"),
        ("measured", first("top", np.nan), r"top: NaN stands before a value"),
        ("measured", first("top", 0.0), r"top: does not descend"),
        ("measured", first("top_residual", np.nan), r"top_residual: 1 values are negative or NaN"),
        ("measured", scaled("bottom", np.nan), r"bottom: 2 values are negative, infinite or NaN"),
        ("measured", scaled("bottom", np.inf), r"bottom: 2 values are negative, infinite or NaN"),
        ("measured", first("bottom", 0.3), r"bottom: is more than twice the smallest node"),
        ("measured", first("bottom_residual", np.nan), r"bottom_residual: 1 values"),
        ("measured", first("bottom_residual", np.inf), r"bottom_resolved: is true where"),
        ("measured", first("floor", np.inf), r"floor: 1 values are NaN or inf"),
        ("measured", first("level", 0.02), r"level: is not 0\.01, 0\.05"),
        ("measured", first("order", 7), r"order: is not 1, 2, 3, 4"),
        ("measured", scaled("quantile", 2.0), r"quantile: is not where the cdf reaches the level"),
        ("measured", logarithm_of("quantile", 3.0), r"log10_quantile: is not where the cdf reaches the level"),
        ("measured", lambda group: (logarithm_of("quantile", 1.0)(group), scaled("quantile", 2.0)(group)),
         r"quantile: is not 10 to the power"),
        ("measured", logarithm_of("moment", 3.0), r"log10_moment: does not follow"),
        ("measured", scaled("cdf_upper", 0.1), r"cdf_lower: does not bound"),
        ("measured", scaled("moment_stderr_probes", -1.0), r"moment_stderr_probes: 4 negative values"),
        ("measured", attribute("null_dimension", 10**9), r"null_dimension: is 1000000000, and the shape forces 5"),
        ("measured", attribute("null_dimension", np.inf), r"null_dimension: is .*inf.*, not a whole number"),
        ("measured", attribute("products", np.inf), r"products: is .*inf.*, not a whole number"),
        ("measured", attribute("products", -1), r"products: is .*-1.*, not a whole number"),
        ("measured", attribute("products", "many"), r"products: is 'many', not a whole number"),
        ("measured", attribute("products", [1, 2]), r"products: is .*, not a whole number"),
        ("measured", attribute("seconds", np.nan), r"seconds: is .*nan.*, not a time"),
        ("measured", attribute("seconds", -1.0), r"seconds: is .*, not a time"),
        ("measured", attribute("shape", [12]), r"shape: is .*12.*, not two whole numbers"),
        ("measured", attribute("shape", [0, 0]), r"shape: is .*0.*, not two whole numbers"),
        ("measured", attribute("shape", [12, 7, 3]), r"shape: is .*, not two whole numbers"),
        ("measured", attribute("shape", [12.5, 7.0]), r"shape: is .*, not two whole numbers"),
        ("measured", attribute("shape", "12x7"), r"shape: is '12x7', not two whole numbers"),
        ("measured", attribute("kind", "predicted"), r"kind: is 'predicted', and what is stored is measured"),
        ("measured", attribute("method", 7), r"method: is .*7.*, not a text"),
        ("measured", attribute("method", "exact"), r"nodes: 5 for each input, of an exact measurement with 7"),
        ("measured", attribute("method", "\x1b[2J"), r"method: is .*, not a text"),
        ("measured", attribute("nested", "[" * 100_000), r".*nested' is not JSON"),
        ("measured", attribute("nested", "[1]"), r".*nested' is not the JSON text of a mapping"),
        ("measured", attribute("nested", 7), r".*nested' is not"),
        ("measured", attribute("encoding_version", 1.5), r".*no encoding type and version"),
        ("predicted", first("atom_log_s", np.inf), r"atom_log_s: 1 values lie at infinity or are NaN"),
        ("predicted", first("atom_log_s", np.nan), r"atom_log_s: 1 values lie at infinity or are NaN"),
        ("predicted", first("atom_mass", np.nan), r"atom_mass: 1 values are NaN or inf"),
        ("predicted", first("density", np.inf), r"density: 1 values are NaN or inf"),
        ("predicted", first("log_even_moments", np.nan), r"log_even_moments: 1 values are infinite or NaN"),
        ("predicted", first("log_even_moments", 1e9), r"(log_even_moments: ln E|moment)"),
        ("predicted", first("log_even_moments", 1790.0), r"log10_moment"),
        ("predicted", attribute("kind", "measured"), r"kind: is 'measured', and what is stored is predicted"),
        ("predicted", attribute("null_dimension", 1), r"null_dimension: is 1, and the shape forces 0"),
    ],
)  # fmt: skip
def test_a_contradiction_is_named_even_where_checksums_and_digest_agree(name, change, problem, beside):
    with h5py.File(beside, "r+") as file:
        group = file["spectra"][name]
        change(group)
        group.attrs[DIGEST] = digest_of(group)
    problems = validate(beside)
    assert problems
    assert all(text.startswith(f"spectra/{name}") for text in problems), problems
    assert any(re.match(f"spectra/{name}(/|: )" + problem, text) for text in problems), problems
    # It is read as nothing but itself, or refused; info never reads more than the attributes.
    store = open_store(beside)
    for act in (lambda: store[name], lambda: store.info(name)):
        with contextlib.suppress(StoreError):
            act()
    assert len(store.names()) == 2


def test_what_is_impossible_is_not_stored(stored):
    store = open_store(stored, "a")
    spectrum = measured()
    wrong = replace(spectrum.extremes, bottom=np.full(2, np.nan))
    for broken in (
        replace(spectrum, extremes=wrong),
        replace(spectrum, seconds=np.nan),
        replace(spectrum, products=-1),
    ):
        with pytest.raises(
            StoreError, match=r"contradicts itself and was not stored: (bottom|seconds|products)"
        ):
            store.add(broken, name="x")
    assert store.names() == ["measured", "predicted"]


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
    assert problems == open_store(stored).validate()
    for start in (
        "spectra/measured/weights: the rows",
        "spectra/measured/nodes: 1 values",
        "spectra/measured/attributes_sha256",
        "spectra/measured/floor: the array is missing",
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


def test_hidden_leftovers_are_ignored_and_removed_by_compacting(stored):
    with h5py.File(stored, "r+") as file:
        file["spectra"].create_group(".new half")["nodes"] = np.arange(3)
    store = open_store(stored, "a")
    assert store.names() == ["measured", "predicted"]
    assert store.validate() == []
    store.compact()
    with h5py.File(stored, "r") as file:
        assert sorted(file["spectra"]) == ["measured", "predicted"]
