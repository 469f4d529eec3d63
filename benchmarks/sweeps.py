"""What a sweep adds to its points: coordinating, packing, storing; and whether that grows with the file.

Claim measured here: beside a measurement of usual size (an MLP of width 128 and depth 32 by 16 probes and 50 steps) the
coordinator's work on a point is less than a third, and it costs the same in a file of many points. Process time of one
process that does everything, interleaved within one run, medians of ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any

import torch

import isometry
from isometry.sweeps import points_of
from isometry.sweeps.work import run_point


class AtOnce(Executor):
    """Computes while it is asked, so that nothing runs beside it."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments, **options))
        return future


def grid(width: int, depth: int, seeds: range) -> dict[str, Any]:
    fixed = {"model": "mlp", "width": width, "depth": depth, "method": "lanczos"}
    return {"fixed": fixed, "seeds": list(seeds)}


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--points", type=int, default=300, help="points in the file before the last look")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    usual = points_of(grid(128, 32, range(1)))[0]
    run_point(usual, ".")
    overheads: dict[str, list[float]] = {"empty file": [], f"{arguments.points} points": []}
    ratios: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(arguments.rounds):
            path = f"{folder}/{round_}.h5"
            for label, seeds in (
                ("empty file", range(20)),
                ("", range(20, arguments.points)),
                (f"{arguments.points} points", range(arguments.points, arguments.points + 20)),
            ):
                small = grid(8, 1, seeds)
                if label:
                    alone = seconds(lambda small=small: [run_point(point, ".") for point in points_of(small)])
                swept = seconds(partial(isometry.sweep, small, path, executor=AtOnce(), progress=False))
                if label:
                    overheads[label].append((swept - alone) / 20)
            ratios.append(overheads["empty file"][-1] / seconds(lambda: run_point(usual, ".")))
    for label, values in overheads.items():
        print(f"a point, {label}: {1e3 * statistics.median(values):.1f} ms beside its own work")
    growth = [late / early for early, late in zip(*overheads.values(), strict=True)]
    print(f"late / early: {statistics.median(growth):.2f} ({min(growth):.2f} to {max(growth):.2f})")
    print(f"beside a usual measurement: {100 * statistics.median(ratios):.1f} % of its time")


if __name__ == "__main__":
    main()
