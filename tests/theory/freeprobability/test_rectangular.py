"""Networks of unequal widths: total mass and moments of the curve against series inversion."""

from __future__ import annotations

import math

import numpy as np
import pytest

from isometry.spectrum import Spectrum
from isometry.theory.activations import get_activation
from isometry.theory.prediction import predict

EVERY = [
    "linear", "relu", "leaky_relu(0.2)", "hard_tanh", "tanh", "erf", "erf_scaled", "sigmoid", "gelu", "silu", "elu",
    "selu", "softplus",
]  # fmt: skip


def holds_together(spectrum: Spectrum) -> None:
    curve = spectrum.distribution
    assert curve.cdf(np.array(math.inf)) == pytest.approx(1.0, abs=1e-12)
    for order in (1, 2, 3):
        # By integrating the curve: a half power that is no integer is never taken from the series.
        integrated = curve.log_moment(2 * order + 1e-9)
        assert integrated == pytest.approx(curve.log_moment(2 * order), abs=1e-6 * order)


@pytest.mark.parametrize(("widths", "arguments"), [
    # A band 0.15 wide in log |w|, between two poles of d log z/d log w.
    ((100, 10, 20, 30, 200), {"q_star": 0.3}),
    ((100, 10, 20, 30, 200), {"sigma_w": 1.2, "q0": 1.0}),
    ((44, 29, 57, 38, 27), {"sigma_w": 1.38, "q0": 0.76}),
    ((5, 300, 7, 290), {"q_star": 0.5}),
])  # fmt: skip
def test_orthogonal_hard_tanh_of_any_widths(widths: tuple[int, ...], arguments: dict) -> None:
    holds_together(predict("hard_tanh", len(widths) - 1, weights="orthogonal", widths=widths, **arguments))


@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
def test_a_bottleneck_between_saturated_layers(weights: str) -> None:
    holds_together(
        predict("erf", 3, weights=weights, sigma_w=1.4, sigma_b=0.2, q0=8.6, widths=(30, 10, 200, 10))
    )


def test_bands_that_nearly_part_between_levels_of_different_width() -> None:
    holds_together(predict("leaky_relu(0.2)", 4, sigma_w=1.12, widths=(54, 11, 46, 245, 172)))


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_random_widths_give_curves_that_hold_together(name: str) -> None:
    generator = np.random.default_rng(EVERY.index(name))
    for _ in range(12):
        depth = int(generator.integers(2, 7))
        widths = tuple(
            int(width) for width in np.exp(generator.uniform(math.log(5), math.log(301), depth + 1))
        )
        weights = tuple(str(law) for law in generator.choice(["gaussian", "orthogonal"], depth))
        if generator.random() < 0.7:
            weights = weights[:1] * depth
        arguments = {"sigma_w": float(generator.uniform(0.8, 1.6)), "sigma_b": 0.1}
        if not get_activation(name).is_homogeneous:
            arguments["q0"] = float(np.exp(generator.uniform(-4.0, 2.0)))
        holds_together(predict(name, depth, weights=weights, widths=widths, **arguments))
