"""Heavy-tailed spectra: the error of the mean square at equal products, sampled alone or after deflation.

Claim measured here: where a few singular values carry the mean square (deep Gaussian networks), 16 probes of 50
steps leave ten percent; the same 1,600 products, most of them spent on taking the leading triplets out exactly, leave
rounding. So does nearly a quarter of them. Where nothing dominates, deflation is not worse than sampling. The truth is
the exact spectrum in float64; errors are root mean squares over the seeds, and the coverage is that of the 95 %
interval that each measurement states.
"""

from __future__ import annotations

import platform
from functools import partial

import numpy as np
import torch
from harness.record_file import parser, write_record

from isometry import JacobianOperator, Spectrum
from isometry.estimators import exact, lanczos, randomized
from isometry.jacobian import MatrixOperator
from isometry.nn import MLP, VanillaCNN

WAYS = {
    "1600: lanczos, 16 probes x 50": partial(lanczos, probes=16, steps=50),
    "1600: deflated, 8 probes x 30": partial(randomized, products=1600, probes=8, steps=30),
    "400: lanczos, 16 probes x 12": partial(lanczos, probes=16, steps=12),
    "400: deflated, 8 probes x 12": partial(randomized, products=400, probes=8, steps=12),
}
NETWORKS = {
    "MLP, depth 50, width 500": lambda: (MLP(50, 500, sigma_w=1.5, init="gaussian", seed=0), (500,)),
    "MLP, depth 100, width 500": lambda: (MLP(100, 500, sigma_w=1.5, init="gaussian", seed=0), (500,)),
    "CNN, depth 50, 16 channels, 8x8": lambda: (
        VanillaCNN(50, 16, sigma_w=1.5, init="gaussian", seed=0),
        (16, 8, 8),
    ),
    "CNN, depth 2, 16 channels, 8x8": lambda: (
        VanillaCNN(2, 16, sigma_w=1.5, init="gaussian", seed=0),
        (16, 8, 8),
    ),
}
# Where the whole spectrum is found, only rounding is left, which no standard error states.
_ROUNDING = 1e-12


def matrix(name: str) -> MatrixOperator:
    """J of the network at a random input, dense: seeds are measured on it at the cost of a matrix product."""
    model, shape = NETWORKS[name]()
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    operator = JacobianOperator(model, x, dtype=torch.float64)
    m, n = operator.shape
    return MatrixOperator(
        operator.rmatmat(torch.eye(m, dtype=torch.float64).reshape(m, *shape)).reshape(m, n)
    )


def row(spectra: list[Spectrum], truth: Spectrum) -> dict[str, float]:
    """Errors of one way over its seeds, relative to the truth."""
    wanted = truth.mean_square
    errors = np.array([s.mean_square / wanted - 1 for s in spectra])
    slack = _ROUNDING * wanted
    ends = [s.mean_square_interval(0.95) for s in spectra]
    inside = [low - slack <= wanted <= high + slack for low, high in ends]
    at = truth.quantile([0.5, 0.9, 0.99])
    cdf = np.array([s.cdf(at) - truth.cdf(at) for s in spectra])
    return {
        "error of the mean square": float(np.sqrt(np.mean(errors**2))),
        "stated standard error": float(
            np.sqrt(np.mean([(s.mean_square_stderr / wanted) ** 2 for s in spectra]))
        ),
        "coverage": float(np.mean(inside)),
        "error of the cdf": float(np.sqrt(np.mean(cdf**2))),
        "products": float(np.mean([s.products for s in spectra])),
        "taken out": float(
            np.mean([s.provenance.get("taken_out", s.provenance.get("rank", 0)) for s in spectra])
        ),
    }


def main() -> None:
    arguments = parser(__doc__, "deflation")
    arguments.add_argument("--seeds", type=int, default=60)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    result: dict[str, object] = {
        "claim": "relative error of the mean square at equal products, sampled alone or after deflation",
        "seeds": options.seeds,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    networks: dict[str, object] = {}
    for name in NETWORKS:
        operator = matrix(name)
        truth = exact(operator)
        share = np.cumsum(np.sort(truth.extremes.top[0])[::-1] ** 2) if truth.extremes else np.ones(1)
        half = int(np.searchsorted(share, 0.5 * share[-1])) + 1
        print(f"{name}: half of the mean square in {half} of {share.size} values")
        rows = {}
        for way, run in WAYS.items():
            rows[way] = row([run(operator, seed=seed) for seed in range(options.seeds)], truth)
            print(f"  {way:32s}" + "".join(f"  {key} {value:.3g}" for key, value in rows[way].items()))
        networks[name] = {"values with half of it": half, "values": int(share.size), "ways": rows}
    result["networks"] = networks
    write_record(options.out, result)


if __name__ == "__main__":
    main()
