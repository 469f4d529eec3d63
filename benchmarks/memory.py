"""Predicted and measured peaks of the memory, for each method, shape, number of inputs and precision.

Each case runs in a fresh process on one thread: resident memory at its highest (VmHWM of Linux) less that after the
operator was made, and the operator's copy of the model. ``python benchmarks/memory.py`` prints the table.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

Case = tuple[str, tuple[int, int], int, str, dict[str, Any]]

# Method, (m, n), inputs (0: not batched), dtype, options.
CASES: list[Case] = [
    ("exact", (2000, 2000), 0, "float32", {}),
    ("exact", (2000, 2000), 0, "float64", {}),
    ("exact", (500, 8000), 0, "float64", {}),
    ("exact", (8000, 500), 0, "float32", {}),
    ("exact", (500, 500), 6, "float32", {}),
    ("lanczos", (200_000, 200_000), 0, "float32", {"probes": 16, "steps": 30}),
    ("lanczos", (200_000, 200_000), 0, "float32", {"probes": 16, "steps": 30, "memory_limit": 300_000_000}),
    ("lanczos", (200_000, 200_000), 0, "float32", {"probes": 3, "steps": 3}),
    ("lanczos", (200_000, 200_000), 0, "float64", {"probes": 16, "steps": 3, "probe": "orthogonal"}),
    ("lanczos", (400, 40_000), 0, "float32", {"probes": 16, "steps": 50}),
    ("lanczos", (40_000, 400), 0, "float32", {"probes": 64, "steps": 50}),
    ("lanczos", (1000, 1000), 0, "float32", {"probes": 16, "steps": 1000}),
    ("lanczos", (20_000, 20_000), 8, "float32", {"probes": 16, "steps": 10}),
    ("lanczos", (20_000, 20_000), 8, "float32", {"probes": 16, "steps": 10, "memory_limit": 60_000_000}),
    ("lanczos", (20_480, 20_480), 0, "float32", {"rtol": 0.3}),
    ("lanczos", (20_480, 20_480), 0, "float32", {"rtol": 0.01, "quantity": "s_max"}),
    ("randomized", (20_480, 20_480), 0, "float32", {"rank": 300}),
    ("randomized", (20_480, 20_480), 0, "float64", {"rank": 300}),
    ("randomized", (200_000, 200_000), 0, "float32", {"rank": 10, "probes": 16}),
    ("randomized", (20_480, 20_480), 0, "float32", {"rank": 300, "memory_limit": 80_000_000}),
    ("randomized", (20_480, 20_480), 0, "float32", {"rank": 20}),
    ("randomized", (20_480, 20_480), 8, "float32", {"rank": 20}),
    ("randomized", (20_480, 20_480), 8, "float32", {"rank": 20, "memory_limit": 60_000_000}),
    ("randomized", (400, 40_000), 0, "float32", {"rank": 50}),
    ("randomized", (40_000, 400), 2, "float32", {"rank": 50}),
    ("chain", (500, 500), 0, "float64", {}),
    ("chain", (10, 20_000), 0, "float64", {}),
    ("chain", (2000, 200), 0, "float32", {}),
    ("chain", (30, 30), 0, "float64", {}),
]  # fmt: skip


def network(m: int, n: int, dtype: Any) -> Any:
    """A square one costs two vectors: a diagonal, of decaying values, and tanh; others a dense layer."""
    import torch
    from torch import nn

    class Diagonal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(1, 0.01, n, dtype=dtype) ** 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.weight * x)

    return Diagonal() if m == n > 4000 else nn.Linear(n, m, bias=False, dtype=dtype)


def deep(m: int, n: int, dtype: Any) -> Any:
    """Eight factors."""
    from torch import nn

    layers = [nn.Linear(n if number == 0 else m, m, bias=False, dtype=dtype) for number in range(4)]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh())))


def peaks(case: Case) -> tuple[int, int]:
    """(predicted, measured) bytes, in this process."""
    import torch

    from isometry import JacobianOperator
    from isometry.measurement import measure

    method, (m, n), inputs, name, options = case
    dtype = getattr(torch, name)
    torch.manual_seed(0)
    # What is loaded at the first use is no part of the prediction.
    for warm in ("exact", "lanczos", "randomized"):
        measure(network(60, 50, dtype), torch.ones(50, dtype=dtype), warm, progress=False)
    measure(deep(20, 20, torch.float64), torch.ones(20, dtype=torch.float64), "chain", progress=False)
    # Nor may it find room that an earlier case has left in the heap.
    ctypes.CDLL(None).malloc_trim(0)
    model = (deep if method == "chain" else network)(m, n, dtype)
    x = torch.randn(*([inputs] if inputs else []), n, dtype=dtype) * 0.1
    limit = {name: options.pop(name) for name in ("memory_limit",) if name in options}
    operator = JacobianOperator(model, x, batched=inputs > 0, **limit)
    # The highest so far begins anew.
    Path("/proc/self/clear_refs").write_text("5")
    before = _highest()
    spectrum = measure(operator, method=method, progress=False, **options)
    return spectrum.provenance["predicted_peak_bytes"], _highest() - before + operator.copied_bytes


def fresh_peaks(*cases: Case) -> list[tuple[int, int]]:
    """(predicted, measured) bytes of each case, one after another in a fresh process on one thread."""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(cases)],
        capture_output=True, text=True, check=True, timeout=250,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
    )  # fmt: skip
    return [(predicted, measured) for predicted, measured in json.loads(done.stdout)]


def _highest() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Print the table, or what the given cases take."""
    if len(sys.argv) > 1:
        print(json.dumps([peaks(case) for case in json.loads(sys.argv[1])]))
        return
    print(f"{'predicted':>9} {'measured':>9} {'ratio':>5}  case (MB)")
    for case in CASES:
        ((predicted, measured),) = fresh_peaks(case)
        method, (m, n), inputs, dtype, options = case
        told = ", ".join(f"{name} {value}" for name, value in options.items())
        text = f"{method} {m} x {n}, {inputs or 1} inputs, {dtype}, {told}"
        print(
            f"{predicted / 1e6:9.1f} {measured / 1e6:9.1f} {predicted / max(measured, 1):5.2f}  {text}",
            flush=True,
        )


if __name__ == "__main__":
    main()
