"""The 20 largest singular values of a ResNet-18 to a residual of 1e-4, certified; and what its peers take for as much.

Work: a ResNet-18 (He et al. 2015) at 3 x 64 x 64 with 1,000 classes, J is 1000 x 12288, in float32. Ours states a
residual for each value and a bound on what may be missing. The peers state nothing, so their parameters are those that
reach an error of 1e-4 here, found by trial: for skerch, which has no power iteration and is silently wrong with less, a
sketch of most of the rank. Products are those of torch.func; the dense peers build J by jacrev.

    python benchmarks/leading_values.py            # 3 x 32 x 32, 16 channels wide: a minute
    python benchmarks/leading_values.py --full     # 3 x 64 x 64, 64 channels wide
"""

from __future__ import annotations

from harness import accuracy, ours, peers, report
from harness.contest import Contestant


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--size", type=int, default=None)
    parser.add_argument("--width", type=int, default=None)
    parser.add_argument("--classes", type=int, default=None)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--tol", type=float, default=1e-4)
    parser.add_argument("--sketch", type=int, default=None, help="for skerch")
    options = parser.parse_args()
    network = {
        "family": "resnet", "kind": "resnet18",
        "size": options.size or (64 if options.full else 32),
        "width": options.width or (64 if options.full else 16),
        "classes": options.classes or (1000 if options.full else 200),
    }  # fmt: skip
    task = {"network": network, "count": options.count}
    sketch = options.sketch or (SKETCH_FULL if options.full else SKETCH_SMALL)
    svds = {**task, "tol": options.tol}
    report.contest(
        "leading_values",
        claim=f"the {options.count} largest singular values of a ResNet-18 to {options.tol:g}, certified: 2x faster "
        "than the best of its peers",
        work={**task, "tol": options.tol, "skerch_sketch": sketch},
        contestants=[
            Contestant("isometry", ours.leading, {**task, "tol": options.tol}),
            Contestant("skerch", peers.skerch_ssvd, {**task, "sketch": sketch}, requires=("skerch",)),
            Contestant(
                "jacrev, svd_lowrank",
                peers.jacrev_svd_lowrank,
                {**task, "sketch": 5 * options.count, "iterations": 3},
            ),
            Contestant(
                "jacrev, scikit-learn",
                peers.jacrev_randomized_svd,
                {**task, "oversample": 2 * options.count, "iterations": 6},
                requires=("scikit-learn",),
            ),
            Contestant("jacrev, svdvals", peers.jacrev_svdvals, {"network": network}),
            Contestant("scipy arpack", peers.scipy_svds, {**svds, "solver": "arpack"}, requires=("scipy",)),
            Contestant("scipy propack", peers.scipy_svds, {**svds, "solver": "propack"}, requires=("scipy",)),
            Contestant("scipy lobpcg", peers.scipy_svds, {**svds, "solver": "lobpcg"}, requires=("scipy",)),
        ],
        reference=Contestant(
            "dense float64", ours.dense_reference, {"network": network, "squared": True}, once=True
        ),
        accuracy=lambda answer, truth: accuracy.of_top(answer, truth["values"], options.count),
        options=options,
        timeout=60,
        goals={"skerch": 2.0, "jacrev, svd_lowrank": 2.0, "scipy arpack": 2.0},
    )


SKETCH_SMALL, SKETCH_FULL = 150, 500

if __name__ == "__main__":
    main()
