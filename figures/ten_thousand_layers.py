"""Vanilla tanh CNNs of 1,250 to 10,000 layers learn MNIST when their kernels are delta-orthogonal.

Accuracy against step, at the critical point with q* = 1/depth, beside Gaussian kernels of the same variance, for as
many steps (after Xiao et al. 2018, arXiv 1806.05393, figure 1). The trunk has 8 or 16 channels on a 7 x 7 map and every
tap of its 3 x 3 kernels is trained; no normalisation, no skip connections. The learning rate falls linearly to zero,
seed 0. The curves are of the first 500 test images; the accuracy on all 10,000 is taken after the last step. Every
run's options and times are in the data file.

    python figures/ten_thousand_layers.py                        # digits, depths 50 to 400, minutes on two cores
    python figures/ten_thousand_layers.py --full --data FOLDER   # MNIST, to 10,000 layers, hours on two cores; resumes
"""

from __future__ import annotations

import math
from pathlib import Path

import stage
import training_runs as runs
from fused_trunk import fuse

from isometry.store import open_store
from isometry.training.data import Dataset, load_dataset
from isometry.training.loop import TrainingOptions
from isometry.training.network import classifier
from isometry.training.record import read_record

NAME = "ten_thousand_layers"
INITS = ("delta_orthogonal", "gaussian")
# (depth, channels, steps): a step of the deepest takes some six seconds.
FULL = ((10_000, 8, 250), (2_500, 16, 1_100), (1_250, 16, 1_100))
SMALL = ((50, 8, 60), (100, 8, 60), (200, 8, 60), (400, 8, 60))


def options_for(depth: int, steps: int) -> TrainingOptions:
    """The recipe: the gradient's norm grows as sqrt(depth), so the learning rate falls with it."""
    return TrainingOptions(
        steps=steps, learning_rate=0.2 / math.sqrt(depth), schedule="linear", batch=64, momentum=0.9, clip_norm=1.0,
        evaluate_every=steps // 10, train_images=256, checkpoint_every=10,
    )  # fmt: skip


def compute(full: bool) -> None:
    """Run what is not there yet and gather it into the data file."""
    data, _ = stage.places(NAME, full)
    dataset = stage.dataset("mnist") if full else load_dataset("digits")
    for init in INITS:
        for depth, channels, steps in FULL if full else SMALL:
            one_run(init, depth, channels, steps, dataset, data)


def one_run(init: str, depth: int, channels: int, steps: int, dataset: Dataset, data: Path) -> None:
    """One training run, gathered into the data file."""
    runs.run(
        f"{NAME}_{dataset.name}_{init}_{depth}_{channels}",
        lambda: fuse(classifier(
            dataset, depth=depth, channels=channels, activation="tanh", init=init, q_star=1.0 / depth, seed=0
        )),
        dataset, options_for(depth, steps), into=data, series=f"{init} {depth}",
        about={"channels": channels, "init": init, "depth": depth}, curve_images=500,
    )  # fmt: skip


def draw(full: bool) -> None:
    """Training accuracy on the left, test accuracy on the right; Gaussian networks dashed."""
    import matplotlib.pyplot as plt

    data, path = stage.places(NAME, full)
    there = open_store(data).series_names()
    plan = FULL if full else SMALL
    depths = sorted(depth for depth, _, _ in plan)
    colours = dict(zip(depths, (stage.SKY, stage.GREEN, stage.ORANGE, stage.BLUE), strict=False))
    with plt.style.context(stage.STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(8.6, 4.3), sharey=True, layout="constrained")
        for depth, channels, _ in sorted(plan):
            # A figure may be drawn while the deepest ones still run.
            for init in (init for init in INITS if f"{init} {depth}" in there):
                record = read_record(data, name=f"{init} {depth}")
                gaussian = init == "gaussian"
                for ax, values in zip(axes, (record.train_accuracy, record.test_accuracy), strict=True):
                    ax.plot(
                        record.evaluation_step, 100 * values, "--" if gaussian else "-", marker="" if gaussian else "o",
                        ms=3.5, color=colours[depth], lw=1.6 if gaussian else 2.0,
                        label=f"{depth:,} layers of {channels}" + (", Gaussian" if gaussian else ""),
                    )  # fmt: skip
                axes[1].plot(
                    record.steps, 100 * record.about["test_accuracy_all"], "*", ms=11, color=colours[depth],
                    markeredgecolor="black", markeredgewidth=0.6,
                    label="all test images" if (depth, init) == (depths[-1], INITS[0]) else None,
                )  # fmt: skip
        for ax, title in zip(axes, ("Training images", "Test images"), strict=True):
            ax.set(title=title, xlabel="step (batch of 64)", ylim=(0, 100))
        axes[0].set_ylabel(f"accuracy on {'MNIST' if full else 'digits'}, %")
        handles, labels = axes[1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, columnspacing=1.2)
        stage.save(figure, path)
        plt.close(figure)


if __name__ == "__main__":
    stage.main(__doc__, compute, draw)
