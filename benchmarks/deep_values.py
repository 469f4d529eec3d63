"""The five largest singular values at depth 1,000, against PROPACK, ARPACK and LOBPCG.

Work: a delta-orthogonal tanh CNN of 1,000 layers with 16 channels on an 8 x 8 torus, J is 1024 x 1024, in float32, to a
relative residual of 1e-2: propack takes at most 50 steps for five values, which is not enough for 1e-3. Beside
every time stands the error against the dense float64 Jacobian.

    python benchmarks/deep_values.py            # depth 200: a minute
    python benchmarks/deep_values.py --full     # depth 1,000
"""

from __future__ import annotations

from harness import accuracy, ours, peers, report
from harness.contest import Contestant


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--depth", type=int, default=None)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--init", default="delta_orthogonal")
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--tol", type=float, default=1e-2)
    options = parser.parse_args()
    network = {
        "family": "circular_cnn", "depth": options.depth or (1000 if options.full else 200), "init": options.init,
        "size": 8, "channels": options.channels,
    }  # fmt: skip
    task = {"network": network, "count": options.count, "tol": options.tol}
    report.contest(
        "deep_values",
        claim=f"the {options.count} largest singular values at depth 1,000: 7x faster than propack",
        work=task,
        contestants=[
            Contestant("isometry", ours.leading, task),
            *(
                Contestant(
                    f"scipy {solver}", peers.scipy_svds, {**task, "solver": solver}, requires=("scipy",)
                )
                for solver in ("propack", "arpack", "lobpcg")
            ),
        ],
        reference=Contestant(
            "dense float64", ours.dense_reference, {"network": network, "squared": True}, once=True
        ),
        accuracy=lambda answer, truth: accuracy.of_top(answer, truth["values"], options.count),
        options=options,
        timeout=90,
        goals={"scipy propack": 7.0},
    )


if __name__ == "__main__":
    main()
