"""The largest singular value of a deep network near isometry, against ARPACK and the others.

Work: a delta-orthogonal tanh CNN of depth 64 with 32 channels on a 16 x 16 torus, J is 8192 x 8192, in float32, to a
relative residual of 1e-3 (all solvers understand the tolerance so). The spectrum is dense at its top, which is what
makes it hard. Beside every time stands the error against the dense float64 Jacobian.
The second of ours states an upper bound as well, on what a start vector may have missed; the peers have none.

    python benchmarks/largest_value.py            # 8 channels (J is 2048 x 2048): half a minute
    python benchmarks/largest_value.py --full     # 32 channels; the dense reference takes some minutes
"""

from __future__ import annotations

from harness import accuracy, ours, peers, report
from harness.contest import Contestant


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--channels", type=int, default=None)
    parser.add_argument("--depth", type=int, default=64)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--tol", type=float, default=1e-3)
    options = parser.parse_args()
    network = {
        "family": "circular_cnn", "depth": options.depth, "init": "delta_orthogonal", "size": options.size,
        "channels": options.channels or (32 if options.full else 8),
    }  # fmt: skip
    task = {"network": network, "count": 1, "tol": options.tol}
    report.contest(
        "largest_value",
        claim="s_max of a delta-orthogonal network of depth 64: 4x faster than arpack",
        work=task,
        contestants=[
            Contestant(
                "isometry",
                ours.measured,
                {
                    "network": network,
                    "method": "lanczos",
                    "rtol": options.tol,
                    "quantity": "s_max",
                    "probes": 1,
                },
            ),
            Contestant("isometry, with an upper bound", ours.leading, task),
            Contestant("scipy arpack", peers.scipy_svds, {**task, "solver": "arpack"}, requires=("scipy",)),
            Contestant("scipy lobpcg", peers.scipy_svds, {**task, "solver": "lobpcg"}, requires=("scipy",)),
            # propack fails below a few values.
            Contestant(
                "scipy propack (5 values)",
                peers.scipy_svds,
                {**task, "count": 5, "solver": "propack"},
                requires=("scipy",),
            ),
        ],
        reference=Contestant(
            "dense float64", ours.dense_reference, {"network": network, "squared": True}, once=True
        ),
        accuracy=lambda answer, truth: accuracy.of_top(answer, truth["values"], 1),
        options=options,
        timeout=60,
        goals={"scipy arpack": 4.0},
    )


if __name__ == "__main__":
    main()
