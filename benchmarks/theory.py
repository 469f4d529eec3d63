"""Time of a predicted spectrum at any depth, beside the time of sampling a network.

Claims measured here: (1) `isometry.predict` gives a whole spectrum (a 2,000-point grid, moments, edges, point masses)
in at most 0.2 s on one core for every activation, and the time does not grow with the depth up to 10,000 layers;
networks of several kinds of layers (another q, width or weight law in each) are timed apart, for there several
transforms are inverted at once; (2) sampling one network of some width, multiplying its Jacobian together and taking
its singular values costs more, by the ratio printed, and gives one draw of that width instead of the law. All run on
one thread, and ratios are of processor time; the predictions are medians over the repeats, each on a fresh call; the
largest difference of the two cdfs is printed to show that both mean the same thing. Nothing is extrapolated: ratios
are for the width that was sampled.

    python benchmarks/theory.py               # sampling at width 500: a minute or two
    python benchmarks/theory.py --full        # sampling at width 2,000 as well: some minutes more
"""

# ruff: noqa: E402 - the number of threads must be set before numpy is imported
from __future__ import annotations

import os

# One core for everybody, before numpy reads it.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import argparse
import math
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from harness.record_file import write_record

import isometry
from isometry.theory.activations import get_activation

Q_STAR = 0.1
DEPTHS = (1, 10, 100, 1000, 10_000)
# Sampling is measured where a draw still has digits: float64 holds singular values down to 1e-16 of the largest.
SAMPLED_DEPTHS = (1, 4, 16, 64)
LIMIT = 0.2


def ensembles(depth: int) -> list[isometry.Ensemble]:
    """Every activation with both weight laws; at the critical point of q* = 0.1 where there is one."""
    found = []
    for name in (
        "linear", "relu", "leaky_relu(0.2)", "hard_tanh", "tanh", "erf", "erf_scaled", "sigmoid", "gelu", "silu", "elu",
        "selu", "softplus",
    ):  # fmt: skip
        for weights in ("gaussian", "orthogonal"):
            if name in ("sigmoid", "softplus"):
                # No critical point: a stationary one in the ordered phase.
                found.append(isometry.Ensemble(name, depth, weights=weights, sigma_w=0.5, sigma_b=0.1))
            elif get_activation(name).is_homogeneous:
                found.append(isometry.Ensemble(name, depth, weights=weights))
            else:
                found.append(isometry.Ensemble(name, depth, weights=weights, q_star=Q_STAR))
    return found


def several_kinds() -> list[isometry.Ensemble]:
    """Networks whose layers differ: started off their fixed point, of unequal widths, of mixed weights."""
    both = ("gaussian", "orthogonal")
    return [
        isometry.Ensemble("tanh", 12, weights="orthogonal", sigma_w=1.4, sigma_b=0.2, q0=6.0),
        isometry.Ensemble("tanh", 64, weights="orthogonal", sigma_w=1.2, sigma_b=0.1, q0=3.0),
        isometry.Ensemble("tanh", 10_000, weights="orthogonal", sigma_w=1.02, sigma_b=0.01, q0=1.0),
        isometry.Ensemble("erf", 1000, sigma_w=1.0, q0=1.0),
        isometry.Ensemble("gelu", 20, sigma_w=1.4, sigma_b=0.1, q0=2.0),
        isometry.Ensemble("selu", 10, weights="orthogonal", sigma_w=1.0, sigma_b=0.0, q0=2.0),
        isometry.Ensemble("elu", 30, weights="orthogonal", sigma_w=1.1, sigma_b=0.1, q0=0.2),
        isometry.Ensemble("softplus", 6, sigma_w=0.8, sigma_b=0.1, q0=3.0),
        isometry.Ensemble("gelu", 50, sigma_w=1.4, sigma_b=0.1, q0=5.0),
        isometry.Ensemble("hard_tanh", 10_000, weights="orthogonal", sigma_w=1.05, sigma_b=0.05, q0=3.0),
        isometry.Ensemble("relu", 100, widths=tuple(range(100, 201))),
        isometry.Ensemble(
            "tanh", 50, weights="orthogonal", sigma_w=tuple(np.linspace(0.9, 1.4, 50)), sigma_b=0.1, q0=1.0
        ),
        isometry.Ensemble("tanh", 6, weights=both * 3, q_star=0.3),
        isometry.Ensemble("tanh", 3, sigma_w=1.2, q_star=0.4, widths=(50, 100, 200, 80)),
        isometry.Ensemble("erf", 4, sigma_w=1.3, sigma_b=0.1, q0=2.0, widths=(100, 64, 128, 64, 10)),
        isometry.Ensemble("gelu", 5, sigma_w=1.3, sigma_b=0.2, q0=1.0, widths=(784, 256, 256, 128, 64, 10)),
        isometry.Ensemble("hard_tanh", 4, weights="orthogonal", q_star=0.3, widths=(100, 10, 20, 30, 200)),
        isometry.Ensemble(
            "sigmoid", 5, weights=(*both * 2, "gaussian"), sigma_w=2.0, sigma_b=0.1, q0=1.0,
            widths=(100, 50, 70, 70, 30, 90),
        ),
    ]  # fmt: skip


def timed(ensemble: isometry.Ensemble, repeats: int) -> tuple[float, float]:
    """(median wall seconds, median processor seconds) of one prediction."""
    wall, processor = [], []
    for _ in range(repeats):
        began, began_processor = time.perf_counter(), time.process_time()
        isometry.predict(ensemble)
        wall.append(time.perf_counter() - began)
        processor.append(time.process_time() - began_processor)
    return statistics.median(wall), statistics.median(processor)


def sampled(ensemble: isometry.Ensemble, width: int, seed: int) -> tuple[float, np.ndarray]:
    """(processor seconds, singular values) of one network of that width, drawn, run, multiplied and decomposed."""
    predicted = isometry.predict(ensemble).provenance
    phi = get_activation(ensemble.activation_name)
    sigma_w, sigma_b = predicted["sigma_w"], predicted["sigma_b"]
    generator = np.random.default_rng(seed)
    began = time.process_time()
    q = predicted["q_first"] or 1.0
    product, h = np.eye(width), math.sqrt(q) * generator.standard_normal(width)
    for layer in range(ensemble.depth):
        weight = generator.standard_normal((width, width))
        if ensemble.layer_weights[layer] == "orthogonal":
            orthogonal, upper = np.linalg.qr(weight)
            weight = orthogonal * np.sign(np.diag(upper))
        else:
            weight /= math.sqrt(width)
        if layer:
            h = sigma_w * weight @ phi.function(h) + sigma_b * generator.standard_normal(width)
        product = (sigma_w * phi.derivative(h))[:, None] * (weight @ product)
    values = np.linalg.svd(product, compute_uv=False)
    return time.process_time() - began, values


def distance(values: np.ndarray, spectrum: isometry.Spectrum) -> float:
    """Largest difference of the two cdfs, over singular values above 1e-12 of the largest."""
    values = np.sort(values)
    kept = values > 1e-12 * values[-1]
    # Equal values (a point mass) are one step; compare just above and just below it.
    places = np.unique(values[kept].round(12))
    above = np.searchsorted(values, places * (1 + 1e-6), side="right") / values.size
    below = np.searchsorted(values, places * (1 - 1e-6), side="left") / values.size
    return float(
        max(
            np.max(np.abs(spectrum.cdf(places * (1 + 1e-6)) - above)),
            np.max(np.abs(spectrum.cdf(places * (1 - 1e-6)) - below)),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--full", action="store_true", help="sample at width 2,000 as well")
    parser.add_argument(
        "--out", type=Path, help="default: the committed record with --full, else out/benchmarks"
    )
    options = parser.parse_args()
    root = Path(__file__).parents[1]
    kept = root / "benchmarks" / "results" if options.full else root / "out" / "benchmarks"
    options.out = options.out or kept / "theory.json"

    isometry.predict("tanh", 2, q_star=Q_STAR)
    print(f"processor seconds of one prediction (median of {options.repeats}), one thread")
    print(f"{'activation':<16} {'weights':<11}" + "".join(f"{'L=' + str(depth):>10}" for depth in DEPTHS))
    rows: dict[tuple[str, str], dict[int, tuple[float, float]]] = {}
    for depth in DEPTHS:
        for ensemble in ensembles(depth):
            key = (ensemble.activation_name, str(ensemble.weights))
            rows.setdefault(key, {})[depth] = timed(ensemble, options.repeats)
    for (name, weights), row in rows.items():
        print(f"{name:<16} {weights:<11}" + "".join(f"{row[depth][1]:>10.3f}" for depth in DEPTHS))
    every = [processor for row in rows.values() for _, processor in row.values()]
    print(f"slowest {max(every):.3f} s (claimed: at most {LIMIT} s), median {statistics.median(every):.3f} s")

    print("\nseveral kinds of layers, processor seconds")
    several: list[dict[str, object]] = []
    times: list[float] = []
    for ensemble in several_kinds():
        wall, processor = timed(ensemble, options.repeats)
        fields = {
            name: value
            for name, value in ensemble.to_dict().items()
            if value is not None and name != "readout"
        }
        times.append(processor)
        several.append({"ensemble": fields, "processor_seconds": processor, "wall_seconds": wall})
        print(f"{processor:>8.3f}  " + ", ".join(f"{name} {value}" for name, value in fields.items()))
    print(f"slowest {max(times):.3f} s, median {statistics.median(times):.3f} s")

    widths = [options.width, 2000] if options.full else [options.width]
    print("\none sampled network against one prediction, processor seconds, one thread")
    print(
        f"{'ensemble':<30} {'width':>6} {'sample':>9} {'predict':>9} {'ratio':>8} {'max |cdf difference|':>22}"
    )
    against = []
    for width in widths:
        for name, weights, depth in [
            (name, weights, depth)
            for name in ("relu", "tanh")
            for weights in ("gaussian", "orthogonal")
            for depth in (SAMPLED_DEPTHS if width <= 500 else SAMPLED_DEPTHS[:3])
        ]:
            ensemble = next(
                one for one in ensembles(depth) if (one.activation_name, one.weights) == (name, weights)
            )
            seconds, values = sampled(ensemble, width, seed=depth)
            prediction = timed(ensemble, options.repeats)[1]
            gap = distance(values, isometry.predict(ensemble))
            label = f"{name}, {weights}, L={depth}"
            print(
                f"{label:<30} {width:>6} {seconds:>9.2f} {prediction:>9.3f} {seconds / prediction:>8.0f} {gap:>22.4f}"
            )
            against.append(
                {
                    "activation": name, "weights": weights, "depth": depth, "width": width,
                    "sample_seconds": seconds, "predict_seconds": prediction, "ratio": seconds / prediction,
                    "largest_cdf_difference": gap,
                }
            )  # fmt: skip

    write_record(
        options.out,
        {
            "claim": f"a predicted spectrum takes at most {LIMIT} s on one core at any depth",
            "predictions": [
                {
                    "activation": name, "weights": weights,
                    "processor_seconds": {str(depth): row[depth][1] for depth in DEPTHS},
                    "wall_seconds": {str(depth): row[depth][0] for depth in DEPTHS},
                }
                for (name, weights), row in rows.items()
            ],
            "slowest_processor_seconds": max(every),
            "several_kinds": several,
            "against_sampling": against,
            "repeats": options.repeats,
            "threads": 1,
            "processor": platform.machine(),
            "versions": {
                "python": platform.python_version(),
                **{package: version(package) for package in ("numpy", "scipy", "isometry")},
            },
        },
    )  # fmt: skip
    print(f"written to {options.out.name}")


if __name__ == "__main__":
    main()
