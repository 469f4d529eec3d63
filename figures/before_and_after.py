"""Five networks that do not train as PyTorch initialises them, and the same after `isometry.tune_`.

A tanh CNN of 60 layers and a GELU MLP of 40 on MNIST, a ReLU ResNet of 50 blocks without normalisation and a VGG
without batch-norm on CIFAR-10, and a post-LN transformer of 24 layers that predicts the next character of a text (the
manual that comes with Python). Left: singular values of the Jacobian of the network up to its read-out, at one input,
before training. Right: training loss, each with the best of three learning rates, chosen by the loss of its own last
steps. Adam, batches of 64, no warm-up, seed 0.

    python figures/before_and_after.py                        # 60 steps, digits for MNIST and CIFAR-10, some minutes
    python figures/before_and_after.py --full --data FOLDER   # 200 steps, twenty minutes on one core; resumes
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import stage
import torch
from torch import Tensor, nn
from torch.nn import functional

import isometry
from isometry.store import open_store
from isometry.training.data import load_dataset

NAME = "before_and_after"
RATES = (1e-4, 1e-3, 1e-2)
BATCH, CONTEXT = 64, 32
STYLES = {"before": ("as PyTorch initialises", stage.VERMILION), "after": ("after tune_", stage.BLUE)}
TASKS = {"mnist": "MNIST", "cifar10": "CIFAR-10", "text": "next character"}
# Loss in nats up to which curves are drawn; guessing costs ln 10 = 2.3 for images.
HIGHEST = {"mnist": 3.0, "cifar10": 3.0, "text": 5.0}


class Block(nn.Module):
    """x + ReLU(conv(x))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """The residual sum."""
        return x + functional.relu(self.conv(x))


class Encoder(nn.Module):
    """Post-LN encoder and read-out of the last position: embeddings (B, T, width) to logits (B, alphabet)."""

    def __init__(self, alphabet: int, width: int, layers: int) -> None:
        super().__init__()
        # One by one: nn.TransformerEncoder would begin with as many copies of one layer.
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
                for _ in range(layers)
            )
        )
        self.head = nn.Linear(width, alphabet)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of the next character."""
        return self.head(self.layers(x)[..., -1, :])


class Characters(nn.Module):
    """Next character from `CONTEXT` of them: tokens (B, T) to logits (B, alphabet)."""

    def __init__(self, alphabet: int, width: int = 64, layers: int = 24) -> None:
        super().__init__()
        self.embedding = nn.Embedding(alphabet, width)
        self.position = nn.Parameter(torch.randn(CONTEXT, width) * 0.02)
        self.body = Encoder(alphabet, width, layers)

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, T, width), where the Jacobian starts."""
        return self.embedding(tokens) + self.position

    def forward(self, tokens: Tensor) -> Tensor:
        """The logits."""
        return self.body(self.embed(tokens))


def tanh_cnn(channels: int, size: int) -> nn.Module:
    """60 convolutions of 16 channels on a quarter of the map."""
    stem = [nn.Conv2d(channels, 16, 3, stride=2 if size > 8 else 1, padding=1), nn.Tanh()]
    for number in range(59):
        stem += [nn.Conv2d(16, 16, 3, stride=2 if number == 0 and size > 8 else 1, padding=1), nn.Tanh()]
    return nn.Sequential(*stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def resnet(channels: int, size: int) -> nn.Module:
    """50 blocks of 16 channels."""
    stem = [nn.Conv2d(channels, 16, 3, stride=4 if size > 8 else 1, padding=1), nn.ReLU()]
    return nn.Sequential(
        *stem, *(Block(16) for _ in range(50)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )


def gelu_mlp(channels: int, size: int) -> nn.Module:
    """40 layers of 128."""
    layers = [nn.Flatten(), nn.Linear(channels * size * size, 128), nn.GELU()]
    for _ in range(39):
        layers += [nn.Linear(128, 128), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(128, 10))


def vgg(channels: int, size: int) -> nn.Module:
    """16 convolutions and three dense layers, as configuration E of VGG at an eighth of its width; no batch-norm."""
    layers: list[nn.Module] = []
    for stage_number, (width, count) in enumerate(((8, 2), (16, 2), (32, 4), (64, 4), (64, 4))):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        if size // 2 ** (stage_number + 1) >= 1:
            layers.append(nn.MaxPool2d(2))
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(
        *layers, nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )


class Task(NamedTuple):
    """What a network learns: batches by step, and inputs at which it is tuned and measured."""

    inputs: Tensor
    labels: Tensor

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(self.labels), (BATCH,), generator=torch.Generator().manual_seed(step))
        return self.inputs[chosen], self.labels[chosen]


def images(name: str, full: bool) -> Task:
    """MNIST or CIFAR-10; digits for the small figure."""
    dataset = stage.dataset(name) if full else load_dataset("digits")
    return Task(dataset.train_images, dataset.train_labels)


def characters() -> Task:
    """Windows of the text, each with the character that follows it."""
    from pydoc_data.topics import topics

    text = "".join(topics[key] for key in sorted(topics))[:400_000].encode("ascii", "replace")
    known = sorted(set(text))
    codes = torch.tensor([known.index(byte) for byte in text])
    windows = codes.unfold(0, CONTEXT + 1, 7)
    return Task(windows[:, :-1], windows[:, -1])


class Case(NamedTuple):
    """A network of the figure."""

    title: str
    task: str
    build: Callable[[Task], nn.Module]


def on_images(make: Callable[[int, int], nn.Module]) -> Callable[[Task], nn.Module]:
    """The network for the images of a task."""
    return lambda task: make(task.inputs.shape[1], task.inputs.shape[-1])


CASES = {
    "tanh_cnn": Case("tanh CNN, 60 layers", "mnist", on_images(tanh_cnn)),
    "resnet": Case("ReLU ResNet without norm, 50 blocks", "cifar10", on_images(resnet)),
    "transformer": Case(
        "post-LN transformer, 24 layers", "text", lambda task: Characters(int(task.inputs.max()) + 1)
    ),
    "gelu_mlp": Case("GELU MLP, 40 layers", "mnist", on_images(gelu_mlp)),
    "vgg": Case("VGG without batch-norm, 19 layers", "cifar10", on_images(vgg)),
}


def trunk_of(model: nn.Module) -> nn.Sequential:
    """All up to the average over positions and the read-out, which set the size of logits; it shares the modules."""
    if isinstance(model, Characters):
        return model.body.layers
    assert isinstance(model, nn.Sequential)
    ends = [i for i, module in enumerate(model) if isinstance(module, nn.AdaptiveAvgPool2d)]
    # VGG has dense layers behind its average.
    dense = sum(isinstance(module, nn.Linear) for module in model) > 1
    return model[: len(model) - 1 if dense else ends[0]]


def compute(full: bool) -> None:
    """Measure and train every network that is not in the file yet."""
    torch.set_flush_denormal(True)
    data, _ = stage.places(NAME, full)
    steps = 200 if full else 60
    store = open_store(data, "a")
    for key, case in CASES.items():
        task = characters() if case.task == "text" else images(case.task, full)
        torch.manual_seed(0)
        model = case.build(task).eval()
        trunk, points = trunk_of(model), task.inputs[:8]
        if isinstance(model, Characters):
            # Integers have no derivative: J begins at the embeddings.
            points = model.embed(points).detach()
        for when in ("before", "after"):
            if when == "after":
                print(isometry.tune_(trunk, points, batched=True, progress=False), flush=True)
            name = f"{key} {when}"
            if name not in store:
                store.add(isometry.measure(trunk, points[:1], progress=False), name)
            for rate in RATES:
                curve = f"{name} {rate:g}"
                if curve not in store.series_names():
                    loss = trained(copy.deepcopy(model).train(), task, steps, rate)
                    store.add_series(
                        curve, {"step": np.arange(len(loss)), "loss": loss}, {"learning_rate": rate}
                    )
                    print(f"{curve}: loss {loss[-20:].mean():.3g}", flush=True)


def trained(model: nn.Module, task: Task, steps: int, rate: float) -> np.ndarray:
    """Loss of every step, in nats; infinite from the step on at which it is not finite."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    losses = np.full(steps, math.inf)
    for step in range(steps):
        inputs, labels = task.batch(step)
        loss = functional.cross_entropy(model(inputs), labels)
        if not math.isfinite(float(loss)):
            break
        losses[step] = float(loss)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return losses


def draw(full: bool) -> None:
    """One row for each network: spectra at the left, losses at the right."""
    import matplotlib.pyplot as plt

    data, path = stage.places(NAME, full)
    store = open_store(data)
    keys = [
        key for key in CASES if all(f"{key} {when} {RATES[-1]:g}" in store.series_names() for when in STYLES)
    ]
    with plt.style.context(stage.STYLE):
        figure, rows = plt.subplots(
            len(keys), 2, figsize=(8.6, 2.1 * len(keys) + 0.4), layout="constrained", squeeze=False
        )
        for key, (left, right) in zip(keys, rows, strict=True):
            for when, (label, colour) in STYLES.items():
                spectrum = store[f"{key} {when}"]
                levels = (np.arange(400) + 0.5) / 400
                left.plot(spectrum.log10_quantile(levels), 100 * levels, color=colour, lw=2, label=label)
                losses = {rate: store.series(f"{key} {when} {rate:g}")["loss"] for rate in RATES}
                best = min(losses, key=lambda rate: smoothed(losses[rate])[-1])
                for rate, loss in losses.items():
                    right.plot(
                        smoothed(loss), color=colour, lw=2.2 if rate == best else 0.8,
                        alpha=1.0 if rate == best else 0.45, label=f"{label}, rate {rate:g}" if rate == best else None,
                    )  # fmt: skip
            left.axvspan(math.log10(0.5), math.log10(2), color="0.9", lw=0)
            left.set(ylim=(0, 100), ylabel="below, %", title=CASES[key].title)
            right.set(ylim=(0, HIGHEST[CASES[key].task]), ylabel="loss, nats", title=TASKS[CASES[key].task])
            right.legend(fontsize="small", loc="lower left")
        rows[-1][0].set_xlabel("log10 of the singular value, before training")
        rows[-1][1].set_xlabel("step (batch of 64)")
        rows[0][0].legend(fontsize="small")
        stage.save(figure, path)
        plt.close(figure)


def smoothed(loss: np.ndarray) -> np.ndarray:
    """Mean of the last 20 steps at each step."""
    sums = np.cumsum(np.concatenate([[0.0], loss]))
    first = np.maximum(np.arange(1, len(loss) + 1) - 20, 0)
    return (sums[1:] - sums[first]) / (np.arange(1, len(loss) + 1) - first)


if __name__ == "__main__":
    stage.main(__doc__, compute, draw)
