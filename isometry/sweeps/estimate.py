"""`estimate`: number of points of a sweep and their time, for `isometry sweep --dry-run`. Internal.

Of each kind of point the cheapest and the most expensive, by a count of operations, are timed: one forward pass of the
network, multiplied by the number of passes of the measurement or training run, or one prediction. Times in between are
interpolated on logarithmic axes. The start of workers and the storing are not included.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isometry.sweeps.configuration import Point
from isometry.sweeps.grid import MAX_POINTS, Grid, Plan

# Forward passes of a Jacobian product, and of a training step (the backward pass costs two).
_FORWARDS_OF_A_PRODUCT = 1.25
_FORWARDS_OF_A_STEP = 3.0
# Operations of the SVD of a d x d matrix over d^3, and operations per second of one thread.
_SVD_OPERATIONS, _SVD_SPEED = 4.0, 5e9


@dataclass(frozen=True)
class Estimate:
    """The size of a sweep.

    Parameters
    ----------
    total, finished, failed : int
        Points of the grid; of these, how many the file holds, and how many have failed before.
    workers : int
    cheapest, dearest : float
        Estimated seconds of single points among those left; 0 where none is left.
    seconds : float
        Estimated for all that is left, on so many workers, without their start.
    """

    total: int
    finished: int
    failed: int
    workers: int
    cheapest: float
    dearest: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "total": self.total, "finished": self.finished, "failed_before": self.failed, "workers": self.workers,
            "estimated_seconds": {"cheapest": self.cheapest, "dearest": self.dearest, "all": self.seconds},
        }  # fmt: skip

    def lines(self) -> list[str]:
        """The estimate as lines of text."""
        left = self.total - self.finished
        first = f"{self.total} points, {self.finished} finished, {left} to do"
        if self.failed:
            first += f" ({self.failed} of them failed before)"
        if not left:
            return [first]
        return [
            first,
            f"estimate: {_duration(self.cheapest)} to {_duration(self.dearest)} a point, "
            f"{_duration(self.seconds)} in all on {self.workers} workers; within a factor of three or so",
        ]


def estimate(
    grid: Grid, path: str | Path, *, workers: int | None = None, max_points: int = MAX_POINTS
) -> Estimate:
    """Count the points of a grid and estimate the time of those not finished; nothing is written.

    Parameters
    ----------
    grid, path, workers, max_points
        As for `isometry.sweep`.

    Raises
    ------
    SpecError, StoreError
        As `isometry.sweep`.
    """
    from isometry.sweeps.engines import default_workers, local_devices
    from isometry.sweeps.ledger import Ledger

    ledger = Ledger(Path(path), mode="r") if Path(path).exists() else None
    total = failed = left = 0
    groups: dict[tuple[str, Any], _Group] = {}
    for point in Plan(grid, max_points=max_points):
        total += 1
        if ledger is not None and ledger.finished(point):
            continue
        left += 1
        failed += ledger is not None and ledger.failed(point)
        groups.setdefault((point.kind, point.values.get("model")), _Group(point)).add(point)
    seconds = [time for group in groups.values() for time in group.seconds()]
    count = workers or default_workers(local_devices())
    return Estimate(
        total, total - left, failed, count, min(seconds, default=0.0), max(seconds, default=0.0),
        max(sum(seconds) / count, max(seconds, default=0.0)),
    )  # fmt: skip


class _Group:
    """Points of one kind and model: the cheapest, the most expensive, and the operations of each."""

    def __init__(self, point: Point) -> None:
        self.low = self.high = point
        self.operations: list[float] = []

    def add(self, point: Point) -> None:
        count = _operations(point)
        self.low = point if count < _operations(self.low) else self.low
        self.high = point if count > _operations(self.high) else self.high
        self.operations.append(count)

    def seconds(self) -> list[float]:
        """Estimated, of each point."""
        ends = (_operations(self.low), _tried(self.low)), (_operations(self.high), _tried(self.high))
        return [_between(*ends, count) for count in self.operations]


def _between(low: tuple[float, float], high: tuple[float, float], operations: float) -> float:
    if high[0] <= low[0]:
        return low[1]
    share = math.log(operations / low[0]) / math.log(high[0] / low[0])
    return math.exp((1 - share) * math.log(low[1]) + share * math.log(high[1]))


def _operations(point: Point) -> float:
    """A number proportional to the work of the point."""
    values = point.values
    if point.kind == "predict" or "depth" not in values:
        return float(values.get("depth", 1))
    forward = float(values["depth"]) * _side(point) * _fan(point)
    return forward * (
        values["steps"] * values["batch"] + 1 if point.kind == "train" else _products(point, _side(point))
    )


def _side(point: Point) -> int:
    """Numbers in the signal of a built-in network."""
    values = point.values
    return int(values["width"] if "width" in values else values["channels"] * values.get("size", 8) ** 2)


def _fan(point: Point) -> int:
    """Terms of the sum behind one pre-activation."""
    values = point.values
    return int(
        values["width"] if "width" in values else values["channels"] * values.get("kernel_size", 3) ** 2
    )


def _products(point: Point, side: int) -> int:
    """Jacobian products of a measurement whose J has this shorter side."""
    from isometry.estimators import defaults

    values = point.values
    if "budget" in values:
        return int(values["budget"])
    sampled = 2 * values.get("probes", defaults.PROBES) * min(values.get("steps", defaults.STEPS), side)
    if values["method"] == "randomized":
        sampled += 4 * values.get("rank", defaults.RANK)
    if values["method"] == "chain":
        from isometry.estimators.graded_chain import chain_vectors

        return int(chain_vectors(side) * values.get("inputs", 1))
    exact = values["method"] == "exact" or (values["method"] == "auto" and side <= sampled)
    return int((side if exact else sampled) * values.get("inputs", 1))


def _tried(point: Point) -> float:
    """Estimated seconds of a point, from timing a part of its work."""
    from isometry.sweeps.work import ensemble_of, one_thread
    from isometry.theory.prediction import predict

    began = time.perf_counter()
    with one_thread():
        if point.kind == "predict":
            predict(ensemble_of(point.values))
            return time.perf_counter() - began
        return _tried_training(point) if point.kind == "train" else _tried_measurement(point)


def _tried_measurement(point: Point) -> float:
    import torch

    from isometry.comparison import compare
    from isometry.sweeps.work import inputs_of, model_of
    from isometry.theory.ensemble import Ensemble
    from isometry.theory.prediction import predict

    began = time.perf_counter()
    values = point.values
    model = model_of(values, Path())
    at = inputs_of(values, model, Path())
    made = time.perf_counter() - began
    x = at.x if at.x is None or not at.batched else at.x[0]
    # Without a first input J is of what is named; its size is not known here.
    side = 1 if x is None else x.numel()
    products = _products(point, side)
    if x is None or at.args or at.kwargs or not at.batched:
        given = () if at.x is None else (at.x,)
        forward = _forward(lambda: model.module(*given, *at.args, **at.kwargs))
    else:
        block = min(16, products)
        stacked = torch.stack([x] * block)
        forward = _forward(lambda: model.module(stacked)) / block
    seconds = made + _FORWARDS_OF_A_PRODUCT * products * forward
    if products <= side * values.get("inputs", 1):
        seconds += _SVD_OPERATIONS * float(side) ** 3 / _SVD_SPEED * values.get("inputs", 1)
    ensemble = getattr(model.module, "ensemble", None)
    if point.kind == "compare" and isinstance(ensemble, Ensemble) and x is not None:
        began = time.perf_counter()
        law = predict(ensemble)
        # Networks of the ensemble are drawn at its width, once.
        compare(law, law, width=x.shape[0])
        seconds += time.perf_counter() - began
    return seconds


def _tried_training(point: Point) -> float:
    from isometry.training.data import load_dataset
    from isometry.training.network import classifier
    from isometry.training.options import MEASUREMENT, NETWORK_OPTIONS

    values = point.values
    began = time.perf_counter()
    dataset = load_dataset(values["data"], values.get("folder"), limit=values.get("limit"))
    network = {key: values[key] for key in NETWORK_OPTIONS if key in values}
    model = classifier(dataset, **network, seed=values["seed"])
    made = time.perf_counter() - began
    batch = dataset.train_images[: values["batch"]]
    step = _FORWARDS_OF_A_STEP * _forward(lambda: model(batch))
    images = len(dataset.test_images) + min(values.get("train_images") or math.inf, len(dataset.train_images))
    looks = values["steps"] // values["evaluate_every"] + 1
    spectra = values["steps"] // values.get("spectrum_every", max(values["steps"], 1)) + 1
    probes, length = MEASUREMENT["probes"], MEASUREMENT["steps"]
    product = _FORWARDS_OF_A_PRODUCT * _forward(lambda: model(dataset.test_images[:probes]))
    return (
        made
        + step * (values["steps"] + looks * images / len(batch) / _FORWARDS_OF_A_STEP)
        + spectra * 2 * length * product
    )


def _forward(run: Callable[[], Any]) -> float:
    """Seconds of one forward pass: the better of two after a first one."""
    import torch

    times = []
    with torch.no_grad():
        for _ in range(3):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
    return min(times[1:])


def _duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    if seconds < 6000:
        return f"{seconds / 60:.2g} min"
    return f"{seconds / 3600:.2g} h" if seconds < 200 * 3600 else f"{seconds / 86400:.2g} days"
