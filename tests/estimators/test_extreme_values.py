"""s_min is what everything found says, and is called so only where something rules out smaller values."""

from __future__ import annotations

import json
import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from isometry.estimators import lanczos, leading_triplets, randomized, smallest_singular_value
from isometry.estimators.block_krylov import BlockKrylov
from isometry.estimators.blocks import ShortSide, random_block
from isometry.estimators.exclusion import below_probes, compatible_share
from isometry.estimators.golub_kahan import golub_kahan
from isometry.estimators.quadrature import gauss_rules
from isometry.jacobian import MatrixOperator
from isometry.spectrum import Spectrum


class Diagonal:
    """A diagonal operator: of any size, with its singular values in sight."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.dtype, self.shape = values, values.dtype, (values.numel(),) * 2

    def matmat(self, vectors: Tensor) -> Tensor:
        return vectors * self.values

    rmatmat = matmat


SMALL_AMONG_ALIKE = {
    "one small": np.concatenate([np.ones(199), [1e-3]]),
    "three small": np.concatenate([np.full(150, 2.0), [0.5, 0.1, 0.02]]),
    "two clusters and a small one": np.concatenate([np.ones(90), np.full(60, 0.7), [0.1]]),
    "zero": np.concatenate([np.ones(120), [0.0]]),
}


@pytest.mark.parametrize("name", SMALL_AMONG_ALIKE)
@pytest.mark.parametrize("shape", ["square", "tall"])
def test_small_values_that_were_taken_out_count(name: str, shape: str, known) -> None:
    s = SMALL_AMONG_ALIKE[name]
    truth = known(s, (s.size + 30 * (shape == "tall"), s.size))
    spectrum = randomized(MatrixOperator(truth.a))
    assert spectrum.s_min_bound == pytest.approx(s.min(), abs=1e-13)
    assert spectrum.s_min_bound <= spectrum.quantile(0.0) + spectrum.floor + 1e-13
    if s.min() > 0:
        assert spectrum.s_min == pytest.approx(s.min(), abs=spectrum.s_min_residual)
        assert spectrum.condition_number == pytest.approx(s.max() / s.min(), rel=1e-9)
    else:
        assert math.isnan(spectrum.s_min)
        assert spectrum.condition_number == math.inf


def lone_value(size: int, lone: float, seed: int) -> Tensor:
    """Two narrow clusters and one value below them, which few steps do not see."""
    generator = torch.Generator().manual_seed(seed)
    upper = torch.rand(size, generator=generator) < 0.6
    values = torch.where(upper, 1.6, 1.0).double()
    values += 2e-3 * torch.randn(size, generator=generator, dtype=torch.float64)
    values[0] = lone
    return values


@pytest.mark.parametrize("lone", [0.55, 0.3, 0.9])
@pytest.mark.parametrize("probe", ["gaussian", "orthogonal", "rademacher"])
def test_a_small_residual_alone_is_no_s_min(lone: float, probe: str) -> None:
    """15 measurements of three steps: the residual of the smallest node is often below one part in a hundred."""
    for seed in range(15):
        values = lone_value(5_000, lone, seed)
        few = lanczos(Diagonal(values), probes=2, steps=3, seed=seed, probe=probe)
        assert math.isnan(few.s_min) or few.s_min == pytest.approx(lone, abs=few.s_min_residual)
        assert few.s_min_bound >= lone - 1e-12
        assert few.condition_number_bound <= float(values.max()) / lone * (1 + 1e-12)


def test_enough_steps_rule_out_what_is_below() -> None:
    values = lone_value(5_000, 0.55, 0)
    for probes in (4, 16):
        spectrum = lanczos(Diagonal(values), probes=probes, steps=25)
        assert spectrum.s_min == pytest.approx(0.55, abs=spectrum.s_min_residual)
        assert spectrum.s_min_residual < 0.01 * 0.55


def test_what_probes_rule_out_never_lies_above_the_smallest_value() -> None:
    """60 measurements, each wrong with a probability of a thousandth: not one in this draw."""
    values = torch.linspace(0.8, 1.6, 400, dtype=torch.float64)
    side_of = ShortSide(Diagonal(values))
    for seed in range(30):
        for steps in (4, 12):
            rules = golub_kahan(side_of, random_block(3, side_of, seed), steps)
            lower = below_probes(
                gauss_rules(rules), rules.steps.T, rules.finished.T, np.array([400]), side_of.eps
            )
            assert lower[0] <= 0.8


def test_the_share_of_one_vector_is_that_of_a_block_of_one() -> None:
    """The sums over nodes are the Christoffel function of `compatible_share` for f = 1."""
    values = torch.linspace(0.5, 1.5, 60, dtype=torch.float64)
    side = ShortSide(Diagonal(values))
    found = golub_kahan(side, random_block(1, side, 3), 6)
    left, s, right = np.linalg.svd(found.matrices()[0, 0])
    coupling = found.remainder()[0, 0] * left[-1:]
    lower = below_probes(gauss_rules(found), found.steps.T, found.finished.T, np.array([60]), side.eps, 0.2)
    from scipy.special import betaincinv

    share = compatible_share(float(lower[0]), s, right[:, :1].T, coupling)
    assert share == pytest.approx(betaincinv(0.5, 29.5, 0.2), rel=1e-6)


def test_random_signs_that_miss_a_vector_rule_nothing_out() -> None:
    """(1, 1) sees 2 alone of the singular values 1 and 2, and one step closes its space."""
    block = torch.tensor([[1.5, 0.5], [0.5, 1.5]], dtype=torch.float64)
    operator = MatrixOperator(torch.block_diag(block, torch.full((1, 1), 2.0, dtype=torch.float64)))
    for seed in range(20):
        spectrum = lanczos(operator, probes=1, probe="rademacher", seed=seed)
        assert math.isnan(spectrum.s_min) or spectrum.s_min == pytest.approx(1.0)


# ---- outside of the range of squares ------------------------------------------------------------------


SCALES = {torch.float64: (1e-300, 1e-155, 1e155, 1e300), torch.float32: (1e-30, 1e25, 1e36)}


@cache
def of_size_one(name: str, dtype: torch.dtype, known):
    """The matrix, its spectrum by two estimators, its leading values and its smallest."""
    base = known(np.ones(40) if name == "alike" else np.geomspace(0.2, 1.0, 40), dtype=dtype).a
    unit = MatrixOperator(base)
    spectra = [(estimator, estimator(unit)) for estimator in (lanczos, randomized)]
    return base, spectra, leading_triplets(unit, 3), smallest_singular_value(unit)


@pytest.mark.parametrize(("dtype", "scale"), [(dtype, scale) for dtype in SCALES for scale in SCALES[dtype]])
@pytest.mark.parametrize("name", ["alike", "spread"])
def test_every_size_of_j_is_measured_as_size_one(name: str, dtype: torch.dtype, scale: float, known) -> None:
    base, spectra, first, wanted = of_size_one(name, dtype, known)
    extreme = MatrixOperator((base.double() * scale).to(dtype))
    # What rounding to the nearest floats of another size moves.
    close = {"rel": 2000 * torch.finfo(dtype).eps}
    for estimator, expected in spectra:
        spectrum = estimator(extreme)
        found = spectrum.scaled(1 / scale)
        assert found.s_max == pytest.approx(expected.s_max, **close)
        assert found.s_max_residual == pytest.approx(expected.s_max_residual, rel=0.1)
        assert found.s_min_bound == pytest.approx(expected.s_min_bound, **close)
        assert found.mean_square == pytest.approx(expected.mean_square, **close)
        json.dumps(spectrum.to_dict(), allow_nan=False)
    leading = leading_triplets(extreme, 3)
    assert leading.values / scale == pytest.approx(first.values, **close)
    assert np.all(np.isfinite(leading.upper) & (leading.upper >= leading.values))
    smallest = smallest_singular_value(extreme)
    assert smallest.upper / scale == pytest.approx(wanted.upper, **close)
    assert smallest.lower / scale == pytest.approx(wanted.lower, rel=0.01)


def test_samples_of_a_batch_have_their_own_sizes(known) -> None:
    base = known(np.linspace(0.5, 1.0, 40)).a
    sizes = torch.tensor([1e-200, 1.0, 1e200], dtype=torch.float64)
    together = MatrixOperator(base * sizes[:, None, None])
    for estimator in (lanczos, randomized):
        spectrum = estimator(together)
        top = spectrum.extremes.top[:, 0] / sizes.numpy()
        assert top == pytest.approx(np.ones(3), rel=1e-3)


# ---- completed Krylov spaces --------------------------------------------------------------------------


def orthogonal(size: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0].to(dtype)


@pytest.mark.parametrize("size", [100, 300])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_block_space_of_copies_stays_orthonormal(size: int, width: int) -> None:
    """Every block of an isometry is rounding and replaced: the bases must not lose orthogonality over it."""
    side = ShortSide(MatrixOperator(orthogonal(size, torch.float32)))
    space = BlockKrylov(side, random_block(width, side, 0), size)
    while not space.complete:
        space.expand()
    for basis in (space.right[0].double(), space.left[0].double()):
        loss = torch.linalg.matrix_norm(basis @ basis.T - torch.eye(size, dtype=torch.float64), 2)
        assert float(loss) < 12 * side.eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", ["orthogonal", "decaying", "random"])
@pytest.mark.parametrize("size", [60, 300])
def test_a_completed_space_has_every_value_within_its_residual(
    name: str, size: int, dtype: torch.dtype
) -> None:
    a = orthogonal(size, torch.float64)
    if name == "decaying":
        a = a * torch.arange(1, size + 1, dtype=torch.float64) ** -1.5 @ orthogonal(size, torch.float64).T
    elif name == "random":
        a = torch.randn(
            size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        ) / math.sqrt(size)
    a = a.to(dtype)
    truth = np.linalg.svd(a.double().numpy(), compute_uv=False)
    spectrum = randomized(MatrixOperator(a), rank=size)
    e = spectrum.extremes
    assert e.top.shape == (1, size)
    assert np.all(np.abs(e.top[0] - truth) <= e.top_residual[0] + 8e-16)
    leading = leading_triplets(MatrixOperator(a), 5)
    assert np.all(np.abs(leading.values[0] - truth[:5]) <= leading.residuals[0] + 8e-16)


@pytest.mark.parametrize("power", [1.0, 2.0, 2.5])
def test_a_floor_of_breakdown_is_not_zero(power: float) -> None:
    """The recurrence breaks down at values that float32 tells from zero: they are below the floor, and not zero."""
    values = torch.arange(1, 151, dtype=torch.float32) ** -power
    spectrum = lanczos(Diagonal(values), steps=150)
    condition = float(values[0] / values[-1])
    assert not spectrum.condition_number > 1.01 * condition
    assert spectrum.condition_number_bound <= 1.01 * condition


def rank_deficient(known: object) -> Spectrum:
    return lanczos(MatrixOperator(known(np.concatenate([np.ones(30), np.zeros(10)])).a))  # type: ignore[operator]


def test_zeros_to_rounding_are_zeros(known) -> None:
    assert rank_deficient(known).condition_number == math.inf
