"""Is what `isometry.compare` allows what sampled networks show?

Claim: a network of width N deviates from the predicted law as N independent draws from it would: sqrt(N) sup |F - G| is
of order one and rarely above 1.63, the standard deviation of ln m_1 is at most about a quarter of what is allowed,
and draws of the right ensemble agree in at least 18 of 20 cases, whatever the activation, weight law and depth. Draws
that are compared with a wrong ensemble (the other weight law, or q* twice as large) disagree at width 500 wherever the
two laws differ by more than 0.073 in the cdf (those of Gaussian tanh networks at q* = 0.1 and 0.2 differ by 0.02).

    python benchmarks/compare_calibration.py                       # width 128, 20 draws, depths 4 and 16: two minutes
    python benchmarks/compare_calibration.py --width 500 --depths 4 16 64
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np

import isometry
from isometry.theory.activations import get_activation

CASES = (("linear", 1.0), ("relu", 1.0), ("hard_tanh", 0.3), ("tanh", 0.5), ("tanh", 0.05))


def singular_values(ensemble: isometry.Ensemble, width: int, generator: np.random.Generator) -> np.ndarray:
    """Singular values of J of one network that is stationary from its first layer on."""
    activation = get_activation(ensemble.activation_name)
    product, h = np.eye(width), None
    for _ in range(ensemble.depth):
        matrix = generator.standard_normal((width, width))
        if ensemble.weights == "orthogonal":
            q, r = np.linalg.qr(matrix)
            matrix = q * np.sign(np.diag(r))
        else:
            matrix /= math.sqrt(width)
        if h is None:
            h = math.sqrt(ensemble.q_star) * generator.standard_normal(width)
        else:
            h = ensemble.sigma_w * matrix @ activation.function(h)
            h = h + ensemble.sigma_b * generator.standard_normal(width)
        product = (ensemble.sigma_w * activation.derivative(h))[:, None] * (matrix @ product)
    return np.linalg.svd(product, compute_uv=False)


def critical(activation: str, depth: int, weights: str, q_star: float) -> isometry.Ensemble:
    """The critical ensemble at q*."""
    point = isometry.critical_point(activation, q_star=q_star)
    return isometry.Ensemble(
        activation, depth, weights=weights, sigma_w=point.sigma_w, sigma_b=point.sigma_b, q_star=q_star
    )


def compared(ensemble: isometry.Ensemble, law: isometry.Spectrum, width: int, draws: int, seed: int) -> list:
    """Comparisons of several draws with a law."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        values = singular_values(ensemble, width, generator)
        sample = isometry.Spectrum.from_singular_values(values, floor=1e-13 * values[0])
        found.append(isometry.compare(sample, law))
    return found


def main() -> None:
    """Print one line per case, and the wrong ensembles at the end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 16])
    options = parser.parse_args()
    root = math.sqrt(options.width)
    print(f"width {options.width}, {options.draws} draws")
    print("case                            sqrt(N) KS mean  max    std(ln m1) / allowed      agree")
    began = time.perf_counter()
    for depth in options.depths:
        for weights in ("gaussian", "orthogonal"):
            for activation, q_star in CASES:
                if activation == "linear" and weights == "orthogonal":
                    continue
                ensemble = critical(activation, depth, weights, q_star)
                law = isometry.predict(ensemble)
                found = compared(ensemble, law, options.width, options.draws, seed=depth)
                distances = root * np.array([one.raw.ks for one in found])
                shifts = np.array([one.raw.log_moment_ratios[0] for one in found])
                allowed = found[0].expected_fluctuation.log_mean_square
                agreed = sum(bool(one.agrees) for one in found)
                print(
                    f"{activation:9s} q*={q_star:<5g} {weights:10s} {depth:3d}   {distances.mean():7.2f}    "
                    f"{distances.max():7.2f}   {shifts.std(ddof=1) / allowed:14.2f}          {agreed}/{options.draws}",
                    flush=True,
                )
    print("\nwrong ensembles, width 500, depth 16, five draws each: (KS, allowed), disagree")
    for weights in ("gaussian", "orthogonal"):
        for q_star in (0.1, 0.5):
            ensemble = critical("tanh", 16, weights, q_star)
            other = "orthogonal" if weights == "gaussian" else "gaussian"
            for label, wrong in (
                ("right", ensemble),
                ("other weights", critical("tanh", 16, other, q_star)),
                ("q* x 2", critical("tanh", 16, weights, 2 * q_star)),
            ):
                found = compared(ensemble, isometry.predict(wrong), 500, 5, seed=1)
                worst = min(one.raw.ks for one in found)
                refused = sum(one.agrees is False for one in found)
                print(
                    f"tanh q*={q_star:<4g} {weights:10s} against {label:14s} KS from {worst:.3f}, allowed "
                    f"{found[0].expected_fluctuation.ks:.3f}, disagree {refused}/5",
                    flush=True,
                )
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
