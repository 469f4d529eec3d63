"""Real CNNs approach the law of infinite width as their channels grow.

Vanilla tanh CNNs of depth 4 on 8 x 8 maps, circular 3x3 convolutions, critical at q* = 0.25: 32, 64 and 128
channels, with Gaussian and with delta-orthogonal kernels. The prediction is that of a dense network, for it does not
know of space (Xiao et al. 2018, arXiv 1806.05393, section 2.4). Left and middle: all c x 64 singular values of J at
one input, one network of each size, over the predicted density. Right: the largest distance of the two cdfs for
several draws, against the channels, with their mean; the dotted line is what `isometry.compare` allows by chance,
1.63 / sqrt(channels).

J of the Gaussian networks (8192 x 8192 at 128 channels) is built and decomposed in float32: values below 2e-5 of the
largest count as one mass. A delta-orthogonal kernel does not couple positions, so J is the direct sum of a c x c matrix
for each, measured as a batch of 64 maps of one position.

    python figures/cnn_width.py           # 2 draws and 1 at 32 and 64 channels: a minute
    python figures/cnn_width.py --full    # 8, 4 and 2 draws at 32, 64 and 128 channels: ten minutes on one core
"""

from __future__ import annotations

import numpy as np
import sampled_networks as networks
import stage
import torch
from torch import Tensor

import isometry
from isometry.nn import VanillaCNN

NAME = "cnn_width"
SIZE, DEPTH, Q_STAR = 8, 4, 0.25
WEIGHTS = ("gaussian", "orthogonal")
TITLES = {"gaussian": "Gaussian kernels", "orthogonal": "delta-orthogonal kernels"}
COLOURS = {32: stage.SKY, 64: stage.ORANGE, 128: stage.VERMILION}
SINGLE_FLOOR = 2e-5


def plan(full: bool) -> dict[int, int]:
    """Draws for each number of channels."""
    return {32: 8, 64: 4, 128: 2} if full else {32: 2, 64: 1}


def in_single(model: VanillaCNN, x: Tensor, *, block: int = 64) -> isometry.Spectrum:
    """All singular values from the dense J in float32, half the time and memory of float64."""
    operator = isometry.JacobianOperator(model, x, dtype=torch.float32)
    side = operator.shape[1]
    dense = torch.empty(side, operator.shape[0])
    for start in range(0, side, block):
        unit = torch.zeros(block, side)
        unit[torch.arange(block), start + torch.arange(block)] = 1
        dense[start : start + block] = operator.matmat(unit.reshape(block, *x.shape)).flatten(1)
    values = torch.linalg.svdvals(dense).double().numpy()
    return isometry.Spectrum.from_singular_values(values, floor=SINGLE_FLOOR * values[0])


def by_position(model: VanillaCNN, x: Tensor) -> isometry.Spectrum:
    """The same of a network that does not couple positions, from one small J for each."""
    points = x.flatten(1).T[:, :, None, None]
    blocks = isometry.measure(model, points, "exact", batched=True, progress=False)
    return isometry.Spectrum.from_singular_values(blocks.distribution.nodes.ravel())


def compute(full: bool) -> None:
    """Draw, measure and store the networks; the distances of all draws become one series for each kernel law."""
    store = isometry.open_store(stage.places(NAME, full)[0], "w")
    for weights in reversed(WEIGHTS):
        ensemble = networks.ensemble_of("tanh", DEPTH, weights, Q_STAR)
        theory = isometry.predict(ensemble)
        store.add(theory, f"{weights} theory")
        rows: dict[str, list[float]] = {
            "channels": [],
            "seed": [],
            "ks": [],
            "ks_shape": [],
            "mean_square": [],
        }
        for channels, draws in plan(full).items():
            for seed in range(draws):
                model = networks.network(ensemble, channels, seed=seed, kind=VanillaCNN)
                x = networks.stationary_input(ensemble, channels, SIZE, SIZE, seed=1000 + seed)
                measured = (in_single if weights == "gaussian" else by_position)(model, x)
                found = isometry.compare(measured, theory, width=channels)
                if seed == 0:
                    # Quantiles to a thousandth are all that is drawn, and keep the file small.
                    levels = (np.arange(1000) + 0.5) / 1000
                    shown = isometry.Spectrum.from_singular_values(
                        measured.quantile(levels), floor=measured.floor
                    )
                    store.add(networks.light(shown), f"{weights} {channels}")
                values = (channels, seed, found.raw.ks, found.shape.ks, measured.mean_square)
                for column, value in zip(rows.values(), values, strict=True):
                    column.append(value)
                print(f"{weights} {channels} draw {seed}: {found.verdict()}", flush=True)
        store.add_series(
            f"{weights} distances", {key: np.array(column) for key, column in rows.items()},
            {"activation": "tanh", "depth": DEPTH, "q_star": Q_STAR, "size": SIZE},
            descriptions={
                "ks": "sup distance of the measured and the predicted cdf",
                "ks_shape": "the same with the measured mean square divided out",
                "mean_square": "measured mean of s^2; predicted: 1",
            },
        )  # fmt: skip


def draw(full: bool) -> None:
    """Two panels of spectra, one of distances."""
    import matplotlib.pyplot as plt

    data, path = stage.places(NAME, full)
    store = isometry.open_store(data)
    with plt.style.context(stage.STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(11.0, 4.0), layout="constrained")
        for ax, weights in zip(axes, WEIGHTS, strict=False):
            theory = store[f"{weights} theory"]
            sizes = sorted({int(value) for value in store.series(f"{weights} distances").columns["channels"]})
            low = float(theory.log10_quantile(0.03))
            high = float(theory.distribution.log_range[1] / np.log(10))
            low, high = low - 0.1 * (high - low), high + 0.08 * (high - low)
            for channels in sizes:
                edges, density = networks.log_histogram(store[f"{weights} {channels}"], low, high, 36)
                ax.stairs(density, edges, color=COLOURS[channels], lw=1.6, label=f"{channels} channels")
            x, curve = networks.log_curve(theory, low, high)
            ax.plot(x, curve, color=stage.BLACK, lw=1.6, label="theory")
            networks.power_ticks(ax, low, high)
            ax.set(
                title=TITLES[weights], xlabel="singular value s", ylabel="density per decade", ylim=(0, None)
            )
            ax.legend(loc="upper left", fontsize=9.5)
        _distances(axes[2], store)
        stage.save(figure, path)
        plt.close(figure)


def _distances(ax, store: isometry.store.Store) -> None:
    for weights, colour, marker, shift in (
        ("gaussian", stage.BLUE, "o", 0.97), ("orthogonal", stage.VERMILION, "s", 1.03),
    ):  # fmt: skip
        columns = store.series(f"{weights} distances").columns
        channels, ks = np.asarray(columns["channels"], float), np.asarray(columns["ks"], float)
        sizes = np.unique(channels)
        means = [ks[channels == size].mean() for size in sizes]
        ax.plot(channels * shift, ks, marker, color=colour, ms=4, alpha=0.45)
        ax.plot(sizes * shift, means, marker=marker, ms=7, color=colour, label=TITLES[weights])
    ax.plot(sizes, 1.63 / np.sqrt(sizes), ":", color=stage.BLACK, lw=1.4, label="by chance, at most")
    ax.plot(sizes, 0.3 / sizes, "--", color="#888888", lw=1.2, label="∝ 1/channels")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(sizes, [f"{size:g}" for size in sizes])
    ax.set(title="Distance to theory", xlabel="channels", ylabel="KS distance")
    ax.set_ylim(7e-4, 6.0)
    ax.legend(loc="upper right", fontsize=9.5)


if __name__ == "__main__":
    stage.main(__doc__, compute, draw)
