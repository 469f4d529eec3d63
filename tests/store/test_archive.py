"""Files written by earlier versions are read for ever. A new schema or element version adds a file here."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
from store_samples import assert_same

from isometry.errors import NewerSchemaError
from isometry.spectrum import ErrorModel, Quadrature, Spectrum
from isometry.store import open_store
from isometry.store.digest import DIGEST, digest_of
from isometry.store.error_models import channels_of_old, counted_of_old, error_model_of_old

ARCHIVE = Path(__file__).parent / "archive"
MADE_UP = ["spectra/lanczos, two inputs/bottom_resolved", "spectra/predicted/log_even_moments"]


def contents(name: str) -> ModuleType:
    """The module that says what an archived file holds."""
    specification = importlib.util.spec_from_file_location(name, ARCHIVE / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def counted(spectrum: Spectrum) -> Spectrum:
    """With what files of before version 4 leave to be inferred."""
    if isinstance(spectrum.distribution, Quadrature):
        return replace(spectrum, distribution=counted_of_old(spectrum.distribution))
    return spectrum


@pytest.fixture(scope="module")
def schema_1() -> ModuleType:
    return contents("schema_1")


def test_schema_1_is_read_as_it_was_written(schema_1):
    store = open_store(ARCHIVE / "schema-1.h5")
    assert store.names() == ["lanczos, two inputs", "exact", "predicted"]
    for spectrum in schema_1.spectra():
        assert_same(counted(spectrum), store[spectrum.name])
    series = store.series("training")
    assert list(series.columns) == ["step", "loss", "accuracy", "finite"]
    for name, values in schema_1.columns().items():
        assert series[name].dtype == values.dtype
        assert series[name].tobytes() == values.tobytes()
    assert series.attributes == {"learning_rate": 0.1, "created": "2026-01-02"}
    assert series.units == {"loss": "nats"}


def test_schema_1_is_valid_and_small():
    # Its numbers were made up when no validator compared them with each other, and two contradict the rest.
    assert [
        problem.partition(": ")[0] for problem in open_store(ARCHIVE / "schema-1.h5").validate()
    ] == MADE_UP
    assert (ARCHIVE / "schema-1.h5").stat().st_size < 200_000


def test_schema_1_can_be_added_to(schema_1, tmp_path):
    path = tmp_path / "a.h5"
    shutil.copyfile(ARCHIVE / "schema-1.h5", path)
    path.chmod(0o644)
    store = open_store(path, "a")
    store.add(schema_1.spectra()[0], name="new")
    store.append_series("training", {name: values[:1] for name, values in schema_1.columns().items()})
    assert np.array_equal(store.series("training")["step"], [0, 10, 20, 0])
    assert len(store.validate()) == len(MADE_UP) + 1  # the new one is a copy


def test_version_2_of_a_quadrature_is_read_as_it_was_written():
    store = open_store(ARCHIVE / "quadrature-2.h5")
    expected = contents("quadrature_2").spectra()
    assert store.names() == [spectrum.name for spectrum in expected]
    for spectrum in expected:
        assert_same(counted(spectrum), store[spectrum.name])
    assert store.validate() == []
    assert (ARCHIVE / "quadrature-2.h5").stat().st_size < 200_000


def test_version_2_of_a_curve_is_read_as_it_was_written():
    store = open_store(ARCHIVE / "curve-2.h5")
    expected = contents("curve_2").spectra()
    assert store.names() == [spectrum.name for spectrum in expected]
    for spectrum in expected:
        assert_same(spectrum, store[spectrum.name])
        assert store[spectrum.name].distribution.unbounded == spectrum.distribution.unbounded
    assert store["unbounded"].s_max == np.inf
    assert store["bounded"].s_max == pytest.approx(np.e)
    assert store.validate() == []


def test_version_2_of_a_quadrature_holds_its_band_for_any_reader():
    """With h5py alone; to 1e-9 what this version gives, until one knows a narrower band."""
    for spectrum in map(counted, contents("quadrature_2").spectra()):
        with h5py.File(ARCHIVE / "quadrature-2.h5") as file:
            group = file["spectra"][spectrum.name]
            assert group.attrs["encoding_version"] == 2
            s, lower, upper = (group[key][...] for key in ("band_s", "band_lower", "band_upper"))
            confidence = group["band_lower"].attrs["confidence"]
            assert confidence == group["band_upper"].attrs["confidence"] == 0.95
        now = spectrum.cdf_band(s, confidence)
        assert np.all(lower <= now[0] + 1e-9)
        assert np.all(upper >= now[1] - 1e-9)
        assert np.all((lower <= spectrum.cdf(s)) & (spectrum.cdf(s) <= upper))
        assert s.size > 40


def test_version_3_of_a_quadrature_is_read_as_it_was_written():
    store = open_store(ARCHIVE / "quadrature-3.h5")
    expected = contents("quadrature_3").spectra()
    assert store.names() == [spectrum.name for spectrum in expected]
    for spectrum in expected:
        assert_same(counted(spectrum), store[spectrum.name])
    assert store.validate() == []
    assert (ARCHIVE / "quadrature-3.h5").stat().st_size < 200_000


def test_version_3_of_a_quadrature_holds_its_error_model_for_any_reader():
    with h5py.File(ARCHIVE / "quadrature-3.h5") as file:
        for name, group in file["spectra"].items():
            assert group.attrs["encoding_version"] == 3
            assert group.attrs["error_model_version"] == 1
            assert group.attrs["error_model_probe"] == {"exact": "none"}.get(name, name)
            assert group.attrs["error_model_dimension"] == (4 if name == "exact" else 40)


def test_version_5_of_a_quadrature_is_read_as_it_was_written():
    store = open_store(ARCHIVE / "quadrature-5.h5")
    expected = contents("quadrature_5").spectra()
    assert store.names() == [spectrum.name for spectrum in expected]
    for spectrum in expected:
        assert_same(spectrum, store[spectrum.name])
    assert store.validate() == []
    assert (ARCHIVE / "quadrature-5.h5").stat().st_size < 200_000


def test_version_1_of_values_is_read_as_it_was_written():
    store = open_store(ARCHIVE / "values-1.h5")
    (expected,) = contents("values_1").spectra()
    assert_same(expected, store["chain"])
    assert store.listing()["chain"].summary.cells()["s_max"] == "1e+400.00"
    assert store.validate() == []


def test_version_6_of_a_quadrature_leaves_out_what_says_nothing():
    store = open_store(ARCHIVE / "quadrature-6.h5")
    expected = contents("quadrature_6").spectra()
    assert store.names() == [spectrum.name for spectrum in expected]
    for spectrum in expected:
        assert_same(spectrum, store[spectrum.name])
    assert store.validate() == []
    with h5py.File(ARCHIVE / "quadrature-6.h5") as file:
        of_probes, of_inputs = {"band_s", "moment_stderr_probes", "cdf_lower"}, {"moment_stderr_inputs"}
        for name, left_out in (
            ("exact", of_probes | of_inputs), ("exact, two inputs", of_probes),
            ("lanczos", of_inputs), ("lanczos, two inputs", set()), ("tiny", of_probes | of_inputs),
        ):  # fmt: skip
            group = file["spectra"][name]
            assert group.attrs["encoding_version"] == 6
            assert (of_probes | of_inputs) - set(group.attrs) == left_out
            assert ("log10_moment" in group.attrs) == (name == "tiny")


def test_masses_of_random_signs_in_old_files_are_not_taken_for_counts():
    """Version 3 does not say which masses are counts; multiples of 1 / n are, but of random signs."""
    store = open_store(ARCHIVE / "quadrature-3.h5")
    assert store["orthogonal"].quadrature.counted.any()
    assert not store["rademacher"].quadrature.counted.any()
    assert store["exact"].quadrature.counted.all()


def test_the_compact_layout_is_read_as_it_was_written():
    store = open_store(ARCHIVE / "compact-4.h5")
    expected = contents("compact_4").spectra()
    assert store.names() == [spectrum.name for spectrum in expected]
    for spectrum in expected:
        assert_same(counted(spectrum), store[spectrum.name])
        assert store.listing()[spectrum.name].summary.cells()["s_max"] == spectrum.reported.cells()["s_max"]
    assert store.validate() == []
    with h5py.File(ARCHIVE / "compact-4.h5") as file:
        assert [group.attrs["encoding_version"] for group in file["spectra"].values()] == [4, 4, 3, 3]
        assert list(file["spectra/lanczos"]) == ["input", "probe", "node", "nodes", "weights"]
        assert "top" in file["spectra/long"]


@pytest.mark.parametrize(
    "name",
    [
        "schema-1.h5",
        "quadrature-2.h5",
        "quadrature-3.h5",
        "curve-2.h5",
        "compact-4.h5",
        "quadrature-5.h5",
        "quadrature-6.h5",
        "values-1.h5",
    ],
)  # fmt: skip
def test_an_old_file_is_compacted_to_the_present_layout_bit_for_bit(name, tmp_path):
    path = tmp_path / "a.h5"
    shutil.copyfile(ARCHIVE / name, path)
    path.chmod(0o640)
    old, store = open_store(ARCHIVE / name), open_store(path, "a")
    before, after = store.compact()
    assert path.stat().st_size == after <= before
    assert path.stat().st_mode & 0o777 == 0o640
    assert store.names() == old.names()
    for spectrum in old.names():
        assert_same(old[spectrum], store[spectrum])
    for series in old.series_names():
        assert old.series(series).attributes == store.series(series).attributes
        assert all(np.array_equal(old.series(series)[c], store.series(series)[c], equal_nan=True)
                   for c in old.series(series).columns)  # fmt: skip
    assert store.validate() == old.validate()
    with h5py.File(path) as file:
        assert {group.attrs["encoding_version"] for group in file["spectra"].values()} <= {6, 3, 1}


def test_an_error_model_of_a_later_version_is_refused_as_newer(tmp_path):
    path = tmp_path / "a.h5"
    shutil.copyfile(ARCHIVE / "quadrature-3.h5", path)
    path.chmod(0o644)
    with h5py.File(path, "r+") as file:
        group = file["spectra/exact"]
        group.attrs["error_model_version"] = 2
        group.attrs[DIGEST] = digest_of(group)
    with pytest.raises(NewerSchemaError, match="error model of version 2"):
        open_store(path)["exact"]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({}, ErrorModel()),
        ({"probe": "rademacher", "dtype": "float32"}, ErrorModel("rademacher", eps=2.0**-23)),
        ({"probe": "orthogonal", "orthogonal_group": 16}, ErrorModel("orthogonal", 16)),
        ({"rounding": 1e-3, "dtype": "float64"}, ErrorModel(rounding=1e-3)),
        ({"rounding": "coarse", "orthogonal_group": None, "probe": 3}, ErrorModel()),
    ],
)
def test_the_error_model_of_an_old_file_is_what_its_record_says(record, expected):
    nodes = np.array([[[1.0, 2.0], [1.0, 3.0]]])
    rule = Quadrature(nodes, np.full(nodes.shape, 0.5), np.zeros(1), np.ones(nodes.shape, bool))
    assert error_model_of_old(rule, record, 8) == replace(expected, dimension=8)


def test_an_old_file_of_all_singular_values_had_no_probes():
    assert open_store(ARCHIVE / "schema-1.h5")["exact"].singular_values.tolist() == [3.0, 1.0, 1.0, 0.0]


def test_channels_of_an_old_file_are_those_in_the_text_of_its_input():
    shape = (768, 768)
    assert channels_of_old({"input": "(12, 8, 8) float32"}, shape) == {"channels": 12}
    assert channels_of_old({"input": "(1, 12, 8, 8) float32"}, shape) == {"channels": 12}
    batched = {"input": "(5, 12, 8, 8) float32", "options": {"batched": True}}
    assert channels_of_old(batched, shape) == {"channels": 12}
    for text in ("(768,) float32", "(3, 8, 8) float32", "an image"):
        assert channels_of_old({"input": text}, shape) == {}
