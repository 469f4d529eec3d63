"""All singular values of a deep chain over hundreds of decades, beside the dense product of the same factors.

Work: N x N Gaussian layers with random slopes, as many as ``--depth``; the dense product multiplies the same matrices
and takes the SVD of the result, which shows the first 15 decades. Both run in turn in one process, and times are those
of the processor, which neighbours on the machine change little.

    python benchmarks/chain.py                           # N = 256, depth 100: seconds
    python benchmarks/chain.py --sizes 256 512 1024 --depth 100 64 160 --out benchmarks/results/chain.json

The record has, for each size, the seconds of both and their ratio, the decades, the relative errors and the
decompositions.
"""

from __future__ import annotations

import math
import statistics
import time

import numpy as np
import torch
from harness.record_file import parser, write_record
from torch import Tensor

from isometry.estimators import chain

# So many matrices are drawn; layers take them in turn, with rows in another order and slopes of their own.
DRAWN = 16


class Layer:
    """diag(slopes) P W for a matrix W that other layers have too: a Gaussian layer, its rows permuted, with slopes."""

    rounding = 0.0

    def __init__(self, weight: Tensor, generator: torch.Generator) -> None:
        n = weight.shape[0]
        self.shape, self.weight = (n, n), weight
        self.order = torch.randperm(n, generator=generator)
        self.slopes = 0.2 + 0.8 * torch.rand(n, generator=generator, dtype=torch.float64)

    def forward(self, block: Tensor) -> Tensor:
        return (block @ self.weight.T)[:, self.order].mul_(self.slopes)

    def adjoint(self, block: Tensor) -> Tensor:
        back = torch.empty_like(block)
        back[:, self.order] = block * self.slopes
        return back @ self.weight


def dense(layers: list[Layer]) -> Tensor:
    """The singular values of the product in float64."""
    product = torch.eye(layers[0].shape[0], dtype=torch.float64)
    for layer in layers:
        product = layer.forward(product)
    return torch.linalg.svdvals(product)


def measured(size: int, depth: int, repeats: int) -> dict[str, object]:
    """One record."""
    generator = torch.Generator().manual_seed(0)
    drawn = [
        torch.randn(size, size, generator=generator, dtype=torch.float64) / math.sqrt(size)
        for _ in range(DRAWN)
    ]
    layers = [Layer(drawn[number % DRAWN], generator) for number in range(depth)]
    chain(layers[:2])  # Imports and the first decompositions.
    ratios, seconds = [], []
    for _ in range(repeats):
        times = [time.process_time()]
        dense(layers)
        times.append(time.process_time())
        spectrum = chain(layers)
        times.append(time.process_time())
        both = np.diff(times)
        seconds.append(both.tolist())
        ratios.append(float(both[1] / both[0]))
    logs = spectrum.log_singular_values / math.log(10)
    record = {
        "size": size,
        "depth": depth,
        "threads": torch.get_num_threads(),
        "seconds_dense_and_chain": seconds,
        "ratio": statistics.median(ratios),
        "decades": float(logs[0] - logs[-1]),
        "relative_error_median": float(np.median(spectrum.relative_errors)),
        "relative_error_largest": float(spectrum.relative_errors.max()),
        **spectrum.provenance,
    }
    print(
        f"N = {size}, depth {depth}: chain {seconds[-1][1]:.1f} s, dense {seconds[-1][0]:.1f} s, ratio "
        f"{record['ratio']:.2f}, {record['decades']:.0f} decades, relative errors "
        f"{record['relative_error_median']:.1e} (largest {record['relative_error_largest']:.1e})",
        flush=True,
    )
    return record


def main() -> None:
    options = parser(__doc__ or "", "chain")
    options.add_argument("--sizes", type=int, nargs="+", default=[256])
    options.add_argument("--depth", type=int, nargs="+", default=[100], help="one, or one for each size")
    options.add_argument("--repeats", type=int, default=1)
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    depths = given.depth * len(given.sizes) if len(given.depth) == 1 else given.depth
    records = []
    for size, depth in zip(given.sizes, depths, strict=True):
        records.append(measured(size, depth, given.repeats))
        # Kept as they come: the last ones take long.
        write_record(given.out, {"machine": "processor time", "torch": torch.__version__, "records": records})


if __name__ == "__main__":
    main()
