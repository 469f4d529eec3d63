"""Vanilla tanh CNNs of 1,250 to 10,000 layers learn handwritten digits when their kernels are delta-orthogonal.

Accuracy against step, at the critical point with q* = 1/depth, beside Gaussian kernels of the same variance (after
Xiao et al. 2018, arXiv 1806.05393, figure 1). The trunk has 8 channels on an 8 x 8 map and every tap of its 3 x 3
kernels is trained; no normalisation, no skip connections. Linear decay of the learning rate over the steps shown for
the orthogonal networks, constant for the Gaussian ones; seed 0; every run's options and times are in the data file.

    python figures/ten_thousand_layers.py            # depths 50 to 400, a few minutes on two cores
    python figures/ten_thousand_layers.py --full     # depths to 10,000, more than an hour on two cores; resumes
"""

from __future__ import annotations

import math
from pathlib import Path

import stage
import training_runs as runs

from isometry.nn.models import VanillaCNN
from isometry.store import open_store
from isometry.training.data import load_dataset
from isometry.training.loop import TrainingOptions
from isometry.training.record import read_record

NAME = "ten_thousand_layers"
CHANNELS = 8
# (init, depth, steps): the deepest first, for it takes longest; Gaussian curves are flat and are not run as far.
FULL = (
    ("delta_orthogonal", 10_000, 100), ("delta_orthogonal", 1_250, 100), ("gaussian", 1_250, 30),
    ("delta_orthogonal", 2_500, 80), ("delta_orthogonal", 5_000, 50), ("gaussian", 10_000, 4),
    ("gaussian", 2_500, 10), ("gaussian", 5_000, 5),
)  # fmt: skip
SMALL = tuple((init, depth, 60) for init in ("delta_orthogonal", "gaussian") for depth in (50, 100, 200, 400))


def options_for(init: str, depth: int, steps: int) -> TrainingOptions:
    """The recipe: the gradient's norm grows as sqrt(depth), so the learning rate falls with it."""
    schedule = "linear" if init == "delta_orthogonal" else "constant"
    return TrainingOptions(
        steps=steps, learning_rate=0.2 / math.sqrt(depth), schedule=schedule, batch=64, momentum=0.9, clip_norm=1.0,
        evaluate_every=10, train_images=256, checkpoint_every=10,
    )  # fmt: skip


def compute(full: bool) -> None:
    """Run what is not there yet and gather it into the data file."""
    data, _ = stage.places(NAME, full)
    dataset = load_dataset("digits")
    for init, depth, steps in FULL if full else SMALL:

        def build(init: str = init, depth: int = depth) -> VanillaCNN:
            # All activations of the deepest network take about 4 GB: less time than computing them twice.
            return VanillaCNN(
                depth, CHANNELS, "tanh", init, q_star=1.0 / depth, in_channels=dataset.in_channels,
                num_classes=dataset.num_classes, image_size=dataset.image_size, checkpoint_segments=0, seed=0,
            )  # fmt: skip

        runs.run(
            f"{NAME}_{init}_{depth}", build, dataset, options_for(init, depth, steps),
            into=data, series=f"{init} {depth}", about={"channels": CHANNELS, "init": init, "depth": depth},
        )  # fmt: skip


def draw(full: bool) -> None:
    """Training accuracy on the left, test accuracy on the right; Gaussian networks dashed."""
    import matplotlib.pyplot as plt

    data, path = stage.places(NAME, full)
    plan = [entry for entry in (FULL if full else SMALL) if is_there(data, entry[0], entry[1])]
    depths = sorted({depth for _, depth, _ in plan})
    colours = dict(zip(depths, (stage.SKY, stage.GREEN, stage.ORANGE, stage.BLUE), strict=False))
    with plt.style.context(stage.STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(8.6, 4.3), sharey=True, layout="constrained")
        for init, depth, _ in sorted(plan):
            record = read_record(data, name=f"{init} {depth}")
            gaussian = init == "gaussian"
            for ax, values in zip(axes, (record.train_accuracy, record.test_accuracy), strict=True):
                ax.plot(
                    record.evaluation_step, 100 * values, "--" if gaussian else "-", marker="" if gaussian else "o",
                    ms=3.5, color=colours[depth], lw=1.6 if gaussian else 2.0,
                    label=f"{depth:,} layers" + (", Gaussian" if gaussian else ""),
                )  # fmt: skip
        for ax, title in zip(axes, ("Training images", "Test images"), strict=True):
            ax.set(title=title, xlabel="step (batch of 64)", ylim=(0, 100))
        axes[0].set_ylabel("accuracy on digits, %")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, columnspacing=1.2)
        stage.save(figure, path)
        plt.close(figure)


def is_there(data: Path, init: str, depth: int) -> bool:
    """Whether that run has been gathered: a figure may be drawn while the deepest ones still run."""
    return f"{init} {depth}" in open_store(data).series_names()


if __name__ == "__main__":
    stage.main(__doc__, compute, draw)
