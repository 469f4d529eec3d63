"""What is stored comes back, bit for bit, and other tools read it."""

from __future__ import annotations

import itertools
import math
import pickle
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from store_samples import PROVENANCE, assert_same, atoms_only, dense, measured, predicted

from isometry.errors import StoreError
from isometry.spectrum import Curve, Extremes, Quadrature, Spectrum
from isometry.store import open_store, validate


@pytest.mark.parametrize("make", [measured, predicted, atoms_only, dense])
def test_every_form_of_spectrum_comes_back_bit_for_bit(make, tmp_path):
    spectrum = make()
    store = open_store(tmp_path / "a.h5", "a")
    assert store.add(spectrum) == spectrum.name
    assert_same(spectrum, store[spectrum.name])
    assert store.validate() == []


# ---- any spectrum at all ------------------------------------------------------------------------------

nonnegative = st.floats(0, 1e300, allow_subnormal=True)
finite = st.floats(-1e3, 1e3)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def quadratures(draw):
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)))
    raw = draw(arrays.arrays(float, shape, elements=st.floats(1e-3, 1)))
    return Quadrature(
        draw(arrays.arrays(float, shape, elements=nonnegative)),
        raw / raw.sum(-1, keepdims=True),
        draw(arrays.arrays(float, shape[0], elements=nonnegative)),
        draw(arrays.arrays(bool, shape)),
    )


@st.composite
def curves(draw):
    log_s = np.unique(draw(arrays.arrays(float, st.integers(0, 6), elements=finite)))
    steps = draw(arrays.arrays(float, log_s.size, elements=st.floats(0, 1)))
    steps[:1] = 0.0
    count = draw(st.integers(1, 3))
    atoms = draw(arrays.arrays(float, count, elements=finite | st.just(-math.inf)))
    masses = draw(arrays.arrays(float, count, elements=st.floats(1e-3, 1)))
    total = steps.sum() + masses.sum()
    highest = np.concatenate([log_s, atoms]).max()
    # E[s^2k]^(1/k) rises with k, to the square of the largest s.
    gaps = np.cumsum(draw(st.lists(st.floats(0, 1e3), max_size=5)))[::-1]
    return Curve(
        log_s,
        np.cumsum(steps / total),
        draw(arrays.arrays(float, log_s.size, elements=nonnegative)),
        atoms,
        masses / total,
        tuple(float(k * (2 * highest - gap)) for k, gap in enumerate(gaps, 1)),
    )


@st.composite
def extremes_of(draw, distribution):
    """Extremes that this distribution may have: found in its nodes, or anything at all of a prediction."""
    residual = nonnegative | st.just(math.inf)
    if isinstance(distribution, Quadrature):
        inputs = distribution.nodes.shape[0]
        found = np.sort(distribution.nodes.reshape(inputs, -1), axis=1)
        top, bottom = found[:, ::-1][:, : draw(st.integers(1, 3))].copy(), found[:, 0]
        top[0, 1:] = math.nan
    else:
        inputs, top, bottom = 1, draw(arrays.arrays(float, (1, 1), elements=nonnegative)), np.zeros(1)
    bottom_residual = draw(arrays.arrays(float, inputs, elements=residual))
    return Extremes(
        top,
        draw(arrays.arrays(float, top.shape, elements=residual)),
        bottom,
        bottom_residual,
        draw(arrays.arrays(bool, inputs)) & np.isfinite(bottom_residual),
    )


@st.composite
def spectra(draw):
    distribution = draw(quadratures() | curves())
    extremes = draw(st.none() | extremes_of(distribution))
    return Spectrum(
        distribution,
        method=draw(st.sampled_from(["lanczos", "Ω method"])),
        shape=draw(st.none() | st.tuples(st.integers(1, 10**9), st.integers(1, 10**9))),
        extremes=extremes,
        name="any",
        products=draw(st.integers(0, 2**60)),
        seconds=draw(st.floats(0, allow_infinity=False)),
        provenance=draw(st.dictionaries(st.text(max_size=8), plain, max_size=6)),
    )


counter = itertools.count()


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(spectrum=spectra())
def test_any_spectrum_comes_back_bit_for_bit(spectrum, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"any-{next(counter)}.h5"
    store = open_store(path, "a")
    store.add(spectrum)
    assert_same(spectrum, store["any"])
    assert store.validate() == []
    path.unlink()


# ---- names, order, replacing, removing ----------------------------------------------------------------


def test_a_store_lists_in_order_of_adding_and_answers_like_a_mapping(tmp_path):
    with open_store(tmp_path / "a.h5", "a") as store:
        for name in ("zeta", "alpha", "tanh, depth=100: σ_w=1.02 (a|b) [2]"):
            assert store.add(measured(), name=name) == name
        assert store.names() == list(store) == ["zeta", "alpha", "tanh, depth=100: σ_w=1.02 (a|b) [2]"]
        assert len(store) == 3
        assert "alpha" in store
        assert "beta" not in store
        assert "zeta/nodes" not in store
        assert store["alpha"].name == "alpha"
        store.remove("zeta")
        assert store.names() == ["alpha", "tanh, depth=100: σ_w=1.02 (a|b) [2]"]
        assert store.validate() == []
    with pytest.raises(StoreError, match="was closed"):
        store.names()


def test_a_store_travels_to_other_processes(tmp_path):
    store = open_store(tmp_path / "a.h5", "a")
    store.add(measured())
    assert pickle.loads(pickle.dumps(store)).names() == ["measured"]


def test_a_taken_name_is_refused_unless_overwriting_is_asked_for(tmp_path):
    store = open_store(tmp_path / "a.h5", "a")
    store.add(measured(0), name="x")
    with pytest.raises(StoreError, match=r"already holds a spectrum named 'x'.*overwrite=True"):
        store.add(measured(1), name="x")
    assert_same(measured(0, name="x"), store["x"])
    store.add(predicted(), name="x", overwrite=True)
    assert store.names() == ["x"]
    assert_same(predicted("x"), store["x"])


def test_overwriting_reuses_most_of_the_space(tmp_path):
    store = open_store(tmp_path / "a.h5", "a")
    sizes = []
    for seed in range(9):
        store.add(measured(seed), name="x", overwrite=True)
        sizes.append(store.path.stat().st_size)
    # HDF5 keeps some of what is freed (about a third here); without reuse every replacement would add sizes[0].
    assert sizes[-1] - sizes[0] <= 0.5 * 8 * sizes[0]


def test_mode_w_empties_a_file_of_spectra(tmp_path):
    path = tmp_path / "a.h5"
    open_store(path, "a").add(measured())
    assert open_store(path, "a").names() == ["measured"]
    store = open_store(path, "w")
    assert store.names() == []
    store.add(predicted())
    assert open_store(path).names() == ["predicted"]


def test_info_reads_no_array(tmp_path, monkeypatch):
    store = open_store(tmp_path / "a.h5", "a")
    store.add(measured())

    def refuse(*arguments):
        raise AssertionError("a dataset was read")

    monkeypatch.setattr(h5py.Dataset, "__getitem__", refuse)
    info = store.info("measured")
    assert info | {"provenance": None, "written_by": None} == {
        "name": "measured",
        "encoding": ["spectrum-quadrature", 6],
        "kind": "measured",
        "method": "lanczos",
        "shape": [12, 7],
        "null_dimension": 5,
        "inputs": 2,
        "probes": 3,
        "products": 60,
        "seconds": 0.25,
        "written_by": None,
        "provenance": None,
    }
    assert info["provenance"] == PROVENANCE


def test_the_date_is_added_where_the_provenance_has_none(tmp_path):
    store = open_store(tmp_path / "a.h5", "a")
    store.add(Spectrum.from_singular_values([1.0]), name="x")
    assert store["x"].provenance["created"].startswith("2")


# ---- other tools --------------------------------------------------------------------------------------


def test_h5py_alone_finds_everything_described(tmp_path):
    path = tmp_path / "a.h5"
    spectrum = measured()
    open_store(path, "a").add(spectrum)
    with h5py.File(path, "r") as file:
        assert file.attrs["format"] == "isometry-spectra"
        assert file.attrs["schema_version"] == 1
        group = file["spectra/measured"]
        assert group.attrs["kind"] == "measured"
        assert group.attrs["seed"] == 7
        assert group.attrs["torch_version"] == "2.13.0"
        assert list(group.attrs["shape"]) == [12, 7]
        for name, dataset in group.items():
            if name not in ("input", "probe", "node"):  # numbers from 0 on
                assert dataset.attrs["units"]
                assert dataset.attrs["description"]
        for name in ("floor", "top", "moment", "band_lower", "summary"):
            assert name in group.attrs
            assert file["about"].attrs[name]
        assert [axis[0].name.rsplit("/", 1)[1] for axis in group["nodes"].dims] == ["input", "probe", "node"]
        s, w = group["nodes"][...], group["weights"][...]
        # Definition of the moments, computed from the file alone.
        for k, moment in zip(group.attrs["order"], group.attrs["moment"], strict=True):
            assert moment == pytest.approx((w * s ** (2 * k)).sum(-1).mean(), rel=1e-12)
        level, lower, upper = (group.attrs[key] for key in ("level", "cdf_lower", "cdf_upper"))
        # A bound around a cdf that has just reached the level.
        assert np.all(upper >= level)
        assert np.all(lower <= upper)
        assert np.all((lower >= 0) & (upper <= 1))


def test_quantiles_of_an_exact_spectrum(tmp_path):
    store = open_store(tmp_path / "a.h5", "a")
    store.add(Spectrum.from_singular_values([1.0, 2.0, 4.0]), name="x")
    with h5py.File(store.path, "r") as file:
        group = file["spectra/x"].attrs
        # Levels 0.01 .. 0.25 fall on the first of three equal masses, 0.5 on the second, the others on the third.
        assert group["quantile"] == pytest.approx([1, 1, 1, 2, 4, 4, 4], rel=1e-15)
        assert "cdf_lower" not in group


def test_moments_outside_the_range_of_floats_stand_in_log10(tmp_path):
    store = open_store(tmp_path / "a.h5", "a")
    store.add(predicted())
    with h5py.File(store.path, "r") as file:
        group = file["spectra/predicted"].attrs
        assert group["moment"][0] == math.inf
        assert group["log10_moment"][:2] == pytest.approx(np.array([1795.0, 3590.5]) / math.log(10))


@pytest.mark.parametrize("make", [measured, predicted, atoms_only, dense])
def test_xarray_opens_a_spectrum_with_named_dimensions(make, tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    spectrum = make()
    store = open_store(tmp_path / "a.h5", "a")
    store.add(spectrum)
    with xarray.open_dataset(store.path, group=f"spectra/{spectrum.name}", engine="h5netcdf") as data:
        assert not any(str(name).startswith("phony") for name in data.sizes)
        assert data.attrs["moment"].shape == data.attrs["order"].shape == (4,)
        if isinstance(spectrum.distribution, Quadrature):
            assert data["nodes"].dims == ("input", "probe", "node")
            if spectrum.name == "dense":  # longer than an attribute
                assert data["top"].dims == ("input", "rank")
                assert data["resolved"].dtype == bool
            else:
                assert data.attrs["bottom"].shape == (2,)
            # What the names are for: the mean of s^2 in one line, without knowing an axis number.
            mean_square = (data.weights * data.nodes**2).sum("node").mean(["input", "probe"])
            assert float(mean_square) == pytest.approx(spectrum.mean_square, rel=1e-12)
        else:
            assert data["cdf"].dims == ("log_s",)
            assert np.size(data.attrs["atom_mass"]) == spectrum.distribution.atom_mass.size
            assert np.array_equal(data["log_s"], spectrum.distribution.log_s)


def test_only_large_datasets_are_compressed(tmp_path):
    store = open_store(tmp_path / "a.h5", "a")
    store.add(measured())
    store.add(dense())
    with h5py.File(store.path, "r") as file:
        assert file["spectra/dense/nodes"].compression == "gzip"
        assert file["spectra/dense/nodes"].shuffle
        # 9000 truth values are 9 kB, below the 64 kB from which it pays.
        assert file["spectra/dense/resolved"].chunks is None
        assert file["spectra/measured/nodes"].chunks is None


def test_the_file_is_of_the_kind_that_hdf5_1_8_reads(tmp_path):
    """Superblock version 2, its ninth byte: version 3 ("latest") is refused by 1.8, and by all after a kill."""
    store = open_store(tmp_path / "a.h5", "a")
    store.add(measured())
    store.add(dense())
    start = store.path.read_bytes()[:12]
    assert start[:8] == b"\x89HDF\r\n\x1a\n"
    assert start[8] == 2
    # The flags of an open file, which a reader would take for a file in use.
    assert start[11] == 0


def test_h5dump_reads_the_file(tmp_path):
    if shutil.which("h5dump") is None:
        pytest.skip("h5dump is not installed: the file was not read by HDF5's own tool")
    store = open_store(tmp_path / "a.h5", "a")
    store.add(measured())
    done = subprocess.run(
        ["h5dump", "-g", "/spectra/measured", store.path], capture_output=True, text=True, check=True
    )
    assert 'DATASET "weights"' in done.stdout


def test_the_store_never_loads_torch():
    code = "import sys, isometry.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert callable(validate)
