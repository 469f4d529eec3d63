"""The main job on real input: what training on handwritten digits does to the Jacobian spectrum.

A small CNN learns scikit-learn's bundled digits for some seconds. Its input-output Jacobian is measured on
real test digits at initialisation and after training, both spectra go into one HDF5 file, and the report
and the picture are made from that file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import isometry
from isometry.errors import IsometryError
from isometry.report import figure_of_spectra, print_report, save_figure

INITIAL, TRAINED = "digits CNN, initial", "digits CNN, trained"


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images (N, 1, 8, 8) in [-1, 1] with labels; every fifth digit is a test digit."""
    bundle = load_digits()
    images = torch.as_tensor(bundle.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.as_tensor(bundle.target, dtype=torch.int64)
    test = torch.arange(len(labels)) % 5 == 0
    return images[~test], labels[~test], images[test], labels[test]


def small_cnn(channels: int = 16) -> nn.Module:
    """Four 3x3 convolutions and a linear head: 8x8 digits to ten scores."""
    layers: list[nn.Module] = []
    for fan_in in (1, channels, channels, channels):
        layers += [nn.Conv2d(fan_in, channels, 3, padding=1), nn.Tanh()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * channels, 10))


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Plain SGD with momentum, batches of 64."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((model(images).argmax(1) == labels).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for demo.h5 and demo.png")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--inputs", type=int, default=64, help="test digits to measure at")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    images, labels, test_images, test_labels = digits()
    model = small_cnn()
    file = options.out / "demo.h5"
    store = isometry.open_store(file, mode="w")

    print(f"measuring at {options.inputs} real test digits, at initialisation ...", file=sys.stderr)
    points = test_images[: options.inputs]
    store.add(isometry.measure(model, points, batched=True, name=INITIAL))
    print(f"training {options.epochs} epochs on {len(labels)} digits ...", file=sys.stderr)
    train(model, images, labels, options.epochs)
    reached = accuracy(model, test_images, test_labels)
    note = {"test_accuracy": reached}
    store.add(isometry.measure(model, points, batched=True, name=TRAINED, provenance=note))

    stored = isometry.open_store(file)
    spectra = [stored[name] for name in (INITIAL, TRAINED)]
    print_report(spectra)
    title = f"Jacobian of a small CNN at {options.inputs} test digits ({100 * reached:.1f} % test accuracy)"
    picture = save_figure(figure_of_spectra(spectra, title=title), options.out / "demo.png")
    print(f"\ntest accuracy after training: {100 * reached:.1f} %")
    print(f"spectra: {file}\npicture: {picture}")


if __name__ == "__main__":
    try:
        main()
    except IsometryError as error:
        sys.exit(f"error: {error}")
