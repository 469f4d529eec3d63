"""Theory over measurement: the Jacobian spectra of real networks, four activations x two weight laws x three depths.

Each panel: histograms of all singular values of one network of width 1000 (float64, dense Jacobian), and over them the
law of infinite width from `isometry.predict`, nothing fitted. Triangles are point masses, at the height of their
mass in the panel (top = 100 %): on the left edge those at zero. All networks are critical, chi_1 = 1; tanh and
hard-tanh at q* = 0.2. KS in the legend is the largest distance between the two cdfs; `isometry.compare` allows
1.63 / sqrt(width), 0.052 here, by chance. Singular values below 1e-13 of the largest are beyond float64 and count as
mass at zero. A case that the data file holds is not measured again.

    python figures/theory_over_measurement.py           # width 300, depths 3 and 10: half a minute
    python figures/theory_over_measurement.py --full    # width 1000, depths 3, 10, 30: four minutes on one core
"""

from __future__ import annotations

import math

import numpy as np
import sampled_networks as networks
import stage
import torch

import isometry

NAME = "theory_over_measurement"
ACTIVATIONS = ("linear", "relu", "hard_tanh", "tanh")
TITLES = {"linear": "linear", "relu": "ReLU", "hard_tanh": "hard-tanh", "tanh": "tanh", "gaussian": "Gaussian",
          "orthogonal": "orthogonal"}  # fmt: skip
WEIGHTS = ("gaussian", "orthogonal")
Q_STAR = 0.2
COLOURS = (stage.BLUE, stage.ORANGE, stage.GREEN, stage.PURPLE)


def plan(full: bool) -> tuple[int, tuple[int, ...]]:
    """Width and depths."""
    return (1000, (3, 10, 30)) if full else (300, (3, 10))


def compute(full: bool) -> None:
    """Build, measure and store every case; print how far it is from the prediction."""
    width, depths = plan(full)
    store = isometry.open_store(stage.places(NAME, full)[0], "a")
    for activation in ACTIVATIONS:
        for weights in WEIGHTS:
            deepest = networks.ensemble_of(activation, max(depths), weights, Q_STAR)
            model = None
            x = networks.stationary_input(deepest, width, seed=1)
            for depth in depths:
                ensemble = networks.ensemble_of(activation, depth, weights, Q_STAR)
                name = f"{activation} {weights} {depth}"
                if name not in store or store[name].shape[0] != width:
                    # The first layers of a critical network are a critical network.
                    model = model or networks.network(deepest, width, seed=0)
                    part = torch.nn.Sequential(*list(model.trunk)[:depth])
                    measured = isometry.measure(
                        part, x, "exact", progress=False, name=name,
                        provenance={"ensemble": ensemble.to_dict()},
                    )  # fmt: skip
                    store.add(networks.light(measured), overwrite=True)
                measured = store[name]
                found = isometry.compare(measured, isometry.predict(ensemble))
                print(f"{name:26s} {found.verdict()}", flush=True)


def draw(full: bool) -> None:
    """Eight panels."""
    import matplotlib.pyplot as plt

    data, path = stage.places(NAME, full)
    store = isometry.open_store(data)
    depths = sorted({int(name.split()[2]) for name in store.names()})
    with plt.style.context(stage.STYLE):
        figure, axes = plt.subplots(4, 2, figsize=(8.4, 11.0), layout="constrained")
        for row, activation in enumerate(ACTIVATIONS):
            for column, weights in enumerate(WEIGHTS):
                ax = axes[row, column]
                cases = [(depth, *_both(store[f"{activation} {weights} {depth}"])) for depth in depths]
                _panel(ax, cases)
                ax.set_title(f"{TITLES[activation]}, {TITLES[weights]} weights")
                if column == 0:
                    ax.set_ylabel("density per decade")
                if row == len(ACTIVATIONS) - 1:
                    ax.set_xlabel("singular value s")
        width = store[f"tanh gaussian {depths[0]}"].shape[0]
        figure.suptitle(
            f"Measured spectra of networks of width {width} (filled) and the predicted law (lines)",
            fontsize=13,
        )
        stage.save(figure, path)
        plt.close(figure)


def _both(measured: isometry.Spectrum) -> tuple[isometry.Spectrum, isometry.Spectrum]:
    """The measured spectrum and the prediction for the ensemble that is recorded with it."""
    return measured, isometry.predict(isometry.Ensemble.from_dict(measured.provenance["ensemble"]))


def _panel(ax, cases) -> None:
    ranges = []
    for _, measured, predicted in cases:
        zero = max(measured.zero_mass, predicted.zero_mass)
        low = float(measured.log10_quantile(min(zero + 0.04, 1.0)))
        ranges.append(
            (low, max(measured.distribution.log_range[1], predicted.distribution.log_range[1]) / math.log(10))
        )
    low, high = min(a for a, _ in ranges), max(b for _, b in ranges)
    margin = 0.04 * (high - low) if high - low > 0.02 else 0.3
    low, high = low - 2 * margin, high + margin
    highest = 0.0
    for index, (depth, measured, predicted) in enumerate(cases):
        colour = COLOURS[index]
        # An isometry is one needle: its mass is what there is to see.
        atoms = [(s, mass) for s, mass in predicted.atoms if mass > 0.002]
        distance = isometry.compare(measured, predicted).raw.ks
        label = f"depth {depth}: KS {distance:.3f}"
        spread = float(np.ptp(predicted.log10_quantile([0.02, 0.98])))
        if spread > 1e-6:
            edges, density = networks.log_histogram(measured, low, high, 70)
            x, curve = networks.log_curve(predicted, low, high)
            atom_cells = [int(np.searchsorted(edges, math.log10(s))) - 1 for s, _ in atoms if s > 0]
            for cell, (_, mass) in zip(atom_cells, [atom for atom in atoms if atom[0] > 0], strict=True):
                # The point mass is shown as a triangle, not as the height of one cell.
                density[cell] = max(density[cell] - mass / (edges[1] - edges[0]), 0.0)
            ax.stairs(density, edges, fill=True, color=colour, alpha=0.3, lw=0)
            ax.plot(x, curve, color=colour, lw=1.5, label=label)
            highest = max(highest, float(np.percentile(curve[curve > 0], 99)), float(density.max()))
        else:
            ax.plot([], [], color=colour, label=label)
        for s, mass in atoms:
            place = math.log10(s) if s > 0 else low + 0.012 * (high - low) * (1 + 2 * index)
            ax.plot([place, place], [0, mass], color=colour, lw=1.2, transform=ax.get_xaxis_transform())
            ax.plot([place], [mass], marker="^" if s > 0 else "<", ms=6, color=colour, clip_on=False,
                    transform=ax.get_xaxis_transform(), zorder=5)  # fmt: skip
    ax.set_ylim(0, 1.1 * highest if highest else 1.0)
    masses = [dict(predicted.atoms).get(0.0, 0.0) for _, _, predicted in cases]
    if max(masses) > 0.002:
        ax.text(0.045 + 0.03 * len(cases), max(masses), f"{100 * max(masses):.3g} % at zero", va="center",
                fontsize=9, transform=ax.transAxes)  # fmt: skip
    if not highest:
        ax.set_yticks([])
        ax.text(0.52, 0.9, "all at s = 1", fontsize=9, transform=ax.transAxes)
    networks.power_ticks(ax, low, high)
    ax.legend(loc="upper left", fontsize=9)


if __name__ == "__main__":
    stage.main(__doc__, compute, draw)
