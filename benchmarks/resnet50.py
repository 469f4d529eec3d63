"""s_max and the density of a ResNet-50 at full size: done on two cores in minutes, in 8 GiB.

Work: a ResNet-50 (He et al. 2015) at 3 x 224 x 224 with 1,000 classes, J is 1000 x 150528, in float32; each contestant
may allocate 8 GiB. Ours finds s_max to a residual of 1e-3, and the density from 8 probes of 24 steps. A peer that fits
is named: ARPACK finds s_max, and jacrev in chunks with svdvals (``--dense``) everything, in many times the products.
Errors are against the dense Jacobian of the float32 network: in float64 some of its millions of ReLU open or close
otherwise, which moves s_max by 1e-3.

    python benchmarks/resnet50.py            # 3 x 64 x 64 with 100 classes: a minute
    python benchmarks/resnet50.py --full     # 3 x 224 x 224: a quarter of an hour
"""

from __future__ import annotations

from harness import accuracy, ours, peers, report
from harness.contest import Answer, Contestant

GIBIBYTES = 8.0


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--size", type=int, default=None)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--classes", type=int, default=None)
    parser.add_argument(
        "--dense", action="store_true", help="also build J: jacrev, and the errors (many minutes)"
    )
    options = parser.parse_args()
    network = {
        "family": "resnet", "kind": "resnet50", "width": options.width,
        "size": options.size or (224 if options.full else 64),
        "classes": options.classes or (1000 if options.full else 100),
    }  # fmt: skip
    quadrature = {"probes": 8, "steps": 24}
    task = {"network": network, "count": 1, "tol": 1e-3}

    def errors(answer: Answer, truth: Answer) -> dict[str, float]:
        found = accuracy.of_top(answer, truth["values"], 1)
        return {**found, **accuracy.of_density(answer, truth["values"])} if "nodes" in answer else found

    report.contest(
        "resnet50",
        claim=f"s_max and density of a ResNet-50 on {options.threads} cores within minutes and 8 GiB",
        work={**task, **quadrature},
        contestants=[
            Contestant(
                "isometry, s_max",
                ours.measured,
                {
                    "network": network,
                    "method": "lanczos",
                    "rtol": task["tol"],
                    "quantity": "s_max",
                    "probes": 1,
                },
            ),
            Contestant("isometry, s_max with an upper bound", ours.leading, task),
            Contestant(
                "isometry, density",
                ours.measured,
                {"network": network, "method": "lanczos", **quadrature},
                compared=False,
            ),
            Contestant(
                "scipy arpack, s_max", peers.scipy_svds, {**task, "solver": "arpack"}, requires=("scipy",)
            ),
            *(
                [
                    Contestant(
                        "jacrev, svdvals", peers.jacrev_svdvals, {"network": network, "chunk": 8}, once=True
                    )
                ]
                if options.dense
                else []
            ),
        ],
        reference=Contestant(
            "dense",
            ours.dense_reference,
            {"network": network, "squared": True, "dtype": "float32"},
            once=True,
        )
        if options.dense
        else None,
        accuracy=errors,
        options=options,
        timeout=600,
        memory_gib=GIBIBYTES,
    )


if __name__ == "__main__":
    main()
