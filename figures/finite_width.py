"""Networks of finite width about their law: predicted spread against the spread of draws.

Left: the standard deviation over networks of ln of the mean square, all directions, by the recursion of order 1/N
(`isometry.theory.finitewidth`). Middle: of ln |J u|^2 for one direction u (for Gaussian ReLU sqrt(5 L/N), Hanin and
Nica 2018, arXiv 1812.05994). Right: of the cdf at the quantiles 0.3, 0.6 and 0.9 of the law, times the width: the
response to the slopes drawn; linear networks have none, and the directions of the weights add about 0.7 in all.
Observed over networks drawn by numpy, with the standard error of a standard deviation; widths 50 to 200, depths 4 and
16. The line is equality.

    python figures/finite_width.py           # widths to 100, 40 draws: ten seconds
    python figures/finite_width.py --full    # widths to 200, 60 draws: half a minute
"""

from __future__ import annotations

import numpy as np
import stage

import isometry
from isometry.theory.activations import get_activation
from isometry.theory.finitewidth.response import responses
from isometry.theory.finitewidth.sampling import sample, sample_chain
from isometry.theory.finitewidth.slope_chain import alike_layers, log_mean_square
from isometry.theory.finitewidth.spread import log_mean

NAME = "finite_width"
# (activation, weights, q*), colour, label.
CASES = (
    (("linear", "gaussian", 1.0), stage.BLUE, "linear, Gaussian"),
    (("relu", "gaussian", 1.0), stage.ORANGE, "ReLU, Gaussian"),
    (("relu", "orthogonal", 1.0), stage.VERMILION, "ReLU, orthogonal"),
    (("tanh", "gaussian", 0.5), stage.SKY, "tanh, Gaussian, q* = 0.5"),
    (("tanh", "orthogonal", 0.2), stage.PURPLE, "tanh, orthogonal, q* = 0.2"),
    (("hard_tanh", "orthogonal", 0.5), stage.GREEN, "hard-tanh, orthogonal, q* = 0.5"),
)
MARKERS = {50: "o", 100: "s", 200: "^"}
LEVELS = (0.3, 0.6, 0.9)


def compute(full: bool) -> None:
    """Predicted and observed standard deviations, one series for each ensemble."""
    store = isometry.open_store(stage.places(NAME, full)[0], "a")
    widths = (50, 100, 200) if full else (50, 100)
    for (activation, weights, q_star), *_ in CASES:
        name = f"{activation} {weights} {q_star:g}"
        if name in store.series_names():
            continue
        rows = [
            row(activation, weights, q_star, depth, width, 60 if full else 40)
            for width in widths
            for depth in (4, 16)
        ]
        columns = {key: np.array([one[key] for one in rows]) for key in rows[0]}
        store.add_series(name, columns)
        print(
            name, {key: np.round(columns[key], 3) for key in ("predicted_mean", "observed_mean")}, flush=True
        )


def row(activation: str, weights: str, q_star: float, depth: int, width: int, draws: int) -> dict[str, float]:
    """One ensemble at one depth and width."""
    ensemble = isometry.Ensemble(activation, depth, weights, q_star=q_star)
    curve = isometry.predict(ensemble).distribution
    mass = curve.zero_mass
    places = np.asarray(curve.quantile([mass + (1 - mass) * level for level in LEVELS]))
    phi = get_activation(activation)
    q = alike_layers(ensemble)[1].q
    response = next(iter(responses(curve, phi, q, places).values()))
    moved = np.array(
        [response.counts(h).sum(axis=0) @ response.cdf for h in sample_chain(ensemble, width, 200)]
    )
    networks = list(sample(ensemble, width, draws, seed=5))
    values = np.array([one.log_values for one in networks])
    cdf = np.array([np.searchsorted(v, places + 1e-9, side="right") / width for v in values])
    means = log_mean(values)
    directions = np.array([one.log_direction for one in networks])
    widths = (width,) * (depth + 1)
    every, one = log_mean_square(ensemble, widths), log_mean_square(ensemble, widths, one_direction=True)
    found = {
        "width": width, "depth": depth, "draws": draws,
        "predicted_mean": every.std, "observed_mean": means.std(ddof=1),
        "predicted_center": every.mean, "observed_center": means.mean() - curve.log_moment(2),
        "predicted_direction": one.std, "observed_direction": directions.std(ddof=1),
    }  # fmt: skip
    for index, level in enumerate(LEVELS):
        found[f"predicted_cdf_{level:g}"] = moved[:, index].std(ddof=1)
        found[f"observed_cdf_{level:g}"] = cdf[:, index].std(ddof=1)
    return {key: float(value) for key, value in found.items()}


def draw(full: bool) -> None:
    """Three panels, observed over predicted."""
    import matplotlib.pyplot as plt

    data, path = stage.places(NAME, full)
    store = isometry.open_store(data)
    with plt.style.context(stage.STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(13.5, 4.9), layout="constrained")
        for (activation, weights, q_star), colour, label in CASES:
            c = store.series(f"{activation} {weights} {q_star:g}").columns
            error = 1 / np.sqrt(2 * (c["draws"] - 1))
            for index in range(c["width"].size):
                marker = MARKERS[int(c["width"][index])]
                pairs = [(axes[0], "mean", 1.0), (axes[1], "direction", 1.0)]
                pairs += [(axes[2], f"cdf_{level:g}", c["width"][index]) for level in LEVELS]
                for ax, key, scale in pairs:
                    x, y = scale * c[f"predicted_{key}"][index], scale * c[f"observed_{key}"][index]
                    if x > 1e-6:
                        ax.errorbar(
                            x, y, y * error[index], fmt=marker, color=colour, ms=5, mec="white", mew=0.5, lw=1
                        )
            axes[0].plot([], [], "o", color=colour, label=label)
        for width, marker in MARKERS.items():
            axes[1].plot([], [], marker, color="#555555", label=f"width {width}")
        texts = (
            ("ln of the mean square", "standard deviation of ln m1"),
            ("one direction", "standard deviation of ln |Ju|²"),
            ("cdf at three quantiles", "width x standard deviation of the cdf"),
        )
        for ax, (title, what) in zip(axes, texts, strict=True):
            low, high = ax.dataLim.intervalx
            ends = [0.8 * max(low, 1e-3), 1.25 * high]
            ax.plot(ends, ends, color="#999999", lw=1, zorder=0)
            ax.set(xscale="log", yscale="log", title=title, xlabel=f"predicted {what}", ylabel="observed")
        axes[0].legend(loc="upper left", fontsize=8.5)
        axes[1].legend(loc="upper left", fontsize=8.5)
        stage.save(figure, path)
        plt.close(figure)


if __name__ == "__main__":
    stage.main(__doc__, compute, draw)
