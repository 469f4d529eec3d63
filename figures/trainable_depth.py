"""How deep a network may be and still learn: as deep as a few times the depth scale xi_c of the theory.

Training accuracy on digits over (sigma_w^2, depth) at sigma_b^2 = 2e-5, tanh, with 6 xi_c drawn over it (after Xiao et
al. 2018, arXiv 1806.05393, figure 2). Their networks are convolutional; delta-orthogonal kernels make a CNN's depth
scale that of a dense network, so orthogonal MLPs of width 64 say the same in a hundredth of the time. Nothing is drawn
from the measured accuracies: xi_c comes from (sigma_w^2, sigma_b^2) alone.

    python figures/trainable_depth.py            # 11 x 4 networks, half a minute
    python figures/trainable_depth.py --full     # 23 x 9 networks, five minutes on one core; resumes
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import stage

from isometry.errors import NonFiniteError
from isometry.nn.models import MLP
from isometry.store import open_store
from isometry.theory.meanfield import xi_c
from isometry.training.data import Dataset, load_dataset
from isometry.training.loop import TrainingOptions, accuracy, train

NAME = "trainable_depth"
WIDTH, SIGMA_B2, MULTIPLE = 64, 2e-5, 6


def grid(full: bool) -> tuple[np.ndarray, np.ndarray, int]:
    """sigma_w^2, depths, steps; 1.05 is the critical value at this sigma_b^2."""
    if full:
        return 0.6 + 0.15 * np.arange(23), np.array([8, 12, 20, 32, 50, 80, 128, 200, 320]), 100
    return 0.75 + 0.3 * np.arange(11), np.array([10, 30, 80, 200]), 60


def compute(full: bool) -> None:
    """Train the networks that are not in the file yet, shallow ones first."""
    data, _ = stage.places(NAME, full)
    sigma_w2, depths, steps = grid(full)
    # A learning rate at which the shallow and the critical networks learn within the steps; the same for all.
    options = TrainingOptions(
        steps=steps, learning_rate=0.02, signal_units=False, evaluate_every=steps, checkpoint_every=steps
    )
    dataset = load_dataset("digits").flat()
    store = open_store(data, "a")
    if NAME not in store.series_names():
        about = {
            "options": asdict(options), "sigma_b2": SIGMA_B2, "width": WIDTH, "activation": "tanh",
            "init": "orthogonal", "seed": 0, "dataset": repr(dataset), "machine": "2 CPU cores, 1 thread, float32",
        }  # fmt: skip
        columns = {"sigma_w2": 0.0, "depth": 0, "train_accuracy": 0.0, "test_accuracy": 0.0}
        empty = {name: np.zeros(0, dtype=type(value)) for name, value in columns.items()}
        meaning = "share classified correctly after training"
        store.add_series(
            NAME, empty, about, descriptions={"train_accuracy": meaning, "test_accuracy": meaning}
        )
    done = len(store.series(NAME))
    for number, (depth, weight_variance) in enumerate((d, w) for d in depths for w in sigma_w2):
        if number < done:
            continue
        on_training, on_test = accuracies(float(weight_variance), int(depth), dataset, options)
        row = {
            "sigma_w2": weight_variance, "depth": depth, "train_accuracy": on_training, "test_accuracy": on_test
        }  # fmt: skip
        store.append_series(NAME, {name: [value] for name, value in row.items()})
        if (number + 1) % len(sigma_w2) == 0:
            print(f"{depth} layers done", flush=True)


def accuracies(
    weight_variance: float, depth: int, dataset: Dataset, options: TrainingOptions
) -> tuple[float, float]:
    """Training and test accuracy of one network after its steps, or where its gradients overflowed."""
    model = MLP(
        depth, WIDTH, "tanh", "orthogonal", sigma_w=weight_variance**0.5, sigma_b=SIGMA_B2**0.5, in_features=64,
        num_classes=10, seed=0,
    )  # fmt: skip
    try:
        train(model, dataset, options=options, progress=False)
    except NonFiniteError as error:
        # Deep in the chaotic phase a gradient leaves float32; no step is made along it.
        print(f"sigma_w2 {weight_variance:.2f}, depth {depth}: {str(error).split('.')[0]}", flush=True)
    return (
        accuracy(model, dataset.train_images, dataset.train_labels),
        accuracy(model, dataset.test_images, dataset.test_labels),
    )


def draw(full: bool) -> None:
    """Heat map and depth scale."""
    import matplotlib.pyplot as plt

    data, path = stage.places(NAME, full)
    sigma_w2, depths, _ = grid(full)
    series = open_store(data).series(NAME)
    values = series["train_accuracy"].reshape(len(depths), len(sigma_w2))
    steps = series.attributes["options"]["steps"]
    fine = np.linspace(edges(sigma_w2)[0], edges(sigma_w2)[-1], 700)
    scales = MULTIPLE * np.array([xi_c("tanh", value**0.5, SIGMA_B2**0.5) for value in fine])
    with plt.style.context(stage.STYLE):
        figure, ax = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
        depth_edges = np.exp(edges(np.log(depths)))
        mesh = ax.pcolormesh(edges(sigma_w2), depth_edges, 100 * values, vmin=0, vmax=100, rasterized=True)
        ax.plot(fine, scales, "--", color="white", lw=5)
        ax.plot(fine, scales, "--", color=stage.VERMILION, lw=2.5, label=rf"theory: ${MULTIPLE}\,\xi_c$")
        ax.set(
            yscale="log", ylim=(depth_edges[0], depth_edges[-1]), xlim=(fine[0], fine[-1]),
            xlabel=r"weight variance $\sigma_w^2$", ylabel="depth, layers",
            title=rf"tanh, $\sigma_b^2 = 2\times 10^{{-5}}$, after {steps} steps",
        )  # fmt: skip
        ticks = [depth for depth in (10, 20, 50, 100, 200, 500) if depth_edges[0] < depth < depth_edges[-1]]
        ax.set_yticks(ticks, [str(tick) for tick in ticks])
        ax.set_yticks([], minor=True)
        ax.grid(False)
        ax.legend(loc="upper right", frameon=True, framealpha=1.0)
        figure.colorbar(mesh, label="training accuracy, %")
        stage.save(figure, Path(path))
        plt.close(figure)


def edges(centres: np.ndarray) -> np.ndarray:
    """Cell borders half-way between the centres, one more than these."""
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


if __name__ == "__main__":
    stage.main(__doc__, compute, draw)
