"""`predict`: what an ensemble means, what comes back, and the errors where there is no answer."""

from __future__ import annotations

import math
import time
import warnings

import numpy as np
import pytest
from scipy import special
from scipy.integrate import quad

from isometry.comparison import compare
from isometry.errors import InputError, TheoryError
from isometry.spectrum import Spectrum
from isometry.theory import ACTIVATION_NAMES, Activation, Factor, free_product, laws
from isometry.theory.activations import get_activation
from isometry.theory.ensemble import Ensemble
from isometry.theory.freeprobability.slope_law import slope_law
from isometry.theory.meanfield import chi_1, critical_point, q_map
from isometry.theory.meanfield.layer_variances import layer_variances, representative_variances
from isometry.theory.prediction import predict

EVERY = [
    "linear", "relu", "leaky_relu(0.2)", "hard_tanh", "tanh", "erf", "erf_scaled", "sigmoid", "gelu", "silu", "elu",
    "selu", "softplus",
]  # fmt: skip


def any_network(name: str, depth: int, weights: str) -> Spectrum:
    """A prediction at chi = 1 and q = 0.3, whether or not the activation has a critical point there."""
    if get_activation(name).is_homogeneous:
        return predict(name, depth, weights=weights)
    sigma_w = chi_1(name, 1.0, 0.3) ** -0.5
    # The residual of stationarity does not matter here: hold q by the bias where that is possible.
    signal = q_map(name, 0.3, sigma_w, 0.0)
    if signal <= 0.3:
        return predict(name, depth, weights=weights, sigma_w=sigma_w, q_star=0.3)
    return predict(name, depth, weights=weights, sigma_w=0.7 * sigma_w, sigma_b=0.1, q0=0.3)


@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
@pytest.mark.parametrize("name", EVERY)
def test_every_activation_has_a_spectrum_whose_moments_agree_with_its_curve(name: str, weights: str) -> None:
    spectrum = any_network(name, 6, weights)
    curve = spectrum.distribution
    for order in (1, 2):
        exact = curve.log_moment(2 * order)
        # The same moment by integrating the curve: a non-integer half power is never taken from the series.
        integrated = curve.log_moment(2 * order + 1e-9)
        assert integrated == pytest.approx(exact, abs=2e-6)
    assert curve.cdf(np.array(math.inf)) == pytest.approx(1.0, abs=1e-12)
    # A bounded slope has a finite edge.
    assert spectrum.quantile(0.999) <= spectrum.s_max * (1 + 1e-12) < math.inf


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "depth", "arguments"), [
    ("leaky_relu(0.2)", 64, {}),
    ("hard_tanh", 3, {"q_star": 0.04}),
    ("selu", 2, {"q_star": 0.05}),
    ("erf", 3, {"sigma_w": 1.4, "sigma_b": 0.2, "q0": 8.6, "widths": (30, 10, 200, 10)}),
    ("erf_scaled", 10_000, {"q_star": 3.0}),
    ("tanh", 5, {"q_star": 1e-6}),
    ("gelu", 4, {"sigma_w": 1.4, "q0": 5.0}),
    ("sigmoid", 1000, {"sigma_w": 1.0, "sigma_b": 0.1}),
    ("leaky_relu(0.01)", 3, {"widths": (5, 300, 7, 290)}),
])  # fmt: skip
@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
def test_no_floating_point_warning_reaches_the_user(
    name: str, depth: int, arguments: dict, weights: str
) -> None:
    predict(name, depth, weights=weights, **arguments)


@pytest.mark.parametrize("depth", [1, 30, 10_000])
@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
def test_mean_and_variance_follow_the_published_formula(weights: str, depth: int) -> None:
    q = 0.2 if depth < 1000 else 1.0 / depth
    point = critical_point("erf_scaled", q_star=q)
    spectrum = predict("erf_scaled", depth, weights=weights, q_star=q)
    # Var = L ((1 + pi q)/sqrt(1 + 2 pi q) - 1 - s1), s1 = -1 for Gaussian; arXiv 1802.09979.
    expected = depth * ((1 + math.pi * q) / math.sqrt(1 + 2 * math.pi * q) - 1 + (weights == "gaussian"))
    assert spectrum.mean_square == pytest.approx(1.0, abs=1e-9)
    assert spectrum.variance == pytest.approx(expected, rel=1e-7)
    assert spectrum.provenance["sigma_w"] == pytest.approx(point.sigma_w)


def test_smooth_networks_become_isometric_as_q_falls_with_depth() -> None:
    # s0^2 = 8 L q^2 = 8/L for tanh at q = 1/L: the universal smooth limit.
    shares = []
    for depth in (64, 1024, 10_000):
        spectrum = predict("tanh", depth, weights="orthogonal", q_star=1.0 / depth)
        low, high = laws.smooth_limit_edges(8.0 / depth)
        shares.append(max(abs(spectrum.support[0] ** 2 / low - 1), abs(spectrum.support[1] ** 2 / high - 1)))
    assert shares[0] > shares[1] > shares[2]
    assert shares[2] < 2e-3


def test_hard_tanh_approaches_the_bernoulli_limit() -> None:
    # p = 1 - s0^2/L: the atom at p^-L of mass 1 - L(1 - p).
    spectrum = predict("hard_tanh", 200, weights="orthogonal", q_star=0.1)
    p = math.erf(1 / math.sqrt(0.2))
    place, mass = spectrum.atoms[-1]
    assert spectrum.zero_mass == pytest.approx(1 - p, rel=1e-10)
    assert place**2 == pytest.approx(p**-200, rel=1e-10)
    assert mass == pytest.approx(1 - 200 * (1 - p), rel=1e-10)
    assert place**2 == pytest.approx(laws.bernoulli_limit_atom(200 * (1 - p))[0], rel=1e-3)


@pytest.mark.parametrize(("sigma_w", "weights"), [(0.5, "orthogonal"), (3.0, "gaussian"), (1e-3, "gaussian")])
def test_linear_spectra_scale_as_powers_of_sigma_w_over_hundreds_of_decades(
    sigma_w: float, weights: str
) -> None:
    depth = 60
    spectrum = predict("linear", depth, weights=weights, sigma_w=sigma_w)
    unit = predict("linear", depth, weights=weights)
    shift = depth * math.log10(sigma_w)
    np.testing.assert_allclose(
        spectrum.log10_quantile([0.1, 0.5, 0.9]), unit.log10_quantile([0.1, 0.5, 0.9]) + shift, atol=1e-9
    )
    assert spectrum.log10_moment(3) == pytest.approx(unit.log10_moment(3) + 6 * shift, abs=1e-9)


@pytest.mark.parametrize("sigma_w", [0.8, 1.7])
def test_ten_thousand_layers_off_criticality_stay_in_range(sigma_w: float) -> None:
    spectrum = predict("tanh", 10_000, sigma_w=sigma_w, sigma_b=0.1)
    chi = chi_1("tanh", sigma_w, spectrum.provenance["q_star"])
    assert spectrum.log10_moment(1) == pytest.approx(10_000 * math.log10(chi), rel=1e-9)
    middle = spectrum.log10_quantile(0.5)
    assert math.isfinite(middle)
    assert middle < spectrum.log10_quantile(0.99)


def test_depth_costs_nothing() -> None:
    predict("tanh", 3, q_star=0.1)

    def seconds(depth: int) -> float:
        began = time.perf_counter()
        predict("tanh", depth, q_star=0.1)
        return time.perf_counter() - began

    shallow, deep = (min(seconds(depth) for _ in range(3)) for depth in (4, 10_000))
    # Flat but for noise of a shared machine.
    assert deep < 4 * shallow


def test_rectangular_linear_layer_is_marchenko_pastur_on_the_smaller_side() -> None:
    for widths in ((300, 100), (100, 300)):
        spectrum = predict("linear", 1, sigma_w=1.0, widths=widths)
        ratio = widths[1] / widths[0]
        low, high = laws.marchenko_pastur_edges(ratio)
        assert spectrum.shape == (widths[1], widths[0])
        assert spectrum.null_dimension == 200
        assert spectrum.zero_mass == 0.0
        np.testing.assert_allclose(spectrum.support, np.sqrt([low, high]), rtol=1e-9)
        x = np.linspace(low, high, 50)
        np.testing.assert_allclose(spectrum.cdf(np.sqrt(x)), laws.marchenko_pastur_cdf(x, ratio), atol=1e-7)


def test_a_bottleneck_inside_puts_mass_at_zero() -> None:
    spectrum = predict("linear", 2, sigma_w=1.0, widths=(100, 40, 80))
    # Rank 40 among min(100, 80) singular values.
    assert spectrum.zero_mass == pytest.approx(0.5, abs=1e-14)
    assert spectrum.mean_square == pytest.approx(1.0, abs=1e-12)
    # E tr J J^T/80 = 1: each Gaussian layer keeps the mean square per output.


def test_orthogonal_shrinking_and_growing_leaves_a_projection() -> None:
    spectrum = predict("linear", 2, weights="orthogonal", sigma_w=1.5, widths=(100, 40, 100))
    assert spectrum.zero_mass == pytest.approx(0.6, abs=1e-14)
    np.testing.assert_allclose(spectrum.atoms[1], (1.5**2, 0.4), rtol=1e-13)


@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
def test_widths_that_are_equal_change_nothing(weights: str) -> None:
    plain = predict("tanh", 3, weights=weights, q_star=0.4)
    equal = predict("tanh", 3, weights=weights, q_star=0.4, widths=(7, 7, 7, 7))
    np.testing.assert_allclose(
        equal.log10_quantile([0.1, 0.5, 0.9]), plain.log10_quantile([0.1, 0.5, 0.9]), atol=1e-9
    )


def test_mirrored_widths_have_the_same_nonzero_mean_for_gaussian_layers() -> None:
    """E tr J J^T does not care which way a product of Gaussian matrices is read."""
    forward = predict("tanh", 3, sigma_w=1.2, q_star=0.4, widths=(50, 100, 200, 80))
    chi = chi_1("tanh", 1.2, 0.4)
    # Each layer keeps the mean square per output: N_L chi^L over min(N_0, N_L).
    assert forward.mean_square == pytest.approx(80 * chi**3 / 50, rel=1e-10)


def test_a_read_out_is_one_more_matrix() -> None:
    plain = predict("relu", 4, weights="orthogonal")
    longer = predict("relu", 4, weights="orthogonal", readout=True)
    np.testing.assert_allclose(longer.support[1], math.sqrt(2) * plain.support[1], rtol=1e-9)
    gaussian = predict("relu", 4, weights=("orthogonal",) * 4 + ("gaussian",), readout=True)
    # m2/m1^2 over the whole spectrum gains 1 from a Gaussian factor.
    ratio = [s.moment(2) / s.moment(1) ** 2 for s in (plain, gaussian)]
    assert ratio[1] - ratio[0] == pytest.approx(1.0, rel=1e-9)


def test_the_order_of_mixed_weights_does_not_matter() -> None:
    one = predict("tanh", 3, weights=("gaussian", "orthogonal", "orthogonal"), q_star=0.3)
    two = predict("tanh", 3, weights=("orthogonal", "orthogonal", "gaussian"), q_star=0.3)
    np.testing.assert_allclose(one.log10_quantile([0.1, 0.5]), two.log10_quantile([0.1, 0.5]), atol=1e-12)


def test_variances_that_differ_per_layer_multiply_their_means() -> None:
    depth, sigma_w, sigma_b = 12, 1.4, 0.2
    spectrum = predict("tanh", depth, weights="orthogonal", sigma_w=sigma_w, sigma_b=sigma_b, q0=6.0)
    q, log_mean = 6.0, 0.0
    for _ in range(depth):
        log_mean += math.log(chi_1("tanh", sigma_w, q))
        q = q_map("tanh", q, sigma_w, sigma_b)
    assert spectrum.log10_moment(1) * math.log(10) == pytest.approx(log_mean, abs=1e-10)
    assert spectrum.provenance["q_first"] == 6.0


def test_starting_at_the_fixed_point_is_the_stationary_network() -> None:
    stationary = predict("tanh", 8, weights="orthogonal", sigma_w=1.3, sigma_b=0.2)
    started = predict(
        "tanh", 8, weights="orthogonal", sigma_w=1.3, sigma_b=0.2, q0=stationary.provenance["q_star"]
    )
    np.testing.assert_allclose(started.log10_quantile(0.5), stationary.log10_quantile(0.5), atol=1e-9)


def test_gauss_rule_stands_for_a_thousand_variances() -> None:
    q = 1.0 / (1.0 + 2.0 * np.arange(1000))
    values, counts = representative_variances(q)
    assert values.size < 20
    assert counts.sum() == pytest.approx(1000, rel=1e-12)
    for function in (np.log1p, lambda x: np.log1p(5 * x), np.sqrt):
        assert float(counts @ function(values)) == pytest.approx(float(np.sum(function(q))), abs=1e-6)


def test_variances_that_hardly_differ_need_few_representatives() -> None:
    q = 0.3 + 1e-3 * 0.9 ** np.arange(500)
    values, counts = representative_variances(q)
    assert values.size <= 4
    assert float(counts @ np.log1p(values)) == pytest.approx(float(np.sum(np.log1p(q))), abs=1e-9)


@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
def test_residual_networks_approach_the_large_depth_law(weights: str) -> None:
    errors = []
    for depth in (50, 400):
        spectrum = predict("tanh", depth, weights=weights, residual=depth**-0.5, sigma_w=1.0, q0=0.5)
        c = math.log(spectrum.mean_square)
        edges = np.square(spectrum.support) / laws.residual_edges(c) - 1.0
        errors.append(max(abs(spectrum.variance / (2 * c * math.exp(2 * c)) - 1.0), *np.abs(edges)))
    # Its error falls like c/L.
    assert errors[1] < 0.15 * errors[0] < 0.01


@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
@pytest.mark.parametrize("strength", [1.0, -0.3])
@pytest.mark.parametrize(
    ("name", "sigma_w", "q0"), [("relu", 1.4, 1.0), ("tanh", 1.5, 2.0), ("linear", 1.0, 1.0)]
)
def test_residual_layers_of_any_strength(
    name: str, sigma_w: float, q0: float, strength: float, weights: str
) -> None:
    spectrum = predict(name, 3, weights=weights, residual=strength, sigma_w=sigma_w, q0=q0)
    # E tr |1 + A|^2 = 1 + c mu_1 and E tr |1 + A|^4 = 1 + 4 c mu_1 + c^2 (mu_2, + mu_1^2 for Gaussian weights) layer by
    # layer: A is R-diagonal, so words that do not alternate A and A* have mean zero.
    ensemble = Ensemble(name, 3, weights=weights, residual=strength, sigma_w=sigma_w, q0=q0)
    log_mean, variance = 0.0, 0.0
    for q in layer_variances(ensemble, (get_activation(name),)).per_layer:
        first, second = slope_law(get_activation(name), 1.0 if np.isnan(q) else float(q)).moments(2)
        c = (strength * sigma_w) ** 2
        mean = 1.0 + c * first
        fourth = 1.0 + 4.0 * c * first + c * c * (second + (weights == "gaussian") * first**2)
        log_mean, variance = log_mean + math.log(mean), variance + fourth / mean**2 - 1.0
    assert math.log(spectrum.mean_square) == pytest.approx(log_mean, abs=1e-12)
    # Relative variances add up in a free product.
    assert spectrum.variance / spectrum.mean_square**2 == pytest.approx(variance, rel=1e-9)
    # Mass and mean square by integrating the curve.
    curve = spectrum.distribution
    assert curve.cdf(np.array(math.inf)) == pytest.approx(1.0, abs=1e-12)
    assert curve.log_moment(4 + 1e-9) == pytest.approx(curve.log_moment(4), abs=2e-6)
    assert spectrum.support == predict(ensemble).support


def test_one_rotation_beside_the_skip_is_an_arcsine_law() -> None:
    for strength in (0.7, 1.0, 2.0):
        spectrum = predict("linear", 1, weights="orthogonal", residual=strength, sigma_w=1.0)
        # |1 + a e^(i x)|^2 with x even on the circle.
        s = np.sqrt(1.0 + strength**2 + 2.0 * strength * np.cos(np.pi * (1.0 - np.array([0.1, 0.5, 0.8]))))
        np.testing.assert_allclose(spectrum.cdf(s), [0.1, 0.5, 0.8], atol=1e-6)
    # Small rotations add up: a sum of L free U + U* is the Kesten-McKay law of the tree of degree 2 L.
    spectrum = predict("linear", 2, weights="orthogonal", residual=1e-4, sigma_w=1.0)
    x = np.array([-3.0, -1.5, 0.3, 2.0])
    edge = 2.0 * math.sqrt(3.0)
    cdf = [
        quad(lambda y: 2.0 * math.sqrt(edge**2 - y * y) / (math.pi * (16.0 - y * y)), -edge, end)[0]
        for end in x
    ]
    np.testing.assert_allclose(spectrum.distribution.cdf(0.5e-4 * x), cdf, atol=2e-4)


def test_directions_that_no_branch_moves_are_a_point_mass() -> None:
    # Hard tanh, saturated in a share 1 - p: a layer keeps 1 - 2 p of the directions, and all keep one less their sum.
    ensemble = Ensemble("hard_tanh", 2, residual=1.0, sigma_w=1.0, q0=60.0)
    alive = sum(
        math.erf(1.0 / math.sqrt(2.0 * q))
        for q in layer_variances(ensemble, (get_activation("hard_tanh"),)).per_layer
    )
    assert predict(ensemble).atoms == [
        (pytest.approx(1.0, abs=1e-12), pytest.approx(1.0 - 2.0 * alive, rel=1e-9))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
@pytest.mark.parametrize(
    ("name", "depth", "strength", "sigma_w", "q0"),
    [("tanh", 4, 1.0, 1.0, 1.0), ("leaky_relu(0.3)", 1, 1.0, 3.0, 1.0), ("sin", 3, -0.5, 1.5, 2.0)],
)
def test_residual_laws_are_those_of_sampled_networks(
    name: str, depth: int, strength: float, sigma_w: float, q0: float, weights: str
) -> None:
    width, rng, phi = 1000, np.random.default_rng(0), get_activation(name)
    x = rng.standard_normal(width)
    x *= math.sqrt(q0 * width) / sigma_w / np.linalg.norm(x)
    jacobian = np.eye(width)
    for _ in range(depth):
        weight = rng.standard_normal((width, width))
        weight = np.linalg.qr(weight)[0] if weights == "orthogonal" else weight / math.sqrt(width)
        h = sigma_w * weight @ x
        jacobian = jacobian + strength * sigma_w * phi.derivative(h)[:, None] * (weight @ jacobian)
        x = x + strength * phi.function(h)
    spectrum = predict(name, depth, weights=weights, residual=strength, sigma_w=sigma_w, q0=q0)
    values = np.sort(np.linalg.svd(jacobian, compute_uv=False))
    # One draw's cdf strays by a few times 1/N, and by the fluctuation of its mean square.
    assert np.max(np.abs(spectrum.cdf(values) - (np.arange(width) + 0.5) / width)) < 0.015


def test_layers_that_differ_multiply_their_means_and_add_their_variances() -> None:
    names, sigmas, biases = ("tanh", "relu", "gelu"), (1.2, 0.9, 1.5), (0.1, 0.0, 0.3)
    weights = ("gaussian", "orthogonal", "orthogonal")
    ensemble = Ensemble(names, 3, weights=weights, sigma_w=sigmas, sigma_b=biases, q0=0.8)
    spectrum = predict(ensemble)
    q, log_mean, variance = 0.8, 0.0, 0.0
    for layer, name in enumerate(names):
        first, second = slope_law(get_activation(name), q).moments(2)
        log_mean += math.log(sigmas[layer] ** 2 * first)
        variance += second / first**2 - 1.0 + (weights[layer] == "gaussian")
        q = q_map(name, q, sigmas[layer + 1], biases[layer + 1]) if layer < 2 else q
    assert math.log(spectrum.mean_square) == pytest.approx(log_mean, abs=1e-10)
    assert spectrum.variance / spectrum.mean_square**2 == pytest.approx(variance, rel=1e-8)
    # Residual layers too: 1 + c mu_1 each.
    branches = predict(Ensemble(names, 3, weights=weights, sigma_w=sigmas, residual=0.5, q0=0.8))
    assert branches.mean_square > 1.0
    with pytest.raises(InputError, match="give q0"):
        predict("tanh", 2, sigma_w=(1.0, 1.2))


@pytest.mark.parametrize("scale", [1.0, 1e60])
def test_a_value_outside_the_law_is_told_and_bounded(scale: float) -> None:
    # With ReLU and no bias J x = x_L, and x_L of a mean that adds up: a sampled network of width 300 agrees.
    depth, strength, width = 30, 0.2, 300
    spectrum = predict("relu", depth, residual=strength, sigma_w=1.0, q0=scale)
    rng = np.random.default_rng(0)
    x = rng.standard_normal(width)
    jacobian = np.eye(width)
    for _ in range(depth):
        weight = rng.standard_normal((width, width)) / math.sqrt(width)
        h = weight @ x
        jacobian = jacobian + strength * (h > 0)[:, None] * (weight @ jacobian)
        x = x + strength * np.maximum(h, 0.0)
    values = np.linalg.svd(jacobian, compute_uv=False)
    outside = spectrum.provenance["outside"]
    assert outside["certain"]
    assert spectrum.s_max < 0.8 * 10 ** outside["log10_s"]
    # A lower bound, within a third of the value; width 300 leaves some percent.
    assert 0.65 * values[0] < 10 ** outside["log10_s"] < 1.1 * values[0]
    assert values[1] < 1.1 * spectrum.s_max
    assert "outside the law" in str(spectrum)
    assert "outside" not in predict("tanh", depth, residual=strength, sigma_w=1.0, q0=1.0).provenance


def test_q_star_alone_is_the_critical_point_and_an_ensemble_is_the_same() -> None:
    spectrum = predict("tanh", 5, weights="orthogonal", q_star=0.05)
    again = predict(Ensemble("tanh", 5, weights="orthogonal", q_star=0.05))
    assert spectrum.support == again.support
    assert spectrum.provenance["chi"] == pytest.approx(1.0, abs=1e-12)
    assert Ensemble.from_dict(spectrum.provenance["ensemble"]) == Ensemble(
        "tanh", 5, weights="orthogonal", q_star=0.05
    )


def test_a_function_of_ones_own() -> None:
    mine = predict(lambda h: np.tanh(h), 4, weights="orthogonal", q_star=0.2)
    theirs = predict("tanh", 4, weights="orthogonal", q_star=0.2)
    # The derivative is numerical: nine digits.
    assert mine.support[1] == pytest.approx(theirs.support[1], rel=1e-9)
    np.testing.assert_allclose(mine.log10_quantile(0.5), theirs.log10_quantile(0.5), atol=1e-8)


def test_the_ordered_phase_without_bias_is_linear() -> None:
    # tanh at sigma_w < 1 without bias: q* = 0, phi' = 1.
    spectrum = predict("tanh", 7, sigma_w=0.9)
    linear = predict("linear", 7, sigma_w=0.9)
    np.testing.assert_allclose(spectrum.support, linear.support, rtol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"activation": "tanh", "depth": 3}, InputError, "q_star"),
        ({"activation": "tanh"}, InputError, "number of layers"),
        ({"activation": "softplus", "depth": 3, "q_star": 1.0}, TheoryError, "no critical point"),
        ({"activation": "softplus", "depth": 3, "sigma_w": 2.0}, TheoryError, "fixed point"),
        (
            {"activation": "tanh", "depth": 3, "sigma_w": 1.5, "sigma_b": 0.1, "q_star": 5.0},
            InputError,
            "not stationary",
        ),
        ({"activation": "tanh", "depth": 3, "sigma_w": 3.0, "q_star": 0.1}, TheoryError, "no bias"),
        ({"activation": "nonsense", "depth": 3, "q_star": 0.1}, TheoryError, "no activation named"),
        ({"activation": "gelu", "depth": 400, "sigma_w": 4.0, "q0": 1.0}, TheoryError, "without bound"),
        (
            {"activation": "tanh", "depth": 3, "sigma_w": 1.0, "sigma_b": 1.0, "residual": 0.1, "q0": 0.5},
            InputError,
            "less than the biases",
        ),
    ],
)  # fmt: skip
def test_where_there_is_no_answer_an_error_says_which(
    arguments: dict, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        predict(**arguments)


def test_an_ensemble_brings_its_own_depth() -> None:
    with pytest.raises(InputError, match="takes no depth"):
        predict(Ensemble("relu", 3), 4)
    with pytest.raises(InputError, match="takes no sigma_w"):
        predict(Ensemble("relu", 3), sigma_w=2.0)
    with pytest.raises(TypeError, match="sigma"):
        predict("relu", 3, sigma=2.0)


def test_a_point_mass_beyond_the_floats_is_infinite_and_silent() -> None:
    spectrum = predict("linear", 10_000, weights="orthogonal", sigma_w=1.2, sigma_b=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert spectrum.atoms == [(math.inf, 1.0)]
    assert float(spectrum.log10_quantile(0.5)) == pytest.approx(10_000 * math.log10(1.2), rel=1e-12)


@pytest.mark.parametrize(
    ("depth", "strength"),
    # Wide, narrow, and on either side of the width that rounding hides, at both depths.
    [(100, 1e-3), (4, 1e-6), (4, 3e-8), (4, 1e-8), (100, 1e-8), (100, 1e-10)],
)
def test_a_residual_network_of_small_branches_is_a_semicircle(depth: int, strength: float) -> None:
    # log lambda = c + sqrt(2 c) x with x of Wigner's law, up to corrections of the order of its width.
    spectrum = predict("linear", depth, sigma_w=1.0, residual=strength)
    c = depth * strength**2
    width = math.sqrt(2.0 * c)
    at = np.array([-1.5, -0.5, 0.0, 0.5, 1.5])
    cdf = 0.5 + at * np.sqrt(4.0 - at**2) / (4.0 * np.pi) + np.arcsin(at / 2.0) / np.pi
    if width > 4e-8:
        got = spectrum.distribution.cdf(0.5 * (c + width * at))
        np.testing.assert_allclose(got, cdf, atol=width + 1e-6)
    else:
        # Rounding hides the shape: a point mass.
        assert spectrum.atoms == [(pytest.approx(1.0, abs=2.0 * width), 1.0)]


@pytest.mark.parametrize(
    ("slopes", "depth", "fields"),
    [
        ((0.2, 1.0, 0.2), 4, {"sigma_w": 1.1, "sigma_b": 0.1, "q0": 0.05}),
        ((0.2, 1.0, 0.2), 4, {"sigma_w": 1.1, "sigma_b": 0.1, "q0": 0.1}),
        ((0.1, 0.5, 2.0), 2, {"sigma_w": 1.3, "q0": 0.8}),
        ((0.1, 0.5, 2.0), 3, {"sigma_w": 1.3, "q0": 0.8}),
    ],
)
def test_point_masses_inside_the_spectrum_of_layers_that_differ(
    slopes: tuple[float, float, float], depth: int, fields: dict
) -> None:
    def function(h: np.ndarray) -> np.ndarray:
        beyond = np.minimum(h + 1.0, 0.0) * slopes[0] + np.maximum(h - 1.0, 0.0) * slopes[2]
        return beyond + slopes[1] * np.clip(h, -1.0, 1.0)

    def derivative(h: np.ndarray) -> np.ndarray:
        return np.array(slopes)[np.searchsorted([-1.0, 1.0], h)]

    own = Activation("own", function, derivative, kinks=(-1.0, 1.0), slopes=slopes)
    ensemble = Ensemble(own, depth, weights="orthogonal", **fields)
    spectrum = predict(ensemble)
    # The same law from the slopes of each layer as a list of numbers, solved by another parametrisation.
    factors = []
    for q in layer_variances(ensemble, (own,)).per_layer:
        law = slope_law(own, q)
        values = fields["sigma_w"] * np.sqrt(law.values)
        factors.append(Factor.from_values(values, rows=1000, columns=1000, weights=law.masses))
    reference = free_product(factors)
    for s in np.geomspace(*spectrum.support, 20)[1:-1]:
        # Beside a step either law may have the mass on the other side.
        near = [float(reference.cdf(s * (1.0 + e))) for e in (-2e-3, 0.0, 2e-3)]
        assert min(near) - 2e-3 <= float(spectrum.cdf(s)) <= max(near) + 2e-3
    for place, mass in spectrum.atoms:
        if mass > 1e-2:
            assert any(
                abs(place / other - 1.0) < 1e-9 and abs(mass - m) < 1e-9 for other, m in reference.atoms
            )
    assert spectrum.moment(2) == pytest.approx(reference.moment(2), rel=1e-10)


@pytest.mark.parametrize(
    ("kinks", "slopes", "depth", "weights", "fields"),
    [
        # A narrow band of rare values far above the rest, or far below it, and a value of mass 1e-29.
        ((-2.14, 1.81), (2.0, 0.2, 0.0), 2, "gaussian", {"sigma_w": 1.971, "q0": 0.231, "sigma_b": 0.479}),
        ((-1.0, 2.15), (-0.5, 1.0, 0.0), 2, "orthogonal", {"sigma_w": 1.345, "q0": 0.479}),
        ((-1.67,), (0.1, 1.0), 3, "orthogonal", {"sigma_w": 0.871, "q0": 0.022, "sigma_b": 0.433}),
        (
            (-2.02, 0.57, 0.85, 1.32),
            (0.0, 0.1, 0.0, 0.1, 0.2),
            2,
            "orthogonal",
            {"sigma_w": 1.519, "q0": 9.411},
        ),
        # Thirteen bands, of masses from 1e-11 to 5e-4, around a point mass of 0.998.
        (
            (-0.335, 0.675, 0.882),
            (0.37, 0.52, 1.16, 0.66),
            9,
            "orthogonal",
            {"sigma_w": 0.656, "q0": 0.069, "sigma_b": 0.05},
        ),
        # Slopes of very different size, three point masses, values of mass 1e-15.
        (
            (-2.622, -2.458, -1.834, -0.55),
            (0.0069, 0.051, 0.0094, 0.375, 0.0125),
            9,
            "orthogonal",
            {"sigma_w": 1.381, "q0": 1.231, "sigma_b": 0.05},
        ),
        # A rank of 2e-11.
        (
            (0.33, 0.82),
            (0.0, 0.031, 0.072),
            10,
            "orthogonal",
            {"sigma_w": 1.683, "q0": 0.163, "sigma_b": 0.05},
        ),
        # A rare slope far above the other in the first layer.
        ((-1.131,), (0.47, 0.049), 6, "gaussian", {"sigma_w": 0.634, "q0": 1.582, "sigma_b": 0.1}),
    ],
)
def test_rare_slopes_of_layers_that_differ(
    kinks: tuple[float, ...], slopes: tuple[float, ...], depth: int, weights: str, fields: dict
) -> None:
    # F(h) - F(0) is rounding where it vanishes, as functions of users are.
    def antiderivative(h: np.ndarray) -> np.ndarray:
        bends = zip(kinks, np.diff(slopes), strict=True)
        return slopes[0] * h + sum(bend * np.maximum(h - kink, 0.0) for kink, bend in bends)

    own = Activation(
        "own",
        lambda h: antiderivative(h) - antiderivative(np.zeros(1)),
        lambda h: np.array(slopes)[np.searchsorted(kinks, h)],
        kinks=kinks,
        slopes=slopes,
    )
    curve = predict(own, depth, weights=weights, **fields).distribution
    assert curve.cdf(np.array(math.inf)) == pytest.approx(1.0, abs=1e-12)
    assert curve.log_moment(2 + 1e-9) == pytest.approx(curve.log_moment(2), abs=2e-6)


@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
def test_variances_that_fall_through_many_decades_are_few_kinds_of_layers(weights: str) -> None:
    # sigma_w < 1: q falls to nothing, over a kink of phi''. E log lambda is a sum over layers.
    depth, sigma_w2 = 20_000, 0.97**2
    ensemble = Ensemble("elu", depth, weights=weights, sigma_w=math.sqrt(sigma_w2), q0=1.0)
    variances = layer_variances(ensemble, (get_activation("elu"),))
    places, counts = representative_variances(variances.q, variances.counts)
    assert places.size <= 40
    assert counts.sum() == pytest.approx(depth, rel=1e-12)
    # E phi'^2 = 1/2 + exp(2 q) P(x > 2 sqrt q).
    root = np.sqrt(np.append(variances.q, places))
    logs = np.log(0.5 + 0.5 * special.erfcx(np.sqrt(2.0) * root))
    exact = logs[: variances.q.size] @ variances.counts
    assert logs[variances.q.size :] @ counts == pytest.approx(float(exact), abs=1e-7)


@pytest.mark.parametrize("small", [0.0, 0.2, 0.7])
def test_plateaus_of_rare_slopes_count_directions(small: float) -> None:
    # The bands of layers with rare slopes lie apart from the point mass of the frequent one, and between them the cdf
    # is the sum of all layers' rare units: eigenspaces of the dimensions p_l N in general position.
    own = Activation(
        "own",
        lambda h: np.clip(h, -1.0, 1.0) * (1.0 - small) + small * h,
        lambda h: np.where(np.abs(h) < 1.0, 1.0, small),
        kinks=(-1.0, 1.0),
        slopes=(small, 1.0, small),
    )
    ensemble = Ensemble(own, 4, weights="orthogonal", sigma_w=1.0, sigma_b=0.1, q0=0.1)
    rare = [special.erfc(1.0 / math.sqrt(2.0 * q)) for q in layer_variances(ensemble, (own,)).per_layer]
    spectrum = predict(ensemble)
    assert float(spectrum.cdf(0.999)) == pytest.approx(sum(rare), rel=1e-9)
    assert spectrum.atoms[-1] == (pytest.approx(1.0, rel=1e-12), pytest.approx(1.0 - sum(rare), rel=1e-9))


@pytest.mark.parametrize(
    ("name", "depth", "weights"),
    [
        ("squared_relu", 1, "gaussian"),
        ("square", 3, "orthogonal"),
        ("cube", 1, "gaussian"),
        ("exp", 3, "orthogonal"),
    ],
)
def test_an_unbounded_slope_means_an_infinite_edge(name: str, depth: int, weights: str) -> None:
    functions = {"square": lambda h: h * h, "cube": lambda h: h**3, "exp": lambda h: np.exp(h)}
    phi = name if name == "squared_relu" else functions[name]
    spectrum = predict(phi, depth, weights=weights, sigma_w=0.3, sigma_b=0.3, q0=0.5)
    assert spectrum.s_max == spectrum.support[1] == spectrum.condition_number == math.inf
    assert spectrum.provenance["log_lambda_max"] is None
    assert math.isfinite(float(spectrum.quantile(0.999)))
    assert "inf" in str(spectrum)
    assert math.isnan(
        compare(Spectrum.from_singular_values([0.1, 0.2, 0.4]), spectrum, width=3).s_max.log_ratio
    )


@pytest.mark.parametrize("name", sorted({*ACTIVATION_NAMES} - {*EVERY, "squared_relu"}))
def test_a_bounded_slope_means_a_finite_edge(name: str) -> None:
    assert math.isfinite(predict(name, 2, sigma_w=0.5, sigma_b=0.1, q0=0.5).s_max)
