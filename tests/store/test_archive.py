"""Files written by earlier versions are read for ever. A new schema or element version adds a file here."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
from store_samples import assert_same

from isometry.store import open_store

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


@pytest.fixture(scope="module")
def schema_1() -> ModuleType:
    return contents("schema_1")


def test_schema_1_is_read_as_it_was_written(schema_1):
    store = open_store(ARCHIVE / "schema-1.h5")
    assert store.names() == ["lanczos, two inputs", "exact", "predicted"]
    for spectrum in schema_1.spectra():
        assert_same(spectrum, store[spectrum.name])
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
        assert_same(spectrum, store[spectrum.name])
    assert store.validate() == []
    assert (ARCHIVE / "quadrature-2.h5").stat().st_size < 200_000


def test_version_2_of_a_quadrature_holds_its_band_for_any_reader():
    """With h5py alone; to 1e-9 what this version gives, until one knows a narrower band."""
    for spectrum in contents("quadrature_2").spectra():
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
