"""Orthogonal against Gaussian kernels of the same critical variance: learning curves and Jacobian spectra.

Four laws of the 3 x 3 kernels of a vanilla tanh CNN (8 channels, 8 x 8 map, q* = 1/depth), all with the same sigma_w
and sigma_b: delta-orthogonal and random orthogonal ones, whose convolution is exactly orthogonal; Gaussian ones with
all variance in the centre tap, which keep every Fourier mode but not isometry; and plain Gaussian ones, which keep
neither. Above: test accuracy on digits against step. Below: all 512 singular values of the trunk's Jacobian at
initialisation, exact, at a test image; what lies below the rounding of double precision is counted but not drawn.

    python figures/orthogonal_against_gaussian.py            # depths 10 and 50, a minute or two on two cores
    python figures/orthogonal_against_gaussian.py --full     # depths 10, 50 and 250
"""

from __future__ import annotations

import math

import numpy as np
import stage
import training_runs as runs

from isometry.nn.models import VanillaCNN
from isometry.store import open_store
from isometry.training.data import load_dataset
from isometry.training.loop import TrainingOptions
from isometry.training.record import read_record

NAME = "orthogonal_against_gaussian"
CHANNELS, STEPS = 8, 120
# name -> (label, init, profile, colour, line style)
LAWS = {
    "delta_orthogonal": ("delta-orthogonal", "delta_orthogonal", None, stage.BLUE, "-"),
    "orthogonal_conv": ("orthogonal, all taps", "orthogonal_conv", None, stage.GREEN, "--"),
    "gaussian_delta": ("Gaussian, centre tap", "gaussian", (0.0, 1.0, 0.0), stage.ORANGE, "-."),
    "gaussian": ("Gaussian, all taps", "gaussian", None, stage.VERMILION, ":"),
}


def depths(full: bool) -> tuple[int, ...]:
    """Depths of the trunk."""
    return (10, 50, 250) if full else (10, 50)


def compute(full: bool) -> None:
    """Measure each network as it is drawn, then train it."""
    import torch

    import isometry

    data, _ = stage.places(NAME, full)
    dataset = load_dataset("digits")
    steps = STEPS if full else 60
    for depth in depths(full):
        for law, (_, init, profile, _, _) in LAWS.items():
            name = f"{law} {depth}"

            def build(
                init: str = init, depth: int = depth, profile: object = profile, dtype: object = None
            ) -> VanillaCNN:
                return VanillaCNN(
                    depth, CHANNELS, "tanh", init, q_star=1.0 / depth, profile=profile, in_channels=1,
                    num_classes=10, image_size=8, checkpoint_segments=0, seed=0, dtype=dtype,
                )  # fmt: skip

            options = TrainingOptions(
                steps=steps, learning_rate=0.2 / math.sqrt(depth), evaluate_every=5, checkpoint_every=50
            )
            runs.run(f"{NAME}_{law}_{depth}_{steps}", build, dataset, options, into=data, series=name)
            # Double precision: the Gaussian spectra span many decades.
            model = build(dtype=torch.float64)
            with torch.no_grad():
                x = model.stem(dataset.test_images[:1].double())[0]
            spectrum = isometry.measure(model.trunk, x, method="exact", progress=False)
            open_store(data, "a").add(spectrum, name=name, overwrite=True)
            print(name, f"s max {spectrum.s_max:.3g}, isometry {spectrum.isometry():.1%}", flush=True)


def draw(full: bool) -> None:
    """Curves above, cumulative distributions below, one column for each depth."""
    import matplotlib.pyplot as plt

    data, path = stage.places(NAME, full)
    store = open_store(data)
    with plt.style.context(stage.STYLE):
        figure, axes = plt.subplots(
            2, len(depths(full)), figsize=(8.6, 6.2), sharey="row", squeeze=False, layout="constrained"
        )
        for column, depth in enumerate(depths(full)):
            above, below = axes[:, column]
            for law, (label, _, _, colour, line) in LAWS.items():
                record = read_record(data, name=f"{law} {depth}")
                above.plot(
                    record.evaluation_step, 100 * record.test_accuracy, line, color=colour, label=label
                )
                spectrum = store[f"{law} {depth}"]
                values, floor = np.sort(spectrum.distribution.nodes.ravel()), spectrum.floor
                share = np.arange(1, len(values) + 1) / len(values)
                shown = values > floor  # Below it a value is rounding; the curve begins at their share.
                below.step(values[shown], share[shown], where="post", color=colour, ls=line)
            above.set(title=f"{depth} layers", xlabel="step", ylim=(0, 102))
            below.set(xscale="log", xlabel="singular value s", xlim=(1e-16, 30), ylim=(0, 1.02))
            below.set_xticks([1e-15, 1e-10, 1e-5, 1])
            below.axvline(1, color="#666666", lw=0.8, zorder=0)
        axes[0, 0].set_ylabel("test accuracy, %")
        axes[1, 0].set_ylabel("share of singular values ≤ s\nat initialisation")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        stage.save(figure, path)
        plt.close(figure)


if __name__ == "__main__":
    stage.main(__doc__, compute, draw)
