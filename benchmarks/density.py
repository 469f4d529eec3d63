"""Density of singular values by Lanczos quadrature: the same probes and steps for everybody.

Work: a Gaussian tanh CNN of depth 32 with 64 channels on an 8 x 8 torus (J is 4096 x 4096), 16 probes of 32 steps in
float32. curvlinops has no blocks and does 4 probes; its ratio is per probe. Beside every time stands the distance of
the estimated distribution from that of the dense float64 Jacobian and the relative error of the mean square; both are
mostly chance of the probes. JAX's compilation is not in its times (it is in "first"); our set-up is in ours.

    python benchmarks/density.py            # 16 channels (J is 1024 x 1024): a minute
    python benchmarks/density.py --full     # 64 channels
"""

from __future__ import annotations

from harness import accuracy, ours, peers, report
from harness.contest import Contestant


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--channels", type=int, default=None)
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--probes", type=int, default=16)
    parser.add_argument("--steps", type=int, default=32)
    options = parser.parse_args()
    network = {
        "family": "circular_cnn", "depth": options.depth, "init": "gaussian", "size": 8,
        "channels": options.channels or (64 if options.full else 16),
    }  # fmt: skip
    task = {"probes": options.probes, "steps": options.steps}
    fewer = {"probes": max(1, options.probes // 4), "steps": options.steps}
    serial = f"curvlinops ({fewer['probes']} probes)"
    report.contest(
        "density",
        claim="density by Lanczos quadrature: 1.2x faster than matfree without its compilation, 2x than cola, 8x than "
        "curvlinops per probe",
        work={"network": network, **task},
        contestants=[
            Contestant("isometry", ours.measured, {"network": network, "method": "lanczos", **task}),
            Contestant(
                "matfree", peers.matfree_bidiagonal, {"network": network, **task}, requires=("matfree", "jax")
            ),
            Contestant("cola", peers.cola_lanczos, {"network": network, **task}, requires=("cola-ml",)),
            Contestant(
                serial,
                peers.curvlinops_lanczos,
                {"network": network, **fewer},
                requires=("curvlinops-for-pytorch",),
            ),
        ],
        reference=Contestant(
            "dense float64", ours.dense_reference, {"network": network, "squared": True}, once=True
        ),
        accuracy=lambda answer, truth: accuracy.of_density(answer, truth["values"]),
        options=options,
        timeout=60,
        goals={"matfree": 1.2, "cola": 2.0, serial: 8.0},
        scale={serial: fewer["probes"] / task["probes"]},
    )


if __name__ == "__main__":
    main()
