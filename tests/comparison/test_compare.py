"""Distances against values known by hand, and verdicts that mean something."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from isometry.comparison import Comparison, compare
from isometry.comparison.distances import kolmogorov_smirnov, spread_integral, wasserstein
from isometry.comparison.error_band import error_band
from isometry.comparison.replicas import golub_kahan, network_width
from isometry.errors import InputError
from isometry.spectrum import Curve, Quadrature, Spectrum
from isometry.theory import Ensemble, predict
from isometry.theory.finitewidth import spread
from isometry.theory.finitewidth.sampling import sample
from isometry.theory.finitewidth.slope_chain import layers_of
from isometry.theory.finitewidth.spread import log_mean


def spectrum(values, **options):
    return Spectrum.from_singular_values(values, **options)


def uniform_curve(low=0.5, high=1.5, points=4000):
    """The uniform law of s on [low, high] as a prediction."""
    s = np.linspace(low, high, points)
    return Spectrum(
        Curve(np.log(s), (s - low) / (high - low), s / (high - low), np.empty(0), np.empty(0)),
        method="predicted",
    )


# ---- distances ------------------------------------------------------------------------------------------


def test_ks_of_a_sample_and_a_curve_looks_at_both_sides_of_every_step():
    # Steps of 1/4 at s = 0.6, 1.2, 1.4, 1.45 against F(s) = s - 1/2: just below s = 1.2 the curve is at 0.7 and
    # the sample at 1/4.
    found = kolmogorov_smirnov(spectrum([0.6, 1.2, 1.4, 1.45]).distribution, uniform_curve().distribution)
    assert found.value == pytest.approx(0.45, abs=1e-9)
    assert found.sign == -1
    assert math.exp(found.log_s) == pytest.approx(1.2, rel=1e-9)


def test_ks_does_not_depend_on_the_order():
    a, b = spectrum([0.6, 1.2, 1.4, 1.45]).distribution, uniform_curve().distribution
    assert kolmogorov_smirnov(a, b).value == pytest.approx(kolmogorov_smirnov(b, a).value, abs=1e-12)


def test_atoms_apart_by_rounding_are_no_distance_apart():
    first, second = spectrum([1.0, 2.0]), spectrum([1.0 + 1e-7, 2.0 - 1e-7])
    assert kolmogorov_smirnov(first.distribution, second.distribution).value == 0.5
    assert kolmogorov_smirnov(first.distribution, second.distribution, tolerance=1e-6).value == 0.0
    assert compare(second, first, width=1e6).raw.ks == 0.0


def test_atoms_apart_by_more_than_the_tolerance_are_apart():
    first, second = spectrum([1.0, 2.0]), spectrum([1.001, 2.0])
    assert kolmogorov_smirnov(first.distribution, second.distribution, tolerance=1e-6).value == 0.5


def test_ks_counts_what_lies_below_the_floor_as_one_mass():
    # Numerical zeros 1e-17 and 1e-16 are told apart without a floor, and are one mass with it.
    first, second = spectrum([1e-17, 1.0, 2.0]), spectrum([1e-16, 1.0, 2.0])
    assert kolmogorov_smirnov(first.distribution, second.distribution).value == pytest.approx(1 / 3)
    floor = math.log(1e-12)
    assert kolmogorov_smirnov(first.distribution, second.distribution, log_floor=floor).value == 0.0
    third = spectrum([0.5, 1.0, 2.0])
    below = kolmogorov_smirnov(first.distribution, third.distribution, log_floor=floor)
    assert below.value == pytest.approx(1 / 3)


def test_wasserstein_is_the_mean_distance_of_sorted_values():
    rng = np.random.default_rng(0)
    a, b = np.sort(rng.uniform(0.1, 2, 40)), np.sort(rng.uniform(0.1, 2, 40))
    first, second = spectrum(a).distribution, spectrum(b).distribution
    in_s = wasserstein(first, second, log_floor=-math.inf, log_unit=math.log(2.0))
    assert in_s == pytest.approx(np.abs(a - b).mean() / 2, rel=1e-12)
    in_log = wasserstein(first, second, log_floor=math.log(1e-3))
    assert in_log == pytest.approx(np.abs(np.log10(a / b)).mean(), rel=1e-12)


def test_wasserstein_moves_everything_below_the_floor_to_the_floor():
    first, second = spectrum([1e-9, 1.0]).distribution, spectrum([0.0, 1.0]).distribution
    assert wasserstein(first, second, log_floor=math.log(1e-3)) == 0.0
    assert wasserstein(first, second, log_floor=math.log(1e-12)) == pytest.approx(1.5, rel=1e-12)
    assert wasserstein(first, second, log_floor=-math.inf) == math.inf
    # In s the zero is a place like any other.
    assert wasserstein(first, second, log_floor=-math.inf, log_unit=0.0) == pytest.approx(0.5e-9, rel=1e-9)


def test_spread_integral_is_the_standard_deviation_of_a_two_point_law():
    # F = 1/2 between 1 and 3: the integral of sqrt(F (1 - F)) ds is 1/2 * 2.
    law = spectrum([1.0, 3.0]).distribution
    assert spread_integral(law, log_floor=-math.inf, log_unit=0.0) == pytest.approx(1.0, rel=1e-12)


# ---- compare --------------------------------------------------------------------------------------------


def test_moment_ratios_raw_and_in_shape():
    measured, predicted = spectrum([2.0, 4.0]), spectrum([1.0, 3.0])
    found = compare(measured, predicted)
    assert found.raw.moment_ratios[0] == pytest.approx(20 / 10, rel=1e-12)
    assert found.raw.moment_ratios[1] == pytest.approx((16 + 256) / (1 + 81), rel=1e-12)
    assert found.shape.moment_ratios[0] == pytest.approx(1.0, rel=1e-12)
    assert found.shape.moment_ratios[1] == pytest.approx((272 / 82) / 4, rel=1e-12)


def test_a_scaled_spectrum_agrees_in_shape_only():
    law = uniform_curve()
    sample = spectrum(law.quantile((np.arange(400) + 0.5) / 400))
    assert compare(sample, law).agrees is True
    found = compare(sample.scaled(1.5), law)
    assert found.agrees is False
    assert found.agrees_in_shape is True
    assert "shape only" in found.verdict()
    assert found.shape.ks == pytest.approx(compare(sample, law).raw.ks, abs=2e-3)


def test_a_law_without_spread_allows_rounding_in_the_mean_square():
    # An isometry at infinite width is an atom: its mean square may differ by rounding, and by nothing else.
    law = spectrum(np.ones(100))
    assert compare(spectrum(np.full(100, 1 + 3e-7)), law).agrees is True
    assert compare(spectrum(np.full(100, 1 + 1e-4)), law).agrees is False


def test_a_mean_square_that_chance_moves_is_not_held_against_a_narrow_law_twice(monkeypatch):
    # All of a nearly isometric law is moved by the input's own mean square: raw a draw and the law may hardly overlap.
    monkeypatch.setattr(spread, "MOST_DRAWS", 40)
    ensemble = Ensemble("tanh", 16, "orthogonal", q_star=0.02)
    law = predict(ensemble)
    # Of eight networks the one whose mean square is farthest off; its shape is off with it, as its slopes have it.
    draws = [one.log_values for one in sample(ensemble, 40, 8, seed=9)]
    draw = max(draws, key=lambda values: abs(log_mean(values) - law.distribution.log_moment(2)))
    found = compare(spectrum(np.exp(draw)), law, width=40)
    assert found.raw.ks > 2 * found.shape.ks
    assert found.agrees is True
    far = compare(spectrum(np.exp(draw + 1.0)), law, width=40)
    assert far.agrees is False
    assert far.agrees_in_shape is True
    assert "shape only" in far.verdict()


def test_edges_come_with_their_residual_and_their_ratio():
    found = compare(spectrum([0.5, 1.0, 2.2]), spectrum([0.4, 1.0, 2.0]))
    assert (found.s_max.measured, found.s_max.predicted) == (2.2, 2.0)
    assert found.s_max.log_ratio == pytest.approx(math.log(1.1), rel=1e-12)
    assert found.s_min.log_ratio == pytest.approx(math.log(1.25), rel=1e-12)
    assert 0 < found.s_max.residual < 1e-13


def test_numbers_outside_the_range_of_floats_are_compared_in_logs():
    law = uniform_curve().log_shifted(-900.0)
    found = compare(law.log_shifted(0.0), law, width=100)
    assert found.raw.ks == 0.0
    assert found.raw.log_moment_ratios[0] == pytest.approx(0.0, abs=1e-12)
    assert found.agrees is True


def test_a_comparison_survives_json():
    measured = spectrum([0.0, 1.0, 1.0], floor=1e-12)
    content = json.loads(json.dumps(compare(measured, spectrum([0.0, 0.9, 1.2])).to_dict(), allow_nan=False))
    assert content["agrees"] is None
    assert content["p"]["distance"] is not None
    assert content["raw"]["ks"] == pytest.approx(1 / 3)
    assert content["s_min"]["measured"] is None
    assert set(content["raw"]["moment_ratios"]) == {"m1", "m2", "m3", "m4"}


def test_the_predicted_cdf_inside_the_measured_band():
    """A quadrature of a uniform law: the law itself is inside its band everywhere, one far off nearly nowhere."""
    x, w = np.polynomial.legendre.leggauss(12)
    nodes = 1 + x / 2
    measured = Spectrum(
        Quadrature(nodes[None, None], w[None, None] / 2, np.zeros(1), np.zeros((1, 1, 12), bool)),
        "lanczos",
        (5000, 5000),
    )
    found = compare(measured, uniform_curve())
    assert found.inside_band == 1.0
    assert found.to_dict()["inside_band"] == 1.0
    assert "inside the 95 % band of the measured one at 100 % of s" in str(found)
    assert compare(measured, uniform_curve(0.9, 1.9)).inside_band < 0.1
    exact = compare(spectrum([1.0, 2.0]), uniform_curve())
    assert math.isnan(exact.inside_band)
    assert "band of the measured" not in str(exact)


def test_the_summary_says_verdict_and_width():
    text = str(compare(spectrum(np.linspace(0.5, 1.5, 100)), uniform_curve()))
    assert "agrees: KS" in text
    assert "width 100" in text
    assert "s_max ratio" in text


@pytest.mark.parametrize(
    ("options", "word"),
    [({"width": 0}, "width"), ({"floor": -1.0}, "floor"), ({"tolerance": math.nan}, "tolerance")],
)
def test_bad_options_are_named(options, word):
    with pytest.raises(InputError, match=word):
        compare(spectrum([1.0]), spectrum([1.0]), **options)


def test_what_is_no_spectrum_is_named():
    with pytest.raises(InputError, match="predicted is a Spectrum"):
        compare(spectrum([1.0]), [1.0])


def test_plot_draws_both_spectra(tmp_path):
    found = compare(spectrum(np.linspace(0.5, 1.5, 100), name="sample"), uniform_curve())
    figure = found.plot()
    above, below = figure.axes
    assert above.get_legend().get_texts()[0].get_text() == "sample"
    assert found.plot(ax=below) is below


# ---- width and probes -----------------------------------------------------------------------------------


def test_width_comes_from_the_record_before_the_shape():
    ensemble = {"activation": "tanh", "depth": 4, "widths": None}
    plain = Spectrum.from_singular_values(np.ones(768), shape=(768, 768))
    law = uniform_curve()

    def recorded(**provenance):
        return Spectrum(plain.distribution, method="exact", shape=plain.shape, provenance=provenance)

    assert network_width(plain, law) == 768
    assert network_width(recorded(ensemble=ensemble, channels=12), law) == 12
    assert network_width(recorded(channels=12), law) == 768
    assert network_width(recorded(ensemble=ensemble, input="(12, 8, 8) float32"), law) == 768
    assert network_width(recorded(ensemble={**ensemble, "widths": [768, 90, 300]}), law) == 90
    assert network_width(law, law) == math.inf


def probed(values, probes, rng):
    """A spectrum as `probes` random vectors see it: every singular value with a chi-square mass."""
    weights = rng.standard_normal((1, probes, len(values))) ** 2
    weights /= weights.sum(axis=-1, keepdims=True)
    nodes = np.broadcast_to(values, weights.shape).copy()
    return Spectrum(
        Quadrature(nodes, weights, np.zeros(1), np.ones(weights.shape, bool)),
        method="lanczos",
        shape=(len(values), len(values)),
    )


def test_probe_error_is_not_held_against_a_spectrum():
    # Two measurements of one network differ by their probes alone: width = inf. One in twenty
    # disagrees by chance, so that at least 17 of 20 must agree (fewer do once in sixty tries; seeded).
    rng = np.random.default_rng(1)
    values = np.linspace(0.2, 2.0, 60)
    exact = spectrum(values)
    found = [compare(probed(values, 12, rng), exact, width=math.inf) for _ in range(20)]
    assert sum(bool(one.agrees) for one in found) >= 17
    # Without the error band none would: the distance itself is a few percent.
    assert min(one.raw.ks for one in found) > 0.01
    wrong = compare(probed(1.3 * values, 12, rng), exact, width=math.inf)
    assert wrong.agrees is False


def test_one_probe_alone_has_an_error_too():
    """From the law of the probes: a spectrum of its own law agrees, one of twice the size does not."""
    rng = np.random.default_rng(2)
    values = np.linspace(0.2, 2.0, 60)
    assert compare(probed(values, 1, rng), spectrum(values), width=math.inf).agrees is True
    assert compare(probed(2 * values, 1, rng), spectrum(values), width=math.inf).agrees is False


def test_few_values_and_few_nodes_cannot_tell():
    rule = Spectrum(
        Quadrature(np.full((1, 1, 1), 1.2), np.ones((1, 1, 1)), np.zeros(1), np.zeros((1, 1, 1), bool)),
        method="lanczos",
        shape=(60, 60),
    )
    for found in (
        compare(rule, spectrum(np.linspace(0.2, 2.0, 60)), width=math.inf),
        compare(spectrum([0.9, 1.3]), uniform_curve()),
    ):
        assert found.agrees is None
        assert "cannot tell" in found.verdict()
        assert found.to_dict()["agrees"] is None
    # What no chance explains is told by few values, too.
    assert compare(spectrum([60.0, 90.0, 110.0, 130.0]), uniform_curve()).agrees is False


def test_an_unknown_width_cannot_tell():
    law = uniform_curve()
    found = compare(law, law, width=None)
    assert found.agrees is True  # two laws: no chance between them
    unknown = Spectrum(
        Quadrature(np.ones((1, 1, 1)), np.ones((1, 1, 1)), np.zeros(1), np.ones((1, 1, 1), bool)), "own"
    )
    assert compare(unknown, law).agrees is None


def test_the_error_band_holds_the_bounds_of_a_gauss_rule():
    # One row, two Gauss nodes with masses 1/4 and 3/4: between them the cdf is anywhere in [0, 1], and chance on top:
    # three standard errors sqrt(2 F (1 - F) / (2 + 2)) of F = 1/4.
    nodes, weights = np.array([[[1.0, 2.0]]]), np.array([[[0.25, 0.75]]])
    rule = Spectrum(Quadrature(nodes, weights, np.zeros(1), np.zeros(nodes.shape, bool)), method="lanczos")
    down, up = error_band(rule, np.log([0.5, 1.5, 2.5]))
    chance = 3 * math.sqrt(2 * 0.25 * 0.75 / 4)
    np.testing.assert_allclose(down, chance + np.array([0.0, 0.25, 0.75]))
    np.testing.assert_allclose(up, chance + np.array([0.25, 0.75, 0.0]))


# ---- right and wrong ensembles --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tanh_draws():
    """An ensemble, its law, and sixteen networks of width 80 that no replica holds."""
    ensemble = Ensemble("tanh", 6, "orthogonal", q_star=0.2)
    draws = [one.log_values for one in sample(ensemble, 80, 16, seed=77)]
    return ensemble, predict(ensemble), [spectrum(np.exp(values)) for values in draws]


def test_draws_of_the_right_ensemble_agree_and_their_p_values_are_spread(tanh_draws):
    _, law, draws = tanh_draws
    found = [compare(draw, law) for draw in draws]
    # Of 16 right networks more than four disagree once in a thousand tries.
    assert sum(one.agrees is False for one in found) <= 4
    for p in zip(*((one.p.distance, one.p.mean_square, one.p.edges) for one in found), strict=True):
        assert 0.25 < np.mean(p) < 0.75
    assert "networks drawn at this width" in str(found[0])


@pytest.mark.parametrize(
    "wrong",
    [
        Ensemble("tanh", 6, "orthogonal", q_star=0.4),
        Ensemble("tanh", 6, "orthogonal", q_star=0.1),
        Ensemble("tanh", 6, "gaussian", q_star=0.2),
        Ensemble("tanh", 12, "orthogonal", q_star=0.2),
        Ensemble("hard_tanh", 6, "orthogonal", q_star=0.2),
    ],
    ids=lambda one: f"{one.activation} {one.weights} {one.depth} {one.q_star}",
)
def test_draws_disagree_with_a_wrong_ensemble(tanh_draws, wrong, monkeypatch):
    monkeypatch.setattr(spread, "MOST_DRAWS", 60)
    law = predict(wrong)
    found = [compare(draw, law) for draw in tanh_draws[2][:3]]
    assert [one.agrees for one in found] == [False] * 3
    assert all(isinstance(one, Comparison) and one.verdict().startswith("disagrees") for one in found)


def test_the_power_that_is_reported_is_the_power_there_is(tanh_draws):
    ensemble, law, draws = tanh_draws
    reported = compare(draws[0], law).power
    assert {"sigma_w +3 %", "sigma_w -3 %", "depth +25 %", "q* x 2", "hard_tanh"} <= set(reported)
    variances = layers_of(ensemble)
    sigma_w, sigma_b = 1.03 * math.sqrt(variances.sigma_w2[0]), math.sqrt(variances.sigma_b2[0])
    wrong = Ensemble("tanh", 6, "orthogonal", sigma_w=sigma_w, sigma_b=sigma_b, q0=0.2 * 1.03**2)
    others = [spectrum(np.exp(one.log_values)) for one in sample(wrong, 80, 12, seed=78)]
    told = np.mean([compare(other, law).agrees is False for other in others])
    assert told == pytest.approx(reported["sigma_w +3 %"], abs=0.35)


def test_two_measurements_of_an_ensemble_are_held_to_two_draws(tanh_draws):
    ensemble, _, draws = tanh_draws
    record = {"ensemble": ensemble.to_dict()}
    recorded = [replace(draw, provenance=record) for draw in draws]
    found = [compare(one, two) for one, two in zip(recorded[:6], recorded[10:16], strict=True)]
    assert sum(one.agrees is False for one in found) <= 2
    assert compare(recorded[0], recorded[1].scaled(1.5)).agrees is False
    # As one network measured twice they differ.
    assert compare(recorded[0], recorded[1], width=math.inf).agrees is False


def test_probes_are_drawn_as_the_measurement_drew_them(tanh_draws, monkeypatch):
    monkeypatch.setattr(spread, "MOST_DRAWS", 60)
    _, law, draws = tanh_draws
    rng = np.random.default_rng(5)
    found = []
    for draw in draws[:6]:
        s = draw.singular_values[::-1]
        start = rng.standard_normal((3, s.size))
        nodes, weights = golub_kahan(s, start / np.linalg.norm(start, axis=1, keepdims=True), 8)
        rule = Quadrature(nodes[None], weights[None], np.zeros(1), np.zeros((1, 3, 8), bool))
        found.append(compare(Spectrum(rule, "lanczos", (80, 80)), law, width=80))
    assert sum(one.agrees is False for one in found) <= 2
    # Three probes know less than all values do.
    assert found[0].critical_distance > 1.5 * compare(draws[0], law).critical_distance
