"""Block profiles in a file: they come back as they were, beside the spectrum of their network."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from profile_samples import profile
from store_samples import assert_same

from isometry.errors import StoreError
from isometry.spectrum.block_profile import PER_BLOCK, ResidualGain
from isometry.store import open_store
from isometry.store.profiles import add_profile, profile_names, read_profile


def test_a_profile_comes_back_as_it_was(tmp_path: Path) -> None:
    store = open_store(tmp_path / "a.h5", "a")
    one = profile(name="net")
    assert add_profile(store, one) == "net blocks"
    again = read_profile(store, "net")
    assert (again.blocks, again.kinds, again.name) == (one.blocks, one.kinds, "net")
    for key in (*PER_BLOCK, "shapes", "log10_quantiles"):
        np.testing.assert_array_equal(getattr(again, key), getattr(one, key))
    assert again.provenance == one.provenance
    assert sorted(again.running) == sorted(one.running)
    assert_same(again.running[1], store["net to block 0"])
    assert again.verdict() == one.verdict()
    assert profile_names(store) == ["net"]
    assert store.validate() == []


def test_residual_sums_come_back_and_a_profile_of_the_first_version_has_none(tmp_path: Path) -> None:
    store = open_store(tmp_path / "a.h5", "a")
    sums = (
        ResidualGain(1, "layer.1", 2.5, 0.0, 1.5, 0.25),
        ResidualGain(2, "layer.2", 1.0, math.nan, 0.0, 0.0),
    )
    one = replace(profile(name="net"), residual_sums=sums)
    add_profile(store, one)
    again = read_profile(store, "net")
    assert repr(again.residual_sums) == repr(sums)
    assert again.row(1)[-1] == "1.5 ± 0.25"
    many = replace(one, residual_sums=tuple(replace(sums[0], branch_chi=value) for value in (1.5, 0.25, 0.5)))
    assert many.row(1)[-1] == "0.25 to 1.5 (3)"
    assert [len(many.row(block)) for block in range(4)] == [len(many.headings)] * 4
    archived = read_profile(open_store(Path(__file__).parent / "archive" / "profile-1.h5"), "net")
    assert archived.residual_sums == ()
    for key in (*PER_BLOCK, "shapes", "log10_quantiles"):
        np.testing.assert_array_equal(getattr(archived, key), getattr(one, key))
    assert archived.at_fault() == 2


def test_a_profile_is_replaced_only_when_asked(tmp_path: Path) -> None:
    store = open_store(tmp_path / "a.h5", "a")
    add_profile(store, profile(name="net"))
    with pytest.raises(StoreError, match="already holds"):
        add_profile(store, profile(name="net", gains=(1.0, 1.0, 1.0, 1.0)))
    add_profile(store, profile(name="net", gains=(1.0, 1.0, 1.0, 1.0)), overwrite=True)
    assert read_profile(store, "net").at_fault() is None


def test_ten_thousand_blocks_have_their_names(tmp_path: Path) -> None:
    store = open_store(tmp_path / "a.h5", "a")
    one = profile(name="deep", gains=(1.0,) * 10_000)
    add_profile(store, one)
    assert read_profile(store, "deep").blocks[-1] == "block 9999"


def test_what_is_no_profile_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    store = open_store(path, "a")
    store.add_series("curve blocks", {"step": np.arange(3)})
    with pytest.raises(StoreError, match=r"'curve blocks' .* is no profile of blocks"):
        read_profile(store, "curve")
    with pytest.raises(StoreError, match="no series named 'absent blocks'"):
        read_profile(store, "absent")
    add_profile(store, profile(name="net"))
    # A spectrum of the running product that was removed is missed by nobody.
    store.remove("net to block 0")
    assert 1 not in read_profile(store, "net").running
    with h5py.File(path, "r+") as file:
        file["series/net blocks/chi"][0] = 7.0
    with pytest.raises(StoreError, match="chi: changed"):
        read_profile(store, "net")
