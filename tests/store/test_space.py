"""Many short spectra: the space and time that each takes, what replacing and removing leave, and what a list reads."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from store_samples import assert_same, measured, predicted

from isometry.errors import StoreError
from isometry.spectrum import Extremes, Spectrum
from isometry.store import open_store, spectra


def eight(seed: int = 0) -> Spectrum:
    return Spectrum.from_singular_values(np.random.default_rng(seed).random(8), name="eight")


def grown(path: Path, act, rounds: int = 20) -> float:
    """Bytes by which the file grows in one round."""
    before = path.stat().st_size
    for number in range(rounds):
        act(number)
    return (path.stat().st_size - before) / rounds


def recorded(spectrum: Spectrum) -> Spectrum:
    """With extremes and a record such as `isometry measure` writes."""
    residual = np.full((1, 8), 1e-6)
    extremes = Extremes(spectrum.singular_values[None], residual, spectrum.singular_values[-1:], residual[0, :1],
                        np.array([True]))  # fmt: skip
    record = {
        "dtype": "float32", "device": "cpu", "model": "MLP (216 parameters)", "input": "(1, 8) float32",
        "products_by": "replay", "rounding": 9.5e-07, "seed": 0, "torch_version": "2.13.0+cpu",
        "numpy_version": "2.4.6", "isometry_version": "0.1.0", "git_commit": "2" * 40,
        "created": "2026-11-27T06:27:52+00:00", "threads": 1, "predicted_peak_bytes": 5984,
        "model_spec": "mlp:depth=3,width=8", "input_spec": "normal of variance 0.211875 8, seed 0",
        "command": "isometry measure mlp:depth=3,width=8 -o /tmp/folder/a.h5 --method exact",
        "options": {"batched": True, "memory_limit": 2147483648},
        "ensemble": {
            "activation": "tanh", "depth": 3, "weights": "orthogonal", "sigma_w": 1.2243395784527868,
            "sigma_b": 0.12542261982728967, "q_star": 0.3333333333333333, "widths": None, "residual": None,
            "q0": None, "readout": False,
        },
    }  # fmt: skip
    return replace(spectrum, extremes=extremes, provenance=record)


def test_a_spectrum_of_8_values_takes_8_kilobytes(tmp_path):
    store = open_store(tmp_path / "a.h5", "a")
    assert grown(store.path, lambda k: store.add(recorded(eight(k)), name=f"{k}")) < 8000
    assert store.validate() == []


def test_replacing_and_removing_leave_little(tmp_path):
    store = open_store(tmp_path / "a.h5", "a")
    for number in range(25):
        store.add(eight(number), name=f"{number}")

    def remove_and_add(number: int) -> None:
        store.remove(f"{number}")
        store.add(eight(number), name=f"new {number}")

    assert grown(store.path, lambda k: store.add(eight(k), name="7", overwrite=True)) < 800
    assert grown(store.path, remove_and_add) < 800
    store.remove("new 1")
    with h5py.File(store.path) as file:
        assert len(file[".removed"]) == 1
    assert store.validate() == []
    before, after = store.compact()
    assert after < before
    with h5py.File(store.path) as file:
        assert sorted(file) == ["about", "series", "spectra"]
    assert store.validate() == []


def test_a_list_reads_summaries_alone(tmp_path, monkeypatch):
    store = open_store(tmp_path / "a.h5", "a")
    expected = [measured(), predicted(), eight()]
    for spectrum in expected:
        store.add(spectrum)
    monkeypatch.setattr(spectra, "decode", None)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", None)
    listing = store.listing()
    assert list(listing) == [spectrum.name for spectrum in expected]
    for spectrum in expected:
        found = listing[spectrum.name]
        whole, kept = spectrum.reported.cells(), found.summary.cells()
        for key in ("method", "shape", "s_max", "mean_square", "isometry", "isometry_limits95"):
            assert kept[key] == whole[key]
        assert found.summary.json()["isometry"] == spectrum.reported.json()["isometry"]


def test_a_summary_that_was_changed_is_an_error_and_one_that_lies_is_named(tmp_path):
    store = open_store(tmp_path / "a.h5", "a")
    store.add(eight())
    store.add(measured())
    with h5py.File(store.path, "r+") as file:
        group = file["spectra/eight"]
        group.attrs["summary"] = 2 * group.attrs["summary"]
    assert isinstance(store.listing()["eight"], StoreError)
    assert not isinstance(store.listing()["measured"], StoreError)
    assert any("summary: changed" in problem for problem in store.validate())


@pytest.mark.parametrize("content", ["foreign", "damaged"])
def test_what_cannot_be_compacted_is_left_as_it_is(content, tmp_path):
    store = open_store(tmp_path / "a.h5", "a")
    store.add(measured())
    with h5py.File(store.path, "r+") as file:
        if content == "foreign":
            file.create_group("theirs")
        else:
            file["spectra/measured/nodes"][0, 0, 0] = 7.0
    before = store.path.read_bytes()
    with pytest.raises(
        StoreError, match="'theirs' of another program" if content == "foreign" else "is damaged"
    ):
        store.compact()
    with pytest.raises(StoreError, match="opened for reading"):
        open_store(store.path).compact()
    assert store.path.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5"]


@pytest.mark.slow
def test_ten_thousand_spectra(tmp_path):
    """Times without the disk's own: the tests do not wait for it."""
    store = open_store(tmp_path / "a.h5", "a")
    seconds = []
    for number in range(10_000):
        began = time.process_time()
        store.add(eight(number), name=f"depth={number}")
        seconds.append(time.process_time() - began)
    assert np.median(seconds[-1000:]) < 1.5 * np.median(seconds[:1000])
    began = time.process_time()
    assert len(store.listing()) == 10_000
    assert time.process_time() - began < 5
    began = time.process_time()
    again = open_store(store.path)
    assert time.process_time() - began < 0.02
    assert_same(eight(5000), Spectrum(**{**vars(again["depth=5000"]), "name": "eight"}))
