"""How deep a network may be and still learn: as deep as a few times the depth scale xi_c of the theory.

Training accuracy on MNIST over (sigma_w^2, depth) at sigma_b^2 = 2e-5, tanh, after several numbers of steps, with 6
xi_c drawn over it (after Xiao et al. 2018, arXiv 1806.05393, figure 2). Their networks are convolutional;
delta-orthogonal kernels make a CNN's depth scale that of a dense network, so orthogonal MLPs of width 64 say the same
in a hundredth of the time. Nothing is drawn from the measured accuracies: xi_c comes from (sigma_w^2, sigma_b^2) alone.

    python figures/trainable_depth.py                        # digits, 11 x 4 networks, half a minute
    python figures/trainable_depth.py --full --data FOLDER   # MNIST, 11 x 8 networks, 10 minutes on one core; resumes
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import stage
import torch
from torch import Tensor
from torch.nn import functional

from isometry.nn.models import MLP
from isometry.store import open_store
from isometry.theory.meanfield import xi_c
from isometry.training.data import Dataset, load_dataset

NAME = "trainable_depth"
WIDTH, SIGMA_B2, MULTIPLE = 64, 2e-5, 6
# A rate at which the shallow and the critical networks learn within the fewest steps; the same for all, constant.
RECIPE = {"learning_rate": 0.02, "momentum": 0.9, "batch": 64, "clip_norm": 1.0, "seed": 0}
EVALUATED = 1_000


class Plan(NamedTuple):
    """Weight variances, depths, and the numbers of steps after which accuracy is taken."""

    sigma_w2: np.ndarray
    depths: tuple[int, ...]
    steps: tuple[int, ...]


# 1.05 is the critical weight variance at this sigma_b^2.
SMALL = Plan(0.75 + 0.3 * np.arange(11), (10, 30, 80, 200), (60,))
FULL = Plan(
    np.array([0.75, 1.05, 1.3, 1.6, 1.9, 2.2, 2.5, 2.8, 3.2, 3.6, 4.0]),
    (10, 15, 22, 32, 47, 68, 100, 150),
    (50, 250, 1_000),
)


def compute(full: bool) -> None:
    """Train the networks that are not in the file yet, shallow ones first."""
    data, _ = stage.places(NAME, full)
    plan = FULL if full else SMALL
    dataset = (stage.dataset("mnist") if full else load_dataset("digits")).flat()
    store = open_store(data, "a")
    if NAME not in store.series_names():
        about = {
            "options": RECIPE, "sigma_b2": SIGMA_B2, "width": WIDTH, "activation": "tanh", "init": "orthogonal",
            "dataset": repr(dataset), "evaluated_images": EVALUATED, "machine": "2 CPU cores, 1 thread, float32",
        }  # fmt: skip
        columns = {
            "sigma_w2": float,
            "depth": int,
            "steps": int,
            "train_accuracy": float,
            "test_accuracy": float,
        }
        empty = {name: np.zeros(0, dtype=kind) for name, kind in columns.items()}
        meaning = "share of the first images classified correctly after so many steps"
        store.add_series(
            NAME, empty, about, descriptions={"train_accuracy": meaning, "test_accuracy": meaning}
        )
    done = {int(depth) for depth in store.series(NAME)["depth"]}
    for depth in plan.depths:
        if depth not in done:
            store.append_series(NAME, accuracies(depth, plan, dataset))
            print(f"{depth} layers done", flush=True)


def accuracies(depth: int, plan: Plan, dataset: Dataset) -> dict[str, list[float]]:
    """Rows of the table: networks of one depth and all weight variances, trained side by side."""
    torch.set_flush_denormal(True)
    features, rate = dataset.train_images.shape[1], RECIPE["learning_rate"]
    models = [
        MLP(depth, WIDTH, "tanh", "orthogonal", sigma_w=float(value) ** 0.5, sigma_b=SIGMA_B2**0.5,
            in_features=features, num_classes=dataset.num_classes, seed=RECIPE["seed"])
        for value in plan.sigma_w2
    ]  # fmt: skip
    scale = torch.tensor([model.feature_scale for model in models])[:, None, None]
    named, _ = torch.func.stack_module_state(models)
    parameters = list(named.values())
    optimizer = torch.optim.SGD(parameters, lr=rate, momentum=RECIPE["momentum"])

    def logits(images: Tensor) -> Tensor:
        """(networks, batch, classes): layer by layer, all networks at once."""
        x = images.expand(len(models), -1, -1)
        for name in ("stem", *(f"trunk.{number}" for number in range(depth))):
            x = torch.baddbmm(named[f"{name}.bias"][:, None], x, named[f"{name}.weight"].mT).tanh()
        return torch.baddbmm(named["head.bias"][:, None], x / scale, named["head.weight"].mT)

    def accuracy(images: Tensor, labels: Tensor) -> list[float]:
        with torch.no_grad():
            answers = logits(images[:EVALUATED]).argmax(dim=-1)
        return (answers == labels[:EVALUATED]).double().mean(dim=-1).tolist()

    rows: dict[str, list[float]] = {
        name: [] for name in ("sigma_w2", "depth", "steps", "train_accuracy", "test_accuracy")
    }
    generator = torch.Generator().manual_seed(int(RECIPE["seed"]))
    for step in range(1, plan.steps[-1] + 1):
        chosen = torch.randint(len(dataset.train_labels), (int(RECIPE["batch"]),), generator=generator)
        answers = dataset.train_labels[chosen].repeat(len(models))
        # A sum over the networks: each gets the gradient of its own mean loss.
        loss = functional.cross_entropy(logits(dataset.train_images[chosen]).flatten(0, 1), answers) * len(
            models
        )
        optimizer.zero_grad()
        loss.backward()
        clip_each(parameters)
        optimizer.step()
        if step in plan.steps:
            rows["sigma_w2"] += plan.sigma_w2.tolist()
            rows["depth"] += [depth] * len(models)
            rows["steps"] += [step] * len(models)
            rows["train_accuracy"] += accuracy(dataset.train_images, dataset.train_labels)
            rows["test_accuracy"] += accuracy(dataset.test_images, dataset.test_labels)
    return rows


def clip_each(parameters: list[Tensor]) -> None:
    """Shorten each network's gradient to the longest allowed; no step along one that has left float32."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = (
        torch.stack([gradient.flatten(1).double().square().sum(dim=1) for gradient in gradients])
        .sum(0)
        .sqrt()
    )
    factor = (RECIPE["clip_norm"] / norms).clamp(max=1).float()
    for gradient in gradients:
        shaped = factor.reshape(-1, *[1] * (gradient.ndim - 1))
        gradient.mul_(shaped).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def draw(full: bool) -> None:
    """Heat maps and depth scale."""
    import matplotlib.pyplot as plt

    data, path = stage.places(NAME, full)
    plan = FULL if full else SMALL
    series = open_store(data).series(NAME)
    fine = np.linspace(edges(plan.sigma_w2)[0], edges(plan.sigma_w2)[-1], 700)
    scales = MULTIPLE * np.array([xi_c("tanh", value**0.5, SIGMA_B2**0.5) for value in fine])
    depth_edges = np.exp(edges(np.log(plan.depths)))
    panels = len(plan.steps)
    with plt.style.context(stage.STYLE):
        figure, row = plt.subplots(
            1, panels, figsize=(1.6 + 3.4 * panels, 4.2), layout="constrained", sharey=True, squeeze=False
        )
        for ax, steps in zip(row[0], plan.steps, strict=True):
            chosen = series["steps"] == steps
            values = series["train_accuracy"][chosen].reshape(-1, len(plan.sigma_w2))
            here = edges(
                np.log(plan.depths[: len(values)])
            )  # a figure may be drawn while the deepest still run
            mesh = ax.pcolormesh(
                edges(plan.sigma_w2), np.exp(here), 100 * values, vmin=0, vmax=100, rasterized=True
            )
            ax.plot(fine, scales, "--", color="white", lw=5)
            ax.plot(fine, scales, "--", color=stage.VERMILION, lw=2.5, label=rf"theory: ${MULTIPLE}\,\xi_c$")
            ax.set(
                yscale="log", ylim=(depth_edges[0], depth_edges[-1]), xlim=(fine[0], fine[-1]),
                xlabel=r"weight variance $\sigma_w^2$", title=f"after {steps:,} steps",
            )  # fmt: skip
            ticks = [
                depth for depth in (10, 20, 50, 100, 200, 500) if depth_edges[0] < depth < depth_edges[-1]
            ]
            ax.set_yticks(ticks, [str(tick) for tick in ticks])
            ax.set_yticks([], minor=True)
            ax.grid(False)
        row[0][0].set_ylabel("depth, layers")
        row[0][-1].legend(loc="upper right", frameon=True, framealpha=1.0)
        figure.colorbar(mesh, ax=row[0], label="training accuracy, %")
        stage.save(figure, Path(path))
        plt.close(figure)


def edges(centres: np.ndarray) -> np.ndarray:
    """Cell borders half-way between the centres, one more than these."""
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


if __name__ == "__main__":
    stage.main(__doc__, compute, draw)
