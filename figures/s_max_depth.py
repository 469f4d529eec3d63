"""The largest singular value against depth: a root of the depth for Gaussian weights, whatever the activation, and
bounded for orthogonal weights with a smooth activation at q* = 1/depth.

Left: the upper edge of the predicted law at critical points (lines), and one network of width 1000 at each depth
(markers), by Golub-Kahan (8 probes, 25 steps). The relative residual is below 1e-2 everywhere (the file holds it).
Right: networks of width 256 and up to 4,000 layers, those of figures/spectra_through_depth.py: where depth exceeds
width the largest value falls short of the edge by decades. Bands, and bars on the left, hold 95 % of networks of that
width: `isometry.predict(width=)`, mean and 1.96 standard deviations of ln s_max. A case that the data file holds is
not measured again.

    python figures/s_max_depth.py           # width 300, depths to 16: a minute
    python figures/s_max_depth.py --full    # width 1000, depths to 64: about ten minutes on one core
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import sampled_networks as networks
import spectra_through_depth as deep
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
DEEP = (
    ("gaussian", "tanh, Gaussian, q* = 1/depth", stage.GREEN),
    ("relu", "ReLU, orthogonal", stage.VERMILION),
)
DEEP_WIDTH = 256
BAND_DEPTHS = (4, 16)
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

    compute_bands(store, full, width)


def compute_bands(store: isometry.Store, full: bool, width: int) -> None:
    """Mean and standard deviation of ln s_max over networks, beside measured values."""
    if full:
        spectra = isometry.open_store(stage.places(deep.NAME, full)[0])
        for key, *_ in DEEP:
            if f"deep {key}" in store.series_names():
                continue
            ensembles = [deep.ensemble(key, depth) for depth in deep.depths(full)]
            columns = bands(ensembles, DEEP_WIDTH)
            columns["s_max"] = np.array(
                [spectra[f"{key} {depth} measured"].s_max for depth in columns["depth"]]
            )
            columns["edge"] = np.array([isometry.predict(one).s_max for one in ensembles])
            store.add_series(f"deep {key}", columns, {"width": DEEP_WIDTH})
            print(key, {name: np.round(column, 3) for name, column in columns.items()}, flush=True)
    for (activation, weights, q_star), *_ in CASES:
        name = case_name(activation, weights, q_star)
        if f"{name} band" not in store.series_names():
            depths = [depth for depth in BAND_DEPTHS if full or depth <= 16]
            ensembles = [
                networks.ensemble_of(activation, depth, weights, q_star or 1 / depth) for depth in depths
            ]
            store.add_series(f"{name} band", bands(ensembles, width), {"width": width})


def bands(ensembles: list[isometry.Ensemble], width: int) -> dict[str, np.ndarray]:
    """Depth, mean and standard deviation of ln s_max, and the networks drawn, of each ensemble."""
    rows = []
    for one in ensembles:
        # Networks are measured at inputs of one mean square.
        fixed = one if one.q_star is None else replace(one, q0=one.q_star)
        rows.append(isometry.predict(fixed, width=width).provenance["finite_width"])
    found = {key: np.array([row["log_s_max"][key] for row in rows]) for key in ("mean", "std")}
    return {
        "depth": np.array([one.depth for one in ensembles]), "draws": np.array([row["draws"] for row in rows]),
        "log_mean": found["mean"], "log_std": found["std"],
    }  # fmt: skip


def draw(full: bool) -> None:
    """Two panels, all axes logarithmic."""
    import matplotlib.pyplot as plt

    data, path = stage.places(NAME, full)
    store = isometry.open_store(data)
    with plt.style.context(stage.STYLE):
        figure, (ax, right) = plt.subplots(1, 2, figsize=(12.4, 4.9), layout="constrained")
        for (activation, weights, q_star), label, colour, marker in CASES:
            name = case_name(activation, weights, q_star)
            theory, measured = store.series(f"{name} theory").columns, store.series(f"{name} measured")
            band = store.series(f"{name} band").columns
            ax.plot(theory["depth"], theory["s_max"], color=colour, lw=1.8)
            ax.plot(measured["depth"], measured["s_max"], marker, color=colour, ms=6, mec="white", mew=0.6)
            ends = [np.exp(band["log_mean"] + sign * 1.96 * band["log_std"]) for sign in (-1, 1)]
            ax.vlines(band["depth"], *ends, color=colour, lw=1.2)
            ax.plot([], [], marker=marker, color=colour, label=label)
        width = store.series(f"{case_name(*CASES[0][0])} measured").attributes["width"]
        ax.plot([], [], color="#555555", label="line: predicted edge")
        ax.plot([], [], "o", color="#555555", label=f"marker: one network of width {width}")
        ax.plot([], [], "|", color="#555555", ms=12, label="bar: 95 % of networks, predicted")
        ax.set(xscale="log", yscale="log", title="Largest singular value at criticality")
        ticks = [1, 1.5, 2, 3, 5, 10, 20, 50]
        ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.set_yticks([], minor=True)
        ax.legend(loc="upper left", fontsize=9)
        for key, label, colour in DEEP if full else ():
            c = store.series(f"deep {key}").columns
            right.plot(c["depth"], c["edge"], color=colour, lw=1.8)
            right.plot(c["depth"], c["s_max"], "o", color=colour, ms=6, mec="white", mew=0.6, label=label)
            ends = [np.exp(c["log_mean"] + sign * 1.96 * c["log_std"]) for sign in (-1, 1)]
            right.fill_between(c["depth"], *ends, color=colour, alpha=0.2, lw=0)
        right.set(xscale="log", yscale="log", title=f"Deeper than wide: width {DEEP_WIDTH}")
        right.legend(loc="lower left", fontsize=9, title="band: 95 % of networks, predicted")
        for axis in (ax, right):
            axis.set(xlabel="depth, layers", ylabel="largest singular value of J")
            axis.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
        stage.save(figure, path)
        plt.close(figure)


if __name__ == "__main__":
    stage.main(__doc__, compute, draw)
