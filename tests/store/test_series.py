"""Curves beside spectra: they come back as given, and grow all or nothing."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from store_samples import measured

from isometry.errors import StoreError
from isometry.store import open_store


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "a.h5", "a")


def test_columns_come_back_with_their_types_order_and_meaning(store):
    columns = {
        "step": np.arange(5),
        "loss": np.array([3.0, 2.0, np.nan, np.inf, 0.5], np.float32),
        "finite": np.array([True, True, False, False, True]),
        "as a list": [1, 2, 3, 4, 5],
    }
    attributes = {
        "learning_rate": 0.1,
        "network": {"depth": 10, "widths": [1, 2]},
        "row": "a name of the layout",
    }
    name = store.add_series(
        "run 1", columns, attributes, units={"loss": "nats"}, descriptions={"loss": "cross-entropy"}
    )
    found = store.series(name)
    assert list(found.columns) == list(columns)
    for key, values in columns.items():
        assert found[key].dtype == np.asarray(values).dtype
        assert np.array_equal(found[key], values, equal_nan=key == "loss")
    assert {key: found.attributes[key] for key in attributes} == attributes
    assert found.attributes["created"]
    assert found.units == {"loss": "nats"}
    assert found.descriptions == {"loss": "cross-entropy"}
    assert len(found) == 5
    assert store.validate() == []
    with pytest.raises(StoreError, match=r"no column 'los'; it has step, loss"):
        found["los"]


def test_a_series_and_a_spectrum_may_have_one_name(store):
    store.add(measured(), name="run")
    store.add_series("run", {"step": [1]})
    assert store.names() == store.series_names() == ["run"]
    with pytest.raises(StoreError, match="already holds a series named 'run'"):
        store.add_series("run", {"step": [2]})
    store.add_series("run", {"step": [2, 3]}, overwrite=True)
    assert list(store.series("run")["step"]) == [2, 3]
    store.remove_series("run")
    assert (store.names(), store.series_names()) == (["run"], [])


def test_appending_gives_the_same_as_writing_at_once(store):
    generator = np.random.default_rng(0)
    step, loss = np.arange(3000), generator.random(3000)
    store.add_series("at once", {"step": step, "loss": loss})
    store.add_series("grown", {"step": step[:0], "loss": loss[:0]})
    for start, stop in ((0, 1), (1, 700), (700, 700), (700, 3000)):
        rows = store.append_series("grown", {"loss": loss[start:stop], "step": step[start:stop]})
        assert rows == stop
    for key in ("step", "loss"):
        assert np.array_equal(store.series("grown")[key], store.series("at once")[key])
    assert store.validate() == []
    with h5py.File(store.path, "r") as file:
        assert list(file["series/grown/row"]) == list(range(3000))
        assert file["series/grown/loss"].attrs["crc32"] == file["series/at once/loss"].attrs["crc32"]


def test_appending_writes_what_is_new_and_not_the_whole(store):
    store.add_series("run", {"step": np.arange(100_000)})
    size = store.path.stat().st_size
    for _ in range(5):
        store.append_series("run", {"step": [1]})
    # 800 kB are there; five rows must not cost another copy of them.
    assert store.path.stat().st_size - size < 40_000


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"step": [3]}, r"has the columns step, loss; got step"),
        ({"step": [3], "loss": [0.1], "more": [1]}, r"has the columns step, loss; got step, loss, more"),
        ({"step": [3, 4], "loss": [0.1]}, r"of one length.*'step': 2, 'loss': 1"),
        ({"step": [3.5], "loss": [0.1]}, r"'step' holds int64, and float64 does not fit"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_nothing_is_written(columns, message, store):
    store.add_series("run", {"step": [1, 2], "loss": [0.5, 0.25]})
    with pytest.raises(StoreError, match=message):
        store.append_series("run", columns)
    assert list(store.series("run")["step"]) == [1, 2]
    assert store.validate() == []


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "at least one column"),
        ({"a": [1], "b": [1, 2]}, "of one length"),
        ({"a": [[1]]}, r"shape is \(1, 1\)"),
        ({"a": ["x"]}, "one-dimensional array of numbers"),
        ({"a": [1j]}, "one-dimensional array of numbers"),
        ({"a/b": [1]}, "cannot be the name of a column"),
        ({"row": [1]}, "cannot be named 'row'"),
    ],
)
def test_columns_a_file_cannot_hold(columns, message, store):
    with pytest.raises(StoreError, match=message):
        store.add_series("run", columns)
    assert store.series_names() == []


def test_units_of_a_column_that_is_not_there(store):
    with pytest.raises(StoreError, match="units are given for 'los', which is not a column: loss"):
        store.add_series("run", {"loss": [1.0]}, units={"los": "nats"})


def test_xarray_opens_a_series(store):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    store.add_series("run", {"step": [1, 2], "loss": [0.5, 0.25]})
    with xarray.open_dataset(store.path, group="series/run", engine="h5netcdf") as data:
        assert data["loss"].dims == ("row",)
        assert float(data["loss"][1]) == 0.25
