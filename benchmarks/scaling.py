"""How the time of a density grows with n, depth, probes and steps: log-log slopes, about one in each.

Work: Lanczos quadrature of a delta-orthogonal tanh CNN with 16 channels, one of the four quantities varied at a
time. Slopes are least-squares fits of the logarithms of median times, all sizes included, with their standard errors.
A slope below one is fixed cost that is not yet paid off.

    python benchmarks/scaling.py            # a minute
    python benchmarks/scaling.py --full     # n up to 65,536, depth up to 1,024, 128 probes, 128 steps
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from harness import ours, report
from harness.contest import Contestant, hold
from rich.console import Console
from rich.table import Table

BASE = {"n": 4096, "depth": 32, "probes": 16, "steps": 16}
SMALL = {"n": [1024, 4096, 16384], "depth": [16, 32, 64], "probes": [8, 16, 32], "steps": [8, 16, 32]}
FULL = {
    "n": [1024, 4096, 16384, 65536],
    "depth": [16, 64, 256, 1024],
    "probes": [8, 16, 32, 64, 128],
    "steps": [8, 16, 32, 64, 128],
}


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--tiny", action="store_true", help="smallest sizes only, to see that it runs")
    options = parser.parse_args()
    sizes = FULL if options.full else SMALL
    base = BASE
    if options.tiny:
        base, sizes = (
            {"n": 256, "depth": 2, "probes": 2, "steps": 2},
            {key: [2, 4] for key in BASE} | {"n": [256, 1024]},
        )
    console = Console(width=100)
    before, rows = os.getloadavg(), []
    for quantity, values in sizes.items():
        settings = [{**base, quantity: value} for value in values]
        outcomes = hold(
            [
                Contestant(f"{quantity} = {values[i]}", ours.measured, _arguments(s))
                for i, s in enumerate(settings)
            ],
            repeats=options.repeats,
            threads=options.threads,
            timeout=options.timeout or 120,
            tell=lambda text: console.print(f"  {text}", style="dim", highlight=False),
        )
        medians = [outcome.median for outcome in outcomes]
        slope, error = _slope(np.log(values), np.log(medians))
        rows.append(
            {
                "quantity": quantity, "values": values, "others": {k: v for k, v in base.items() if k != quantity},
                "seconds": medians, "slope": slope, "slope_stderr": error,
            }
        )  # fmt: skip
    table = Table(title="time of a density against each quantity")
    for heading in ("quantity", "values", "seconds", "log-log slope"):
        table.add_column(heading)
    for row in rows:
        table.add_row(
            row["quantity"],
            ", ".join(map(str, row["values"])),
            ", ".join(f"{t:.3g}" for t in row["seconds"]),
            f"{row['slope']:.2f} ± {row['slope_stderr']:.2f}",
        )
    console.print(table)
    record = {
        "benchmark": "scaling", "claim": "time of a density is linear in n, depth, probes and steps", "rows": rows,
        "repeats": options.repeats, "full": options.full, "machine": report.machine(options.threads),
        "load_average": {"before": before, "after": os.getloadavg()}, "versions": report.versions(),
    }  # fmt: skip
    report.write(record, "scaling", options, console)


def _arguments(setting: dict[str, int]) -> dict[str, Any]:
    side = round((setting["n"] / 16) ** 0.5)
    network = {
        "family": "circular_cnn", "depth": setting["depth"], "channels": 16, "size": side, "init": "delta_orthogonal",
    }  # fmt: skip
    return {"network": network, "method": "lanczos", "probes": setting["probes"], "steps": setting["steps"]}


def _slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Least-squares slope and its standard error (nan from two points)."""
    (slope, offset), degrees = np.polyfit(x, y, 1), x.size - 2
    rest = y - slope * x - offset
    spread = np.sum(rest**2) / degrees if degrees > 0 else np.nan
    return float(slope), float(np.sqrt(spread / np.sum((x - x.mean()) ** 2)))


if __name__ == "__main__":
    main()
