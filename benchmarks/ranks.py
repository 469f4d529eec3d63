"""How one measurement speeds up when its probes are shared out among processes by torchrun.

One thread for each process. The time is that of the measurement itself, operator set-up included, as the spectrum
records it; the wall time of the whole command stands beside it, with Python, torch and the process group starting. Runs
with different numbers of processes take turns; ratios are within a round, medians with their range. The numbers found
are compared bit for bit.

    python benchmarks/ranks.py            # depth 8, 16 channels: a minute
    python benchmarks/ranks.py --full     # depth 32, 64 channels, 64 probes, five rounds
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import isometry

ROOT = Path(__file__).resolve().parents[1]


def one_run(count: int, spec: str, probes: int, steps: int, folder: Path) -> tuple[float, float, np.ndarray]:
    """(seconds of the measurement, seconds of the command, nodes)."""
    file = folder / f"{count}.h5"
    file.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count),
        "-m", "isometry", "measure", spec, "--method", "lanczos", "--probes", str(probes), "--steps", str(steps),
        "-o", str(file), "--name", "a", "--json",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    wall = time.perf_counter() - began
    spectrum = isometry.open_store(file)["a"]
    return spectrum.seconds, wall, spectrum.distribution.nodes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="the committed run")
    parser.add_argument("--probes", type=int, help="more of them make more of the time shared")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    depth, channels, rounds = (32, 64, 5) if options.full else (8, 16, 2)
    probes, steps = options.probes or (64 if options.full else 16), 32
    spec = f"vanilla-cnn:depth={depth},channels={channels},size=8,init=gaussian,sigma_w=1.02"
    found: dict[int, list[tuple[float, float]]] = {count: [] for count in options.counts}
    nodes = []
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for count in options.counts:
                seconds, wall, values = one_run(count, spec, probes, steps, Path(folder))
                found[count].append((seconds, wall))
                nodes.append(values)
    same = all(np.array_equal(nodes[0], other) for other in nodes)
    base = found[options.counts[0]]
    rows = []
    for count, times in found.items():
        ratios = [first[0] / this[0] for first, this in zip(base, times, strict=True)]
        rows.append({
            "processes": count, "seconds": statistics.median(t[0] for t in times),
            "command seconds": statistics.median(t[1] for t in times),
            "speed-up": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        })  # fmt: skip
        print(
            f"{count} processes: {rows[-1]['seconds']:.2f} s ({rows[-1]['command seconds']:.1f} s with start-up), "
            f"speed-up {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    print("the same numbers bit for bit" if same else "NUMBERS DIFFER")
    result = {
        "claim": "one measurement shared out among processes of one thread each", "model": spec, "probes": probes,
        "steps": steps, "rounds": rounds, "rows": rows, "bit for bit": same, "cores": os.cpu_count(),
        "torch": torch.__version__, "python": platform.python_version(), "load before": load,
    }  # fmt: skip
    folder = ROOT / "benchmarks" / "results" if options.full else ROOT / "out" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ranks.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
