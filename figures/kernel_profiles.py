"""Kernel profiles from uniform to delta: which Fourier modes survive a layer, and what that costs in depth.

A 3 x 3 kernel with variance fractions v over its taps multiplies the covariance's Fourier mode f by vhat(f) in every
layer, so the averaging operator has singular values |vhat(f)| (Xiao et al. 2018, arXiv 1806.05393, section 2.3; this
one-parameter family is our own). Here v = u (x) u with u = (1 - t)/3 (1, 1, 1) + t (0, 1, 0): t = 0 is uniform, t = 1
has all variance in the centre tap and keeps all modes. Left: |vhat(f)| of the 64 modes of an 8 x 8 map. Middle and
right: test accuracy on digits, after the same steps, against depth; vanilla tanh CNN, 8 channels, q* = 1/depth.

The taps are Gaussian matrices in the middle and Haar orthogonal ones, times sqrt(v), on the right; both have the same
averaging operator. To keep the modes is not enough: a product of Gaussian 8 x 8 matrices loses its smaller singular
values within some tens of layers, and sooner for t = 1, where 8 numbers and not 72 are summed. Orthogonal taps at t = 1
are the delta-orthogonal kernel, which keeps both.

    python figures/kernel_profiles.py            # one seed, depths to 64: a minute or two
    python figures/kernel_profiles.py --full     # depths to 128, two seeds: eight minutes on two cores
"""

from __future__ import annotations

import math

import numpy as np
import stage
import torch
import training_runs as runs

from isometry.nn.kernels import haar_matrices
from isometry.nn.models import VanillaCNN
from isometry.store import open_store
from isometry.theory.meanfield.convolution import fourier_modes
from isometry.training.data import load_dataset
from isometry.training.loop import TrainingOptions

NAME = "kernel_profiles"
CHANNELS, SIZE = 8, 8
MIXTURES = (0.0, 0.5, 0.8, 0.95, 1.0)
COLOURS = (stage.VERMILION, stage.ORANGE, stage.GREEN, stage.SKY, stage.BLUE)
MARKERS = "os^Dv"
COLUMNS = ("gaussian", "mixture", "depth", "seed", "train_accuracy", "test_accuracy")
ORTHOGONAL = "delta_orthogonal"  # is the law of orthogonal taps at t = 1


def profile(mixture: float) -> np.ndarray:
    """(3,) variance fractions u of the taps along one axis; the kernel's are their product."""
    return (1.0 - mixture) * np.full(3, 1 / 3) + mixture * np.array([0.0, 1.0, 0.0])


def mode_factors(mixture: float, size: int = SIZE) -> np.ndarray:
    """(size^2,) factors |vhat(f)|, largest first: the singular values of the averaging operator, each as often as f."""
    return np.sort(np.abs(fourier_modes(np.outer(profile(mixture), profile(mixture)), size)).ravel())[::-1]


def plan(full: bool) -> tuple[tuple[int, ...], int, int]:
    """Depths, steps, seeds."""
    return ((4, 8, 16, 32, 64, 128), 60, 2) if full else ((4, 16, 64), 60, 1)


def laws() -> list[str]:
    """Names of all kernel laws: the mixture for Gaussian taps, "haar" and the mixture for orthogonal ones."""
    return (
        [str(mixture) for mixture in MIXTURES]
        + [f"haar {mixture}" for mixture in MIXTURES[:-1]]
        + [ORTHOGONAL]
    )


def network(law: str, depth: int, seed: int) -> VanillaCNN:
    """A network whose kernels have that law, at the critical point with q* = 1/depth."""
    gaussian = law in map(str, MIXTURES)
    model = VanillaCNN(
        depth, CHANNELS, "tanh", "gaussian" if gaussian else ORTHOGONAL, q_star=1.0 / depth,
        profile=tuple(profile(float(law))) if gaussian else None, in_channels=1, num_classes=10, image_size=SIZE,
        checkpoint_segments=0, seed=seed,
    )  # fmt: skip
    if law.startswith("haar"):
        share = profile(float(law.split()[1]))
        amplitude = torch.from_numpy(np.sqrt(np.outer(share, share)))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in model.trunk:
                taps = haar_matrices(9, CHANNELS, generator=generator).reshape(3, 3, CHANNELS, CHANNELS)
                kernel = model.sigma_w * amplitude[:, :, None, None] * taps
                layer.weight.copy_(kernel.permute(2, 3, 0, 1))
    return model


def compute(full: bool) -> None:
    """Train every profile at every depth, and an orthogonal network for comparison."""
    data, _ = stage.places(NAME, full)
    dataset = load_dataset("digits")
    depths, steps, seeds = plan(full)
    rows = []
    about: dict[str, object] = {}
    for seed in range(seeds):
        for depth in depths:
            for law in laws():

                def build(law: str = law, depth: int = depth, seed: int = seed) -> VanillaCNN:
                    return network(law, depth, seed)

                options = TrainingOptions(
                    steps=steps, learning_rate=0.2 / math.sqrt(depth), schedule="linear", seed=seed,
                    evaluate_every=steps, checkpoint_every=steps,
                )  # fmt: skip
                record = runs.run(f"{NAME}_{law}_{depth}_{seed}_{steps}", build, dataset, options)
                about = record.about
                mixture = 1.0 if law == ORTHOGONAL else float(law.split()[-1])
                rows.append(
                    (law in map(str, MIXTURES), mixture, depth, seed, record.train_accuracy[-1],
                     record.test_accuracy[-1])
                )  # fmt: skip
    open_store(data, "a").add_series(
        NAME,
        {name: np.array(column) for name, column in zip(COLUMNS, zip(*rows, strict=True), strict=True)},
        {"steps": steps, "channels": CHANNELS, "last_run": about},
        descriptions={
            "gaussian": "1 for Gaussian taps, 0 for orthogonal ones", "mixture": "t of the profile",
            "train_accuracy": "share of 512 training images right after the last step",
            "test_accuracy": "share of the test images right after the last step",
        },
        overwrite=True,
    )  # fmt: skip


def draw(full: bool) -> None:
    """Mode factors on the left, accuracies on the right."""
    import matplotlib.pyplot as plt

    data, path = stage.places(NAME, full)
    depths, steps, _ = plan(full)
    table = open_store(data).series(NAME)
    looks = dict(zip(MIXTURES, zip(COLOURS, MARKERS, strict=True), strict=True))
    ends = {0.0: " (uniform)", 1.0: " (delta)"}
    with plt.style.context(stage.STYLE):
        figure, (left, *others) = plt.subplots(1, 3, figsize=(9.2, 4.0), layout="constrained")
        for mixture, (colour, marker) in looks.items():
            factors = mode_factors(mixture)
            left.plot(
                np.arange(1, len(factors) + 1), factors, color=colour, marker=marker, ms=2.5, lw=1.2,
                label=f"t = {mixture:g}{ends.get(mixture, '')}",
            )  # fmt: skip
        for ax, gaussian in zip(others, (True, False), strict=True):
            for mixture, (colour, marker) in looks.items():
                chosen = (table["gaussian"] == gaussian) & (table["mixture"] == mixture)
                accuracies = 100 * np.array(
                    [table["test_accuracy"][chosen & (table["depth"] == depth)] for depth in depths]
                )
                ax.plot(depths, accuracies.mean(axis=1), color=colour, marker=marker)
                ax.fill_between(
                    depths, accuracies.min(axis=1), accuracies.max(axis=1), color=colour, alpha=0.15, lw=0
                )
            ax.set_xscale("log", base=2)
            ax.set_xticks(depths, [str(depth) for depth in depths])
            ax.tick_params(axis="x", labelsize=9)
            ax.set(xlabel="depth, layers", ylim=(50, 101))
        left.set(
            xlabel="Fourier mode, largest first", ylabel=r"factor per layer $|\hat v(f)|$", ylim=(-0.02, 1.04),
            title="Averaging operator",
        )  # fmt: skip
        others[0].set(title="Gaussian taps", ylabel=f"test accuracy after {steps} steps, %")
        others[1].set(title="Orthogonal taps")
        others[1].sharey(others[0])
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, columnspacing=1.2)
        stage.save(figure, path)
        plt.close(figure)


if __name__ == "__main__":
    stage.main(__doc__, compute, draw)
