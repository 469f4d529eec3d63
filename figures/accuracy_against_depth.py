"""Test accuracy of vanilla CNNs on CIFAR-10 against depth, for delta-orthogonal, orthogonal and Gaussian kernels.

The better conditioned the convolution, the less accuracy falls with depth (after Xiao et al. 2018, arXiv 1806.05393,
figure 5b). Tanh at the critical point with q* = 1/depth, 8 channels on an 8 x 8 map, no normalisation, no skip
connections; the same number of steps for all. Bars: standard error of the accuracy over the test images, one network
each.

    python figures/accuracy_against_depth.py                        # digits, depths 16 to 128, minutes on two cores
    python figures/accuracy_against_depth.py --full --data FOLDER   # CIFAR-10, depths 32 to 256, 10 minutes; resumes
"""

from __future__ import annotations

import math

import stage
import training_runs as runs
from fused_trunk import fuse

from isometry.store import open_store
from isometry.training.data import load_dataset
from isometry.training.loop import TrainingOptions
from isometry.training.network import classifier
from isometry.training.record import read_record

NAME = "accuracy_against_depth"
CHANNELS = 8
INITS = {
    "delta_orthogonal": ("delta-orthogonal", stage.BLUE, "o-"),
    "orthogonal_conv": ("orthogonal, all taps", stage.GREEN, "s-"),
    "gaussian": ("Gaussian", stage.VERMILION, "^--"),
}
FULL = ((32, 64, 128, 256), 300)
SMALL = ((16, 32, 64, 128), 100)


def compute(full: bool) -> None:
    """Run what is not there yet, shallow networks first, and gather it into the data file."""
    data, _ = stage.places(NAME, full)
    dataset = stage.dataset("cifar10") if full else load_dataset("digits")
    depths, steps = FULL if full else SMALL
    for depth in depths:
        options = TrainingOptions(
            steps=steps, learning_rate=0.2 / math.sqrt(depth), schedule="linear", batch=64, evaluate_every=steps,
            train_images=512, checkpoint_every=50,
        )  # fmt: skip
        for init in INITS:

            def build(init: str = init, depth: int = depth) -> object:
                return fuse(
                    classifier(
                        dataset, depth=depth, channels=CHANNELS, activation="tanh", init=init, q_star=1.0 / depth,
                        seed=0,
                    )
                )  # fmt: skip

            runs.run(
                f"{NAME}_{dataset.name}_{init}_{depth}", build, dataset, options, into=data,
                series=f"{init} {depth}", about={"channels": CHANNELS, "init": init, "depth": depth},
                curve_images=500,
            )  # fmt: skip


def draw(full: bool) -> None:
    """Accuracy against depth, one line for each law of the kernels."""
    import matplotlib.pyplot as plt

    data, path = stage.places(NAME, full)
    depths, steps = FULL if full else SMALL
    there = open_store(data).series_names()
    with plt.style.context(stage.STYLE):
        figure, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
        for init, (label, colour, style) in INITS.items():
            records = [
                (depth, read_record(data, name=f"{init} {depth}"))
                for depth in depths
                if f"{init} {depth}" in there
            ]
            right = [record.about["test_accuracy_all"] for _, record in records]
            images = [record.about["test_images_all"] for _, record in records]
            error = [100 * math.sqrt(a * (1 - a) / n) for a, n in zip(right, images, strict=True)]
            ax.errorbar(
                [depth for depth, _ in records], [100 * value for value in right], error, fmt=style, color=colour,
                capsize=2, label=label,
            )  # fmt: skip
        ax.axhline(10, color="0.5", lw=1, ls=":", label="chance")
        ax.set(
            xscale="log", xlabel="depth, layers", ylim=(0, None),
            ylabel=f"test accuracy on {'CIFAR-10' if full else 'digits'}, %", title=f"after {steps:,} steps of 64",
        )  # fmt: skip
        ax.set_xticks(depths, [f"{depth:,}" for depth in depths])
        ax.set_xticks([], minor=True)
        ax.legend()
        stage.save(figure, path)
        plt.close(figure)


if __name__ == "__main__":
    stage.main(__doc__, compute, draw)
