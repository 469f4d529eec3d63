"""What a random start rules out: never more often wrong than stated, never looser than the classical bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor

from isometry.estimators import exclusion
from isometry.estimators.block_krylov import BlockKrylov
from isometry.estimators.blocks import ShortSide, random_block

SEEDS, DELTA = 60, 0.1
# A start is invariant under rotations, so a diagonal matrix stands for all with its singular values.
SPECTRA = {
    "flat with one above": np.concatenate([[1.1], np.linspace(0.5, 1.0, 79)]),
    "flat with one below": np.concatenate([np.linspace(0.5, 1.0, 79), [0.4]]),
    "a far outlier above a bulk": np.concatenate([[30.0], np.linspace(0.9, 1.0, 79)]),
    "a tiny value below a bulk": np.concatenate([np.linspace(0.9, 1.0, 79), [1e-6]]),
    "graded": np.logspace(0, -3, 80),
}


class Diagonals:
    """One diagonal matrix for every input of a batch."""

    def __init__(self, s: np.ndarray, batch: int) -> None:
        self.s, self.batch, self.shape, self.dtype = (
            torch.from_numpy(s),
            batch,
            (s.size, s.size),
            torch.float64,
        )

    def matmat(self, vectors: Tensor) -> Tensor:
        return self.s * vectors

    rmatmat = matmat


def space_of(s: np.ndarray, width: int, steps: int, seeds: int) -> BlockKrylov:
    """The spaces of ``seeds`` random starts, as a batch."""
    side = ShortSide(Diagonals(s, seeds))
    space = BlockKrylov(side, random_block(width, side, 0), width * steps)
    for _ in range(steps):
        space.expand()
    return space


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_bounds_fail_no_more_often_than_stated(spectrum: str, width: int) -> None:
    """At delta = 0.1 over 60 seeds: at most the 0.9999 quantile of that many failures."""
    s = np.sort(SPECTRA[spectrum])[::-1].copy()
    space = space_of(s, width, 6, SEEDS)
    triplets = space.ritz()
    high = int((exclusion.above(space, triplets, DELTA) < s[0]).sum())
    low = int((exclusion.below(space, triplets, DELTA) > s[-1]).sum())
    most = next(k for k in range(SEEDS) if special.bdtr(k, SEEDS, DELTA) >= 0.9999)
    assert high <= most
    assert low <= most


def test_one_step_is_no_worse_than_the_bound_of_dixon() -> None:
    """sigma <= ||A v|| / sqrt(q) from the product with A alone; the step has made that with A^T too."""
    space = space_of(np.linspace(0.1, 1.0, 50), 1, 1, 10)
    triplets = space.ritz()
    bound = exclusion.above(space, triplets, 1e-2)
    assert np.all(bound > triplets.values[:, 0])
    assert np.all(bound <= triplets.values[:, 0] / math.sqrt(exclusion.least_share(50, 1, 1e-2)))


@pytest.mark.parametrize("steps", [2, 5, 9])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_never_worse_than_the_number_of_steps_alone_says(spectrum: str, steps: int) -> None:
    s = SPECTRA[spectrum]
    space = space_of(s, 1, steps, 8)
    triplets = space.ritz()
    q = exclusion.least_share(s.size, 1, 1e-3)
    classical = triplets.values[:, 0] * math.cosh(math.acosh(1 / math.sqrt(q)) / (2 * steps - 1))
    assert np.all(exclusion.above(space, triplets, 1e-3) <= classical * (1 + 1e-9))


def test_a_space_that_closed_is_exact_on_both_sides() -> None:
    """Three distinct values: after three steps of any start nothing is left to chance but rounding over sqrt(q)."""
    s = np.repeat([3.0, 2.0, 0.5], [10, 30, 10])
    space = space_of(s, 1, 3, 1)
    triplets = space.ritz()
    rounding = 3 * 50 * np.finfo(float).eps / math.sqrt(exclusion.least_share(50, 1, 1e-3))
    assert exclusion.above(space, triplets, 1e-3)[0] == pytest.approx(3.0, abs=10 * rounding)
    assert exclusion.below(space, triplets, 1e-3)[0] == pytest.approx(0.5, abs=10 * rounding)


def test_the_share_of_a_random_block() -> None:
    """Beta(b / 2, (n - b) / 2): the stated quantile of 20,000 draws, to four standard deviations."""
    generator = np.random.default_rng(0)
    q = exclusion.least_share(30, 2, 0.05)
    draws = generator.standard_normal((20_000, 30))
    share = (draws[:, :2] ** 2).sum(axis=1) / (draws**2).sum(axis=1)
    assert np.mean(share < q) == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 20_000))
    assert exclusion.least_share(5, 5, 0.05) == 1.0
