"""What a contest leaves behind: a table on screen and a JSON file that says where, with what and under what load."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from .contest import Answer, Contestant, Outcome, hold, ratios

RESULTS = Path(__file__).parents[1] / "results"
_SMALL_RESULTS = Path("out") / "benchmarks"
_PACKAGES = (
    "isometry", "torch", "numpy", "scipy", "scikit-learn", "jax", "matfree", "cola-ml", "curvlinops-for-pytorch",
    "skerch",
)  # fmt: skip


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark of peers has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--full", action="store_true", help="the size of the claim; written to benchmarks/results/"
    )
    made.add_argument("--repeats", type=int, default=5, help="rounds, each with every contestant once")
    made.add_argument("--threads", type=int, default=2, help="processors for each contestant")
    made.add_argument("--timeout", type=float, default=None, help="seconds a contestant has for one call")
    made.add_argument("--without", nargs="*", default=[], help="packages to treat as missing")
    made.add_argument("--out", type=Path, default=None, help="the JSON file")
    return made


def machine(threads: int) -> dict[str, Any]:
    """Processor, memory and system; nothing that tells whose."""
    model = platform.processor() or platform.machine()
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = found.group(1).strip() if found else model
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (OSError, ValueError):
        memory = math.nan
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads_used": threads,
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Versions of everything a benchmark may call; "missing" is a version too."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def contest(
    name: str,
    *,
    claim: str,
    work: dict[str, Any],
    contestants: Sequence[Contestant],
    accuracy: Callable[[Answer, Answer], dict[str, float]],
    reference: Contestant | None,
    options: argparse.Namespace,
    timeout: float,
    goals: dict[str, float] | None = None,
    scale: dict[str, float] | None = None,
    memory_gib: float | None = None,
) -> dict[str, Any]:
    """Hold a contest, the first contestant being ours, print its table and write its record.

    Parameters
    ----------
    accuracy : callable
        (answer, answer of the reference) to named errors.
    reference : Contestant, optional
        Runs once, before all.
    goals : dict
        The ratio that is claimed, by contestant.
    scale : dict
        Share of the work that a contestant did, where it did less (its ratio is divided by that).
    """
    console = Console(width=140)
    console.rule(name)
    console.print(claim)
    before = os.getloadavg()
    tell = lambda text: console.print(f"  {text}", style="dim", highlight=False)  # noqa: E731
    limit = options.timeout or timeout
    truth: Outcome | None = None
    if reference is not None:
        truth = hold([reference], repeats=0, threads=options.threads, timeout=10 * limit, tell=tell)[0]
    outcomes = hold(
        contestants,
        repeats=options.repeats,
        threads=options.threads,
        timeout=limit,
        without=options.without,
        memory_gib=memory_gib,
        tell=tell,
    )
    ours = outcomes[0]
    rows = []
    for one, outcome in zip(contestants, outcomes, strict=True):
        share = (scale or {}).get(outcome.name, 1.0)
        comparable = not one.once and one.compared
        ratio, worked = (
            ratios(outcome, ours, clock) if comparable else None for clock in ("seconds", "processor_seconds")
        )
        rows.append(
            {
                "name": outcome.name,
                "status": outcome.status,
                "seconds": _summary(outcome.seconds),
                "processor_seconds": _summary(outcome.processor_seconds),
                "all_seconds": outcome.seconds,
                "first_call_seconds": outcome.first_call_seconds,
                "share_of_the_work": share,
                "ratio_to_ours": {key: value / share for key, value in ratio.items()} if ratio else None,
                "processor_ratio_to_ours": {key: value / share for key, value in worked.items()}
                if worked
                else None,
                "goal": (goals or {}).get(outcome.name),
                "errors": accuracy(outcome.answer, truth.answer)
                if truth and truth.status == "done" and outcome.answer
                else {},
                "products": outcome.answer.get("products"),
                "peak_mebibytes": outcome.peak_mebibytes,
            }
        )
    record = {
        "benchmark": name,
        "claim": claim,
        "work": work,
        "reference": None
        if truth is None
        else {"name": truth.name, "status": truth.status, "seconds": truth.median},
        "rows": rows,
        "repeats": options.repeats,
        "full": options.full,
        "machine": machine(options.threads),
        "load_average": {"before": before, "after": os.getloadavg()},
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    console.print(_table(record))
    write(record, name, options, console)
    return record


def write(record: dict[str, Any], name: str, options: argparse.Namespace, console: Console) -> None:
    """To benchmarks/results/ where the run is of full size, to out/benchmarks/ otherwise, or where asked."""
    path = options.out or (RESULTS if options.full else _SMALL_RESULTS) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_plain(record), indent=1) + "\n")
    console.print(f"written to {path.parent.name}/{path.name}")


def _summary(times: list[float]) -> dict[str, float] | None:
    if not times:
        return None
    return {"median": float(np.median(times)), "min": min(times), "max": max(times)}


def _plain(value: Any) -> Any:
    """For JSON: no NaN, no infinities, six digits."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _table(record: dict[str, Any]) -> Table:
    errors = list(dict.fromkeys(key for row in record["rows"] for key in row["errors"]))
    load = record["load_average"]
    table = Table(
        title=f"medians of {record['repeats']} rounds, {record['machine']['threads_used']} threads, "
        f"load {load['before'][0]:.1f} before and {load['after'][0]:.1f} after"
    )
    for heading in (
        "",
        "seconds [range]",
        "first",
        "theirs / ours [range]",
        "goal",
        *errors,
        "products",
        "MiB",
    ):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in record["rows"]:
        time, ratio = row["seconds"], row["ratio_to_ours"]
        table.add_row(
            row["name"],
            _ranged(time) if time else row["status"],
            f"{row['first_call_seconds']:.2f}" if math.isfinite(row["first_call_seconds"]) else "",
            _ranged(ratio) if ratio and row is not record["rows"][0] else "",
            f"{row['goal']:g}" if row["goal"] else "",
            *(f"{row['errors'][key]:.1e}" if key in row["errors"] else "" for key in errors),
            str(row["products"] or ""),
            f"{row['peak_mebibytes']:.0f}" if math.isfinite(row["peak_mebibytes"]) else "",
        )
    return table


def _ranged(summary: dict[str, float]) -> str:
    return f"{summary['median']:.3g} [{summary['min']:.3g}, {summary['max']:.3g}]"
