"""What a penalty on the singular values does to a network's spectrum and to its accuracy.

Tanh MLPs of 20 layers of 64 with orthogonal weights learn digits from the three phases: sigma_w 0.8 (signals vanish),
the critical point, and sigma_w 1.4 (chaos), each without a penalty and with `isometry_penalty` of the trunk at one
image (weight 0.03, two probes, anew at each step). Above, quantiles of the trunk's singular values at four test images
against step; below, test accuracy. Everything else is the same; one seed each.

    python figures/isometry_penalty.py            # 60 steps, a minute on one core
    python figures/isometry_penalty.py --full     # 300 steps, some minutes
"""

from __future__ import annotations

from typing import Any

import stage
from torch import Tensor, nn

from isometry.nn.models import MLP
from isometry.store import open_store
from isometry.training import (
    IsometryCallback,
    PenaltyCallback,
    TrainingOptions,
    load_dataset,
    train,
    trunk_part,
)
from isometry.training.loop import accuracy
from isometry.training.record import write_record

NAME = "isometry_penalty"
DEPTH, WIDTH, WEIGHT, IMAGES = 20, 64, 0.03, 4
STARTS = {
    "vanishing": (r"$\sigma_w = 0.8$", {"sigma_w": 0.8, "sigma_b": 0.0}),
    "critical": ("critical", {"q_star": 1 / DEPTH}),
    "chaotic": (r"$\sigma_w = 1.4$", {"sigma_w": 1.4, "sigma_b": 0.0}),
}
PENALTIES = {"without": 0.0, "with": WEIGHT}
MEASURED_AT = (0, 5, 10, 20, 30, 40, 60, 80, 100, 150, 200, 250, 300)
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


class AtSteps:
    """Spectrum and test accuracy at chosen steps."""

    def __init__(self, recorder: IsometryCallback, images: Tensor, labels: Tensor) -> None:
        self.recorder, self.images, self.labels = recorder, images, labels
        self.test_accuracy: dict[int, float] = {}

    def on_step(self, model: nn.Module, step: int) -> None:
        """Measure if it is time."""
        if step in MEASURED_AT:
            self.recorder.on_step(model, step)
            self.test_accuracy[step] = accuracy(model, self.images, self.labels)


def compute(full: bool) -> None:
    """Train the six networks, measuring on the way, into one file; the runs that are there stay."""
    data, _ = stage.places(NAME, full)
    steps = 300 if full else 60
    dataset = load_dataset("digits").flat()
    options = TrainingOptions(
        steps=steps, learning_rate=0.02, signal_units=False, evaluate_every=steps, checkpoint_every=steps
    )
    store = open_store(data, "a")
    for start, (_, law) in STARTS.items():
        for word, weight in PENALTIES.items():
            name = f"{start} {word}"
            if f"{name} looks" in store.series_names():
                continue
            model = MLP(DEPTH, WIDTH, "tanh", in_features=64, num_classes=10, seed=0, **law)
            recorder = IsometryCallback(
                dataset.test_images[:IMAGES], every=1, part=trunk_part, batched=True, method="exact"
            )
            looks = AtSteps(recorder, dataset.test_images, dataset.test_labels)
            penalty = PenaltyCallback(
                dataset.train_images[:1], weight=weight, part=trunk_part, batched=True, probes=2
            )
            about = {"weight": weight, "width": WIDTH, "depth": DEPTH, **law}
            record = train(
                model, dataset, options=options, callbacks=[looks, penalty], progress=False, about=about
            )
            write_record(data, record, name=name)
            columns: dict[str, Any] = {
                "step": sorted(looks.test_accuracy), "test_accuracy": list(looks.test_accuracy.values()),
            }  # fmt: skip
            for level in LEVELS:
                columns[f"log10_s_{level}"] = [
                    float(recorder.spectra[step].log10_quantile(level)) for step in columns["step"]
                ]
            store.add_series(f"{name} looks", columns, about)
            print(f"{name}: {looks.test_accuracy[steps]:.1%} in {record.seconds[-1]:.0f} s", flush=True)


def draw(full: bool) -> None:
    """Quantiles above, accuracies below; one column for each start."""
    import matplotlib.pyplot as plt

    data, path = stage.places(NAME, full)
    store = open_store(data)
    colours = {"without": stage.VERMILION, "with": stage.BLUE}
    with plt.style.context(stage.STYLE):
        figure, rows = plt.subplots(2, 3, figsize=(9.6, 5.4), sharex=True, sharey="row", layout="constrained")
        for column, (start, (label, _)) in enumerate(STARTS.items()):
            for word, colour in colours.items():
                looks = store.series(f"{start} {word} looks")
                above, below = rows[0][column], rows[1][column]
                for low, high, alpha in ((0.05, 0.95, 0.15), (0.25, 0.75, 0.3)):
                    above.fill_between(
                        looks["step"], 10 ** looks[f"log10_s_{low}"], 10 ** looks[f"log10_s_{high}"], color=colour,
                        alpha=alpha, lw=0,
                    )  # fmt: skip
                above.plot(
                    looks["step"], 10 ** looks["log10_s_0.5"], color=colour, lw=2, label=f"{word} penalty"
                )
                below.plot(looks["step"], 100 * looks["test_accuracy"], color=colour, lw=2)
            above.axhline(1, color="0.5", lw=1, ls=":")
            above.set(yscale="log", title=label)
            below.set(ylim=(0, 100), xlabel="step (batch of 64)")
        rows[0][0].set_ylabel("singular values of the trunk")
        rows[1][0].set_ylabel("test accuracy, %")
        rows[0][1].legend(loc="lower right", fontsize="small")
        stage.save(figure, path)
        plt.close(figure)


if __name__ == "__main__":
    stage.main(__doc__, compute, draw)
