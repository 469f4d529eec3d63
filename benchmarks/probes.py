"""Which kind of random probe varies least: the variance of the mean square and of the cdf, per product.

Claims measured here, on dense Jacobians of five networks of 256 inputs: probes that are orthogonal in groups of 16
vary by the factor (n - 16) / (n - 1) of independent ones, which is 0.94 at 256 dimensions and nothing at
4096; random signs vary as much as Gaussian probes (uniform on the sphere) for dense J, and less where its singular
vectors keep to few inputs each.
Variances are over the seeds, of means over 16 probes, so that whole orthogonal groups are compared; all kinds cost the
same products. Ratios below are to Gaussian probes, which the library takes by default.
"""

from __future__ import annotations

import platform
from collections.abc import Callable

import numpy as np
import torch
from harness.record_file import parser, write_record
from torch import nn

from isometry import JacobianOperator
from isometry.estimators.blocks import PROBES, ShortSide, random_block
from isometry.jacobian import MatrixOperator
from isometry.nn import MLP, ResNet, VanillaCNN

GROUP = 16


def networks() -> dict[str, Callable[[], nn.Module]]:
    """Each with 256 numbers in and out: 4 channels of 8 x 8, or a width of 256."""
    trunk = {"channels": 4, "seed": 0}
    return {
        "Gaussian CNN, tanh, depth 16": lambda: VanillaCNN(
            depth=16, activation="tanh", sigma_w=1.05, init="gaussian", **trunk
        ),
        "delta-orthogonal CNN, tanh, depth 16": lambda: VanillaCNN(
            depth=16, activation="tanh", sigma_w=1.02, init="delta_orthogonal", **trunk
        ),
        "Gaussian CNN, ReLU, depth 16": lambda: VanillaCNN(depth=16, activation="relu", init="gaussian", **trunk),
        "ResNet, ReLU, 8 blocks": lambda: ResNet(depth=8, activation="relu", **trunk),
        "MLP, tanh, depth 16": lambda: MLP(depth=16, width=256, activation="tanh", sigma_w=1.05, seed=0),
    }  # fmt: skip


def dense(model: nn.Module) -> torch.Tensor:
    """J in float64 at a normal input."""
    shape = (256,) if isinstance(model, MLP) else (4, 8, 8)
    x = 0.5 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    operator = JacobianOperator(model, x, dtype=torch.float64)
    return operator.rmatmat(torch.eye(256, dtype=torch.float64).reshape(256, *operator.output_shape)).reshape(
        256, 256
    )


def variances(a: torch.Tensor, seeds: int) -> dict[str, dict[str, float]]:
    """Per kind: relative variance of the mean square, and the mean variance of the cdf at its nine deciles."""
    side = ShortSide(MatrixOperator(a))
    _, s, right = torch.linalg.svd(a)
    deciles = [s.flip(0)[round(256 * p)] for p in np.arange(0.1, 0.95, 0.1)]
    below = torch.stack([(s <= value).double() for value in deciles])
    found = {}
    for kind in PROBES:
        squares, cdfs = [], []
        for seed in range(seeds):
            mass = ((random_block(GROUP, side, seed, probe=kind)[:, 0] @ right.T) ** 2).mean(0)
            squares.append(float(mass @ s**2))
            cdfs.append((below @ mass).numpy())
        found[kind] = {
            "mean square": float(np.var(squares, ddof=1) / np.mean(squares) ** 2),
            "cdf": float(np.var(cdfs, axis=0, ddof=1).mean()),
        }
    return found


def main() -> None:
    arguments = parser(__doc__, "probes")
    arguments.add_argument("--seeds", type=int, default=1000)
    options = arguments.parse_args()
    rows = []
    print(f"{'variance / that of Gaussian probes':40} {'mean square':>24} {'cdf':>24}")
    print(f"{'':40} {'rademacher  orthogonal':>24} {'rademacher  orthogonal':>24}")
    for name, build in networks().items():
        found = variances(dense(build()), options.seeds)
        ratio = {
            kind: {key: found[kind][key] / found["gaussian"][key] for key in ("mean square", "cdf")}
            for kind in ("rademacher", "orthogonal")
        }
        rows.append({"network": name, "variance": found, "ratio to gaussian": ratio})
        numbers = [ratio[kind][key] for key in ("mean square", "cdf") for kind in ratio]
        print(f"{name:40}" + "".join(f"{number:12.3f}" for number in numbers))
    result = {
        "claim": "variance of means over 16 probes (16 products a step for every kind), relative to Gaussian probes",
        "dimension": 256,
        "probes": GROUP,
        "seeds": options.seeds,
        "relative error of a ratio": float(2 / np.sqrt(options.seeds)),
        "orthogonal, expected ratio": (256 - GROUP) / 255,
        "networks": rows,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    write_record(options.out, result)


if __name__ == "__main__":
    main()
