"""Kernel profiles from uniform to delta: which Fourier modes survive a layer, and what that costs in depth.

A Gaussian 3 x 3 kernel with variance fractions v over its taps multiplies the covariance's Fourier mode f by vhat(f) in
every layer, so the averaging operator has singular values |vhat(f)| (Xiao et al. 2018, arXiv 1806.05393, section 2.3;
this one-parameter family is our own). Here v = u (x) u with u = (1 - t)/3 (1, 1, 1) + t (0, 1, 0): t = 0 is uniform,
t = 1 has all variance in the centre tap and keeps all modes. Left: |vhat(f)| of the 64 modes of an 8 x 8 map. Right:
test accuracy on digits, after the same number of steps, against depth; vanilla tanh CNN, 8 channels, q* = 1/depth.

    python figures/kernel_profiles.py            # one seed, depths to 64: two minutes on two cores
    python figures/kernel_profiles.py --full     # depths to 256, two seeds: ten minutes
"""

from __future__ import annotations

import math

import numpy as np
import training_runs as runs

from isometry.nn.data import load_dataset
from isometry.nn.models import VanillaCNN
from isometry.nn.record import read_record
from isometry.nn.training import TrainingOptions

NAME = "kernel_profiles"
CHANNELS, SIZE = 8, 8
MIXTURES = (0.0, 0.5, 0.8, 0.95, 1.0)
COLOURS = (runs.VERMILION, runs.ORANGE, runs.GREEN, runs.SKY, runs.BLUE)
MARKERS = "os^Dv"
ORTHOGONAL = "delta_orthogonal"


def profile(mixture: float) -> np.ndarray:
    """(3,) variance fractions u of the taps along one axis; the kernel's are their product."""
    return (1.0 - mixture) * np.full(3, 1 / 3) + mixture * np.array([0.0, 1.0, 0.0])


def mode_factors(mixture: float, size: int = SIZE) -> np.ndarray:
    """(size^2,) factors |vhat(f)|, largest first: the singular values of the averaging operator, each as often as f."""
    padded = np.zeros((size, size))
    padded[:3, :3] = np.outer(profile(mixture), profile(mixture))
    return np.sort(np.abs(np.fft.fft2(padded)).ravel())[::-1]


def plan(full: bool) -> tuple[tuple[int, ...], int, int]:
    """Depths, steps, seeds."""
    return ((4, 8, 16, 32, 64, 128, 256), 60, 2) if full else ((4, 16, 64), 60, 1)


def compute(full: bool) -> None:
    """Train every profile at every depth, and an orthogonal network for comparison."""
    data, _ = runs.places(NAME, full)
    dataset = load_dataset("digits")
    depths, steps, seeds = plan(full)
    for seed in range(seeds):
        for depth in depths:
            for law in (*MIXTURES, ORTHOGONAL):

                def build(law: float | str = law, depth: int = depth, seed: int = seed) -> VanillaCNN:
                    init = "gaussian" if isinstance(law, float) else law
                    taps = tuple(profile(law)) if isinstance(law, float) else None
                    return VanillaCNN(
                        depth, CHANNELS, "tanh", init, q_star=1.0 / depth, profile=taps, in_channels=1,
                        num_classes=10, image_size=SIZE, checkpoint_segments=0, seed=seed,
                    )  # fmt: skip

                options = TrainingOptions(
                    steps=steps, learning_rate=0.2 / math.sqrt(depth), schedule="linear", seed=seed,
                    evaluate_every=steps, checkpoint_every=steps,
                )  # fmt: skip
                runs.run(
                    f"{NAME}_{law}_{depth}_{seed}_{steps}", build, dataset, options,
                    into=data, series=f"{law} {depth} {seed}",
                )  # fmt: skip


def draw(full: bool) -> None:
    """Mode factors on the left, accuracies on the right."""
    import matplotlib.pyplot as plt

    data, path = runs.places(NAME, full)
    depths, steps, seeds = plan(full)
    with plt.style.context(runs.STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 4.2), layout="constrained")
        for law, colour, marker in zip(
            (*MIXTURES, ORTHOGONAL), (*COLOURS, runs.BLACK), (*MARKERS, "*"), strict=True
        ):
            accuracies = np.array(
                [
                    [
                        read_record(data, name=f"{law} {depth} {seed}").test_accuracy[-1]
                        for seed in range(seeds)
                    ]
                    for depth in depths
                ]
            )
            if isinstance(law, float):
                ends = {0.0: " (uniform)", 1.0: " (delta)"}
                label = f"t = {law:g}{ends.get(law, '')}"
                factors = mode_factors(law)
                left.plot(
                    np.arange(1, len(factors) + 1), factors, "-", color=colour, marker=marker, ms=3, lw=1.2
                )
            else:
                label = "delta-orthogonal"
            right.plot(
                depths, 100 * accuracies.mean(axis=1), "--" if law == ORTHOGONAL else "-",
                color=colour, marker=marker, label=label,
            )  # fmt: skip
            if seeds > 1:
                right.fill_between(
                    depths,
                    100 * accuracies.min(axis=1),
                    100 * accuracies.max(axis=1),
                    color=colour,
                    alpha=0.15,
                    lw=0,
                )
        left.set(
            xlabel="Fourier mode, largest first", ylabel=r"factor per layer $|\hat v(f)|$", ylim=(-0.02, 1.04),
            title="Averaging operator, 8 x 8 map",
        )  # fmt: skip
        right.set(
            xscale="log", xlabel="depth, layers", ylabel=f"test accuracy after {steps} steps, %", ylim=(0, 102),
            title="Gaussian kernels of profile t",
        )  # fmt: skip
        right.set_xscale("log", base=2)
        right.set_xticks(depths, [str(depth) for depth in depths])
        handles, labels = right.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=6, columnspacing=1.0, handletextpad=0.5
        )
        runs.save(figure, path)
        plt.close(figure)


def main() -> None:
    """Compute, then draw."""
    arguments = runs.parser(__doc__).parse_args()
    if not arguments.draw:
        compute(arguments.full)
    draw(arguments.full)


if __name__ == "__main__":
    main()
