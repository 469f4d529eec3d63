"""How often `Spectrum.cdf_band` holds the true cdf, on matrices whose singular values are known.

Claims measured here: (1) the truncation bounds never fail: each probe's own measure, computed from dense singular
vectors, lies between them at every place of every seed; (2) where the Krylov spaces close, so that chance alone is
left, the 95 % band holds the cdf 93 to 98 % of the time, and at least as often where truncation comes on top; (3) an
interval from the spread of few probes (Student's t about the mean of their cdfs) does not, in the tails; (4) the 95 %
interval of the mean square holds it at least 93 % of the time. Every number
depends on the seeds alone; each matrix has singular vectors, and so masses, of its own.

    python benchmarks/band_coverage.py                # 40 seeds: a minute
    python benchmarks/band_coverage.py --seeds 200    # what the committed JSON holds: some minutes
"""

# ruff: noqa: E402 - the number of threads must be set before numpy is imported
from __future__ import annotations

import os

# One core for everybody, before numpy reads it.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import platform
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import numpy as np
import torch
from harness.record_file import parser, write_record

from isometry import Spectrum
from isometry.estimators import lanczos, randomized
from isometry.estimators.blocks import ShortSide, random_block
from isometry.jacobian import MatrixOperator
from isometry.spectrum.probe_intervals import student_quantile

CONFIDENCE = 0.95
PLACES = 9

Build = Callable[..., Spectrum]


def singular_values() -> dict[str, tuple[np.ndarray, tuple[int, int] | None]]:
    """Name -> (singular values, shape)."""
    normal = torch.erfinv(torch.linspace(-0.99, 0.99, 60)).double().numpy()
    return {
        "evenly spread": (np.linspace(0.05, 2, 60), None),
        "two clusters": (np.concatenate([1 + 1e-3 * np.linspace(-1, 1, 40), np.linspace(1.99, 2, 20)]), None),
        "atoms": (np.repeat(np.geomspace(0.1, 4, 15), [2] * 5 + [15, 5, 15] + [2] * 6 + [3]), None),
        "heavy-tailed": (np.exp(2 * normal), None),
        "tall": (np.linspace(0.5, 1.5, 40), (90, 40)),
        "one dominates": (np.concatenate([[10.0], np.abs(normal[1:])]), None),
        "rank deficient": (np.concatenate([np.zeros(20), np.linspace(0.2, 2, 40)]), None),
    }


# Steps enough for every space to close, and too few; a probe alone, and leading values taken out.
WAYS: dict[str, Build] = {
    "1 probe": partial(lanczos, probes=1, steps=60),
    "4 probes": partial(lanczos, probes=4, steps=60),
    "16 probes": partial(lanczos, probes=16, steps=60),
    "4 random signs": partial(lanczos, probes=4, steps=60, probe="rademacher"),
    "5 taken out, 4 probes": partial(randomized, rank=5, probes=4, steps=60),
    "4 probes, 6 steps": partial(lanczos, probes=4, steps=6),
    "5 taken out, 4 probes, 6 steps": partial(randomized, rank=5, probes=4, steps=6),
}


def matrix(values: np.ndarray, shape: tuple[int, int] | None, draw: int) -> tuple[torch.Tensor, np.ndarray]:
    """(A, its singular vectors on the short side) with Haar singular vectors; values descending."""
    m, n = shape or (values.size, values.size)
    generator = torch.Generator().manual_seed(draw)
    u, v = (
        torch.linalg.qr(torch.randn(side, values.size, dtype=torch.float64, generator=generator))[0]
        for side in (m, n)
    )
    s = torch.from_numpy(-np.sort(-values))
    return u * s @ v.T, (v if m >= n else u).numpy()


def gaps(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places between neighbouring singular values, from the lowest gap to the highest, and the true cdf there."""
    distinct = np.unique(values)
    places = 0.5 * (distinct[1:] + distinct[:-1])
    chosen = np.unique(np.linspace(0, places.size - 1, PLACES).round().astype(int))
    return places[chosen], np.array([np.mean(values <= place) for place in places[chosen]])


def spread_interval(spectrum: Spectrum, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the spread of the probes alone would give: Student's t about the mean of their cdfs."""
    factor = student_quantile(0.5 + CONFIDENCE / 2, spectrum.n_probes - 1)
    rows = spectrum.distribution.row_cdf(np.log(places))
    spread = spectrum.distribution.errors.standard_error
    half = factor * np.array([spread(rows[..., place]) for place in range(places.size)])
    return spectrum.cdf(places) - half, spectrum.cdf(places) + half


def covered(
    values: np.ndarray, shape: tuple[int, int] | None, draw: int, build: Build, seeds: int
) -> dict[str, object]:
    """Coverages over the seeds, and how often a truncation bound failed."""
    a, vectors = matrix(values, shape, draw)
    operator, descending = MatrixOperator(a), -np.sort(-values)
    places, cdf = gaps(values)
    everywhere = 0.5 * (descending[1:] + descending[:-1])[np.diff(descending) < 0]
    truth = np.array([np.mean(values <= place) for place in everywhere])
    share = float(np.mean((values >= 0.5) & (values <= 2.0)))
    pointwise, by_spread, width = np.zeros(places.size), np.zeros(places.size), np.zeros(places.size)
    simultaneous = between = of_mean_square = failed = looked = 0
    for seed in range(seeds):
        spectrum = build(operator, seed=seed)
        lower, upper = spectrum.cdf_band(places, CONFIDENCE)
        pointwise += (lower <= cdf) & (cdf <= upper)
        width += upper - lower
        low, high = spread_interval(spectrum, places)
        by_spread += (low <= cdf) & (cdf <= high)
        if spectrum.quadrature.errors.on_the_sphere:
            low, high = spectrum.cdf_band(everywhere, CONFIDENCE, simultaneous=True)
            simultaneous += bool(np.all((low <= truth) & (truth <= high)))
        low, high = spectrum.mean_square_interval(CONFIDENCE)
        # Where all was taken out the interval is a point, to rounding.
        of_mean_square += bool(low * (1 - 1e-12) <= np.mean(values**2) <= high * (1 + 1e-12))
        least, most = spectrum.isometry_band(confidence=CONFIDENCE)
        between += least <= share <= most
        if spectrum.method == "lanczos" and spectrum.quadrature.errors.on_the_sphere:
            start = random_block(spectrum.n_probes, ShortSide(operator), seed)[:, 0].numpy()
            masses = ((start @ vectors) ** 2).mean(axis=0)
            seen = np.array([masses[descending <= place].sum() for place in everywhere])
            lower, upper = spectrum.cdf_bounds(everywhere)
            # Below the floor the nodes count as zero; 1e-9 is rounding of the sums.
            above = everywhere > spectrum.floor
            failed += int(np.sum(above & ((lower > seen + 1e-9) | (upper < seen - 1e-9))))
            looked += int(above.sum())
    return {
        "true_cdf": cdf.tolist(),
        "pointwise": (pointwise / seeds).tolist(),
        "mean_width": (width / seeds).tolist(),
        "by_spread_of_probes": (by_spread / seeds).tolist() if by_spread.any() else None,
        # Known for probes on the sphere alone.
        "simultaneous": simultaneous / seeds if spectrum.quadrature.errors.on_the_sphere else None,
        "isometry_share": between / seeds,
        "mean_square": of_mean_square / seeds,
        "bounds_looked_at": looked,
        "bounds_failed": failed,
    }


def main() -> None:
    arguments = parser(__doc__, "band_coverage")
    arguments.add_argument("--seeds", type=int, default=40)
    options = arguments.parse_args()
    began = time.perf_counter()
    rows = []
    head = (
        "matrix",
        "how",
        "pointwise mean",
        "least",
        "most",
        "at once",
        "share",
        "by spread: least",
        "failed",
    )
    print("{:16s} {:32s} {:>14s} {:>6s} {:>6s} {:>8s} {:>6s} {:>16s} {:>8s}".format(*head))
    for draw, (name, (values, shape)) in enumerate(singular_values().items()):
        for way, build in WAYS.items():
            found = covered(values, shape, draw, build, options.seeds)
            rows.append({"matrix": name, "way": way, **found})
            points = np.array(found["pointwise"])
            spread = found["by_spread_of_probes"]
            least = f"{100 * min(spread):.1f}" if isinstance(spread, list) else "-"
            print(
                f"{name:16s} {way:32s} {100 * points.mean():14.1f} {100 * points.min():6.1f} "
                f"{100 * points.max():6.1f} {100 * (found['simultaneous'] or 0):8.1f} "
                f"{100 * found['isometry_share']:6.1f} "
                f"{least:>16s} {found['bounds_failed']:8d}",
                flush=True,
            )
    chance = np.concatenate(
        [row["pointwise"] for row in rows if row["way"] in ("1 probe", "4 probes", "16 probes")]
    )
    failed, looked = sum(row["bounds_failed"] for row in rows), sum(row["bounds_looked_at"] for row in rows)
    print(
        f"chance alone: {100 * chance.mean():.2f} % of {chance.size} places x {options.seeds} seeds; truncation bounds "
        f"failed {failed} times of {looked}; {time.perf_counter() - began:.0f} s"
    )
    record = {
        "claim": "the 95 % band holds the true cdf 93 to 98 % of the time; truncation bounds never fail",
        "confidence": CONFIDENCE,
        "seeds": options.seeds,
        "chance_alone": float(chance.mean()),
        "bounds_failed": failed,
        "bounds_looked_at": looked,
        "rows": rows,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", "scipy", "torch")},
    }
    write_record(options.out, record, indent=1)
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
