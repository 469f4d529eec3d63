"""All singular values of classifiers: `measure(model, x, "exact")` against `torch.func.jacrev` and `svdvals`.

Work: twenty models of torchvision and timm with random weights, at 32 x 32 or 64 x 64, with 10 and 1,000 classes. Both
are called in turn, in one process of one thread; the ratio is that of processor times, the median over the pairs.
Models of libraries that are not installed are left out. `make test-models` makes an environment with both.

    python benchmarks/few_outputs.py              # 4 models with 10 classes: a minute
    python benchmarks/few_outputs.py --full       # all of them, with 10 and 1,000 classes
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from harness.record_file import parser, write_record

import isometry

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "models"))
from catalogue import TORCHVISION, TWENTY, of_timm, of_torchvision

PAIRS = {10: 5, 1000: 1}
SMALL = TWENTY[:4]


def seconds(run: Callable[[], Any]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def compared(name: str, classes: int) -> dict[str, Any]:
    """Times of both, and the largest difference of a singular value over s_max."""
    torch.manual_seed(0)
    _, model, x = (of_torchvision if name in TORCHVISION else of_timm)(name, classes)()

    def ours() -> torch.Tensor:
        return torch.from_numpy(isometry.measure(model, x, "exact", progress=False).quadrature.nodes.ravel())

    def theirs() -> torch.Tensor:
        jacobian = torch.func.jacrev(model, chunk_size=64)(x)
        return torch.linalg.svdvals(jacobian.reshape(classes, -1))

    with torch.no_grad():
        # The first call of a process makes plans for its shapes.
        model(x)
    if classes == 10:
        ours(), theirs()
    values: list[torch.Tensor] = [torch.empty(0)] * 2
    pairs = []
    for _ in range(PAIRS[classes]):
        times = []
        for place, run in enumerate((ours, theirs)):

            def kept(place: int = place, run: Callable[[], torch.Tensor] = run) -> None:
                values[place] = run()

            times.append(seconds(kept))
        pairs.append(times)
    found, expected = (torch.sort(v.double(), descending=True).values for v in values)
    ratios = [a / b for a, b in pairs]
    return {
        "model": name, "classes": classes, "input": list(x.shape), "seconds": statistics.median(a for a, _ in pairs),
        "jacrev_seconds": statistics.median(b for _, b in pairs), "ratio": statistics.median(ratios),
        "ratios": ratios, "difference": float((found - expected).abs().max() / expected.max()),
    }  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    ratios = sorted(row["ratio"] for row in rows)
    return {"models": len(rows), "median": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]}


def installed(library: str) -> bool:
    try:
        version(library)
    except PackageNotFoundError:
        return False
    return True


def main() -> None:
    options = parser(__doc__, "few_outputs")
    options.add_argument("--full", action="store_true", help="all models, with 10 and 1,000 classes")
    options.add_argument("--seconds", type=float, default=float("inf"), help="begin no model after so long")
    given = options.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    libraries = [name for name in ("torch", "torchvision", "timm") if installed(name)]
    record: dict[str, Any] = {
        "python": platform.python_version(), "processor": platform.machine(), "threads": 1, "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in libraries}, "rows": [], "summary": {},
    }  # fmt: skip
    for classes in (10, 1000) if given.full else (10,):
        for name in TWENTY if given.full else SMALL:
            if not installed("torchvision" if name in TORCHVISION else "timm"):
                continue
            if time.process_time() > given.seconds:
                break
            row = compared(name, classes)
            record["rows"].append(row)
            print(
                f"{name} with {classes} classes: {row['ratio']:.2f} of the time of jacrev and svdvals",
                flush=True,
            )
            of_kind = [r for r in record["rows"] if r["classes"] == classes]
            record["summary"] = {
                **record["summary"],
                str(classes): summary(of_kind),
                "all": summary(record["rows"]),
            }
            write_record(given.out, record)
    if not record["rows"]:
        print("missing: torchvision and timm")
    for kind, found in record["summary"].items():
        print(kind, {key: round(value, 2) for key, value in found.items()})


if __name__ == "__main__":
    main()
