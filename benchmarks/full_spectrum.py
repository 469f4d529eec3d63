"""All singular values, exactly: against torch.func.jacrev and torch.linalg.svdvals in the same precision.

Work: the Gaussian tanh CNN of depth 32 with 64 channels on an 8 x 8 torus, J is 4096 x 4096. Beside every time stands
the largest error of any value in units of s_max, against the float64 Jacobian.

    python benchmarks/full_spectrum.py            # 16 channels (J is 1024 x 1024): half a minute
    python benchmarks/full_spectrum.py --full     # 64 channels, in float32 and in float64
"""

from __future__ import annotations

from harness import accuracy, ours, peers, report
from harness.contest import Contestant


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--channels", type=int, default=None)
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"])
    options = parser.parse_args()
    for dtype in options.dtypes:
        network = {
            "family": "circular_cnn", "depth": options.depth, "init": "gaussian", "size": 8, "dtype": dtype,
            "channels": options.channels or (64 if options.full else 16),
        }  # fmt: skip
        report.contest(
            f"full_spectrum_{dtype}",
            claim=f"all singular values in {dtype}: 1.3x faster than jacrev and svdvals",
            work={"network": network},
            contestants=[
                Contestant("isometry", ours.measured, {"network": network, "method": "exact"}),
                Contestant("jacrev, svdvals", peers.jacrev_svdvals, {"network": network}),
            ],
            reference=Contestant(
                "dense float64",
                ours.dense_reference,
                {"network": network, "squared": dtype == "float32"},
                once=True,
            ),
            accuracy=lambda answer, truth: accuracy.of_all(answer, truth["values"]),
            options=options,
            timeout=180,
            goals={"jacrev, svdvals": 1.3},
        )


if __name__ == "__main__":
    main()
