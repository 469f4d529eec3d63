"""Singular values through depth, measured and predicted: four initialisations, and narrow networks.

Dense networks of width 64, for which the theory of the spectrum is that of convolutional ones too: orthogonal weights
at the critical point with q* = 1/depth (isometry at every depth), the same one per cent into the ordered phase (chi_1 =
0.99, q* = 0.02), orthogonal ReLU at its critical point, and Gaussian weights with the variances of the first. Each is
the cumulative distribution of all singular values of one network's Jacobian at one input, however small, each known to
a relative error (`isometry.estimators.chain`); broken lines are `isometry.predict`, which knows nothing of the network
but activation, depth, variances and the law of the weights, and holds for infinite width.

On the right all singular values of narrow linear networks with Gaussian weights. Where the layers L are many, each
ln s_i is normal, with the mean L (ln(2 / N) + psi((N - i + 1) / 2)) / 2 and the variance L psi'((N - i + 1) / 2) / 4
(Newman 1986, Commun. Math. Phys. 103, 121; for complex matrices Akemann, Burda & Kieburg 2014, arXiv:1406.0803).

    python figures/spectra_through_depth.py            # to 400 layers, a minute
    python figures/spectra_through_depth.py --full     # to 4,000 layers: three minutes
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import stage
import torch
from matplotlib.axes import Axes
from scipy.special import digamma, polygamma

import isometry
from isometry.estimators import MatrixFactor, chain
from isometry.nn.models import MLP
from isometry.spectrum import LogValues, Spectrum
from isometry.store import open_store
from isometry.theory.ensemble import Ensemble

NAME = "spectra_through_depth"
ORDERED_Q, ORDERED_CHI = 0.02, 0.99


WIDTH = 64
NARROW_WIDTH, NARROW_DEPTH = 6, 400


@dataclass(frozen=True)
class Start:
    """An initialisation: what its panel is called, its law, and the range of log10 s that shows it."""

    title: str
    activation: str
    weights: str
    shown: tuple[float, float]


STARTS = {
    "isometric": Start(r"tanh, orthogonal, critical, $q^*=1/L$", "tanh", "orthogonal", (-1.3, 0.6)),
    "ordered": Start(r"tanh, orthogonal, ordered, $\chi_1=0.99$", "tanh", "orthogonal", (-16, 1)),
    "relu": Start(r"ReLU, orthogonal, critical, $\sigma_w^2=2$", "relu", "orthogonal", (-5000, 3)),
    "gaussian": Start(r"tanh, Gaussian, critical, $q^*=1/L$", "tanh", "gaussian", (-5000, 3)),
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


def measured(drawn_from: Ensemble) -> Spectrum:
    """All singular values of one network at one input whose pre-activations are stationary from the first layer on.

    From the Jacobians of its layers, which `isometry.measure(network, x, method="chain")` finds by itself; given as
    matrices they take a fifth of the time at this width.
    """
    network = MLP.from_ensemble(drawn_from, WIDTH, seed=0, dtype=torch.float64)
    x = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if network.q_star is not None:
        # E phi(h)^2 at the fixed point: q* = sigma_w^2 E phi(h)^2 + sigma_b^2.
        mean_square = (network.q_star - network.sigma_b**2) / network.sigma_w**2
        x *= math.sqrt(mean_square / float(x.square().mean()))
    factors = []
    for layer in network.trunk:
        factors.append(MatrixFactor(torch.func.jacrev(layer)(x).detach()))
        x = layer(x).detach()
    return chain(factors)


def compute(full: bool) -> None:
    """Predict and measure; what is in the file already stays."""
    data, _ = stage.places(NAME, full)
    store = open_store(data, "a")
    for depth in depths(full):
        for key in STARTS:
            network = ensemble(key, depth)
            for kind in ("predicted", "measured"):
                name = f"{key} {depth} {kind}"
                if name in store:
                    continue
                spectrum = isometry.predict(network, points=800) if kind == "predicted" else measured(network)
                store.add(spectrum, name=name)
                low, high = spectrum.log10_quantile([0.5, 0.99])
                print(
                    f"{name}: log10 s {low:.2f} (median), {high:.2f} (99 %), {spectrum.seconds:.1f} s",
                    flush=True,
                )
    if "narrow" not in store:
        store.add(narrow(60), name="narrow")


def narrow(networks: int) -> Spectrum:
    """All singular values of so many narrow linear networks with Gaussian weights."""
    generator = torch.Generator().manual_seed(2)
    shape = (NARROW_DEPTH, NARROW_WIDTH, NARROW_WIDTH)
    found = []
    for _ in range(networks):
        weights = torch.randn(shape, generator=generator, dtype=torch.float64) / math.sqrt(NARROW_WIDTH)
        found.append(chain([MatrixFactor(weight) for weight in weights]).distribution)
    logs, errors = (
        np.concatenate([getattr(one, name) for one in found]) for name in ("log_values", "log_error")
    )
    return Spectrum(
        LogValues(logs, errors, np.zeros(networks, int)), method="chain", shape=(NARROW_WIDTH, NARROW_WIDTH)
    )


def draw(full: bool) -> None:
    """Cumulative distributions, one panel for each initialisation, and the densities of the narrow networks."""
    import matplotlib.pyplot as plt

    data, path = stage.places(NAME, full)
    store = open_store(data)
    with plt.style.context(stage.STYLE):
        figure = plt.figure(figsize=(13, 6.6), layout="constrained")
        panels = figure.subplot_mosaic([["isometric", "ordered", "narrow"], ["relu", "gaussian", "narrow"]])
        for key, start in STARTS.items():
            ax = panels[key]
            for depth, color in zip(depths(full), COLORS, strict=False):
                spectrum = store[f"{key} {depth} measured"]
                values = np.sort(spectrum.log_singular_values) / math.log(10)
                share = np.arange(1, len(values) + 1) / len(values)
                found = np.isfinite(values)
                zero = share[~found].max(initial=0.0)
                ax.step(
                    np.concatenate([[start.shown[0], values[found][0]], values[found], [start.shown[1]]]),
                    np.concatenate([[zero, zero], share[found], [1.0]]), where="post", color=color, lw=2.6,
                    label=f"{depth:,}",
                )  # fmt: skip
                predicted = store[f"{key} {depth} predicted"].distribution
                places = _places(start.shown)
                ax.plot(places, predicted.cdf(places * math.log(10)), "--", color=stage.VERMILION, lw=1.3)
            ax.axvspan(math.log10(0.5), math.log10(2.0), color="#009E73", alpha=0.18, lw=0, zorder=0)
            ax.set(xlim=start.shown, ylim=(0, 1.03), title=start.title)
            if start.shown[0] < -100:
                ax.set_xscale("symlog", linthresh=1, linscale=0.5)
                ax.set_xticks([-1000, -100, -10, -1, 0, 1], ["1e-1000", "1e-100", "1e-10", "0.1", "1", "10"])
            else:
                ticks = [-1, -0.5, 0, 0.5] if start.shown[0] > -2 else [-15, -10, -5, 0]
                ax.set_xticks(ticks, [f"{10.0**tick:.2g}" for tick in ticks])
            ax.set_xticks([], minor=True)
            ax.set_ylabel("share of singular values ≤ s")
            ax.set_xlabel("singular value s")
        panels["isometric"].plot([], [], "--", color=stage.VERMILION, lw=1.3, label="theory")
        panels["isometric"].legend(loc="upper left", title="layers", alignment="left")
        _draw_narrow(panels["narrow"], store["narrow"])
        stage.save(figure, path)
        plt.close(figure)


def _places(shown: tuple[float, float]) -> np.ndarray:
    """log10 s at which a predicted law is drawn: evenly, and in logarithms where the range is wide."""
    even = np.linspace(max(shown[0], -2.0), shown[1], 600)
    return even if shown[0] >= -2 else np.concatenate([-np.geomspace(-shown[0], 2.0, 800), even])


def _draw_narrow(ax: Axes, spectrum: Spectrum) -> None:
    """The density of each ln s_i over the networks, and the normal one of many layers."""
    logs = spectrum.distribution.log_values / math.log(10)
    for rank, values in enumerate(logs.T, start=1):
        half = (NARROW_WIDTH - rank + 1) / 2
        mean = NARROW_DEPTH * (math.log(2 / NARROW_WIDTH) + float(digamma(half))) / 2 / math.log(10)
        spread = math.sqrt(NARROW_DEPTH * float(polygamma(1, half))) / 2 / math.log(10)
        s = np.linspace(mean - 4 * spread, mean + 4 * spread, 200)
        ax.hist(values, bins=16, density=True, color=stage.SKY, label="networks" if rank == 1 else None)
        ax.plot(
            s, np.exp(-(((s - mean) / spread) ** 2) / 2) / (spread * math.sqrt(2 * math.pi)), "--",
            color=stage.VERMILION, lw=1.5, label="log-normal" if rank == 1 else None,
        )  # fmt: skip
    ticks = [-200, -100, 0]
    ax.set_xticks(ticks, [f"1e{tick}" if tick else "1" for tick in ticks])
    ax.set(
        title=f"{len(logs)} linear networks,\nwidth {NARROW_WIDTH}, {NARROW_DEPTH} layers",
        xlabel="singular value s", ylabel="density of each of them, per decade",
    )  # fmt: skip
    ax.legend(loc="upper left")


if __name__ == "__main__":
    stage.main(__doc__, compute, draw)
