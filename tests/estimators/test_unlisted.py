"""How many values a list of the largest ones leaves out: limits that hold the count of dense linear algebra."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from isometry import Spectrum
from isometry.estimators import exact, lanczos, leading_triplets, randomized
from isometry.jacobian import MatrixOperator

SEEDS = 4
VALUES = {
    "ten copies": np.concatenate([np.full(10, 3.0), np.linspace(2, 0.1, 50)]),
    "pairs": np.repeat(np.linspace(2, 0.1, 20), 2),
    "flat": np.linspace(2, 0.1, 40),
    "alike": np.full(40, 0.7),
}
WAYS: dict[str, Callable[..., Spectrum]] = {
    "randomized": partial(randomized, rank=4, probes=4, steps=12),
    "few steps": partial(lanczos, probes=2, steps=8),
    "closed": partial(lanczos, probes=4, steps=40),
    "random signs": partial(lanczos, probes=4, steps=40, probe="rademacher"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", VALUES)
def test_the_limits_hold_the_number_of_values_left_out(kind: str, way: str, known) -> None:
    a = known(VALUES[kind]).a
    together = WAYS[way](MatrixOperator(a.expand(SEEDS, *a.shape)))
    for seed in range(SEEDS):
        spectrum = together.input(seed)
        found, listed = spectrum.unlisted, spectrum.extremes.top[0]
        listed = listed[np.isfinite(listed)]
        assert found is not None
        assert found.listed == listed.size
        # A Ritz value is below its own singular value, and copies are parted by rounding.
        left_out = int((VALUES[kind] >= listed[-1] * (1 - 1e-12)).sum()) - listed.size
        assert found.least <= left_out <= found.most
        assert found.confidence == (0.999 if listed.size < VALUES[kind].size else 1.0)


def test_every_report_says_how_many(known) -> None:
    """A block of four to start from meets four of twelve copies; probes see what is left of them."""
    values = np.concatenate([np.full(12, 3.0), np.linspace(1, 0.1, 48)])
    spectrum = randomized(MatrixOperator(known(values).a), rank=4, probes=8, steps=20)
    found = spectrum.unlisted
    assert found is not None
    assert found.most >= 12 - found.listed >= found.least > 0
    text = f"{found.least} to {found.most} as large as the last of {found.listed}"
    assert ("not listed", text) in spectrum.rows()
    assert json.loads(json.dumps(spectrum.to_dict()))["unlisted"] == {
        "listed": found.listed, "least": found.least, "most": found.most, "confidence": 0.999,
    }  # fmt: skip


def test_nothing_is_left_out_where_all_is_known(known) -> None:
    spectrum = exact(MatrixOperator(known(VALUES["pairs"]).a))
    found = spectrum.unlisted
    assert found is not None
    assert (found.least, found.most, found.confidence) == (0, 0, 1.0)
    assert not any("not listed" in label for label, _ in spectrum.rows())
    assert Spectrum.from_singular_values([1.0, 1.0]).unlisted is not None


def test_leading_triplets_counts_the_ranks_it_does_not_certify() -> None:
    """A search that ends early has met four of ten copies: ranks five and six may be others'."""
    a = torch.diag(torch.from_numpy(VALUES["ten copies"]))
    found = leading_triplets(MatrixOperator(a), 6, max_products=130)
    true = -np.sort(-VALUES["ten copies"])[:6]
    wrong = int((true > found.values[0] * (1 + 1e-6)).sum())
    assert 0 < wrong <= found.uncertified[0]
