"""Are the layers of a network free of each other? At initialisation yes; after training all but a few directions.

A tanh network of six layers of 128 units, orthogonal at q* = 0.2, learns 8 x 8 digits (bundled with scikit-learn) by
SGD. Before training and after, J of its trunk at the features of one digit is measured (bars: all 128 singular values)
and set beside `isometry.predict_from_layers` (line): the law that the very same weights and slopes would give if the
singular directions of neighbouring layers had nothing to do with each other. Right: measured over predicted largest
value and moments along the training. The bulk keeps to the free law; a handful of directions align from layer to layer
and carry the signal, so that the high moments leave it.

    python figures/free_layers.py           # 200 steps: half a minute
    python figures/free_layers.py --full    # 1000 steps: one minute on one core
"""

from __future__ import annotations

import math

import numpy as np
import sampled_networks as networks
import stage
import torch
from torch.nn import functional

import isometry
from isometry.nn import MLP
from isometry.training.data import load_dataset

NAME = "free_layers"
LAYERS, WIDTH, Q_STAR = 6, 128, 0.2
MOMENTS = (1, 2, 4)


def looks(steps: int) -> list[int]:
    """Steps at which the network is looked at."""
    return sorted({0, steps, *np.unique(np.round(np.geomspace(10, steps, 13)).astype(int)).tolist()})


def compute(full: bool) -> None:
    """Train, and on the way measure the trunk and predict it from its own layers."""
    steps = 1000 if full else 200
    store = isometry.open_store(stage.places(NAME, full)[0], "w")
    data = load_dataset("digits")
    images, labels = data.train_images.flatten(1), data.train_labels
    tests, test_labels = data.test_images.flatten(1), data.test_labels
    model = MLP(
        LAYERS,
        WIDTH,
        "tanh",
        "orthogonal",
        q_star=Q_STAR,
        in_features=images.shape[1],
        num_classes=10,
        seed=0,
    )
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    rows: dict[str, list[float]] = {
        key: [] for key in ("step", "accuracy", "ks", "s_max", *(f"m{k}" for k in MOMENTS))
    }
    for step in range(steps + 1):
        if step in looks(steps):
            with torch.no_grad():
                features = model.stem(images[0])
                accuracy = float((model(tests).argmax(1) == test_labels).float().mean())
            measured = isometry.measure(model.trunk, features, "exact", dtype=torch.float64, progress=False)
            free = isometry.predict_from_layers(model.trunk, features)
            found = isometry.compare(measured, free)
            ratios = [math.exp(found.raw.log_moment_ratios[k - 1]) for k in MOMENTS]
            values = (step, accuracy, found.raw.ks, math.exp(found.s_max.log_ratio), *ratios)
            for column, value in zip(rows.values(), values, strict=True):
                column.append(value)
            print(f"step {step}: test accuracy {accuracy:.3f}; {found.verdict()}", flush=True)
            if step in (0, steps):
                word = "before" if step == 0 else "after"
                store.add(measured, word)
                store.add(free, f"{word} free")
        batch = torch.randint(0, len(images), (128,), generator=generator)
        optimiser.zero_grad()
        functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimiser.step()
    store.add_series(
        "training", {key: np.array(column) for key, column in rows.items()},
        {"layers": LAYERS, "width": WIDTH, "q_star": Q_STAR, "learning_rate": 0.01, "momentum": 0.9, "batch": 128},
        descriptions={
            "ks": "sup distance of the measured cdf and the free law's",
            "s_max": "measured over predicted largest singular value",
            **{f"m{k}": f"measured over predicted mean of s^{2 * k}" for k in MOMENTS},
        },
    )  # fmt: skip


def draw(full: bool) -> None:
    """The two spectra, and the ratios along the training."""
    import matplotlib.pyplot as plt

    data, path = stage.places(NAME, full)
    store = isometry.open_store(data)
    columns = store.series("training").columns
    with plt.style.context(stage.STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(11.0, 4.0), layout="constrained")
        pairs = {word: (store[word], store[f"{word} free"]) for word in ("before", "after")}
        high = max(
            spectrum.distribution.log_range[1] for pair in pairs.values() for spectrum in pair
        ) / math.log(10)
        low = min(float(pair[1].log10_quantile(0.01)) for pair in pairs.values())
        low, high = low - 0.05 * (high - low), high + 0.22 * (high - low)
        for ax, (word, (measured, free)) in zip(axes, pairs.items(), strict=False):
            edges, density = networks.log_histogram(measured, low, high, 34)
            ax.stairs(density, edges, fill=True, color=stage.SKY, alpha=0.6, label="measured")
            x, curve = networks.log_curve(free, low, high)
            ax.plot(x, curve, color=stage.BLACK, lw=1.6, label="free layers")
            step = int(columns["step"][0 if word == "before" else -1])
            ax.set(title=f"{word.capitalize()} training" + (f": step {step}" if step else ""), ylim=(0, None),
                   xlabel="singular value s", ylabel="density per decade")  # fmt: skip
            networks.power_ticks(ax, low, high)
            outside = int(np.sum(measured.extremes.top > free.s_max * 1.02)) if measured.extremes else 0
            if outside:
                place = 0.5 * math.log10(measured.s_max * free.s_max)
                ax.annotate(
                    f"{outside} aligned\ndirections", (place, 0.22), xytext=(1.0, 0.66),
                    textcoords="axes fraction", ha="right", fontsize=10,
                    arrowprops={"arrowstyle": "->", "color": "#555555"},
                )  # fmt: skip
            ax.legend(loc="upper left", fontsize=10)
        right = axes[2]
        steps = np.maximum(columns["step"], 5)
        for key, label, colour, marker in (
            ("m4", r"$m_4 = E\,s^8$", stage.PURPLE, "^"), ("m2", r"$m_2 = E\,s^4$", stage.VERMILION, "s"),
            ("m1", r"$m_1 = E\,s^2$", stage.BLUE, "o"), ("s_max", r"$s_{\max}$", stage.GREEN, "D"),
        ):  # fmt: skip
            right.plot(steps, columns[key], marker=marker, ms=4, lw=1.5, color=colour, label=label)
        right.axhline(1.0, color=stage.BLACK, lw=1.0, ls=":")
        right.set(
            xscale="log",
            yscale="log",
            xlabel="step of SGD (first point: 0)",
            title="Measured over free prediction",
        )
        right.set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
        right.set_yticks([], minor=True)
        right.legend(loc="upper left", fontsize=10)
        stage.save(figure, path)
        plt.close(figure)


if __name__ == "__main__":
    stage.main(__doc__, compute, draw)
