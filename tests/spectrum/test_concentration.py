"""Cells and concentrations together hold every bit of mass exactly once."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isometry.spectrum import Curve, Spectrum
from isometry.spectrum.concentration import Concentration, cell_masses, concentrations


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 1e-3, 0.5, 1.0, 1.0 + 1e-9, 1.003, 2.0, 40.0]), min_size=1, max_size=30),
    st.integers(2, 40),
)
def test_masses_add_up(values: list[float], bins: int) -> None:
    distribution = Spectrum.from_singular_values(values).distribution
    edges = np.linspace(math.log(1e-4), math.log(100.0), bins + 1)
    found = concentrations(distribution, edges)
    cells = cell_masses(distribution, edges, without=found)
    total = cells.sum() + sum(one.mass for one in found) + distribution.zero_mass
    assert total == pytest.approx(1.0, abs=1e-12)


def test_a_cluster_is_found_whichever_edge_it_straddles() -> None:
    # Nine tenths of the mass within 1e-6 of s = 1, which is an edge of the picture.
    values = np.concatenate([1 + 1e-6 * np.linspace(-1, 1, 90), np.geomspace(1e-3, 0.5, 10)])
    (one,) = concentrations(
        Spectrum.from_singular_values(values).distribution, np.linspace(-8, 2, 51) * math.log(10) / 4
    )
    assert one.mass == pytest.approx(0.9)
    assert one.log_s == pytest.approx(0.0, abs=2e-6)
    assert one.high - one.low == pytest.approx(2e-6, rel=0.1)


def test_a_smooth_law_has_none() -> None:
    t = np.linspace(-3, 0, 500)
    curve = Curve(t, np.linspace(0, 1, 500), np.full(500, 1 / 3), np.empty(0), np.empty(0))
    assert concentrations(curve, np.linspace(-3, 0, 61)) == []


def test_atoms_away_from_zero_are_listed_and_taken_out_of_their_cells() -> None:
    t = np.linspace(-1, 1, 200)
    curve = Curve(
        t, np.linspace(0, 0.6, 200), np.full(200, 0.3), np.array([-np.inf, 0.0]), np.array([0.3, 0.1])
    )
    edges = np.linspace(-1, 1, 21)
    found = concentrations(curve, edges)
    assert [(one.log_s, one.mass) for one in found] == [(0.0, 0.1)]
    assert cell_masses(curve, edges, without=found) == pytest.approx(np.full(20, 0.03), abs=1e-12)


def test_the_text_says_how_narrow() -> None:
    values = 2 * (1 + 0.001 * np.linspace(-1, 1, 100))
    (one,) = concentrations(Spectrum.from_singular_values(values).distribution, np.linspace(-1, 1, 21))
    assert one.text() == "100 % within 0.1 % of s = 2"


@pytest.mark.parametrize(
    ("half_width", "text"), [(0.2, "20 %"), (0.037, "4 %"), (0.3e-2, "0.3 %"), (2e-8, "2e-06 %")]
)
def test_a_width_reads_as_a_person_writes_it(half_width: float, text: str) -> None:
    half = math.log1p(half_width)
    assert Concentration(-half, half, 0.5).text() == f"50 % within {text} of s = 1"
