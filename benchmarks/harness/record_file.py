"""Where a benchmark without peers writes its record: `--out`, under out/benchmarks unless told otherwise."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def parser(description: str, name: str) -> argparse.ArgumentParser:
    """A parser with ``--out``, the JSON file of the record."""
    made = argparse.ArgumentParser(description=description.split("\n", 1)[0])
    made.add_argument(
        "--out",
        type=Path,
        default=ROOT / "out" / "benchmarks" / f"{name}.json",
        help=f"benchmarks/results/{name}.json for the committed record",
    )
    return made


def write_record(path: Path, record: Any, *, indent: int = 2) -> None:
    """Write the record as JSON; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=indent) + "\n")
