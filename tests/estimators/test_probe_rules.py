"""The unit of work: a rectangle of rows, and one spectrum out of many."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from isometry.errors import InputError
from isometry.estimators import lanczos, measure_probes, merge, probe_groups
from isometry.estimators.blocks import ShortSide, random_block
from isometry.jacobian import MatrixOperator

CPU = torch.device("cpu")


@pytest.mark.parametrize("probe", ["gaussian", "rademacher", "orthogonal"])
def test_rectangles_in_any_order_are_the_whole(probe: str, known) -> None:
    """Three inputs and 20 probes, cut both ways, through a pickle as between processes."""
    a = torch.stack([known(np.linspace(0.1, 2.0, 40), (40, 50), seed=k).a for k in range(3)])
    whole = lanczos(MatrixOperator(a), probes=20, steps=9, seed=4, probe=probe)
    parts = [
        measure_probes(MatrixOperator(a[i.start : i.stop]), i, k, steps=9, seed=4, probe=probe)
        for i in (range(2, 3), range(2))
        for k in (range(7, 20), range(7))
    ]
    merged = merge(pickle.loads(pickle.dumps(parts)))
    assert (merged.n_inputs, merged.n_probes, merged.products) == (3, 20, whole.products)
    # float64 products of blocks of other sizes: rounding alone, amplified by the recurrence.
    assert merged.distribution.nodes == pytest.approx(whole.distribution.nodes, abs=1e-9)
    assert merged.distribution.weights == pytest.approx(whole.distribution.weights, abs=1e-9)
    assert merged.floor == pytest.approx(whole.floor, rel=1e-12)
    assert merged.extremes.top == pytest.approx(whole.extremes.top, abs=1e-10)
    assert merged.extremes.top_residual == pytest.approx(whole.extremes.top_residual, abs=1e-9)
    assert merged.provenance == whole.provenance
    # The same rectangles are the same bits.
    again = measure_probes(MatrixOperator(a[:2]), range(2), range(7, 20), steps=9, seed=4, probe=probe)
    assert np.array_equal(again.rules.nodes, parts[2].rules.nodes)


def test_rows_of_different_lengths(known) -> None:
    """One rectangle of 3 steps beside one of 12: padded; what the shorter resolves is the floor."""
    operator = MatrixOperator(known(np.linspace(0.1, 2.0, 40)).a)
    short = measure_probes(operator, range(1), range(4), steps=3)
    long = measure_probes(operator, range(1), range(4, 8), steps=12)
    merged = merge([long, short])
    assert merged.distribution.nodes.shape == (1, 8, 12)
    assert merged.floor == pytest.approx(merged.s_max / 3)
    assert merged.provenance["steps"] == 12
    assert merge([long, measure_probes(operator, range(1), range(8, 9), steps=12)]).floor < merged.s_max / 11


def test_missing_and_doubled_parts_are_refused(known) -> None:
    a = torch.stack([known(np.linspace(0.1, 2.0, 12), seed=k).a for k in range(2)])

    def part(inputs: range, probes: range):
        return measure_probes(MatrixOperator(a[inputs.start : inputs.stop]), inputs, probes, steps=2)

    for second in (range(3, 4), range(1, 3)):
        with pytest.raises(
            InputError, match=r"probes of inputs 0 to 1: .* a part is missing, or there twice"
        ):
            merge([part(range(2), range(2)), part(range(2), second)])
    with pytest.raises(InputError, match="as many probes as the others"):
        merge([part(range(1), range(2)), part(range(1, 2), range(3))])


def test_groups_follow_from_the_options_alone() -> None:
    assert probe_groups(range(40), 100, None, CPU) == [range(16), range(16, 32), range(32, 40)]
    assert probe_groups(range(8, 13), 100, 299, CPU) == [range(8, 10), range(10, 12), range(12, 13)]
    with pytest.raises(InputError, match="take fewer steps or inputs, or raise memory_limit"):
        probe_groups(range(4), 100, 99, CPU)


@pytest.mark.parametrize("probe", ["gaussian", "rademacher", "orthogonal"])
def test_a_probe_depends_on_its_number_alone(probe: str, known) -> None:
    side = ShortSide(MatrixOperator(known(np.ones(40)).a))
    block = random_block(40, side, 7, probe=probe)
    assert torch.equal(random_block(9, side, 7, first_probe=12, probe=probe), block[12:21])
    assert torch.linalg.vector_norm(block, dim=-1).numpy() == pytest.approx(np.ones((40, 1)), abs=1e-15)
    gram = (block[:, 0] @ block[:, 0].T).abs() - torch.eye(40)
    for first, last in ((0, 16), (16, 32), (32, 40)):
        within = float(gram[first:last, first:last].abs().max())
        assert (within < 1e-14) == (probe == "orthogonal")
    if probe == "rademacher":
        assert torch.equal(block.abs(), torch.full_like(block, 40**-0.5))


def test_orthogonal_probes_in_few_dimensions_are_whole_frames() -> None:
    """Five dimensions hold five orthogonal vectors: their masses add up to those of the matrix, without chance."""
    operator = MatrixOperator(torch.diag(torch.arange(1.0, 6.0, dtype=torch.float64)))
    spectrum = lanczos(operator, probes=10, steps=5, probe="orthogonal")
    assert spectrum.mean_square == pytest.approx(11.0, rel=1e-13)
    assert spectrum.cdf([1.5, 2.5, 4.5]) == pytest.approx([0.2, 0.4, 0.8], abs=1e-12)


def test_an_unknown_kind_of_probe(known) -> None:
    with pytest.raises(InputError, match="probe is one of gaussian, rademacher, orthogonal; got 'uniform'"):
        lanczos(MatrixOperator(known(np.ones(4)).a), probe="uniform")
