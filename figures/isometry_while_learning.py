"""How isometry changes while a network learns, from a delta-orthogonal and from a Gaussian start.

A vanilla tanh CNN (8 channels, 8 x 8 map, critical at q* = 1/depth) learns digits: once from delta-orthogonal kernels,
once from Gaussian ones of the same variance. On the way the Jacobian of its trunk is measured, exactly and in double
precision, at four test images: 4 x 512 singular values each time. Above, their quantiles against step; below, their
share in [0.5, 2] beside the test accuracy. Learning rate, batches and all else are the same on both sides.

    python figures/isometry_while_learning.py            # 20 layers, 100 steps, half a minute on two cores
    python figures/isometry_while_learning.py --full     # 50 layers, 1,000 steps, some minutes
"""

from __future__ import annotations

from typing import Any

import numpy as np
import stage
import torch
import training_runs as runs
from torch import nn

from isometry.nn.models import VanillaCNN
from isometry.store import open_store
from isometry.training import IsometryCallback, trunk_part
from isometry.training.data import Dataset, load_dataset
from isometry.training.loop import TrainingOptions, accuracy, train
from isometry.training.record import write_record

NAME = "isometry_while_learning"
CHANNELS, IMAGES, LEARNING_RATE = 8, 4, 0.01
STARTS = {"delta_orthogonal": "delta-orthogonal start", "gaussian": "Gaussian start"}
# Most happens early: the steps looked at are nearly geometric.
MEASURED_AT = (0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000)
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


class AtSteps:
    """Spectrum and test accuracy at chosen steps."""

    def __init__(self, recorder: IsometryCallback, dataset: Dataset) -> None:
        self.recorder, self.dataset = recorder, dataset
        self.test_accuracy: dict[int, float] = {}

    def on_step(self, model: nn.Module, step: int) -> None:
        """Measure if it is time."""
        if step in MEASURED_AT:
            self.recorder.on_step(model, step)
            self.test_accuracy[step] = accuracy(model, self.dataset.test_images, self.dataset.test_labels)


def compute(full: bool) -> None:
    """Train both networks, measuring on the way, into one file."""
    data, _ = stage.places(NAME, full)
    depth, steps = (50, 1000) if full else (20, 100)
    dataset = load_dataset("digits")
    options = TrainingOptions(steps=steps, learning_rate=LEARNING_RATE, evaluate_every=50)
    for start in STARTS:
        model = VanillaCNN(
            depth, CHANNELS, "tanh", start, q_star=1.0 / depth, in_channels=1, num_classes=10, image_size=8,
            checkpoint_segments=0, seed=0,
        )  # fmt: skip
        recorder = IsometryCallback(
            dataset.test_images[:IMAGES], every=1, part=trunk_part, name=start,
            batched=True, method="exact", dtype=torch.float64,
        )  # fmt: skip
        looks = AtSteps(recorder, dataset)
        record = train(
            model, dataset, options=options, progress=False, about={"init": start, "seed": 0},
            callbacks=[looks, runs.Announcer(start, 100)],
        )  # fmt: skip
        write_record(data, record, name=start)
        store = open_store(data, "a")
        about = {"depth": depth, "channels": CHANNELS, "images": IMAGES, "learning_rate": LEARNING_RATE}
        store.add_series(
            f"{start} isometry", columns(looks), about,
            descriptions={
                "step": "updates made before the measurement",
                "test_accuracy": "share of the test images classified correctly",
                "share": "share of singular values in [0.5, 2]",
                "below_floor": "share of singular values that double precision cannot tell from zero",
                **{quantile_name(level): f"{level:.0%} quantile of the singular values" for level in LEVELS},
            },
            overwrite=True,
        )  # fmt: skip
        for step in (0, steps):
            spectrum = recorder.spectra[step]
            store.add(spectrum, name=spectrum.name, overwrite=True)
            share = f"{spectrum.isometry():.1%} of singular values in [0.5, 2]"
            print(f"{start}, step {step}: {share}, largest {spectrum.s_max:.3g}", flush=True)
        print(f"{start}: {record}", flush=True)


def quantile_name(level: float) -> str:
    """Column of a quantile."""
    return f"quantile_{100 * level:02.0f}"


def columns(looks: AtSteps) -> dict[str, Any]:
    """What the figure shows, in the order of the steps."""
    spectra = looks.recorder.spectra
    steps = sorted(spectra)
    ordered = [spectra[step] for step in steps]
    quantiles = np.array([spectrum.quantile(LEVELS) for spectrum in ordered])
    return {
        "step": np.array(steps),
        "test_accuracy": np.array([looks.test_accuracy[step] for step in steps]),
        "share": np.array([spectrum.isometry() for spectrum in ordered]),
        "s_max": np.array([spectrum.s_max for spectrum in ordered]),
        "floor": np.array([spectrum.floor for spectrum in ordered]),
        "below_floor": np.array([spectrum.below_floor for spectrum in ordered]),
        **{quantile_name(level): quantiles[:, number] for number, level in enumerate(LEVELS)},
    }


def draw(full: bool) -> None:
    """Fans of quantiles above, shares and accuracies below, one column for each start."""
    import matplotlib.pyplot as plt

    data, path = stage.places(NAME, full)
    store = open_store(data)
    with plt.style.context(stage.STYLE):
        figure, axes = plt.subplots(
            2,
            2,
            figsize=(8.6, 6.0),
            sharex=True,
            sharey="row",
            height_ratios=(1.5, 1.0),
            layout="constrained",
        )
        for column, (start, title) in enumerate(STARTS.items()):
            above, below = axes[:, column]
            series = store.series(f"{start} isometry")
            step = series["step"]
            # A quantile below the floor is stored as zero; it leaves the picture at the bottom.
            quantile = {level: np.maximum(series[quantile_name(level)], 1e-30) for level in LEVELS}
            above.axhspan(0.5, 2.0, color="#009E73", alpha=0.18, lw=0, label="[0.5, 2]", zorder=0)
            for low, high, alpha in ((0.05, 0.95, 0.2), (0.25, 0.75, 0.4)):
                label = f"{low:.0%} to {high:.0%}"
                above.fill_between(
                    step, quantile[low], quantile[high], color=stage.BLUE, alpha=alpha, lw=0, label=label
                )
            above.plot(step, quantile[0.5], color=stage.BLUE, label="median")
            above.plot(step, series["s_max"], ":", color=stage.BLACK, lw=1.6, label="largest")
            above.set(
                yscale="log", ylim=(1e-12, 100.0), title=f"{title}, {series.attributes['depth']} layers"
            )
            below.plot(
                step, 100 * series["test_accuracy"], "s-", color=stage.ORANGE, ms=4, label="test accuracy"
            )
            below.plot(step, 100 * series["share"], "o-", color=stage.GREEN, ms=4, label="s in [0.5, 2]")
            below.set(ylim=(0, 102), xlabel="step")
            below.set_xscale("symlog", linthresh=1.0, linscale=0.4)
            below.set_xlim(0, step[-1])
            ticks = [tick for tick in (0, 1, 10, 100, 1000) if tick <= step[-1]]
            below.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            below.set_xticks([], minor=True)
        axes[0, 0].set_ylabel("singular value s of the trunk's J")
        axes[1, 0].set_ylabel("share, %")
        axes[0, 0].legend(loc="lower left")
        axes[1, 1].legend(loc="center right")
        stage.save(figure, path)
        plt.close(figure)


if __name__ == "__main__":
    stage.main(__doc__, compute, draw)
