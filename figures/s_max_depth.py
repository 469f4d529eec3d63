"""The largest singular value against depth: a root of the depth for Gaussian weights, whatever the activation, and
bounded for orthogonal weights with a smooth activation at q* = 1/depth.

Lines: the upper edge of the predicted law at critical points. Markers: the largest singular value of one network of
width 1000, by Golub-Kahan (8 probes, 25 steps). The relative residual is below 1e-2 everywhere (the file holds it).
At finite width the largest value scatters with depth / width, and lies rather below the edge than above it. A case
that the data file holds is not measured again.

    python figures/s_max_depth.py           # width 300, depths to 16: half a minute
    python figures/s_max_depth.py --full    # width 1000, depths to 64: about four minutes on one core
"""

from __future__ import annotations

import numpy as np
import sampled_networks as networks
import stage
import torch

import isometry

NAME = "s_max_depth"
# (activation, weights, q*; None for q* = 1/depth), label, colour, marker.
CASES = (
    (("linear", "gaussian", 1.0), "linear, Gaussian", stage.BLUE, "o"),
    (("tanh", "gaussian", 0.2), "tanh, Gaussian, q* = 0.2", stage.SKY, "v"),
    (("relu", "gaussian", 1.0), "ReLU, Gaussian", stage.ORANGE, "s"),
    (("relu", "orthogonal", 1.0), "ReLU, orthogonal", stage.VERMILION, "D"),
    (("tanh", "orthogonal", 0.2), "tanh, orthogonal, q* = 0.2", stage.PURPLE, "^"),
    (("tanh", "orthogonal", None), "tanh, orthogonal, q* = 1/depth", stage.GREEN, "P"),
)
THEORY_DEPTHS = np.unique(np.round(np.geomspace(1, 1000, 40)).astype(int))


def case_name(activation: str, weights: str, q_star: float | None) -> str:
    """Name of a case in the file."""
    return f"{activation} {weights} {q_star or 'inverse depth'}"


def compute(full: bool) -> None:
    """Edges of the law at every depth, largest singular values of networks at powers of two."""
    store = isometry.open_store(stage.places(NAME, full)[0], "a")
    width = 1000 if full else 300
    measured_depths = [2**k for k in range(7 if full else 5)]
    for (activation, weights, q_star), *_ in CASES:
        name = case_name(activation, weights, q_star)
        if f"{name} measured" in store.series_names():
            continue
        edges = [
            isometry.predict(networks.ensemble_of(activation, int(depth), weights, q_star or 1 / depth)).s_max
            for depth in THEORY_DEPTHS
        ]
        columns = {"depth": THEORY_DEPTHS, "s_max": np.array(edges)}
        store.add_series(f"{name} theory", columns, overwrite=True)
        found, residuals = [], []
        model = None
        for depth in reversed(measured_depths):
            ensemble = networks.ensemble_of(activation, depth, weights, q_star or 1 / depth)
            if model is None or q_star is None:
                model = networks.network(ensemble, width, seed=0)
            x = networks.stationary_input(ensemble, width, seed=1)
            part = torch.nn.Sequential(*list(model.trunk)[:depth])
            spectrum = isometry.measure(part, x, "lanczos", probes=8, steps=25, top=1, progress=False)
            found.append(spectrum.s_max)
            residuals.append(spectrum.s_max_residual)
        store.add_series(
            f"{name} measured",
            {
                "depth": np.array(measured_depths[::-1]),
                "s_max": np.array(found),
                "residual": np.array(residuals),
            },
            {"width": width},
        )
        worst = max(r / s for r, s in zip(residuals, found, strict=True))
        print(f"{name}: {np.round(found[::-1], 3)}, worst relative residual {worst:.1e}", flush=True)


def draw(full: bool) -> None:
    """One panel, both axes logarithmic."""
    import matplotlib.pyplot as plt

    data, path = stage.places(NAME, full)
    store = isometry.open_store(data)
    with plt.style.context(stage.STYLE):
        figure, ax = plt.subplots(figsize=(7.2, 4.8), layout="constrained")
        for (activation, weights, q_star), label, colour, marker in CASES:
            name = case_name(activation, weights, q_star)
            theory, measured = store.series(f"{name} theory").columns, store.series(f"{name} measured")
            ax.plot(theory["depth"], theory["s_max"], color=colour, lw=1.8)
            ax.plot(measured["depth"], measured["s_max"], marker, color=colour, ms=6, mec="white", mew=0.6)
            ax.plot([], [], marker=marker, color=colour, label=label)
        ax.plot([], [], color="#555555", label="line: predicted edge")
        ax.plot([], [], "o", color="#555555", label=f"marker: measured, width {measured.attributes['width']}")
        ax.set(
            xscale="log", yscale="log", xlabel="depth, layers", ylabel="largest singular value of J",
            title="Largest singular value at criticality",
        )  # fmt: skip
        ticks = [1, 1.5, 2, 3, 5, 10, 20, 50]
        ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.set_yticks([], minor=True)
        ax.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
        ax.legend(loc="upper left", fontsize=9.5)
        stage.save(figure, path)
        plt.close(figure)


if __name__ == "__main__":
    stage.main(__doc__, compute, draw)
