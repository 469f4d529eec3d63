"""The solver against closed forms, polynomial roots, and itself by a second method."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from isometry.theory import laws
from isometry.theory.activations import get_activation
from isometry.theory.freeprobability.leading import LeadingCurve
from isometry.theory.freeprobability.panel_tree import PanelTree
from isometry.theory.freeprobability.product import FreeProduct, Group
from isometry.theory.freeprobability.product_curve import ProductCurve
from isometry.theory.freeprobability.real_edges import outer_band
from isometry.theory.freeprobability.slope_law import SlopeLaw, slope_law
from isometry.theory.freeprobability.solver import Law, solve
from isometry.theory.prediction import curve_of, predict

SMOOTH = ["tanh", "erf", "sigmoid", "gelu", "silu", "elu", "selu", "softplus"]


def product(law: SlopeLaw, depth: int, *, gaussian: bool) -> FreeProduct:
    """depth equal square layers with chi = 1."""
    scale = -depth * math.log(law.moments(1)[0])
    exponent = 1.0 + depth * gaussian
    return FreeProduct(scale, np.array([1.0]), np.array([exponent]), (Group(law, 1.0, depth),))


def gaussian_product(depth: int) -> FreeProduct:
    return FreeProduct(0.0, np.array([1.0]), np.array([1.0 + depth]))


def mean_log(law: SlopeLaw) -> float:
    """E[log d; d > 0], by graded panels that take the logarithm at a zero of phi' as well."""
    result = float(np.log(law.values) @ law.masses)
    if law.continuous is not None:
        # E log(1 + d/epsilon) + log epsilon
        epsilon = 1e-26 * law.continuous.largest
        tree = PanelTree((law.continuous,))
        whole = tree.sums(np.array([-epsilon], complex), np.zeros(1, int), logarithm=True)[4, 0].real
        result += float(whole) + math.log(epsilon) * float(law.continuous.mass.sum())
    return result


def cdf(law: Law, log_lambda: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cdf as a Spectrum interpolates it."""

    return curve_of(law).cdf(0.5 * log_lambda)


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 10, 30, 100, 300, 1000, 3000, 10_000])
def test_products_of_gaussian_matrices_are_fuss_catalan(depth: int) -> None:
    law = solve(gaussian_product(depth))
    angle = np.linspace(1e-4, 1 - 1e-6, 500) * math.pi / (depth + 1)
    log_lambda, above, _ = laws.fuss_catalan_curve(depth, angle)
    np.testing.assert_allclose(cdf(law, log_lambda), 1 - above, atol=2e-8)
    # Relative errors of lambda are absolute ones of its logarithm.
    assert law.log_edges[1] == pytest.approx(laws.fuss_catalan_log_edge(depth), abs=1e-9)
    assert law.log_edges[0] == -math.inf
    for order in range(1, 7):
        expected = laws.fuss_catalan_log_moment(depth, order)
        assert law.log_moments[order - 1] == pytest.approx(expected, abs=1e-10 * max(1.0, abs(expected)))


@pytest.mark.parametrize("ratio", [1e-3, 0.1, 0.5, 0.95, 1.0, 1.3, 8.0, 300.0])
def test_one_rectangular_matrix_is_marchenko_pastur(ratio: float) -> None:
    rank = min(1.0, ratio)
    sizes, exponents = np.array([1.0 / rank, ratio / rank]), np.array([1.0, 1.0])
    if ratio == 1.0:
        sizes, exponents = np.array([1.0]), np.array([2.0])
    law = solve(FreeProduct(math.log(1.0 / rank) + math.log(ratio), sizes, exponents))
    a, b = laws.marchenko_pastur_edges(ratio)
    x = np.linspace(a, b, 301)[1:-1]
    np.testing.assert_allclose(cdf(law, np.log(x)), laws.marchenko_pastur_cdf(x, ratio), atol=1e-7)
    assert law.log_edges[1] == pytest.approx(math.log(b), abs=1e-9)
    if ratio != 1.0:
        assert law.log_edges[0] == pytest.approx(math.log(a), abs=1e-9)


def power(factor: list[float], count: int) -> np.poly1d:
    return np.poly1d(np.poly([-factor[1] / factor[0]] * count))


def relu_polynomial(depth: int, gaussian: bool, z: complex) -> NDArray[np.complex128]:
    """Coefficients in t of z(t) = z for the nonzero half of a ReLU product, highest power first."""
    up = power([1.0, 1.0], depth)
    if gaussian:
        return (np.poly1d([1.0, 2.0]) * up - z * np.poly1d([1.0, 0.0])).coeffs
    down = np.poly1d([1.0, 0.0]) * power([1.0, 2.0], depth - 1)
    return (2.0**depth * up - z * down).coeffs


def relu_product(depth: int, *, gaussian: bool) -> FreeProduct:
    sizes, exponents = np.array([1.0, 2.0]), np.array([float(depth), 1.0 - depth * (not gaussian)])
    return FreeProduct(math.log(2.0), sizes, exponents)


@pytest.mark.parametrize("gaussian", [True, False])
@pytest.mark.parametrize("depth", [3, 8])
def test_relu_density_is_the_root_of_its_polynomial(depth: int, gaussian: bool) -> None:
    law = solve(relu_product(depth, gaussian=gaussian))
    kind = "gaussian" if gaussian else "orthogonal"
    edge = laws.relu_gaussian_log_edge(depth) if gaussian else math.log(laws.relu_orthogonal_edge(depth))
    assert law.log_edges[1] == pytest.approx(edge, abs=1e-9)
    for order in range(1, 7):
        expected = math.log(laws.relu_moment(depth, order, kind))
        assert law.log_moments[order - 1] == pytest.approx(expected, abs=1e-12 * order)
    # Follow the root from t ~ m1/z far up the imaginary axis to just above the real one, then downwards.
    above = [(20 - 0.1 * step) + 0.5j * math.pi for step in range(int(10 * (20 - edge)) + 1)]
    turn = [edge + 0.5j * math.pi * 0.95**step for step in range(300)]
    at = edge - np.linspace(0.02, 1.8, 601) ** 2
    root, density = 0j, []
    for log_z in [*above, *turn, *at]:
        roots = np.roots(relu_polynomial(depth, gaussian, np.exp(log_z)))
        root = roots[np.argmin(np.abs(roots - root))]
        density.append(-root.imag / np.pi)
    density = np.array(density[-at.size :])
    mass = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(at))])
    got = cdf(law, at)
    # Trapezoid on 600 cells in the square root of the distance to the edge.
    np.testing.assert_allclose(got - got[0], mass, atol=1.2e-5)


@pytest.mark.parametrize("gaussian", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 4, 16, 64, 256, 1024, 10_000])
def test_relu_products_of_any_depth_have_their_edges_moments_and_mean_logarithm(
    depth: int, gaussian: bool
) -> None:
    kind = "gaussian" if gaussian else "orthogonal"
    if depth == 1 and not gaussian:
        # One projection: a point mass.
        return
    law = solve(relu_product(depth, gaussian=gaussian))
    edge = laws.relu_gaussian_log_edge(depth) if gaussian else math.log(laws.relu_orthogonal_edge(depth))
    if depth > 2 or gaussian:
        assert law.log_edges[1] == pytest.approx(edge, abs=1e-9)
    for order in range(1, 7):
        exact = laws.relu_moment(depth, order, kind)
        expected = math.log(exact.numerator) - math.log(exact.denominator)
        assert law.log_moments[order - 1] == pytest.approx(expected, abs=1e-11 * order)
    # -int_{-1}^0 log S, 1/S = (2 + t)(1 + t)^(L-1) Gaussian, 2 ((1 + t)/(1 + t/2))^(L-1) orthogonal;
    # int log(1 + t) = -1, int log(1 + t/2) = log 2 - 1.
    over = math.log(2.0) - 1.0
    mean = math.log(2.0) + (over - (depth - 1) if gaussian else -(depth - 1) * (1.0 + over))
    low, high = law.log_lambda[:-1], law.log_lambda[1:]
    mean_cdf = (cdf(law, low) + 4 * cdf(law, 0.5 * (low + high)) + cdf(law, high)) / 6
    found = law.log_lambda[-1] - float(np.sum(mean_cdf * (high - low)))
    assert found == pytest.approx(mean, abs=1e-7 * depth + 1e-8 * (high[-1] - low[0]))


@pytest.mark.parametrize("variance", [0.02, 0.25, 0.7, 0.99, 1.5, 8.0])
def test_bernoulli_limit_is_the_lambert_law(variance: float) -> None:
    place, mass = laws.bernoulli_limit_atom(variance)
    atoms = ((variance, mass),) if mass > 0 else ()
    # log z = log((1 + x)/x) + s0^2 x/(1 + x)
    law = solve(FreeProduct(0.0, np.array([1.0]), np.array([1.0]), fraction=variance, atoms=atoms))
    top = math.log(math.e * variance)
    assert math.exp(variance) == pytest.approx(place)
    assert law.log_lambda[-1] == pytest.approx(top, abs=1e-9)
    at = top - np.linspace(0.0, 2.8, 8001)[::-1] ** 2
    x = np.exp(at)
    density = laws.bernoulli_limit_density(x, variance) * x
    integral = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(at))])
    got = cdf(law, at)
    np.testing.assert_allclose(got - got[0], integral, atol=2e-6)
    np.testing.assert_allclose(np.exp(law.log_moments[:2]), [1.0, 1.0 + variance], rtol=1e-12)


@pytest.mark.parametrize("variance", [1e-6, 8e-4, 0.0625, 0.25, 1.0, 4.0, 20.0])
def test_smooth_limit_has_its_edges_and_its_density(variance: float) -> None:
    law = solve(FreeProduct(0.0, np.array([1.0]), np.array([1.0]), linear=variance), points=20_000)
    np.testing.assert_allclose(np.exp(law.log_edges), laws.smooth_limit_edges(variance), rtol=1e-9)
    np.testing.assert_allclose(np.exp(law.log_moments[:2]), [1.0, 1.0 + variance], rtol=1e-12)
    highest = np.max(law.density)
    below, above, density = laws.smooth_limit_curve(variance, np.pi * highest * np.linspace(0.05, 0.999, 60))
    for place in (below, above):
        got = np.interp(place, law.log_lambda, law.density)
        # Linear interpolation on 20,000 points.
        np.testing.assert_allclose(got, density, atol=2e-6 * highest)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("gaussian", [True, False])
def test_two_methods_agree_on_every_activation(name: str, gaussian: bool) -> None:
    """One w leads, bracketed in its angle; or t is continued from the negative axis: nothing is shared."""
    law = slope_law(get_activation(name), 0.3)
    single = product(law, 4, gaussian=gaussian)
    leading = LeadingCurve(single, single.groups[0])
    log_radius = math.log(law.support[-1][1]) - np.array([0.3, 1.0, 2.5])
    expected = leading.points(log_radius)
    split = FreeProduct(
        single.log_scale, single.sizes, single.exponents, (Group(law, 1.0, 1.0), Group(law, 1.0, 3.0))
    )
    got = ProductCurve(split).points(expected.log_lambda)
    np.testing.assert_allclose(got.mass_above, expected.mass_above, atol=1e-11)
    np.testing.assert_allclose(got.density, expected.density, rtol=1e-8)
    band, edges = outer_band(split), solve(single, points=200).log_edges
    # Where phi' only approaches its largest value (softplus) either stops a relative 1e-11 of d short of it.
    assert band.high == pytest.approx(edges[1], abs=1e-8)


@pytest.mark.parametrize(("name", "depth", "gaussian"), [
    ("tanh", 2, False), ("tanh", 64, False), ("tanh", 10_000, True), ("gelu", 8, True), ("gelu", 3, False),
    ("elu", 30, False), ("softplus", 12, False), ("erf", 100, True),
])  # fmt: skip
def test_mean_logarithm_tests_the_lower_tail(name: str, depth: int, gaussian: bool) -> None:
    # E log lambda = L (log sigma_w^2 - g + E log phi'^2) when nothing sits at zero.
    law = slope_law(get_activation(name), 0.2)
    result = solve(product(law, depth, gaussian=gaussian))
    expected = depth * (-math.log(law.moments(1)[0]) - gaussian + mean_log(law))
    # The mean of log lambda from the cdf: int F, by Simpson's rule with midpoints, from the grid's end at 5e-10 down.
    low, high = result.log_lambda[:-1], result.log_lambda[1:]
    mean_cdf = (cdf(result, low) + 4 * cdf(result, 0.5 * (low + high)) + cdf(result, high)) / 6
    mean = result.log_lambda[-1] - float(np.sum(mean_cdf * (high - low)))
    # What lies below the grid: mass 5e-10 times a decay length of a few percent of the whole range.
    assert mean == pytest.approx(expected, abs=1e-6 * depth + 5e-10 * (high[-1] - low[0]))


def test_density_and_cdf_hold_together_at_every_node() -> None:
    law = solve(product(slope_law(get_activation("tanh"), 0.5), 6, gaussian=True))
    middle = 0.5 * (law.log_lambda[1:] + law.log_lambda[:-1])
    width = np.diff(law.log_lambda)
    slope = (cdf(law, middle + 1e-3 * width) - cdf(law, middle - 1e-3 * width)) / (2e-3 * width)
    between = 0.5 * (law.density[1:] + law.density[:-1])
    # The mean of two neighbours misses the middle by width^2/8 of the curvature, 1e-4 on this grid; the last cells hold
    # the square root of the edge.
    assert np.max(np.abs(slope - between)[:-40]) < 2e-4 * np.max(law.density)


@pytest.mark.parametrize(
    ("p", "depth"),
    [
        (0.9, 4),
        (0.98, 30),
        (0.5, 8),
        (0.9, 50),
        (0.98, 200),
        (0.1, 3),
        (0.7, 2),
        (0.999, 900),
        (0.999, 10_000),
    ],
)
def test_orthogonal_bernoulli_atom_and_edge(p: float, depth: int) -> None:
    # d = 0 or 1; sizes relative to the rank p N.
    log_scale = math.log(1.0 / p) + depth * math.log(p)
    share = 1.0 - depth * (1.0 - p)
    atoms = ((0.0, share / p),) if share > 1e-12 else ()
    law = solve(
        FreeProduct(log_scale, np.array([1.0, 1.0 / p]), np.array([float(depth), 1.0 - depth]), atoms=atoms)
    )
    if share > 1e-12:
        assert law.log_edges[1] == 0.0
        assert law.log_lambda[-1] < 0.0
        assert law.cdf[-1] == pytest.approx(1 - share / p, abs=1e-12)
    else:
        # x* = p/(L(1 - p) - 1) is where dz/dx = 0; z = (1 + x)/x ((p + x)/(1 + x))^L.
        x = p / (depth * (1 - p) - 1)
        expected = math.log((1 + x) / x) + depth * math.log((p + x) / (1 + x))
        assert law.log_edges[1] == pytest.approx(expected, abs=1e-10)
    # m1 of the nonzero part: p^L/p.
    assert law.log_moments[0] == pytest.approx((depth - 1) * math.log(p), abs=1e-12)


def test_two_orthogonal_relu_layers_are_arcsine() -> None:
    # Two free projections of trace 1/2: lambda/4 is arcsine distributed on (0, 1), its density infinite at both ends.
    law = solve(relu_product(2, gaussian=False))
    x = np.linspace(0.01, 0.999, 400)
    np.testing.assert_allclose(cdf(law, np.log(4 * x)), 2 / np.pi * np.arcsin(np.sqrt(x)), atol=1e-7)


@pytest.mark.parametrize(("name", "q"), [("tanh", 0.5), ("gelu", 0.5), ("erf_scaled", 1.0)])
def test_one_orthogonal_layer_is_the_law_of_its_slope(name: str, q: float) -> None:
    law = solve(product(slope_law(get_activation(name), q), 1, gaussian=False))
    mean = slope_law(get_activation(name), q).moments(1)[0]
    x = np.linspace(-12, 12, 400_001)
    weight = np.exp(-0.5 * x * x)
    weight /= weight.sum()
    log_d = np.log(np.maximum(get_activation(name).derivative(math.sqrt(q) * x) ** 2, 1e-300)) - math.log(
        mean
    )
    at = np.log(np.linspace(0.02, 0.98, 50)) + law.log_edges[1]
    expected = np.array([weight[log_d <= value].sum() for value in at])
    # A sum over 400,001 points resolves a threshold to one weight, 2.4e-5.
    np.testing.assert_allclose(cdf(law, at), expected, atol=8e-5)
    assert law.cdf[-1] == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("q", [1e-9, 1e-7, 1e-5])
def test_spectra_of_width_one_in_a_million_keep_their_shape(q: float) -> None:
    # A thousand layers of tanh: the smooth universal limit of variance 8 L q^2, up to the skewness of chi^2 over
    # sqrt(L), 0.09, half of which moves the edges.
    depth = 1000
    law = solve(product(slope_law(get_activation("tanh"), q), depth, gaussian=False))
    variance = 8 * depth * q * q
    low, high = (
        np.log(laws.smooth_limit_edges(variance))
        if variance > 1e-9
        else 2 * math.sqrt(variance) * np.array([-1, 1])
    )
    # tanh' runs down to zero: beyond the edge of the limit lies a thin tail, and the grid ends 5 % out, at 5e-10.
    assert law.log_lambda[0] == pytest.approx(low, rel=7e-2)
    assert law.log_edges[1] == pytest.approx(high, rel=6e-2)
    # The limit is a semicircle in log lambda there.
    share = law.log_lambda / law.log_edges[1]
    inner = np.abs(share) < 0.9
    semicircle = (
        0.5 + (share * np.sqrt(1 - np.minimum(share**2, 1)) + np.arcsin(np.clip(share, -1, 1))) / np.pi
    )
    np.testing.assert_allclose(law.cdf[inner], semicircle[inner], atol=3e-2)


def test_a_spectrum_narrower_than_doubles_resolve_is_a_point_mass() -> None:
    law = solve(product(slope_law(get_activation("tanh"), 1e-13), 50, gaussian=False))
    assert law.atoms == ((pytest.approx(0.0, abs=1e-12), 1.0),)
    assert law.log_lambda.size == 0


@pytest.mark.parametrize("name", ["relu", "leaky_relu(0.01)", "leaky_relu(0.1)", "elu", "selu"])
def test_two_orthogonal_layers_with_half_their_mass_in_a_point_are_a_cusp_and_no_failure(name: str) -> None:
    # L (1 - p) = 1: the point mass has just vanished and leaves an infinite density.
    spectrum = predict(name, 2, weights="orthogonal", **({} if "relu" in name else {"q_star": 0.1}))
    curve = spectrum.distribution
    assert curve.cdf(np.array(math.inf)) == pytest.approx(1.0, abs=1e-12)
    # Mean by integrating the curve.
    assert curve.log_moment(2 + 1e-9) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "q"), [("selu", 0.02), ("elu", 0.02), ("softplus", 0.5), ("erf_scaled", 0.02)]
)
@pytest.mark.parametrize("depth", [17, 1000])
def test_edges_that_a_gaussian_tail_softens_lose_no_mass(name: str, q: float, depth: int) -> None:
    law = slope_law(get_activation(name), q)
    result = solve(product(law, depth, gaussian=False))
    expected = depth * (mean_log(law) - math.log(law.moments(1)[0]))
    low, high = result.log_lambda[:-1], result.log_lambda[1:]
    mean_cdf = (cdf(result, low) + 4 * cdf(result, 0.5 * (low + high)) + cdf(result, high)) / 6
    mean = result.log_lambda[-1] - float(np.sum(mean_cdf * (high - low)))
    assert mean == pytest.approx(expected, abs=1e-7 * depth + 1e-8 * (high[-1] - low[0]))
