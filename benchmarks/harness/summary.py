"""The committed results in one Markdown table: what the README quotes, and a test holds it to.

python benchmarks/harness/summary.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
WORK = {
    "density": "density, n = 4096, 16 probes of 32 steps",
    "full_spectrum_float32": "all 4096 singular values, float32",
    "full_spectrum_float64": "all 4096 singular values, float64",
    "leading_values": "20 largest of a ResNet-18 at 3 x 64 x 64, residual 1e-4",
    "largest_value": "s_max at depth 64, n = 8192",
    "deep_values": "5 largest at depth 1,000",
    "resnet50": "ResNet-50 at 3 x 224 x 224",
}


def summary() -> str:
    """Rows for every result there is; "2.1x (3e-05)": the peer took 2.1 times as long, with that error."""
    lines = ["| work | isometry | peers, times as long (error) |", "|---|---|---|"]
    for name, work in WORK.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            lines.append(_line(work, json.loads(path.read_text())["rows"], memory=name == "resnet50"))
    path = RESULTS / "scaling.json"
    if path.exists():
        slopes = (f"{row['quantity']} {row['slope']:.2f}" for row in json.loads(path.read_text())["rows"])
        lines.append(f"| log-log slopes of the time of a density | {', '.join(slopes)} | |")
    return "\n".join(lines)


def _line(work: str, rows: list[dict[str, Any]], *, memory: bool) -> str:
    ours = [_ours(row, memory) for row in rows if row["name"].startswith("isometry")]
    peers = [_peer(row) for row in rows if not row["name"].startswith("isometry")]
    return f"| {work} | {'; '.join(ours)} | {', '.join(peers)} |"


def _ours(row: dict[str, Any], memory: bool) -> str:
    what = row["name"].partition(", ")[2]
    if not row["seconds"]:
        return f"{what} {row['status']}".strip()
    peak = f", {row['peak_mebibytes'] / 1024:.1f} GiB" if memory else ""
    return f"{what} {_digits(row['seconds']['median'])} s{peak}{_error(row)}".strip()


def _peer(row: dict[str, Any]) -> str:
    if not row["ratio_to_ours"]:
        seconds = f"{_digits(row['seconds']['median'])} s once" if row["seconds"] else row["status"]
        return f"{row['name']} {seconds}{_error(row)}"
    share = " for the same work" if row["share_of_the_work"] != 1 else ""
    return f"{row['name']} {_digits(row['ratio_to_ours']['median'])}x{share}{_error(row)}"


def _error(row: dict[str, Any]) -> str:
    """The first of the errors of a row: the one that the contest is about."""
    errors = list(row["errors"].values())
    if not errors:
        return ""
    return f" ({errors[0]:.0e})" if errors[0] is not None and math.isfinite(errors[0]) else " (wrong)"


def _digits(value: float) -> str:
    return f"{value:.1f}" if 1 <= value < 100 else f"{value:.2g}" if value < 1 else f"{value:.0f}"


if __name__ == "__main__":
    print(summary())
