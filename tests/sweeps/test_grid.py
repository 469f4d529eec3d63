"""From a grid to its points: what it means, and what it refuses before anything runs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweep_samples import models

from isometry.errors import SpecError
from isometry.sweeps import point_of, points_of

SMALL = {"model": "mlp", "width": 4}


def values(grid, *keys):
    return [tuple(point.values.get(key) for key in keys) for point in points_of(grid)]


def test_axes_are_multiplied_zips_walked_and_seeds_come_last(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(
        """
        kind = "measure"
        seeds = [5, 7]
        [fixed]
        model = "mlp"
        width = 4
        [axes]
        depth = [1, 2]
        [[zip]]
        init = ["orthogonal", "gaussian"]
        sigma_w = [1.0, 1.5]
        """
    )
    assert values(path, "depth", "init", "sigma_w", "seed") == [
        (depth, init, sigma_w, seed)
        for depth in (1, 2)
        for init, sigma_w in (("orthogonal", 1.0), ("gaussian", 1.5))
        for seed in (5, 7)
    ]


def test_a_range_has_both_its_ends_and_round_values():
    grid = {"fixed": SMALL, "axes": {"sigma_w": {"from": 0.9, "to": 1.1, "count": 5}}}
    assert values(grid, "sigma_w") == [(0.9,), (0.95,), (1.0,), (1.05,), (1.1,)]
    grid["axes"] = {"sigma_w": {"from": 0.01, "to": 1, "count": 3, "spacing": "log"}}
    assert values(grid, "sigma_w") == [(0.01,), (0.1,), (1.0,)]


def test_a_list_of_configurations_is_a_grid_and_repeats_count_once():
    points = points_of([{**SMALL, "depth": 2}, {**SMALL, "depth": 2, "seed": 0}, {**SMALL, "depth": 3}])
    assert [point.values["depth"] for point in points] == [2, 3]


@pytest.mark.parametrize(
    "same",
    [
        {"model": "mlp", "depth": 4, "sigma_w": 1.0},
        {"model": "mlp", "depth": 4, "sigma_w": 1},
        {"model": "mlp:depth=4", "sigma_w": np.float64(1.0)},
        {"model": "mlp:depth=4,sigma_w=1"},
        {"sigma_w": 1.0, "depth": np.int64(4), "model": "mlp", "probes": None},
        {
            "model": "mlp",
            "depth": 4,
            "sigma_w": 1.0,
            "seed": 0,
            "width": 128,
            "method": "auto",
            "eval": False,
        },
    ],
)
def test_two_ways_of_saying_one_thing_are_one_point(same):
    point = point_of({"model": "mlp", "depth": 4, "sigma_w": 1.0})
    assert point_of(same) == point
    assert point_of(same).key == point.key
    assert point_of(same).name == point.name


def test_the_key_stays_what_it_is():
    """It is in files: another key for the same configuration would compute everything again."""
    point = point_of({"model": "mlp", "depth": 4, "sigma_w": 0.1 + 0.2, "seed": 3})
    assert point.key == "10ad505c6e12b8612d66347053b42d1d5806ee76d0d2ec5cf923e606d9c77102"
    assert point.name == f"mlp depth=4, sigma_w=0.3, seed=3 [{point.key[:16]}]"


@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_different_values_have_different_keys_however_close(a, b):
    one, other = ({**SMALL, "sigma_w": value} for value in (a, b))
    assert (point_of(one).key == point_of(other).key) == (a == b)
    near = math.nextafter(a, math.inf)
    assert point_of({**SMALL, "sigma_w": near}).key != point_of(one).key


def test_the_contents_of_files_are_part_of_the_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models(tmp_path)
    configuration = {"model": "models.py:fine", "input": "4"}
    before = point_of(configuration)
    assert "models.py" in before.values["model"]
    Path("models.py").write_text(Path("models.py").read_text() + "\n# changed\n")
    after = point_of(configuration)
    assert before.values == after.values
    assert before.key != after.key


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"fixed": {**SMALL, "sigma_W": 1.0}}, "no key 'sigma_W': did you mean sigma_w"),
        ({"fixed": {**SMALL, "sigma_w": "wide"}}, "sigma_w is a number above 0; got 'wide'"),
        ({"fixed": {**SMALL, "sigma_w": math.nan}}, "sigma_w is a number above 0; got nan"),
        ({"fixed": {**SMALL, "depth": 2.5}}, "depth is a whole number of 1 or more; got 2.5"),
        ({"fixed": {**SMALL, "depth": True}}, "depth is a whole number"),
        ({"fixed": {**SMALL, "init": "ortogonal"}}, "did you mean 'orthogonal'"),
        ({"fixed": {**SMALL, "activation": "tahn"}}, "unknown activation 'tahn'"),
        ({"fixed": {**SMALL, "method": "lanzcos"}}, "did you mean 'lanczos'"),
        ({"fixed": {**SMALL, "input": "big"}}, "input is a shape such as 3x32x32"),
        ({"fixed": {**SMALL, "channels": 3}}, "no key 'channels'"),
        ({"fixed": {"depth": 3}}, "model is missing"),
        ({"fixed": {"model": "mpl"}}, "model 'mpl' is none"),
        ({"fixed": {"model": "mlp:depht=3"}}, "mlp has no setting 'depht'"),
        ({"fixed": {"model": "mlp:depth=3", "depth": 3}}, "depth is given twice"),
        ({"fixed": {"model": "mlp:seed=3"}}, "give seed as a key of its own"),
        ({"fixed": {"model": "absent.py:net", "input": "3"}}, "names the file 'absent.py'"),
        ({"fixed": {"model": "math:pi"}}, "give input"),
        ({"fixed": {"model": "math:pi", "input": "3", "width": 3}}, "a setting of the built-in networks"),
        ({"fixed": {**SMALL, "seeds": 3}}, "write it at the top"),
        ({"fixed": SMALL, "axes": {"depth": 4}}, "What has one value stands under"),
        ({"fixed": SMALL, "axes": {"depth": []}}, "the axis depth has no values"),
        ({"fixed": SMALL, "axes": {"width": [2]}}, "width is given twice"),
        ({"fixed": SMALL, "axes": {"sigma_w": {"from": 1, "to": 2}}}, "a range is"),
        ({"fixed": SMALL, "axes": {"sigma_w": {"from": 1, "till": 2, "count": 3}}}, "no key 'till'"),
        ({"fixed": SMALL, "axes": {"sigma_w": {"from": 0, "to": 2, "count": 3, "spacing": "log"}}}, "above zero"),
        ({"fixed": SMALL, "zip": [{"depth": [1, 2], "sigma_w": [1.0]}]}, "of one length"),
        ({"fixed": SMALL, "zip": {"depth": [1]}}, r"\[\[zip\]\]"),
        ({"fixd": SMALL}, "did you mean fixed"),
        ({"fixed": SMALL, "seeds": 0}, "seeds is how many"),
        ({"fixed": SMALL, "seeds": [-1]}, "seed is a whole number of 0 or more"),
        ({"kind": "mesure", "fixed": SMALL}, "kind is one of"),
        ({"kind": "predict", "fixed": {"width": 3}}, "width does not change a prediction"),
        ({"kind": "predict", "seeds": 2}, "seed does not change a prediction"),
        ({"kind": "predict", "fixed": {"init": "mirrored"}}, "init is one of"),
        ({"kind": "compare", "fixed": {**SMALL, "num_classes": 3}}, "theory = 'layers'"),
        ({"kind": "train", "fixed": {"learningrate": 0.1}}, "did you mean learning_rate"),
        ([{"model": "mlp"}, 3], "configuration 1 is a mapping"),
        ([], "has no points"),
        (7, "a grid is a TOML file"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_before_anything_runs(grid, words):
    with pytest.raises(SpecError, match=words):
        points_of(grid)


def test_a_file_that_is_no_grid_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"absent\.toml' can not be read: No such file"):
        points_of(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("depth = [1,")
    with pytest.raises(SpecError, match=r"bad\.toml is not valid TOML"):
        points_of(tmp_path / "bad.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=r"bytes\.toml is not valid TOML"):
        points_of(str(tmp_path / "bytes.toml"))


def test_names_fit_into_a_file(tmp_path):
    from isometry.store.layout import checked_name

    folder = tmp_path / ("a" * 60 + "/" + "b" * 60)
    folder.mkdir(parents=True)
    path = models(folder)
    long = point_of({"model": f"{path}:fine", "input": "4", "source": "s" * 300, "dtype": "float64"})
    assert checked_name(f"failed {long.name} evaluation")
    assert long.name.startswith("models.py:fine")
