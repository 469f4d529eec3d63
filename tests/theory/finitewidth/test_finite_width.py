"""How far networks of finite width stray: closed forms against published ones and against draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import digamma, polygamma

from isometry import predict
from isometry.errors import InputError
from isometry.theory import Ensemble
from isometry.theory.activations import get_activation
from isometry.theory.finitewidth import finite_width, sampling
from isometry.theory.finitewidth import spread as home
from isometry.theory.finitewidth.response import responses
from isometry.theory.finitewidth.sampling import Kernel, sample, sample_chain
from isometry.theory.finitewidth.slope_chain import layers_of, log_mean_square, log_signal_value
from isometry.theory.finitewidth.spread import log_mean


def drawn(ensemble, width, draws, **options):
    return [one.log_values for one in sample(ensemble, width, draws, **options)]


@pytest.mark.parametrize(
    ("activation", "factor"), [("relu", 5.0), ("linear", 2.0), ("leaky_relu(0.5)", None)]
)
def test_one_direction_of_a_piecewise_linear_gaussian_network(activation, factor):
    # Hanin and Nica 2018: Var ln|Ju|^2 = L/N (3 mu_2/mu_1^2 - 1), and the mean is minus half of it.
    if factor is None:
        mu_1, mu_2 = 0.5 * (1 + 0.25), 0.5 * (1 + 0.0625)
        factor = 3 * mu_2 / mu_1**2 - 1
    found = log_mean_square(Ensemble(activation, 7, sigma_w=1.0), (1000,) * 8, one_direction=True)
    # tau leaves one by O(L/N).
    assert found.std**2 == pytest.approx(factor * 7 / 1000, rel=0.03)
    assert found.mean == pytest.approx(-0.5 * found.std**2, rel=1e-9)


@pytest.mark.parametrize(
    ("activation", "weights", "q", "depth", "width"),
    [
        ("tanh", "gaussian", 0.5, 6, 50),
        ("tanh", "orthogonal", 0.2, 6, 50),
        ("relu", "orthogonal", 1.0, 4, 50),
        ("hard_tanh", "gaussian", 0.3, 4, 50),
    ],
)
def test_mean_and_spread_of_the_mean_square_are_those_of_draws(activation, weights, q, depth, width):
    ensemble = Ensemble(activation, depth, weights, q_star=q)
    law = predict(ensemble).distribution.log_moment(2)
    values = log_mean(np.array(drawn(ensemble, width, 150))) - law
    found = log_mean_square(ensemble, (width,) * (depth + 1))
    # A standard deviation of 150 draws is known to 6 %; the theory to a relative O(L/N) = 12 %.
    assert found.std == pytest.approx(values.std(), rel=0.25)
    assert abs(found.mean - values.mean()) < 3.5 * values.std() / math.sqrt(150) + 0.02


def test_widths_that_differ_and_a_residual_branch():
    ensemble = Ensemble("relu", 3, sigma_w=math.sqrt(2), widths=(40, 80, 60, 50))
    values = log_mean(np.array(drawn(ensemble, None, 200))) - predict(ensemble).distribution.log_moment(2)
    found = log_mean_square(ensemble, ensemble.widths)
    assert found.std == pytest.approx(values.std(), rel=0.2)
    assert log_mean_square(Ensemble("tanh", 3, q_star=0.1, residual=0.3), (40,) * 4) is None


@pytest.mark.parametrize(
    ("activation", "weights", "q"), [("tanh", "gaussian", 0.5), ("hard_tanh", "orthogonal", 0.9)]
)
def test_the_response_to_the_slopes_is_what_moves_the_cdf(activation, weights, q):
    ensemble, width = Ensemble(activation, 8, weights, q_star=q), 80
    curve = predict(ensemble).distribution
    places = np.asarray(curve.quantile(np.linspace(0.4, 0.8, 5)))
    (response,) = responses(curve, get_activation(activation), np.full(8, q), places).values()
    moved, explained, edge, mean = [], [], [], []
    for one in sample(ensemble, width, 40, keep_pre_activations=True):
        share = response.counts(one.pre_activations).sum(axis=0)
        explained.append(share @ response.cdf)
        moved.append(np.searchsorted(one.log_values, places, side="right") / width - curve.cdf(places))
        edge.append((2 * one.log_values[-1], share @ response.edge))
        mean.append((log_mean(one.log_values), share @ response.mean))
    rest = np.array(moved) - np.array(explained)
    # What directions add is that of rigid levels: below one level, where slopes move several.
    assert np.all(rest.std(axis=0) * width < 1.2)
    assert np.mean(rest.std(axis=0)) < 0.5 * np.mean(np.std(moved, axis=0))
    for pairs in (np.array(edge), np.array(mean)):
        assert np.corrcoef(pairs.T)[0, 1] > 0.5


def test_a_chain_without_matrices_has_the_pre_activations_of_networks():
    for weights in ("gaussian", "orthogonal"):
        ensemble = Ensemble("tanh", 5, weights, sigma_w=1.4, sigma_b=0.2, q0=0.4)
        chain = np.array([np.mean(h**2, axis=1) for h in sample_chain(ensemble, 30, 200)])
        full = [one.pre_activations for one in sample(ensemble, 30, 200, keep_pre_activations=True)]
        other = np.mean(np.square(full), axis=2)
        assert np.all(
            np.abs(chain.mean(0) - other.mean(0)) < 4 * (chain.std(0) + other.std(0)) / math.sqrt(200)
        )
        np.testing.assert_allclose(chain.std(0), other.std(0), rtol=0.25)
    variances = layers_of(ensemble).q
    np.testing.assert_allclose(other.mean(0), variances, rtol=0.1)


def test_wide_networks_are_told_of_from_slopes_at_their_width_and_narrower_networks(monkeypatch):
    ensemble = Ensemble("tanh", 6, "gaussian", q_star=0.3)
    curve = predict(ensemble).distribution
    direct = home._direct(ensemble, (90,) * 7, Kernel(), curve, 100, 0.0)
    monkeypatch.setattr(home, "BUDGET", 60 * home._cost(ensemble, (60,) * 7, Kernel()))
    scaled = home._scaled(ensemble, 90, 60, curve, 0.0)
    places = curve.quantile(np.linspace(0.1, 0.9, 9))
    one, two = direct.cdf_draws(places), scaled.cdf_draws(places)
    np.testing.assert_allclose(one.std(0), two.std(0), rtol=0.4)
    assert np.all(np.abs(one.mean(0) - two.mean(0)) < 0.015)
    # Of 100 networks, and of 60 scaled by (60 / 90)^(2/3).
    error = direct.log_s_max.std * math.sqrt(1 / 100 + (60 / 90) ** (4 / 3) / 60)
    assert scaled.log_s_max.mean == pytest.approx(direct.log_s_max.mean, abs=3 * error)
    assert scaled.log_mean_squares.std() == pytest.approx(direct.log_mean_squares.std(), rel=0.3)
    assert "networks" in scaled.source


def test_the_direction_of_the_signal_has_a_place_of_its_own(monkeypatch):
    monkeypatch.setattr(home, "MOST_DRAWS", 4)
    # chi_q^L, near e^-2 for tanh at q* = 1/L, where the law itself is near one.
    ensemble = Ensemble("tanh", 64, "orthogonal", q_star=1 / 64)
    place = log_signal_value(ensemble)
    assert math.exp(place) == pytest.approx(math.exp(-2), rel=0.08)
    lowest = np.array([values[:2] for values in drawn(ensemble, 40, 6)])
    assert np.median(lowest[:, 0]) == pytest.approx(place, abs=0.5)
    assert np.all(lowest[:, 1] > place + 0.8)
    law = predict(ensemble, width=40)
    (atom,) = law.atoms
    assert atom == pytest.approx((math.exp(place), 1 / 40))
    assert law.provenance["finite_width"]["signal"]["mass"] == 1 / 40
    # Gaussian weights: the value is inside the law, and no mass is set apart.
    assert predict("tanh", 8, q_star=0.3, width=40).atoms == []


def test_positions_of_a_delta_kernel_share_their_weights():
    ensemble = Ensemble("tanh", 3, "orthogonal", q_star=0.2)
    dense, spread = (
        np.std(log_mean(np.array(drawn(ensemble, 12, 150, kernel=kernel))))
        for kernel in (Kernel(), Kernel((4, 4)))
    )
    assert spread < 0.6 * dense
    (one,) = drawn(Ensemble("linear", 3, "orthogonal", sigma_w=1.0), 5, 1, kernel=Kernel((3, 2)))
    np.testing.assert_allclose(one, np.zeros(30), atol=1e-12)


def test_a_gaussian_kernel_is_a_circular_convolution_of_unit_gain():
    uniform = tuple(((1 / 9,) * 3,) * 3)
    values = drawn(Ensemble("linear", 2, sigma_w=1.0), 6, 40, kernel=Kernel((4, 5), uniform))
    assert values[0].size == 120
    # ln E m_1 = 0; one draw's m_1 of 6 channels fluctuates.
    assert np.mean(np.exp(log_mean(np.array(values)))) == pytest.approx(1.0, abs=0.15)


def test_draws_are_seeded_and_bands_are_ordered():
    first = finite_width(Ensemble("relu", 2, sigma_w=1.4), predict("relu", 2, sigma_w=1.4).distribution, 16)
    home._cached.cache_clear()
    again = finite_width(Ensemble("relu", 2, sigma_w=1.4), predict("relu", 2, sigma_w=1.4).distribution, 16)
    np.testing.assert_array_equal(first.log_values, again.log_values)
    lower, upper = again.cdf_band([0.1, 1.0, 2.0])
    assert np.all(lower <= upper)
    with pytest.raises(InputError, match="confidence"):
        again.cdf_band([1.0], confidence=1.5)


def test_a_network_that_no_formula_covers_and_that_takes_long_to_draw_is_refused():
    with pytest.raises(InputError, match="takes about"):
        predict("linear", 4000, sigma_w=1.0, width=2000)


def test_a_product_deeper_than_wide_drops_what_is_out_of_sight_and_nothing_else(monkeypatch):
    # Products of Ginibre matrices: ln|J u|^2 is a sum of independent ln of chi-square (Newman 1986).
    width, depth, draws = 16, 60, 250
    monkeypatch.setattr(sampling, "NARROWEST", 1)
    ensemble = Ensemble("linear", depth, sigma_w=1.0)
    networks = list(sample(ensemble, width, draws))
    assert np.mean([np.isneginf(one.log_values).mean() for one in networks]) > 0.2
    found = np.array([one.log_direction for one in networks])
    mean = depth * (digamma(width / 2) + math.log(2 / width))
    variance = depth * polygamma(1, width / 2)
    assert abs(found.mean() - mean) < 4 * math.sqrt(variance / draws)
    assert found.var() == pytest.approx(variance, rel=4 * math.sqrt(2 / draws))
    monkeypatch.setattr(sampling, "NARROWEST", 100)
    whole = np.array(drawn(ensemble, width, draws, seed=1))[:, -3:]
    narrowed = np.array([one.log_values[-3:] for one in networks])
    error = np.hypot(whole.std(0), narrowed.std(0)) / math.sqrt(draws)
    assert np.all(np.abs(whole.mean(0) - narrowed.mean(0)) < 4 * error)


def test_layers_that_differ_are_drawn_layer_by_layer():
    ensemble = Ensemble(
        ("tanh", "relu", "tanh"), 3, ("gaussian", "orthogonal", "gaussian"), sigma_w=(1.2, 1.5, 0.9),
        sigma_b=(0.1, 0.0, 0.3), q0=0.5,
    )  # fmt: skip
    law = predict(ensemble, width=40)
    record = law.provenance["finite_width"]
    values = log_mean(np.array(drawn(ensemble, 40, 150, seed=8)))
    center = values.mean() - record["log_mean_square"]["mean"]
    assert abs(center) < 4 * values.std() / math.sqrt(150) + 0.02
    assert record["log_mean_square"]["std"] == pytest.approx(values.std(), rel=0.3)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"width": 0}, "width"),
        ({"width": 2.5}, "width"),
        ({"positions": (4, 4)}, "give width"),
        ({"width": 8, "positions": (4,)}, "height and width"),
        ({"width": 8, "profile": [[1.0]]}, "give positions"),
        ({"width": 30, "widths": (40, 50, 60)}, "same ratios"),
    ],
)
def test_what_describes_no_network_is_named(options, word):
    with pytest.raises(InputError, match=word):
        predict("relu", 2, sigma_w=1.4, **options)


@pytest.mark.parametrize(
    "given",
    [
        {"width": "a"},
        {"width": math.nan},
        {"width": math.inf},
        {"width": 2.5},
        {"width": [5]},
        {"width": 50, "positions": "ab"},
        {"width": 50, "positions": 3},
        {"width": 50, "positions": (2.7, 3.0)},
        {"width": 50, "positions": (3, 3), "profile": "a"},
    ],
)
def test_a_width_a_map_or_a_profile_that_is_none_is_refused(given):
    with pytest.raises(InputError):
        predict("relu", 3, sigma_w=2**0.5, q0=1.0, **given)


def test_a_part_of_the_map_says_nothing_of_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    curve, ensemble = predict("tanh", 2, q_star=0.5).distribution, Ensemble("tanh", 2, q_star=0.5)
    whole = finite_width(ensemble, curve, 8, positions=(16, 16))
    assert np.isfinite(whole.log_s_maxima).all()
    assert "part of the map" not in whole.source
    monkeypatch.setattr(home, "BUDGET", home.LEAST_DRAWS * 4.5e-5)
    home._cached.cache_clear()
    part = finite_width(ensemble, curve, 8, positions=(16, 16))
    home._cached.cache_clear()
    assert np.isnan(part.log_s_maxima).all()
    assert np.isnan(part.log_s_minima).all()
    assert part.to_dict()["log_s_max"] is None
    assert "part of the map" in part.source
    assert np.isfinite(part.log_mean_squares).all()
