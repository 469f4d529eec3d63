"""Free products of discrete factors against closed laws and sampled matrices."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from isometry.comparison import compare
from isometry.errors import InputError
from isometry.spectrum import Spectrum
from isometry.theory.freeprobability.discrete import Factor, free_product


def projection(share, size=400):
    """Slopes of a layer that lets ``share`` of its units through."""
    return Factor.from_values((np.arange(size) < share * size).astype(float))


def quarter_circle(count=2000):
    """A square Gaussian matrix by its law: midpoints of equal masses of the quarter circle, mean square 1."""
    angle = (np.arange(100_001) + 0.5) / 100_001 * math.pi / 2
    values = 2 * np.sin(
        np.interp((np.arange(count) + 0.5) / count, (2 * angle + np.sin(2 * angle)) / math.pi, angle)
    )
    return Factor.from_values(values / math.sqrt(np.mean(values**2)))


def haar(n, rng):
    q, r = np.linalg.qr(rng.standard_normal((n, n)))
    return q * np.sign(np.diag(r))


def test_two_half_projections_give_the_arcsine_law():
    # The angles between two random half-dimensional subspaces are uniform: lambda = cos^2(angle), F known.
    law = free_product([projection(0.5), projection(0.5)])
    s = np.linspace(0.02, 0.999, 50)
    # Between places the cdf is a cubic, which the density's pole at s = 1 strains most.
    np.testing.assert_allclose(law.cdf(s), 1 - np.arccos(s) / math.pi, atol=5e-4)
    assert law.zero_mass == pytest.approx(0.5, abs=1e-12)


def test_large_projections_meet_in_an_atom_at_one():
    # Subspaces of shares 3/4 and 7/8 share 5/8 of all directions; 1/4 is lost.
    law = free_product([projection(0.75), projection(0.875)])
    assert {round(s, 9): mass for s, mass in law.atoms} == pytest.approx({0.0: 0.25, 1.0: 0.625}, abs=1e-9)
    assert law.mean_square == pytest.approx(0.75 * 0.875, rel=1e-12)


def test_the_corner_of_a_larger_rotation():
    # n x n corner of a 2n x 2n Haar matrix: the same arcsine law without mass at zero.
    into = Factor.from_values(np.ones(50), rows=100, columns=50)
    out = Factor.from_values(np.ones(50), rows=50, columns=100)
    law = free_product([into, out])
    s = np.linspace(0.02, 0.999, 50)
    np.testing.assert_allclose(law.cdf(s), 1 - 2 * np.arccos(s) / math.pi, atol=2e-3)
    assert law.shape == (50, 50)
    assert law.zero_mass == 0.0


@pytest.mark.parametrize("depth", [2, 6])
def test_gaussian_products_have_fuss_catalan_moments_and_edge(depth):
    # m_k = binom((L+1) k, k) / (L k + 1). The midpoints of 2000 cells lack the law's last cells: a relative 2e-3 of
    # the edge and less of the moments.
    law = free_product([quarter_circle()] * depth)
    expected = [math.comb((depth + 1) * k, k) / (depth * k + 1) for k in range(1, 5)]
    np.testing.assert_allclose([law.moment(k) for k in range(1, 5)], expected, rtol=4e-3)
    edge = (depth + 1) ** (depth + 1) / depth**depth
    assert law.distribution.log_range[1] == pytest.approx(0.5 * math.log(edge), abs=2e-3)


def test_moments_are_exact_where_integration_of_the_curve_can_check_them():
    rng = np.random.default_rng(0)
    law = free_product([Factor.from_values(rng.uniform(0.5, 1.5, 80)) for _ in range(3)])
    curve = law.distribution
    bare = Spectrum(replace(curve, log_even_moments=()), method="predicted")
    for k in (1, 2, 3, 4):
        assert bare.moment(k) == pytest.approx(law.moment(k), rel=3e-3)


def test_order_and_scale_do_not_matter():
    rng = np.random.default_rng(1)
    a, b = Factor.from_values(rng.uniform(0.2, 2, 60)), Factor.from_values(rng.exponential(1, 60))
    c = Factor.from_values(np.full(60, 1e-200))
    one, other = free_product([a, c, b, c]), free_product([b, a])
    assert one.log10_moment(1) - other.log10_moment(1) == pytest.approx(-800, abs=1e-9)
    levels = np.linspace(0.05, 0.95, 19)
    np.testing.assert_allclose(one.log10_quantile(levels) + 400, other.log10_quantile(levels), atol=1e-6)


def test_a_single_factor_is_its_own_law():
    rng = np.random.default_rng(2)
    values = rng.uniform(0.5, 1.5, 500)
    rotation = Factor.from_values(np.full(500, 2.0))
    law = free_product([rotation, Factor.from_values(values)])
    sample = Spectrum.from_singular_values(2 * values)
    # The line through the steps is never further than one step of 1/500 from them.
    assert compare(sample, law).raw.ks < 2.1e-3
    few = free_product([Factor.from_values(np.full(4, 2.0)), Factor.from_values([1.0, 1.0, 3.0, 1.0])])
    np.testing.assert_allclose(few.atoms, [(2.0, 0.75), (6.0, 0.25)])


def test_rectangular_chain_against_sampled_matrices():
    # Fixed singular values and slopes, Haar directions: linear statistics fluctuate by order 1/n, n = 150; three
    # draws averaged, a bound of 0.02 is about five such deviations.
    rng = np.random.default_rng(3)
    sizes = [150, 300, 200]
    values = [rng.uniform(0.3, 1.7, 150), rng.exponential(1, 200)]
    slopes = [np.maximum(rng.uniform(-0.5, 1, 300), 0), rng.uniform(0, 1, 200)]
    factors = [
        Factor.from_values(values[0], rows=300, columns=150), Factor.from_values(slopes[0]),
        Factor.from_values(values[1], rows=200, columns=300), Factor.from_values(slopes[1]),
    ]  # fmt: skip
    law = free_product(factors)
    found = []
    for _ in range(3):
        product = np.eye(150)
        for layer in range(2):
            m, n = sizes[layer + 1], sizes[layer]
            k = min(m, n)
            matrix = haar(m, rng)[:, :k] * values[layer] @ haar(n, rng)[:k]
            product = slopes[layer][:, None] * (matrix @ product)
        found.append(np.linalg.svd(product, compute_uv=False))
    sample = Spectrum.from_singular_values(np.array(found))
    assert compare(sample, law, width=150).raw.ks < 0.02
    assert sample.mean_square == pytest.approx(law.mean_square, rel=0.05)
    assert law.shape == (200, 150)


def test_what_does_not_fit_is_named():
    with pytest.raises(InputError, match=r"second takes 5 inputs but first gives 4"):
        free_product(
            [Factor.from_values(np.ones(4), name="first"), Factor.from_values(np.ones(5), name="second")]
        )
    with pytest.raises(InputError, match="dead"):
        free_product([Factor.from_values(np.zeros(4), name="dead")])
    with pytest.raises(InputError, match="sum to 1"):
        Factor.from_values([1.0, 2.0], weights=[1.0, 1.0])
    with pytest.raises(InputError, match="at least one factor"):
        free_product([])
