"""Theory over measurement: the Jacobian spectra of real networks, four activations x two weight laws x three depths.

Each panel: histograms of all singular values of one network of width 1000 (float64, dense Jacobian), and over them the
law of infinite width from `isometry.predict`, nothing fitted. Triangles are point masses, at the height of their
mass in the panel (top = 100 %): on the left edge those at zero. All networks are critical, chi_1 = 1; tanh and
hard-tanh at q* = 0.2. KS in the legend is the largest distance between the two cdfs; `isometry.compare` allows
1.63 / sqrt(width), 0.052 here, by chance. Singular values below 1e-13 of the largest are beyond float64 and count as mass at zero.

    python figures/theory_over_measurement.py           # width 1000, depths 2, 8, 32: four minutes on one core
    python figures/theory_over_measurement.py --full    # width 2000, depths 2, 8, 32, 64: an hour
"""

from __future__ import annotations

import math

import numpy as np
import sampled_networks as networks
import torch

import isometry

NAME = "theory_over_measurement"
ACTIVATIONS = ("linear", "relu", "hard_tanh", "tanh")
TITLES = {"linear": "linear", "relu": "ReLU", "hard_tanh": "hard-tanh", "tanh": "tanh"}
WEIGHTS = ("gaussian", "orthogonal")
Q_STAR = 0.2
COLOURS = (networks.BLUE, networks.ORANGE, networks.GREEN, networks.PURPLE)


def plan(full: bool) -> tuple[int, tuple[int, ...]]:
    """Width and depths."""
    return (2000, (2, 8, 32, 64)) if full else (1000, (2, 8, 32))


def compute(full: bool) -> None:
    """Build, measure, predict and store every case; print how far apart the two are."""
    width, depths = plan(full)
    store = networks.fresh_store(NAME)
    for activation in ACTIVATIONS:
        for weights in WEIGHTS:
            deepest = networks.ensemble_of(activation, max(depths), weights, Q_STAR)
            model = networks.network(deepest, width, seed=0)
            x = networks.stationary_input(deepest, width, seed=1)
            for depth in depths:
                ensemble = networks.ensemble_of(activation, depth, weights, Q_STAR)
                # The first layers of a critical network are a critical network.
                part = torch.nn.Sequential(*list(model.trunk)[:depth])
                name = f"{activation} {weights} {depth}"
                measured = isometry.measure(
                    part, x, "exact", progress=False, name=name,
                    provenance={"ensemble": ensemble.to_dict()},
                )  # fmt: skip
                predicted = isometry.predict(ensemble)
                store.add(measured)
                store.add(predicted, f"{name} theory")
                print(f"{name:26s} {isometry.compare(measured, predicted).verdict()}", flush=True)


def draw() -> None:
    """Eight panels."""
    import matplotlib.pyplot as plt

    store = isometry.open_store(networks.data_file(NAME))
    depths = sorted({int(name.split()[2]) for name in store.names()})
    with plt.style.context(networks.STYLE):
        figure, axes = plt.subplots(4, 2, figsize=(8.4, 11.0), layout="constrained")
        for row, activation in enumerate(ACTIVATIONS):
            for column, weights in enumerate(WEIGHTS):
                ax = axes[row, column]
                cases = [(depth, store[f"{activation} {weights} {depth}"],
                          store[f"{activation} {weights} {depth} theory"]) for depth in depths]  # fmt: skip
                _panel(ax, cases)
                ax.set_title(f"{TITLES[activation]}, {weights} weights")
                if column == 0:
                    ax.set_ylabel("density per decade")
                if row == len(ACTIVATIONS) - 1:
                    ax.set_xlabel("singular value s")
        width = store[f"tanh gaussian {depths[0]}"].shape[0]
        figure.suptitle(
            f"Measured spectra of networks of width {width} (filled) and the predicted law (lines)",
            fontsize=13,
        )
        networks.save(figure, NAME)
        plt.close(figure)


def _panel(ax, cases) -> None:
    ranges = []
    for _, measured, predicted in cases:
        zero = max(measured.zero_mass, predicted.zero_mass)
        low = float(measured.log10_quantile(min(zero + 0.01, 1.0)))
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
    if not highest:
        ax.set_yticks([])
    networks.power_ticks(ax, low, high)
    ax.legend(loc="upper left", fontsize=9)


def main() -> None:
    """Compute, then draw."""
    options = networks.arguments(__doc__)
    if not options.draw:
        compute(options.full)
    draw()


if __name__ == "__main__":
    main()
