"""`isometry predict`: closed forms, the fields of the issue, and errors by name."""

from __future__ import annotations

import math

import pytest

REQUIRED = {
    "q_star", "chi", "mean_square", "moments", "lambda_min", "lambda_max", "s_min", "s_max", "zero_mass", "atoms",
    "quantiles",
}  # fmt: skip


def test_a_product_of_gaussian_matrices_is_fuss_catalan(isometry) -> None:
    found = isometry("predict", "--activation", "linear", "--depth", "3", "--sigma-w", "1", "--json").json
    assert set(found) >= REQUIRED
    # Fuss-Catalan numbers C(4k, k) / (3k + 1), upper edge 4^4 / 3^3 (Penson and Zyczkowski 2011, arXiv 1103.3453).
    expected = [math.comb(4 * k, k) / (3 * k + 1) for k in range(1, 7)]
    assert found["moments"] == pytest.approx(expected, rel=1e-8)
    assert found["lambda_max"] == pytest.approx(256 / 27, rel=1e-8)
    assert found["s_max"] == pytest.approx(math.sqrt(256 / 27), rel=1e-8)
    assert found["lambda_min"] == 0.0
    assert found["chi"] == pytest.approx(1.0)
    assert set(found["quantiles"]) == {"0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99"}


def test_a_dead_half_is_an_atom_at_zero(isometry) -> None:
    found = isometry(
        "predict",
        "--activation",
        "relu",
        "--depth",
        "1",
        "--weights",
        "orthogonal",
        "--sigma-w",
        "1.5",
        "--json",
    ).json
    # One orthogonal ReLU layer: half of the singular values are sigma_w, half are zero.
    assert found["zero_mass"] == pytest.approx(0.5, abs=1e-12)
    assert sorted(found["atoms"]) == [pytest.approx([0.0, 0.5]), pytest.approx([1.5, 0.5])]
    assert found["s_max"] == pytest.approx(1.5, rel=1e-12)


def test_the_critical_line_and_the_prediction_agree(isometry) -> None:
    point = isometry("critical", "--activation", "tanh", "--q-star", "0.3", "--json").json
    arguments = ("predict", "--activation", "tanh", "--depth", "5", "--weights", "orthogonal", "--json")
    by_q = isometry(*arguments, "--q-star", "0.3").json
    by_sigma = isometry(*arguments, "--sigma-w", point["sigma_w"], "--sigma-b", point["sigma_b"]).json
    assert by_q["chi"] == pytest.approx(1.0, rel=1e-12)
    assert by_q["mean_square"] == pytest.approx(1.0, rel=1e-9)
    # sigma_w goes through text: 16 digits; q* follows from it with an error amplified by 1 / (1 - q-map slope) ~ 10.
    assert by_sigma["q_star"] == pytest.approx(0.3, rel=1e-12)
    assert by_sigma["s_max"] == pytest.approx(by_q["s_max"], rel=1e-9)


def test_numbers_below_the_range_of_floats_stand_as_powers_of_ten(isometry) -> None:
    found = isometry(
        "predict", "--activation", "linear", "--depth", "4000", "--sigma-w", "0.5", "--json"
    ).json
    # E s^2 = 0.25^4000 = 10^-2408.2.
    assert found["log10_moments"][0] == pytest.approx(4000 * math.log10(0.25), rel=1e-9)
    assert found["moments"][0] is None
    assert found["s_max"] is None
    assert found["log10_s_max"] < -1000


def test_widths_mixed_laws_and_a_residual_branch(isometry) -> None:
    found = isometry(
        "predict", "--activation", "linear", "--depth", "1", "--widths", "100,400", "--sigma-w", "1", "--json"
    ).json
    # Marchenko-Pastur, W is 400 x 100 with variance 1/100: lambda in (1 +- sqrt(4))^2 = [1, 9].
    assert (found["lambda_min"], found["lambda_max"]) == (
        pytest.approx(1, rel=1e-8),
        pytest.approx(9, rel=1e-8),
    )
    assert found["shape"] == [400, 100]
    mixed = ("--activation", "tanh", "--depth", "2", "--weights", "gaussian,orthogonal", "--q-star", "0.1")
    assert isometry("predict", *mixed, "--json").json["mean_square"] == pytest.approx(1.0, rel=1e-9)
    residual = ("--activation", "linear", "--depth", "50", "--residual", "0.1", "--sigma-w", "1")
    assert isometry("predict", *residual).code == 0


def test_a_prediction_is_stored_drawn_and_reported(isometry, tmp_path) -> None:
    file, png = tmp_path / "p.h5", tmp_path / "p.png"
    arguments = (
        "predict",
        "--activation",
        "hard_tanh",
        "--depth",
        "3",
        "--q-star",
        "0.5",
        "-o",
        file,
        "--png",
        png,
    )
    assert isometry(*arguments, "--name", "theory").code == 0
    assert png.stat().st_size > 1000
    assert isometry(*arguments, "--name", "theory").code == 1
    stored = isometry("show", file, "theory", "--json").json
    assert stored["kind"] == "predicted"
    text = isometry("report", file).out
    assert "infinite width" in text


def test_a_threshold(isometry) -> None:
    arguments = (
        "predict",
        "--activation",
        "linear",
        "--depth",
        "9",
        "--weights",
        "orthogonal",
        "--require-isometry",
        "1",
    )
    assert isometry(*arguments, "--sigma-w", "1").code == 0
    assert isometry(*arguments, "--sigma-w", "0.5").code == 3


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ("--activation tanh", 2, "--depth"),
        ("--activation tanh --depth 0 --q-star 1", 2, "--depth"),
        ("--activation tanh --depth 2 --sigma-b 0.1", 2, "sigma_w"),
        ("--activation tanh --depth 2 --q-star 1 --weights magic", 2, "magic"),
        ("--activation tanh --depth 2 --q-star 1 --widths 3,x", 2, "N_0"),
        ("--activation tanh --depth 2 --q-star 1 --widths 3,4", 2, "widths"),
        ("--activation magic --depth 2 --q-star 1", 1, "tanh"),
        ("--activation sigmoid --depth 2 --q-star 0.01", 1, "no critical point"),
    ],
)
def test_bad_input_is_named(isometry, options: str, code: int, words: str) -> None:
    done = isometry("predict", *options.split(), "--json")
    assert done.code == code
    assert words in done.err
    assert done.out == ""
