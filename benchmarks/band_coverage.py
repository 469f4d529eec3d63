"""How often `Spectrum.cdf_band` holds the true cdf, on matrices whose singular values are known.

Claims measured here: (1) the truncation bounds never fail: each probe's own measure, computed from dense singular
vectors, lies between them at every place of every seed; (2) where the Krylov spaces close, so that chance alone is
left, the 95 % band holds the cdf 93 to 98 % of the time, and at least as often where truncation comes on top; (3) an
interval from the spread of few probes (Student's t about the mean of their cdfs) does not, in the tails; (4) the 95 %
interval of the mean square holds it at least 93 % of the time, for shapes x inputs x probes x rules that stop; above
98 % where one value or input makes the variance, of which few probes know little. Every number
depends on the seeds alone; each matrix has singular vectors, and so masses, of its own.

    python benchmarks/band_coverage.py                         # 40 seeds: some minutes
    python benchmarks/band_coverage.py --seeds 400 --resume    # the committed JSON, from where it was stopped
"""

# ruff: noqa: E402 - the number of threads must be set before numpy is imported
from __future__ import annotations

import os

# One core for everybody, before numpy reads it.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import json
import platform
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from harness.record_file import parser, write_record

from isometry import JacobianOperator, Spectrum, measure
from isometry.estimators import lanczos, randomized
from isometry.estimators.blocks import ShortSide, random_block
from isometry.jacobian import MatrixOperator
from isometry.spectrum.probe_intervals import student_quantile

CONFIDENCE = 0.95
PLACES = 9

Build = Callable[..., Spectrum]
Rows = set[tuple[str, str]]
# Measurements of a batch.
TOGETHER = 50


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


def measurements(build: Build, a: torch.Tensor, seeds: int) -> Iterator[tuple[Spectrum, int]]:
    """So many measurements of one matrix, as inputs of batches, each with probes of its own; with their numbers."""
    for first in range(0, seeds, TOGETHER):
        count = min(TOGETHER, seeds - first)
        together = build(MatrixOperator(a.expand(count, *a.shape)), first_input=first)
        for index in range(count):
            yield together.input(index), first + index


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
    for spectrum, number in measurements(build, a, seeds):
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
            start = random_block(spectrum.n_probes, ShortSide(operator), 0, first_input=number)[:, 0].numpy()
            masses = ((start @ vectors) ** 2).mean(axis=0)
            seen = np.array([masses[descending <= place].sum() for place in everywhere])
            lower, upper = spectrum.cdf_bounds(everywhere)
            # Below the floor the nodes count as zero; 1e-9 is rounding of the sums.
            above = everywhere > spectrum.floor
            failed += int(np.sum(above & ((lower > seen + 1e-9) | (upper < seen - 1e-9))))
            looked += int(above.sum())
    points, spread = pointwise / seeds, by_spread / seeds
    return {
        "pointwise": _ends(points),
        "mean_width": round(float(width.mean()) / seeds, 4),
        "by_spread_of_probes": _ends(spread) if spread.any() else None,
        # Known for probes on the sphere alone.
        "simultaneous": simultaneous / seeds if spectrum.quadrature.errors.on_the_sphere else None,
        "isometry_share": between / seeds,
        "mean_square": of_mean_square / seeds,
        "bounds_looked_at": looked,
        "bounds_failed": failed,
    }


def _ends(rates: np.ndarray) -> list[float]:
    """Mean, least and most over the places."""
    return [round(float(rate), 4) for rate in (rates.mean(), rates.min(), rates.max())]


# ---- the mean square: shapes x inputs x probes x stopping rules ---------------------------------------------


def inputs_of() -> dict[str, np.ndarray]:
    """Name -> (inputs, n) singular values."""
    generator = np.random.default_rng(5)
    normal = np.abs(generator.standard_normal((16, 100)))
    ten, dead, dominated = normal[:1].copy(), np.ones((1, 100)), np.full((1, 100), 0.01)
    ten[0, 0], dead[0, 0], dominated[0, 0] = 10.0, 0.0, 1.0
    large, many = normal.copy(), np.full((16, 100), 0.01)
    large[0] *= 10.0
    many[:, 0] = np.exp(generator.standard_normal(16))
    return {
        "flat": normal[:1],
        "ten and 99 of one": ten,
        "one dominates": dominated,
        "one dead": dead,
        "lognormal": np.exp(1.5 * generator.standard_normal((1, 100))),
        "two values": np.repeat([[1.0, 2.0]], 32, axis=1),
        "16 inputs, one ten times larger": large,
        "16 inputs, lognormal scales": normal * np.exp(generator.standard_normal((16, 1))),
        "16 inputs, one value dominates each": many,
    }


MEAN_SQUARE_PROBES = (1, 2, 3, 4, 8, 16)
RULES: dict[str, dict[str, float]] = {
    "rtol 0.5": {"rtol": 0.5},
    "rtol 0.2": {"rtol": 0.2},
    "budget 60": {"budget": 60},
}


def rotated(values: np.ndarray) -> torch.Tensor:
    """(inputs, n, n): symmetric matrices with these singular values and Haar vectors, for random signs too."""
    generator = torch.Generator().manual_seed(3)
    size = values.shape[1]
    q = torch.linalg.qr(torch.randn(*values.shape, size, dtype=torch.float64, generator=generator))[0]
    return q * torch.from_numpy(values)[:, None] @ q.transpose(1, 2)


def of_mean_square(values: np.ndarray, probe: str, seeds: int) -> dict[str, float]:
    """Coverage of the 95 % interval of the mean square, by the number of probes."""
    inputs, n = values.shape
    exact, held = float(np.mean(values**2)), dict.fromkeys(MEAN_SQUARE_PROBES, 0)
    a = rotated(values)
    for first in range(0, seeds, 25):
        count = min(25, seeds - first)
        d = lanczos(
            MatrixOperator(a.repeat(count, 1, 1)),
            probes=max(held),
            steps=4,
            probe=probe,
            first_input=first * inputs,
        ).quadrature
        for index in range(count):
            for probes in held:
                mine = np.s_[index * inputs : (index + 1) * inputs, :probes]
                few = replace(
                    d, nodes=d.nodes[mine], weights=d.weights[mine], floor=d.floor[mine[0]], resolved=d.resolved[mine],
                    counted=d.counted[mine],
                )  # fmt: skip
                low, high = Spectrum(few, "lanczos", (n, n)).mean_square_interval(CONFIDENCE)
                held[probes] += bool(low * (1 - 1e-12) <= exact <= high * (1 + 1e-12))
    return {f"{probes} probes": count / seeds for probes, count in held.items()}


def of_rule(values: np.ndarray, rule: dict[str, float], seeds: int) -> float:
    """Coverage where a rule stops the measurement of one input."""
    diagonal = torch.from_numpy(values[0])
    operator = JacobianOperator(lambda x: diagonal * x, torch.zeros(diagonal.numel(), dtype=torch.float64))
    exact, held = float(np.mean(values**2)), 0
    with warnings.catch_warnings():
        # That a budget ends before the goal is what is measured.
        warnings.simplefilter("ignore")
        for seed in range(seeds):
            spectrum = measure(operator, method="lanczos", seed=seed, progress=False, steps=6, **rule)
            low, high = spectrum.mean_square_interval(CONFIDENCE)
            held += bool(low * (1 - 1e-12) <= exact <= high * (1 + 1e-12))
    return held / seeds


def mean_square_rows(seeds: int, done: Rows) -> Iterator[dict[str, object]]:
    """The rows of this part that are not done."""
    for name, values in inputs_of().items():
        for probe in ("gaussian", "rademacher", "orthogonal"):
            if (name, probe) not in done:
                yield {"matrix": name, "way": probe, "mean_square": of_mean_square(values, probe, seeds)}
        for way, rule in RULES.items() if values.shape[0] == 1 else ():
            if (name, way) not in done:
                yield {"matrix": name, "way": way, "mean_square": of_rule(values, rule, seeds)}


def band_rows(seeds: int, done: Rows) -> Iterator[dict[str, object]]:
    """The rows of this part that are not done."""
    for draw, (name, (values, shape)) in enumerate(singular_values().items()):
        for way, build in WAYS.items():
            if (name, way) not in done:
                yield {"matrix": name, "way": way, **covered(values, shape, draw, build, seeds)}


# ---- small blocks: masses of a random sign are multiples of 1/n by chance ----------------------------------------


def blocks_of() -> dict[str, torch.Tensor]:
    """Name -> matrix of equal blocks, with singular values 1 and 2."""
    return {
        f"{64 // size} blocks of {size}": torch.block_diag(
            *[torch.eye(size, dtype=torch.float64) + 1 / size] * (64 // size)
        )
        for size in (2, 4, 8)
    }


def block_rows(seeds: int, done: Rows) -> Iterator[dict[str, object]]:
    """The rows of this part that are not done: coverage of the band of the cdf between the two values."""
    for name, a in blocks_of().items():
        truth = float((torch.linalg.svdvals(a) < 1.5).double().mean())
        for probes in (1, 4, 16):
            way = f"{probes} random signs"
            if (name, way) in done:
                continue
            build = partial(lanczos, probes=probes, steps=8, probe="rademacher")
            bands = [spectrum.cdf_band(1.5, CONFIDENCE) for spectrum, _ in measurements(build, a, seeds)]
            held = sum(bool(low <= truth <= high) for low, high in bands)
            width = round(float(np.mean([high - low for low, high in bands])), 4)
            yield {"matrix": name, "way": way, "pointwise": [held / seeds] * 3, "mean_width": width}


def main() -> None:
    """Compute the rows that the file of the record does not hold yet, writing it after each."""
    arguments = parser(__doc__, "band_coverage")
    arguments.add_argument("--seeds", type=int, default=40)
    arguments.add_argument("--resume", action="store_true", help="keep the rows of the file")
    options = arguments.parse_args()
    rows: list[dict[str, object]] = []
    if options.resume and Path(options.out).exists():
        rows = json.loads(Path(options.out).read_text())["rows"]
    done = {(str(row["matrix"]), str(row["way"])) for row in rows}
    parts = (block_rows, mean_square_rows, band_rows)
    for row in chain.from_iterable(part(options.seeds, done) for part in parts):
        print(row, flush=True)
        rows.append(row)
        failed, looked = (
            sum(row.get(key, 0) for row in rows) for key in ("bounds_failed", "bounds_looked_at")
        )  # type: ignore[misc]
        record = {
            "claim": "95 % bands and intervals hold at least 93 % of the time; truncation bounds never fail",
            "confidence": CONFIDENCE,
            "seeds": options.seeds,
            "bounds_failed": failed,
            "bounds_looked_at": looked,
            "rows": rows,
            "machine": platform.machine(),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("numpy", "scipy", "torch")},
        }
        write_record(options.out, record, indent=1)
    print(f"truncation bounds failed {failed} times of {looked}; written to {options.out}")


if __name__ == "__main__":
    main()
