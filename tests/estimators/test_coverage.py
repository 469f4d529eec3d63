"""The errors are honest: bounds never fail, and over 200 seeds 95 % intervals cover the exact value as often as said.

Of 200 intervals of true level 0.95 at least 180 cover with probability 0.9988; where few values dominate an interval is
wider, and up to all of them cover. Networks enter by their dense
Jacobian: the estimators see products alone, and 200 measurements must stay quick. The 200 measurements are the inputs
of one batch, each with random vectors of its own; test_contract.py asserts that a batch changes no measurement.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isometry.estimators import lanczos, randomized
from isometry.estimators.blocks import ShortSide, random_block
from isometry.jacobian import JacobianOperator, MatrixOperator
from isometry.spectrum import Spectrum
from isometry.spectrum.cdf_bounds import cdf_bounds

SEEDS = 200


def convolutional_network() -> Tensor:
    """J of a small CNN with pooling and a head at one input: 64 x 192."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(128, 64),
    ).double()  # fmt: skip
    operator = JacobianOperator(model, torch.randn(1, 3, 8, 8, dtype=torch.float64))
    return operator.rmatmat(torch.eye(64, dtype=torch.float64)[:, None]).reshape(64, 192)


def spread_matrix() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    q = [torch.linalg.qr(torch.randn(50, 50, generator=generator, dtype=torch.float64))[0] for _ in range(2)]
    return q[0] * torch.linspace(0.1, 2.0, 50, dtype=torch.float64) @ q[1]


MATRICES = {"a matrix": spread_matrix, "a convolutional network": convolutional_network}
WAYS = {
    "lanczos": partial(lanczos, probes=16, steps=2),
    "lanczos, three probes": partial(lanczos, probes=3, steps=1),
    "randomized": partial(randomized, rank=4, products=60, probes=8, steps=2),
}


def measurements(estimator: Callable[..., Spectrum], a: Tensor, seeds: int = SEEDS) -> list[Spectrum]:
    """So many measurements of one matrix, each with random vectors of its own: the inputs of one batch."""
    together = estimator(MatrixOperator(a.expand(seeds, *a.shape)))
    return [together.input(index) for index in range(seeds)]


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("way", WAYS)
def test_the_interval_of_the_mean_square_covers(matrix: str, way: str) -> None:
    a = MATRICES[matrix]()
    exact = float(a.square().sum()) / min(a.shape)
    covered, errors = 0, []
    for spectrum in measurements(WAYS[way], a):
        low, high = spectrum.mean_square_interval(0.95)
        covered += low <= exact <= high
        errors.append(spectrum.mean_square - exact)
    assert covered >= 180
    # And without bias: the mean of 200 errors within four of its own standard errors.
    assert abs(np.mean(errors)) < 4 * np.std(errors, ddof=1) / np.sqrt(SEEDS)


def chance_matrix() -> Tensor:
    """20 x 20: blocks of 16 orthogonal probes nearly fill the space, so that they vary far less than they spread."""
    return torch.randn(20, 20, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.mark.parametrize(("probe", "probes"), [("rademacher", 16), ("orthogonal", 16), ("orthogonal", 37)])
def test_the_interval_covers_for_every_kind_of_probe(probe: str, probes: int) -> None:
    """37 orthogonal probes are two whole groups and a part of one."""
    a = chance_matrix()
    exact = float(a.square().sum()) / 20
    covered, errors, stated = 0, [], []
    for spectrum in measurements(partial(lanczos, probes=probes, steps=1, probe=probe), a):
        low, high = spectrum.mean_square_interval(0.95)
        covered += low <= exact <= high
        errors.append(spectrum.mean_square - exact)
        stated.append(spectrum.mean_square_stderr)
    assert covered >= 180
    assert abs(np.mean(errors)) < 4 * np.std(errors, ddof=1) / np.sqrt(SEEDS)
    # The stated standard error is the real one: its mean square is unbiased, known to 1 / sqrt(2 * 200) = 5 % and
    # the spread itself to as much.
    assert np.sqrt(np.mean(np.square(stated))) == pytest.approx(np.std(errors), rel=0.25)
    if probe == "orthogonal" and probes == 16:
        # 1 - 16 / 20 of the variance of independent probes is left.
        independent = lanczos(MatrixOperator(a), probes=1000, steps=1).moment_stderr(1) * np.sqrt(1000 / 16)
        assert np.std(errors) == pytest.approx(independent * np.sqrt((20 - 16) / 19), rel=0.25)


def test_one_dominating_value_needs_deflation() -> None:
    """99.98 % of ||J||^2 in one direction: a chi-square of one degree, for which 16 probes are too few for the t
    interval (it covers 86 % of the time; see the notes of `lanczos`). Deflated, what is left over is well behaved."""
    generator = torch.Generator().manual_seed(3)
    q = torch.linalg.qr(torch.randn(60, 60, generator=generator, dtype=torch.float64))[0]
    s = torch.cat([torch.tensor([500.0]), torch.linspace(0.5, 1.5, 59)]).double()
    exact, covered = float(s.square().mean()), 0
    for spectrum in measurements(partial(randomized, rank=2, probes=6, steps=2), q * s @ q.T):
        low, high = spectrum.mean_square_interval(0.95)
        covered += low <= exact <= high
    assert covered >= 180


def test_the_error_over_several_inputs_covers_too() -> None:
    """Two inputs with four probes each: six degrees of freedom."""
    a = torch.stack([spread_matrix(), 0.5 * spread_matrix()])
    exact = float(a.square().sum()) / 100
    covered = 0
    for seed in range(SEEDS):
        low, high = lanczos(MatrixOperator(a), probes=4, steps=1, seed=seed).mean_square_interval(0.95)
        covered += low <= exact <= high
    assert covered >= 180


def test_the_error_of_the_isometry_share_covers() -> None:
    """Enough steps that the share is exact for each probe: 20 distinct values, 20 steps."""
    generator = torch.Generator().manual_seed(2)
    q = torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64))[0]
    s = torch.cat([torch.linspace(0.6, 1.9, 12), torch.linspace(2.5, 4.0, 8)]).double()
    covered = 0
    for spectrum in measurements(partial(lanczos, probes=6, steps=20), q * s @ q.T):
        # Student's t at 5 degrees of freedom.
        covered += abs(spectrum.isometry() - 0.6) <= 2.5706 * spectrum.isometry_stderr()
    assert covered >= 180


# ---- the certified cdf -------------------------------------------------------------------------------------


def heavy_tailed(count: int) -> np.ndarray:
    """A log-normal over eight decades, as a deep Gaussian network has it."""
    return np.exp(3.0 * np.sqrt(2) * torch.erfinv(torch.linspace(-0.99, 0.99, count)).double().numpy())


SHAPES: dict[str, tuple[np.ndarray, tuple[int, int] | None]] = {
    "evenly spread": (np.linspace(0.05, 2, 40), None),
    "clustered": (
        np.concatenate([1 + 1e-3 * np.linspace(-1, 1, 30), 2 + 1e-6 * np.linspace(-1, 1, 10)]),
        None,
    ),
    "repeated": (np.repeat([0.3, 1.0, 1.7, 4.0], [10, 15, 10, 5]), None),
    "heavy-tailed": (heavy_tailed(40), None),
    "tiny": (1e-150 * np.linspace(0.05, 2, 40), None),
    "tall": (np.linspace(0.5, 1.5, 30), (70, 30)),
    "wide": (np.repeat([0.5, 1.0, 1.5], 10), (30, 70)),
    "rank deficient": (np.concatenate([np.zeros(10), np.linspace(0.2, 2, 30)]), None),
    "isometric": (np.full(40, 0.7), None),
    "all zero but one": (np.concatenate([np.zeros(39), [3.0]]), None),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 3, 8, 20])
def test_the_truncation_bounds_never_fail(shape: str, steps: int, known) -> None:
    """The probes' own measures, from dense singular vectors, lie between the bounds: every seed, every place."""
    truth = known(*SHAPES[shape])
    values, unit = truth.s, truth.s[0]
    generator = np.random.default_rng(steps)
    places = np.concatenate(
        [values, generator.uniform(0, 1.1, 60) * unit, unit * 10 ** generator.uniform(-9, 0, 60)]
    )
    # Without widening by rounding it is only asked at places that rounding cannot take a value across.
    apart = np.abs(places[:, None] - values).min(axis=1) > 1e-12 * unit
    operator = MatrixOperator(truth.a)
    for seed in range(5):
        spectrum = lanczos(operator, probes=2, steps=steps, seed=seed)
        start = random_block(2, ShortSide(operator), seed)[:, 0]
        masses = ((start @ truth.short_vectors) ** 2).numpy().mean(axis=0)
        mass = np.array([masses[values <= place].sum() for place in places])
        lower, upper = spectrum.cdf_bounds(places[apart])
        resolved = places[apart] >= spectrum.floor
        assert np.all((lower <= mass[apart] + 1e-9)[resolved])
        assert np.all((upper >= mass[apart] - 1e-9)[resolved])
        lower, upper = cdf_bounds(
            spectrum.quadrature, spectrum.extremes, spectrum.quadrature.errors, places
        ).of_the_rules
        assert np.all(lower <= mass + 1e-9)
        assert np.all(upper >= mass - 1e-9)


# 60 values in 20 places, two of them atoms of a fifth of the mass.
ATOMS = np.repeat(np.geomspace(0.1, 4, 20), [2] * 6 + [12, 1, 1, 1, 12] + [2] * 8 + [5])
BAND_MATRICES: dict[str, tuple[np.ndarray, tuple[int, int] | None]] = {
    "atoms": (ATOMS, None),
    "spread": (np.linspace(0.1, 2, 40), None),
    "wide, heavy-tailed": (np.geomspace(1e-3, 10, 30), (30, 50)),
}
# Steps enough that every Krylov space closes: what is left is chance alone.
BAND_WAYS = {
    "one probe": partial(lanczos, probes=1, steps=60),
    "four probes": partial(lanczos, probes=4, steps=60),
    "sixteen probes": partial(lanczos, probes=16, steps=60),
    "deflated": partial(randomized, rank=3, oversample=3, iterations=2, probes=3, steps=60),
}


def gaps(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places between neighbouring singular values, from the lowest gap to the highest, and the true cdf there."""
    distinct = np.unique(values)
    places = 0.5 * (distinct[1:] + distinct[:-1])
    chosen = np.unique(np.linspace(0, places.size - 1, 9).round().astype(int))
    return places[chosen], np.array([np.mean(values <= place) for place in places[chosen]])


def covered_by_bands(way: str, matrix: str, known, seeds: int) -> tuple[np.ndarray, float, float, np.ndarray]:
    """How often the band holds the truth: at each gap, at all places at once, for the isometry share, at the values."""
    values, shape = BAND_MATRICES[matrix]
    truth = known(values, shape)
    values = np.sort(values)
    places, cdf = gaps(values)
    everywhere = np.concatenate([0.5 * (values[1:] + values[:-1]), values, [1.1 * values[-1]]])
    # The matrix has these values to rounding: a place at a value stands for either side of it.
    below, above = (
        np.array([np.mean(values <= place * side) for place in everywhere]) for side in (1 - 1e-9, 1 + 1e-9)
    )
    share = np.mean((values >= 0.5) & (values <= 2.0))
    pointwise, at_values = np.zeros(places.size), np.zeros(everywhere.size)
    simultaneous = between = 0
    for spectrum in measurements(BAND_WAYS[way], truth.a, seeds):
        lower, upper = spectrum.cdf_band(places)
        pointwise += (lower <= cdf) & (cdf <= upper)
        lower, upper = spectrum.cdf_band(everywhere)
        at_values += (lower <= below) & (above <= upper)
        lower, upper = spectrum.cdf_band(everywhere, simultaneous=True)
        simultaneous += bool(np.all((lower <= below) & (above <= upper)))
        low, high = spectrum.isometry_band()
        between += low <= share <= high
    return pointwise / seeds, simultaneous / seeds, between / seeds, at_values / seeds


def test_the_band_covers(known) -> None:
    """60 seeds of one matrix; the slow test takes 200 of all. Nine places are as good as 3 or more independent ones."""
    pointwise, simultaneous, between, _ = covered_by_bands("four probes", "spread", known, 60)
    assert 0.9 <= pointwise.mean() <= 0.985
    assert simultaneous >= 0.9
    assert between >= 0.88


@pytest.mark.slow
@pytest.mark.parametrize("matrix", BAND_MATRICES)
@pytest.mark.parametrize("way", BAND_WAYS)
def test_the_band_covers_at_its_level(way: str, matrix: str, known) -> None:
    """93 to 98 % in the mean over places; 180 to 198 of 200 at each, as above. Values taken out: always."""
    pointwise, simultaneous, between, at_values = covered_by_bands(way, matrix, known, SEEDS)
    chance = pointwise[pointwise < 1]
    assert 0.93 <= chance.mean() <= 0.98
    assert np.all((chance >= 0.9) & (chance <= 0.99))
    assert 0.9 <= between <= 0.99
    # Wherever it is asked, also at the very values, and everywhere at once: at least as often as said.
    # Some 700 places in all: fewer than 175 of 200 has a chance of 1e-5 at each.
    assert at_values.min() >= 0.875
    assert simultaneous >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("steps", [4, 10])
def test_with_truncation_the_band_covers_more_often(steps: int, known) -> None:
    values = np.linspace(0.1, 2, 40)
    truth = known(values)
    places, cdf = gaps(values)
    covered = np.zeros(places.size)
    for spectrum in measurements(partial(lanczos, probes=8, steps=steps), truth.a):
        lower, upper = spectrum.cdf_band(places)
        covered += (lower <= cdf) & (cdf <= upper)
    assert covered.min() >= 0.93 * SEEDS


def test_the_band_of_float32_covers(known) -> None:
    """Clusters closer than rounding can part: the places are widened by it."""
    values = np.concatenate([1 + 1e-8 * np.arange(20), np.linspace(0.2, 0.9, 20)])
    truth = known(values, None, torch.float32)
    places = np.concatenate([0.5 * (np.sort(values)[1:] + np.sort(values)[:-1]), [1.0, 1.1]])
    cdf = np.array([np.mean(values <= place) for place in places])
    covered = np.zeros(places.size)
    for spectrum in measurements(partial(lanczos, probes=4, steps=40), truth.a, 60):
        lower, upper = spectrum.cdf_band(places)
        covered += (lower <= cdf) & (cdf <= upper)
    assert covered.mean() >= 0.93 * 60


def test_the_band_over_several_inputs_is_for_their_average(known) -> None:
    """Three Jacobians of the same and of different size: at least as often as said; alike ones just as often."""
    base = known(np.linspace(0.2, 2, 10)).a
    for scales, most in (((1.0, 1.0, 1.0), 0.985), ((1.0, 0.5, 0.25), 1.0)):
        a = torch.stack([scale * base for scale in scales])
        values = np.linalg.svd(a.numpy(), compute_uv=False)
        places = np.linspace(0.11, 1.93, 9)
        cdf = np.array([np.mean(values <= place) for place in places])
        covered = np.zeros(places.size)
        for seed in range(60):
            lower, upper = lanczos(MatrixOperator(a), probes=2, steps=10, seed=seed).cdf_band(places)
            covered += (lower <= cdf) & (cdf <= upper)
        assert 0.9 <= covered.mean() / 60 <= most
