"""From rows to curves: seeds averaged with their error, theory beside them, mixtures refused."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

import isometry
from isometry.errors import SpecError
from isometry.report.curves import Curve, plot_curves
from isometry.sweeps.picture import picture_of
from isometry.sweeps.rows import Row, rows_of


@pytest.fixture(scope="module")
def store(tmp_path_factory, few_networks):
    """Linear networks of width 4: two depths, two laws, three seeds; compared, so that their laws are in the file."""
    path = tmp_path_factory.mktemp("picture") / "a.h5"
    grid = {
        "kind": "compare", "seeds": 3, "fixed": {"model": "mlp", "width": 4, "activation": "linear", "sigma_w": 1.0},
        "axes": {"depth": [1, 2], "init": ["gaussian", "orthogonal"]},
    }  # fmt: skip
    with ThreadPoolExecutor(1) as threads:
        isometry.sweep(grid, path, executor=threads, progress=False)
    return isometry.open_store(path)


def test_seeds_are_averaged_with_the_standard_error_and_theory_stands_beside(store):
    rows = rows_of(store)
    picture = picture_of(rows, store, "depth", "s_max", hue="init")
    assert [curve.label for curve in picture.curves] == ["init = gaussian", "init = orthogonal"]
    gaussian, orthogonal = picture.curves
    values = [row.get("s_max") for row in rows if row.get("depth") == 2 and row.get("init") == "gaussian"]
    assert len(values) == 3
    assert gaussian.x.tolist() == gaussian.law_x.tolist() == [1, 2]
    assert gaussian.y[1] == pytest.approx(np.mean(values))
    assert gaussian.error[1] == pytest.approx(np.std(values, ddof=1) / math.sqrt(3))
    # The largest singular value of a product of L Ginibre matrices: s_max^2 = (L+1)^(L+1) / L^L; 4 and 27/4.
    np.testing.assert_allclose(gaussian.law_y, [2.0, math.sqrt(27 / 4)], rtol=1e-5)
    np.testing.assert_allclose(orthogonal.law_y, 1.0, rtol=1e-9)
    np.testing.assert_allclose(orthogonal.y, 1.0, rtol=1e-5)
    assert picture.note == "± standard error over 3 seeds"
    assert picture.left_out == 0
    assert not len(picture_of(rows, store, "depth", "s_max", hue="init", theory=False).curves[0].law_x)


def test_what_would_fall_on_one_place_is_refused(store):
    rows = rows_of(store)
    with pytest.raises(SpecError, match=r"differ in init too.*--hue init"):
        picture_of(rows, store, "depth", "s_max")
    with pytest.raises(SpecError, match="did you mean depth"):
        picture_of(rows, store, "depht", "s_max")
    with pytest.raises(SpecError, match="holds no numbers"):
        picture_of(rows, store, "depth", "verdict", hue="init")


def test_settings_that_are_words_are_categories_and_results_along_x_are_single_points(store):
    rows = [row for row in rows_of(store) if row.get("depth") == 1]
    picture = picture_of(rows, store, "init", "mean_square")
    assert picture.categories == ("gaussian", "orthogonal")
    assert picture.curves[0].x.tolist() == [0, 1]
    loose = picture_of(rows, store, "mean_square", "s_max", hue="init")
    assert len(loose.curves[0].x) == 3
    assert not loose.curves[0].joined
    assert not len(loose.curves[0].law_x)


def test_a_single_result_brings_its_own_error_and_predictions_are_lines(store):
    measured = [
        Row(f"m{depth}", "measure", {"depth": depth}, {"mean_square": 1.0, "mean_square_stderr": 0.1})
        for depth in (1, 2)
    ]
    predicted = [Row(f"p{depth}", "predict", {"depth": depth}, {"mean_square": 2.0}) for depth in (1, 2, 3)]
    unknown = [Row("u", "measure", {"depth": 9}, {"mean_square": None})]
    picture = picture_of(measured + predicted + unknown, store, "depth", "mean_square")
    (curve,) = picture.curves
    assert curve.error.tolist() == [0.1, 0.1]
    assert curve.law_x.tolist() == [1, 2, 3]
    assert picture.left_out == 1
    assert picture.note == "± standard error over probes"


def curve(x, y, **options):
    return Curve("c", np.array(x, float), np.array(y, float), np.full(len(x), 0.1), **options)


@pytest.mark.parametrize(
    ("x", "y", "scales"),
    [
        ([1, 2, 4, 8], [1, 2, 3, 4], ("log", "linear")),
        ([1, 2, 3, 4], [1, 2, 3, 400], ("linear", "log")),
        ([0, 10, 1000], [-1, 2, 300], ("linear", "linear")),
        ([10, 300], [1, 1], ("log", "linear")),
    ],
)
def test_axes_are_logarithmic_where_that_suits_the_values(x, y, scales):
    ax = plot_curves([curve(x, y)], x_label="x $y", y_label="<y>")
    assert (ax.get_xscale(), ax.get_yscale()) == scales
    ax.figure.canvas.draw()
    ax = plot_curves([curve(x, y)], log_x=False, log_y=False)
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "linear")


def test_the_values_that_were_swept_are_the_ticks():
    ax = plot_curves([curve([1, 2, 4, 8], [1, 1, 1, 1])])
    ax.figure.canvas.draw()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "4", "8"]


def test_a_setting_beyond_all_floats_is_a_word(tmp_path):
    """JSON knows no largest number."""
    store = isometry.open_store(tmp_path / "a.h5", "a")
    for name, seed in (("a", 10**4000), ("b", 1)):
        made = isometry.Spectrum.from_singular_values([1.0, 2.0], name=name)
        store.add(replace(made, provenance={"seed": seed}))
    rows = rows_of(store)
    assert [row.name for row in rows] == ["b", "a"]
    assert picture_of(rows, store, "seed", "s_max").categories == ("1", str(10**4000))


def test_what_has_no_points_is_an_error():
    with pytest.raises(isometry.errors.InputError, match="nothing to draw"):
        plot_curves([curve([], [])])
