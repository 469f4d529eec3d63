"""What a Jacobian product costs, in forward passes, and what the estimators cost beside one another.

Claims measured here: (1) on blocks of 16 probes a J v or J^T u costs between one and two forward passes of the
same batch; (2) lanczos on a J of side 4096 is cheaper than the dense way by the ratio of their products.
Ratios are within one run, medians over the repeats, with the spread beside them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import isometry
from isometry.nn import VanillaCNN


def seconds(call: Callable[[], object], repeats: int) -> list[float]:
    """Wall times of ``repeats`` calls after one to warm up."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    call()
    times = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        times.append(time.perf_counter() - start)
    return times


def ratios(times: list[float], reference: list[float]) -> dict[str, float]:
    """Median and range of the pairwise ratios."""
    pairs = [a / b for a, b in zip(times, reference, strict=True)]
    return {"median": statistics.median(pairs), "min": min(pairs), "max": max(pairs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--full", action="store_true", help="also exact against lanczos at side 4096")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "products.json")
    options = parser.parse_args()

    rows = []
    model = VanillaCNN(depth=options.depth, channels=16, activation="tanh", sigma_w=1.02, seed=0).to(
        options.device
    )
    x = torch.randn(16, 16, 16, device=options.device)
    operator = isometry.JacobianOperator(model, x)
    for k in (1, 16, 64):
        block = torch.randn(k, 16, 16, 16, device=options.device)
        with torch.no_grad():
            forward = seconds(lambda block=block: model(block), options.repeats)
        push = seconds(lambda block=block: operator.matmat(block), options.repeats)
        pull = seconds(lambda block=block: operator.rmatmat(block), options.repeats)
        rows.append({"k": k, "Jv / forward": ratios(push, forward), "JTu / forward": ratios(pull, forward)})
        print(
            f"k = {k:3d}: J v {rows[-1]['Jv / forward']['median']:.2f}, "
            f"J^T u {rows[-1]['JTu / forward']['median']:.2f} forward passes"
        )
    result = {
        "claim": "cost of a Jacobian product in forward passes of the same batch",
        "model": f"tanh CNN, depth {options.depth}, 16 channels, 16x16, circular 3x3, float32",
        "products": rows,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "repeats": options.repeats,
    }
    if options.full:
        one = lambda method: isometry.measure(model, x, method, progress=False)  # noqa: E731
        dense, quadrature = one("exact"), one("lanczos")
        result["exact / lanczos"] = {
            "seconds": dense.seconds / quadrature.seconds,
            "products": dense.products / quadrature.products,
            "mean square": [dense.mean_square, quadrature.mean_square, quadrature.mean_square_stderr],
        }
        print(f"exact / lanczos, side 4096: {result['exact / lanczos']}")
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
