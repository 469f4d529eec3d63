"""Singular values through depth: four initialisations at 4 to 4,000 layers, measured and predicted.

Dense square networks, for which the theory of the spectrum is that of convolutional ones too: orthogonal weights at the
critical point with q* = 1/depth (isometry at every depth), the same one per cent into the ordered phase (chi_1 = 0.99,
q* = 0.02), orthogonal ReLU at its critical point, and Gaussian weights with the variances of the first. Each curve is
the cumulative distribution of all singular values of one network's Jacobian at one input, exact and in double precision
(a triangle marks the floor, below which a value is rounding); broken lines are `isometry.predict`, which knows nothing
of the network but activation, depth, variances and the law of the weights, and holds for infinite width. At 4,000
layers the networks are far deeper than wide: the largest values of ReLU and Gaussian ones then fall short by decades.

    python figures/spectra_through_depth.py            # width 64, to 400 layers, half a minute on two cores
    python figures/spectra_through_depth.py --full     # width 256, to 4,000 layers: some minutes, 3 GB of memory
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import stage
import torch

import isometry
from isometry.nn.models import MLP
from isometry.spectrum import Spectrum
from isometry.store import open_store
from isometry.theory.ensemble import Ensemble

NAME = "spectra_through_depth"
ORDERED_Q, ORDERED_CHI = 0.02, 0.99


@dataclass(frozen=True)
class Start:
    """An initialisation: what its panel is called, its law, and the range of s that shows it."""

    title: str
    activation: str
    weights: str
    shown: tuple[float, float]


STARTS = {
    "isometric": Start(r"tanh, orthogonal, critical, $q^*=1/L$", "tanh", "orthogonal", (0.05, 4.0)),
    "ordered": Start(r"tanh, orthogonal, ordered, $\chi_1=0.99$", "tanh", "orthogonal", (1e-13, 10.0)),
    "relu": Start(r"ReLU, orthogonal, critical, $\sigma_w^2=2$", "relu", "orthogonal", (1e-17, 100.0)),
    "gaussian": Start(r"tanh, Gaussian, critical, $q^*=1/L$", "tanh", "gaussian", (1e-17, 100.0)),
}
# Light to dark with depth, as far apart as four lines can be in a colour-blind-safe ramp.
COLORS = ("#E69F00", "#56B4E9", "#0072B2", "#000000")


def depths(full: bool) -> tuple[int, ...]:
    """Numbers of layers."""
    return (4, 40, 400, 4000) if full else (4, 40, 400)


def ensemble(key: str, depth: int) -> Ensemble:
    """The random network of a panel at a depth."""
    start = STARTS[key]
    if key == "relu":
        return Ensemble("relu", depth, weights="orthogonal", sigma_w=math.sqrt(2.0), sigma_b=0.0)
    if key != "ordered":
        return Ensemble(start.activation, depth, weights=start.weights, q_star=1.0 / depth)
    critical = isometry.critical_point("tanh", q_star=ORDERED_Q)
    # chi_1 is proportional to sigma_w^2 at fixed q*; the bias keeps q* where it was.
    sigma_w2 = ORDERED_CHI * critical.sigma_w2
    mean_square = (critical.q_star - critical.sigma_b2) / critical.sigma_w2
    sigma_b2 = ORDERED_Q - sigma_w2 * mean_square
    return Ensemble(
        "tanh", depth, weights="orthogonal", sigma_w=math.sqrt(sigma_w2), sigma_b=math.sqrt(sigma_b2)
    )


def measured(drawn_from: Ensemble, width: int) -> Spectrum:
    """All singular values of one network at one input whose pre-activations are stationary from the first layer on."""
    network = MLP.from_ensemble(drawn_from, width, seed=0, dtype=torch.float64)
    x = torch.randn(width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if network.q_star is not None:
        # E phi(h)^2 at the fixed point: q* = sigma_w^2 E phi(h)^2 + sigma_b^2.
        mean_square = (network.q_star - network.sigma_b**2) / network.sigma_w**2
        x *= math.sqrt(mean_square / float(x.square().mean()))
    return isometry.measure(network, x, method="exact", dtype=torch.float64)


def compute(full: bool) -> None:
    """Predict and measure; what is in the file already stays."""
    data, _ = stage.places(NAME, full)
    width = 256 if full else 64
    store = open_store(data, "a")
    for depth in depths(full):
        for key in STARTS:
            network = ensemble(key, depth)
            for kind in ("predicted", "measured"):
                name = f"{key} {depth} {kind}"
                if name in store:
                    continue
                spectrum = (
                    isometry.predict(network, points=800) if kind == "predicted" else measured(network, width)
                )
                store.add(spectrum, name=name)
                low, high = spectrum.log10_quantile([0.5, 0.99])
                print(
                    f"{name}: log10 s {low:.2f} (median), {high:.2f} (99 %), {spectrum.seconds:.1f} s",
                    flush=True,
                )


def draw(full: bool) -> None:
    """Cumulative distributions, one panel for each initialisation."""
    import matplotlib.pyplot as plt

    data, path = stage.places(NAME, full)
    store = open_store(data)
    with plt.style.context(stage.STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(8.6, 6.6), sharey=True, layout="constrained")
        for ax, (key, start) in zip(axes.flat, STARTS.items(), strict=True):
            ax.axvspan(0.5, 2.0, color="#009E73", alpha=0.18, lw=0, zorder=0)
            for depth, color in zip(depths(full), COLORS, strict=False):
                spectrum = store[f"{key} {depth} measured"]
                values = np.sort(spectrum.distribution.nodes.ravel())
                share = np.arange(1, len(values) + 1) / len(values)
                resolved = values > spectrum.floor
                begin = (spectrum.floor, spectrum.below_floor)
                ax.step(
                    np.append(begin[0], values[resolved]), np.append(begin[1], share[resolved]), where="post",
                    color=color, lw=2.6, label=f"{depth:,}",
                )  # fmt: skip
                if spectrum.below_floor > 0:
                    ax.plot(*begin, "<", color=color, ms=7)
                s = np.geomspace(*start.shown, 800)
                ax.plot(s, store[f"{key} {depth} predicted"].cdf(s), "--", color=stage.VERMILION, lw=1.3)
            ax.set(xscale="log", xlim=start.shown, ylim=(0, 1.03), title=start.title)
        axes[0, 0].set_xticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
        for ax in axes.flat[1:]:
            ax.set_xticks([10.0**power for power in range(-15, 2, 3) if 10.0**power > ax.get_xlim()[0]])
        for ax in axes.flat:
            ax.set_xticks([], minor=True)
        for ax in axes[:, 0]:
            ax.set_ylabel("share of singular values ≤ s")
        for ax in axes[1]:
            ax.set_xlabel("singular value s")
        axes[0, 0].plot([], [], "--", color=stage.VERMILION, lw=1.3, label="theory")
        axes[0, 0].legend(loc="upper left", title="layers", alignment="left")
        stage.save(figure, path)
        plt.close(figure)


if __name__ == "__main__":
    stage.main(__doc__, compute, draw)
