"""Spectrum: one language for measured and predicted distributions, held to its definitions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from isometry.errors import InputError
from isometry.spectrum import Curve, Extremes, Quadrature, Spectrum
from isometry.spectrum.formatting import percent_text
from isometry.spectrum.summary import REPORTED_QUANTILES

# A shared machine pauses now and then: no deadline. 40 draws of each property keep the file at seconds.
several = settings(max_examples=25, deadline=None)

MASS = st.floats(0.01, 1.0)


@st.composite
def quadratures(draw: st.DrawFn) -> Spectrum:
    """One to two inputs, one to three probes, nodes over twelve decades and at zero, with and without a floor."""
    inputs, probes, size = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 6))
    node = st.one_of(st.just(0.0), st.floats(-6.0, 6.0).map(lambda t: 10.0**t))
    count = inputs * probes * size
    nodes = np.array(draw(st.lists(node, min_size=count, max_size=count))).reshape(inputs, probes, size)
    weights = np.array(draw(st.lists(MASS, min_size=count, max_size=count))).reshape(nodes.shape)
    floor = np.array(draw(st.lists(st.sampled_from([0.0, 1e-3]), min_size=inputs, max_size=inputs)))
    resolved = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count))).reshape(nodes.shape)
    weights /= weights.sum(-1, keepdims=True)
    return Spectrum(Quadrature(nodes, weights, floor, resolved), method="lanczos", shape=(size, size))


@st.composite
def curves(draw: st.DrawFn) -> Spectrum:
    """A continuous part on an uneven grid, point masses inside, outside and at zero, all in any proportion."""
    grid = np.array(sorted(draw(st.sets(st.integers(-40, 40), min_size=2, max_size=8)))) / 4.0
    steps = np.array(draw(st.lists(MASS, min_size=grid.size - 1, max_size=grid.size - 1)))
    density = np.array(draw(st.lists(st.floats(0, 3), min_size=grid.size, max_size=grid.size)))
    places = draw(st.lists(st.sampled_from([-math.inf, -3.3, 0.0, 0.1, 7.7]), max_size=3, unique=True))
    masses = np.array(draw(st.lists(MASS, min_size=len(places), max_size=len(places))))
    total = steps.sum() + masses.sum()
    cdf = np.concatenate([[0.0], np.cumsum(steps / total)])
    return Spectrum(
        Curve(grid, cdf, density / total, np.array(places), masses / total), method="predicted"
    )  # fmt: skip


SPECTRA = st.one_of(quadratures(), curves())


def places_to_look_at(spectrum: Spectrum) -> np.ndarray:
    """Zero, the point masses, and the middles and outsides of everything."""
    low, high = spectrum.support
    middle = np.geomspace(max(low, 1e-8) / 3, max(high, 1e-7) * 3, 41)
    return np.unique(np.concatenate([[0.0], middle, [s for s, _ in spectrum.atoms]]))


# ---- properties of any distribution ------------------------------------------------------------------------


@several
@given(SPECTRA)
def test_cdf_rises_from_the_mass_at_zero_to_one(spectrum: Spectrum) -> None:
    values = spectrum.cdf(places_to_look_at(spectrum))
    # To rounding: at two places one unit apart, sums and cubics near 1 may differ by half a unit either way.
    assert np.all(np.diff(values) >= -4 * np.finfo(float).eps)
    assert values[0] == pytest.approx(spectrum.zero_mass, abs=1e-15)
    assert values[-1] == pytest.approx(1.0, abs=1e-12)


@several
@given(SPECTRA, st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_quantile_inverts_cdf(spectrum: Spectrum, levels: list[float]) -> None:
    p = np.array(levels)
    s = spectrum.quantile(p)
    assert s.shape == p.shape
    # The smallest s whose cdf reaches p: reached there, not yet reached just below. 1e-9 in s is far more than
    # the rounding of exp(log s), and moves a continuous cdf by less than 1e-7 (its slope per ln s is below 50).
    assert np.all(spectrum.cdf(s) >= p - 1e-12)
    below = (s > spectrum.support[0]) & (p > spectrum.zero_mass)
    assert np.all(spectrum.cdf(s[below] * (1 - 1e-9)) <= p[below] + 1e-7)
    order = np.argsort(p)
    assert np.all(np.diff(s[order]) >= 0)


@several
@given(SPECTRA, st.floats(1e-5, 1e5))
def test_scaling_j_scales_every_singular_value(spectrum: Spectrum, factor: float) -> None:
    scaled = spectrum.scaled(factor)
    p = np.array([0.1, 0.3, 0.5, 0.9])
    # By the cdf, because a quantile may be ill conditioned (a curve may be flat at an inner point).
    back = scaled.quantile(p) / factor
    assert np.all(spectrum.cdf(back * (1 + 1e-9)) >= p - 1e-9)
    inside = (back > spectrum.support[0]) & (p > spectrum.zero_mass)
    assert np.all(spectrum.cdf(back[inside] * (1 - 1e-9)) <= p[inside] + 1e-7)
    # Off the nodes by 1e-6, so that rounding does not decide on which side a point mass falls.
    s = places_to_look_at(spectrum) * (1 + 1e-6)
    assert scaled.cdf(factor * s) == pytest.approx(spectrum.cdf(s), abs=1e-9)
    assert scaled.support == pytest.approx([factor * end for end in spectrum.support], rel=1e-12)
    assert scaled.zero_mass == spectrum.zero_mass
    assert scaled.log10_moment(1) == pytest.approx(
        spectrum.log10_moment(1) + 2 * math.log10(factor), abs=1e-9
    )
    assert scaled.isometry(0.49 * factor, 2.1 * factor) == pytest.approx(
        spectrum.isometry(0.49, 2.1), abs=1e-9
    )
    for mine, theirs in zip(scaled.cdf_bounds(factor * s), spectrum.cdf_bounds(s), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-9)


@several
@given(SPECTRA)
def test_isometry_share_is_the_mass_of_the_closed_interval(spectrum: Spectrum) -> None:
    assert spectrum.isometry(0.0, math.inf) == pytest.approx(1.0, abs=1e-12)
    inside = spectrum.isometry(0.5, 2.0)
    assert inside == pytest.approx(
        spectrum.isometry(0.0, 2.0) - spectrum.isometry(0.0, 0.5 * (1 - 1e-9)), abs=1e-7
    )
    for s, mass in spectrum.atoms:
        assert spectrum.isometry(s, s) == pytest.approx(mass, abs=1e-12)


@several
@given(SPECTRA, st.booleans())
def test_density_integrates_to_the_mass_above_zero(spectrum: Spectrum, log: bool) -> None:
    if spectrum.support[1] == 0:
        with pytest.raises(InputError, match="no density to show"):
            spectrum.density(log=log)
        return
    edges, density = spectrum.density(log=log)
    widths = np.diff(np.log10(edges) if log else edges)
    assert np.all(density >= 0)
    assert float(density @ widths) == pytest.approx(1 - spectrum.zero_mass, abs=1e-7)


@several
@given(SPECTRA)
def test_variance_and_moments_obey_their_inequalities(spectrum: Spectrum) -> None:
    assert spectrum.moment(0) == pytest.approx(1.0, abs=1e-9)
    # Jensen: E[s^4] >= E[s^2]^2, in logarithms because s^4 may be 1e24.
    assert spectrum.log10_moment(2) >= 2 * spectrum.log10_moment(1) - 1e-9 or spectrum.mean_square == 0
    if spectrum.variance > 0:
        assert spectrum.variance == pytest.approx(spectrum.moment(2) - spectrum.moment(1) ** 2, rel=1e-12)


@several
@given(SPECTRA)
def test_to_dict_is_json_and_holds_the_reported_fields(spectrum: Spectrum) -> None:
    record = json.loads(json.dumps(spectrum.to_dict(), allow_nan=False))
    wanted = {
        "name", "method", "shape", "null_dimension", "s_max", "s_max_residual", "s_min", "mean_square",
        "mean_square_stderr", "quantiles", "isometry", "products", "seconds", "seed", "dtype", "device",
    }  # fmt: skip
    assert wanted <= record.keys()
    assert tuple(record["quantiles"]) == REPORTED_QUANTILES
    assert record["isometry"]["low"] == 0.5
    assert record["isometry"]["high"] == 2.0
    assert record["isometry"]["fraction"] == spectrum.isometry(0.5, 2.0)


@several
@given(SPECTRA)
def test_every_rendering_shows_the_same_rows(spectrum: Spectrum) -> None:
    text, html = str(spectrum), spectrum._repr_html_()
    for label, _ in spectrum.rows():
        assert label in text
        assert label.replace("<", "&lt;").replace(">", "&gt;") in html
    assert spectrum.verdict() in repr(spectrum)


@several
@given(SPECTRA)
def test_the_summary_is_flat_numbers(spectrum: Spectrum) -> None:
    numbers = spectrum.summary()
    assert all(isinstance(key, str) and type(value) is float for key, value in numbers.items())
    assert {
        "s_max",
        "s_min",
        "mean_square",
        "quantile_0.01",
        "quantile_0.5",
        "quantile_0.99",
        "floor",
        "zero_mass",
        "products",
    } <= numbers.keys()
    assert numbers["quantile_0.5"] == float(spectrum.quantile(0.5)) or (
        math.isnan(numbers["quantile_0.5"]) and spectrum.quantile(0.5) == 0 and spectrum.floor > 0
    )
    if not math.isnan(numbers["isometry"]):
        low, high = numbers["isometry_lower"], numbers["isometry_upper"]
        assert low - 1e-12 <= numbers["isometry"] <= high + 1e-12


def test_the_summary_says_nan_below_the_floor_and_zero_for_zero() -> None:
    hidden = Spectrum.from_singular_values([3.0, 1.0, 1e-15, 1e-15], floor=1e-12).summary()
    assert math.isnan(hidden["quantile_0.5"])
    assert math.isnan(hidden["s_min"])
    assert (hidden["quantile_0.75"], hidden["zero_mass"], hidden["isometry"]) == (1.0, 0.5, 0.25)
    zeros = Spectrum.from_singular_values([3.0, 1.0, 0.0, 0.0]).summary()
    assert zeros["quantile_0.5"] == 0.0
    # A floor above 0.5: how much of the mass below it lies in [0.5, 2] is not known.
    coarse = Spectrum.from_singular_values([3.0, 1.0, 0.6, 0.1], floor=0.7).summary()
    assert math.isnan(coarse["isometry"])
    assert (coarse["isometry_lower"], coarse["isometry_upper"]) == (0.25, 0.75)


# ---- measured: nodes and weights ---------------------------------------------------------------------------


@several
@given(quadratures(), st.integers(1, 4))
def test_moments_are_weighted_sums_over_the_nodes(spectrum: Spectrum, order: int) -> None:
    d = spectrum.distribution
    assert isinstance(d, Quadrature)
    direct = float(np.mean(np.sum(d.weights * d.nodes ** (2 * order), axis=-1)))
    assert spectrum.moment(order) == pytest.approx(direct, rel=1e-12)


@several
@given(quadratures())
def test_zero_mass_is_what_lies_at_or_below_the_floor(spectrum: Spectrum) -> None:
    d = spectrum.distribution
    assert isinstance(d, Quadrature)
    lost = np.where(d.nodes <= d.floor[:, None, None], d.weights, 0).sum(-1).mean()
    assert spectrum.below_floor == spectrum.zero_mass == pytest.approx(lost, abs=1e-12)
    low, high = spectrum.support
    assert low > 0 or high == 0


@several
@given(quadratures())
def test_bounds_enclose_the_quadrature_itself(spectrum: Spectrum) -> None:
    s = places_to_look_at(spectrum)
    lower, upper = spectrum.cdf_bounds(s)
    assert np.all((lower >= -1e-15) & (upper <= 1))
    assert np.all((np.diff(lower) >= -1e-12) & (np.diff(upper) >= -1e-12))
    assert np.all(lower <= spectrum.cdf(s) + 1e-12)
    # Below the floor the quadrature counts as zero what may lie anywhere up to it.
    above = s >= spectrum.floor
    assert np.all(upper[above] >= spectrum.cdf(s[above]) - 1e-12)


@several
@given(SPECTRA, st.sampled_from([0.5, 0.95, 0.999]), st.booleans())
def test_the_band_rises_and_holds_the_cdf(spectrum: Spectrum, confidence: float, simultaneous: bool) -> None:
    s = np.sort(np.concatenate([places_to_look_at(spectrum), np.geomspace(1e-6, 1e6, 13)]))
    cdf = spectrum.cdf(s)
    lower, upper = spectrum.cdf_band(s, confidence, simultaneous=simultaneous)
    assert lower.shape == upper.shape == s.shape
    assert np.all((lower >= 0) & (upper <= 1))
    assert np.all((np.diff(lower) >= -1e-12) & (np.diff(upper) >= -1e-12))
    assert np.all((lower <= cdf + 1e-12) & (upper >= cdf - 1e-12))
    # One place at a time says the same: no limit depends on where else it was asked.
    assert [float(limit) for limit in spectrum.cdf_band(s[7], confidence, simultaneous=simultaneous)] == [
        pytest.approx(float(lower[7]), abs=1e-12), pytest.approx(float(upper[7]), abs=1e-12)
    ]  # fmt: skip
    if spectrum.kind == "predicted":
        assert np.array_equal(lower, cdf)
        assert np.array_equal(upper, cdf)
    wider = spectrum.cdf_band(s, 0.5 + confidence / 2, simultaneous=simultaneous)
    assert np.all((wider[0] <= lower + 1e-12) & (wider[1] >= upper - 1e-12))
    low, high = spectrum.isometry_band(0.5, 2.0, confidence)
    assert low - 1e-12 <= spectrum.isometry() <= high + 1e-12


def test_the_band_of_an_exact_measurement_is_its_cdf_from_the_floor_upwards() -> None:
    spectrum = Spectrum.from_singular_values([3.0, 0.7, 0.7, 1e-12], floor=1e-9)
    s = np.array([4.0, 0.71, 2.0, 0.69, 1e-9, 1e-13, 0.0])
    lower, upper = spectrum.cdf_band(s)
    assert lower.tolist() == [1.0, 0.75, 0.75, 0.25, 0.25, 0.0, 0.0]
    assert upper.tolist() == [1.0, 0.75, 0.75, 0.25, 0.25, 0.25, 0.25]
    # Within rounding of a value nobody knows on which side of s it lies.
    assert [limit.tolist() for limit in spectrum.cdf_band([0.7, 3.0])] == [[0.25, 0.75], [0.75, 1.0]]
    assert spectrum.isometry_band() == (0.5, 0.5)


def test_a_confidence_is_between_zero_and_one() -> None:
    spectrum = Spectrum.from_singular_values([1.0])
    for ask in (spectrum.cdf_band, lambda s, confidence: spectrum.isometry_band(0.5, 2, confidence)):
        for confidence in (0.0, 1.0, 95, math.nan):
            with pytest.raises(InputError, match="between 0 and 1"):
                ask(1.0, confidence)


@pytest.mark.parametrize("size", [2, 5, 9])
def test_cdf_bounds_contain_a_known_cdf(size: int) -> None:
    """The Gauss-Legendre rule of lambda uniform on [0, 1] (cdf s^2), and the same with 0.3 at s = 1/2 for certain."""
    x, w = np.polynomial.legendre.leggauss(size)
    nodes, weights = np.sqrt((x + 1) / 2), w / 2
    s = np.concatenate([np.linspace(0, 1.2, 301), nodes])
    alone = Spectrum(
        Quadrature(nodes[None, None], weights[None, None], np.zeros(1), np.zeros((1, 1, size), bool)),
        "lanczos",
    )
    mixed = Spectrum(
        Quadrature(
            np.append(nodes, 0.5)[None, None],
            np.append(0.7 * weights, 0.3)[None, None],
            np.zeros(1),
            np.append(np.zeros(size, bool), True)[None, None],
        ),
        "randomized",
    )
    smooth = np.minimum(s, 1) ** 2
    for spectrum, truth in ((alone, smooth), (mixed, 0.7 * smooth + 0.3 * (s >= 0.5))):
        lower, upper = spectrum.cdf_bounds(s)
        # 1e-13: rounding of the tabulated rule.
        assert np.all(lower <= truth + 1e-13)
        assert np.all(upper >= truth - 1e-13)
        # Useful as well as true: nowhere wider than three neighbouring masses.
        assert float((upper - lower).max()) <= 3 * weights.max() + 1e-13


def test_bounds_of_an_exact_measurement_are_its_cdf_down_to_the_floor() -> None:
    spectrum = Spectrum.from_singular_values([3.0, 0.7, 0.7, 1e-12], floor=1e-9)
    s = np.array([3.0, 0.7, 2.0, 1e-9, 0.0])
    lower, upper = spectrum.cdf_bounds(s)
    assert lower.tolist() == [1.0, 0.75, 0.75, 0.25, 0.0]
    assert upper.tolist() == [1.0, 0.75, 0.75, 0.25, 0.25]


def test_known_singular_values() -> None:
    spectrum = Spectrum.from_singular_values([4.0, 2.0, 1.0, 0.5], shape=(4, 7), name="four")
    assert spectrum.null_dimension == 3
    assert spectrum.kind == "measured"
    assert (spectrum.s_max, spectrum.s_min, spectrum.condition_number) == (4.0, 0.5, 8.0)
    assert spectrum.mean_square == pytest.approx((16 + 4 + 1 + 0.25) / 4, rel=1e-15)
    assert spectrum.moment(-1) == pytest.approx((1 / 16 + 1 / 4 + 1 + 4) / 4, rel=1e-14)
    assert spectrum.variance == pytest.approx(np.var([16, 4, 1, 0.25]), rel=1e-13)
    assert spectrum.isometry() == 0.75
    assert spectrum.isometry(2.0, 2.0) == 0.25
    assert spectrum.isometry_stderr() == spectrum.mean_square_stderr == 0.0
    assert spectrum.mean_square_interval() == (spectrum.mean_square, spectrum.mean_square)
    assert spectrum.quantile([0.25, 0.26, 1.0]) == pytest.approx([0.5, 1.0, 4.0], rel=1e-14)
    assert spectrum.cdf(spectrum.quantile([0.25, 0.5, 0.75, 1.0])).tolist() == [0.25, 0.5, 0.75, 1.0]
    assert "four" in str(spectrum)


def test_a_singular_matrix_is_singular_and_says_where_its_floor_is() -> None:
    spectrum = Spectrum.from_singular_values([3.0, 1.0, 1e-17, 0.0], floor=1e-14)
    assert spectrum.below_floor == 0.5
    assert spectrum.atoms == [(0.0, 0.5)]
    assert spectrum.condition_number == math.inf
    assert math.isnan(spectrum.s_min)
    assert spectrum.quantile(0.5) == 0.0
    assert spectrum.quantile_text(0.5) == "< 1e-14"
    assert spectrum.moment(-1) == math.inf
    record = spectrum.to_dict()
    assert record["condition_number"] is None
    assert record["quantiles"]["0.5"] is None
    assert record["below_floor"] == 0.5


def test_mass_below_the_floor_of_a_krylov_method_is_not_called_singular() -> None:
    """Its floor is s_max / steps: what lies below may be zero or not, so the condition number is not known."""
    distribution = Quadrature(
        np.array([[[1.0, 0.001]]]), np.array([[[0.5, 0.5]]]), np.array([0.02]), np.zeros((1, 1, 2), bool)
    )
    extremes = Extremes(
        np.array([[1.0]]), np.array([[1e-6]]), np.array([0.001]), np.array([0.01]), np.array([False])
    )
    spectrum = Spectrum(distribution, "lanczos", (9, 9), extremes)
    assert spectrum.below_floor == 0.5
    assert math.isnan(spectrum.condition_number)
    assert spectrum.s_min_bound == 0.001
    assert "at least" in dict(spectrum.rows())["condition number"]


def test_one_gauss_node_is_not_an_exact_answer() -> None:
    """One step of one probe carries all mass on one node, and its error is unknown, not zero."""
    one = np.ones((1, 1, 1))
    guess = Spectrum(Quadrature(one, one, np.zeros(1), np.zeros((1, 1, 1), bool)), "lanczos")
    closed = Spectrum(Quadrature(one, one, np.zeros(1), np.ones((1, 1, 1), bool)), "lanczos")
    assert math.isnan(guess.mean_square_stderr)
    assert guess.to_dict()["mean_square_stderr"] is None
    assert closed.mean_square_stderr == 0.0


def test_standard_errors_over_probes_and_over_inputs() -> None:
    """Two inputs with two probes each: the errors of the mean by their definitions."""
    nodes = np.sqrt(np.array([[[1.0], [3.0]], [[10.0], [14.0]]]))
    spectrum = Spectrum(
        Quadrature(nodes, np.ones((2, 2, 1)), np.zeros(2), np.zeros((2, 2, 1), bool)), "lanczos"
    )
    assert spectrum.mean_square == pytest.approx(7.0, rel=1e-15)
    # Over probes: variances 2 and 8 of single probes; (2 / 2 + 8 / 2) / 2^2 for the mean of the two inputs' means.
    assert spectrum.mean_square_stderr == pytest.approx(math.sqrt((2 / 2 + 8 / 2) / 4), rel=1e-14)
    # Over inputs: means 2 and 12.
    assert spectrum.moment_stderr(1, over="inputs") == pytest.approx(
        np.std([2, 12], ddof=1) / math.sqrt(2), rel=1e-14
    )
    low, high = spectrum.mean_square_interval(0.95)
    # One Gauss node tells no E s^4: Student's t with the degrees of Welch, (1 + 4)^2 / (1^2 + 4^2).
    half = special.stdtrit(25 / 17, 0.975) * spectrum.mean_square_stderr
    assert (low, high) == pytest.approx((max(7 - half, 0), 7 + half), rel=1e-8)
    # Mass at or below sqrt(3): rows 1, 1, 0, 0. At sqrt(2) half of the first input, of one dimension: 2 F (1 - F) / 3.
    assert spectrum.cdf_stderr(math.sqrt(3.0)) == 0.0
    wanted = pytest.approx(math.sqrt(2 * 0.25 / 3 / 2) / 2, rel=1e-14)
    assert spectrum.cdf_stderr(math.sqrt(2.0)) == wanted
    assert spectrum.isometry_stderr(1.2, 2.0) == wanted
    with pytest.raises(InputError, match='"probes" or "inputs"'):
        spectrum.moment_stderr(1, over="seeds")


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 30, 99, 100, 1000])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_rules_of_one_step_have_students_t(degrees: int, level: float) -> None:
    """degrees + 1 probes; SciPy's t distribution is the reference."""
    squares = np.linspace(1, 2, degrees + 1)
    shape = (1, degrees + 1, 1)
    spectrum = Spectrum(
        Quadrature(np.sqrt(squares).reshape(shape), np.ones(shape), np.zeros(1), np.zeros(shape, bool)),
        "lanczos",
    )
    low, high = spectrum.mean_square_interval(level)
    half = special.stdtrit(degrees, 0.5 + level / 2) * squares.std(ddof=1) / math.sqrt(squares.size)
    wanted = squares.mean() - half, squares.mean() + half
    assert (low, high) == pytest.approx((max(wanted[0], 0), wanted[1]), rel=1e-9)


def test_one_input_of_several() -> None:
    spectrum = Spectrum.from_singular_values([[2.0, 1.0], [8.0, 4.0]])
    assert spectrum.n_inputs == 2
    assert spectrum.mean_square == pytest.approx((2.5 + 40) / 2, rel=1e-15)
    assert spectrum.input(0).mean_square == pytest.approx(2.5, rel=1e-15)
    assert spectrum.input(-1).s_max == 8.0
    assert (spectrum.s_max, spectrum.s_min) == (8.0, 1.0)
    with pytest.raises(InputError, match="there are 2"):
        spectrum.input(2)


def test_numbers_outside_the_range_of_floats_are_none_beside_their_logarithm() -> None:
    """s = e^400 and e^-400: s^2 leaves the range of floats both ways, s itself does not."""
    for sign in (1, -1):
        spectrum = Spectrum.from_singular_values([math.exp(400.0 * sign)])
        record = spectrum.to_dict()
        assert record["mean_square"] is None
        assert record["log10_mean_square"] == pytest.approx(sign * 800 / math.log(10), rel=1e-12)
        assert record["s_max"] == math.exp(400.0 * sign)
        back = spectrum.log_shifted(-400.0 * sign)
        assert back.mean_square == pytest.approx(1.0, rel=1e-12)


def test_a_shift_by_more_than_a_float_holds() -> None:
    """exp(1000) is no float, exp(-600) * exp(1000) is."""
    spectrum = Spectrum.from_singular_values([math.exp(-600.0)])
    shifted = spectrum.log_shifted(1000.0)
    assert shifted.s_max == pytest.approx(math.exp(400.0), rel=1e-13)
    assert shifted.log10_quantile(0.5) == pytest.approx(400 / math.log(10), rel=1e-13)
    with pytest.raises(InputError, match="range of floats"):
        spectrum.log_shifted(1400.0)


def test_the_json_of_top_values_leaves_out_what_was_not_found() -> None:
    extremes = Extremes(
        np.array([[2.0, np.nan]]),
        np.array([[1e-3, np.nan]]),
        np.array([2.0]),
        np.array([1e-3]),
        np.array([True]),
    )
    nodes = np.full((1, 1, 1), 2.0)
    spectrum = Spectrum(
        Quadrature(nodes, np.ones((1, 1, 1)), np.zeros(1), np.ones((1, 1, 1), bool)),
        "lanczos",
        (3, 3),
        extremes,
    )
    assert json.loads(json.dumps(spectrum.to_dict(), allow_nan=False))["top"] == [
        {"s": 2.0, "residual": 1e-3}
    ]


# ---- predicted: a curve ------------------------------------------------------------------------------------


def uniform_in_log(low: float, high: float, atoms: dict[float, float] | None = None) -> Spectrum:
    """ln s uniform on [low, high], with point masses {ln s: mass} beside it."""
    atoms = atoms or {}
    rest = 1 - sum(atoms.values())
    grid = np.linspace(low, high, 201)
    return Spectrum(
        Curve(
            grid, rest * (grid - low) / (high - low), np.full(grid.size, rest / (high - low)),
            np.array(list(atoms), float), np.array(list(atoms.values()), float),
        ),
        method="predicted",
    )  # fmt: skip


@pytest.mark.parametrize("order", [1, 2, 3, -1])
def test_moments_of_a_curve_match_the_closed_form(order: int) -> None:
    """E[s^2k] = (e^{2k b} - e^{2k a}) / (2 k (b - a)); five Gauss points a cell of width 0.01 leave 1e-13."""
    low, high = -1.0, 1.0
    spectrum = uniform_in_log(low, high, {0.5: 0.25})
    k = 2 * order
    continuous = (math.exp(k * high) - math.exp(k * low)) / (k * (high - low))
    assert spectrum.moment(order) == pytest.approx(0.75 * continuous + 0.25 * math.exp(0.5 * k), rel=1e-12)


def test_a_curve_answers_like_its_definition() -> None:
    spectrum = uniform_in_log(-2.0, 2.0, {-math.inf: 0.2, 1.0: 0.3})
    assert spectrum.kind == "predicted"
    assert spectrum.zero_mass == pytest.approx(0.2)
    s = np.exp(np.array([-2.0, -1.0, 0.0, 0.999, 1.0, 2.0]))
    assert spectrum.cdf(s) == pytest.approx(
        [0.2, 0.325, 0.45, 0.45 + 0.999 * 0.125, 0.45 + 0.125 + 0.3, 1.0], abs=1e-12
    )
    assert spectrum.quantile([0.1, 0.2]).tolist() == [0.0, 0.0]
    assert spectrum.log10_quantile([0.325, 0.6, 0.8, 1.0]) * math.log(10) == pytest.approx(
        [-1, 1, 1, 2], abs=1e-9
    )
    assert [mass for _, mass in spectrum.atoms] == pytest.approx([0.2, 0.3])
    # The whole jump is found at the very number that quantile names, although ln and exp round.
    place = spectrum.quantile(0.7)
    assert spectrum.cdf(place) == pytest.approx(0.875, abs=1e-12)
    assert spectrum.isometry(float(place), float(place)) == pytest.approx(0.3, abs=1e-12)
    assert spectrum.s_min == 0.0
    assert spectrum.condition_number == math.inf
    assert spectrum.mean_square_stderr == spectrum.isometry_stderr() == 0.0
    assert spectrum.cdf_stderr([0.5, 1.0]).tolist() == [0.0, 0.0]
    for bound in spectrum.cdf_bounds(s):
        assert bound.tolist() == spectrum.cdf(s).tolist()


def test_known_moments_take_precedence_and_follow_a_shift() -> None:
    curve = uniform_in_log(-1.0, 1.0).distribution
    assert isinstance(curve, Curve)
    told = Curve(
        curve.log_s, curve.cdf_continuous, curve.log_density, curve.atom_log_s, curve.atom_mass, (0.3, 0.9)
    )
    spectrum = Spectrum(told, "predicted")
    assert spectrum.mean_square == pytest.approx(math.exp(0.3), rel=1e-15)
    assert spectrum.log_shifted(2.0).log10_moment(2) == pytest.approx((0.9 + 8.0) / math.log(10), rel=1e-14)


def test_a_prediction_beyond_the_range_of_floats_says_so() -> None:
    """ln s around +-1000: no float holds s, and no number may be made up in its place."""
    high, low = uniform_in_log(999.0, 1000.0), uniform_in_log(-1000.0, -999.0)
    assert high.s_max == math.inf
    assert high.moment(1) == math.inf
    assert high.log10_quantile(1.0) == pytest.approx(1000 / math.log(10), rel=1e-12)
    assert high.condition_number == pytest.approx(math.e, rel=1e-9)
    for spectrum, keys in ((high, ("s_max", "mean_square")), (low, ("mean_square", "s_min"))):
        record = json.loads(json.dumps(spectrum.to_dict(), allow_nan=False))
        assert [record[key] for key in keys] == [None, None]
        assert record["quantiles"]["0.5"] is None
        assert record["log10_quantiles"]["0.5"] == pytest.approx(
            float(spectrum.log10_quantile(0.5)), rel=1e-12
        )
        assert spectrum.quantile_text(0.5).startswith("1e")


# ---- refusals ----------------------------------------------------------------------------------------------


def test_what_is_no_distribution_is_refused_by_name() -> None:
    one = np.ones((1, 1, 2))
    half, sure, zero = 0.5 * one, np.ones((1, 1, 2), bool), np.zeros(1)
    cases = [
        (lambda: Quadrature(one, one, zero, sure), "sum to 1"),
        (lambda: Quadrature(-one, half, zero, sure), "not negative"),
        (lambda: Quadrature(np.nan * one, half, zero, sure), "NaN or inf"),
        (lambda: Quadrature(one, half, np.zeros(2), sure), "one entry per input"),
        (lambda: Quadrature(one[0], half, zero, sure), "one shape"),
        (lambda: Spectrum.from_singular_values([]), "singular values"),
        (lambda: Spectrum.from_singular_values([1.0, 2.0], shape=(3, 4)), "has 3 singular values; got 2"),
        (lambda: Curve(np.arange(2.0), np.array([0, 0.5]), np.ones(2), np.empty(0), np.empty(0)), "sum to 1; got 0.5"),
        (lambda: Curve(np.zeros(2), np.array([0, 1.0]), np.ones(2), np.empty(0), np.empty(0)), "increases"),
        (lambda: Curve(np.arange(2.0), np.array([1, 0.0]), np.ones(2), np.empty(0), np.empty(0)), "does not fall"),
    ]  # fmt: skip
    for make, message in cases:
        with pytest.raises(InputError, match=message):
            make()


def test_questions_without_an_answer_are_refused() -> None:
    spectrum = Spectrum.from_singular_values([1.0, 2.0])
    cases = [
        (lambda: spectrum.quantile(1.5), r"probabilities in \[0, 1\]"),
        (lambda: spectrum.quantile(math.nan), r"probabilities in \[0, 1\]"),
        (lambda: spectrum.cdf(-1.0), "not negative"),
        (lambda: spectrum.isometry(2.0, 1.0), "low <= high"),
        (lambda: spectrum.scaled(0.0), "positive finite factor"),
        (lambda: spectrum.density([0.0, 1.0], log=True), "edges above zero"),
        (lambda: spectrum.density([1.0]), "at least two"),
    ]
    for ask, message in cases:
        with pytest.raises(InputError, match=message):
            ask()


def test_verdicts_follow_spread_and_scale() -> None:
    verdicts = {
        "isometric: scale 1, 100 % of the singular values within a factor 2 of it": [1.0] * 20,
        "isometric up to scale: scale 0.01 (signals fade), 100 %": [0.01] * 20,
        "isometric up to scale: scale 1e+04 (signals grow), 100 %": [1e4] * 20,
        "partly isometric: scale 0.7772": [1.0] * 12 + [0.1] * 8,
        "not isometric, few directions dominate: scale 64.56 (signals grow), 0 %": [500.0] + [1.0] * 59,
        "partly isometric up to scale: scale 8660 (signals grow), 75 %": [1e4] * 15 + [1.0] * 5,
        "not isometric, signals vanish in most directions: scale 0.5, 25 %": [1e-4] * 15 + [1.0] * 5,
        "no signal passes: all singular values are zero": [0.0] * 20,
        "75 % are zero": [0.0] * 15 + [1.0] * 5,
    }
    for text, values in verdicts.items():
        assert text in Spectrum.from_singular_values(values).verdict()


def test_a_floor_above_the_lower_end_leaves_the_share_open() -> None:
    """Half of the mass is only known to lie below 0.9: it may be inside [0.5, 2] or not, and no verdict is made up."""
    nodes = np.array([[[1.5, 1.0, 0.3, 0.1]]])
    weights = np.array([[[0.3, 0.2, 0.4, 0.1]]])

    def known_down_to(floor: float) -> Spectrum:
        measure = Quadrature(nodes, weights, np.array([floor]), np.zeros(nodes.shape, bool))
        return Spectrum(measure, method="lanczos", shape=(9, 9))

    coarse, fine = known_down_to(0.9), known_down_to(0.2)
    assert coarse.isometry_bounds() == pytest.approx((0.5, 1.0))
    assert coarse.verdict().startswith("not resolved: scale")
    assert coarse.to_dict()["isometry"]["fraction_at_most"] == pytest.approx(1.0)
    assert dict(coarse.rows())["in [0.5, 2]"] == "50 to 100 %"
    assert fine.isometry_bounds() == pytest.approx((0.5, 0.5))
    assert fine.verdict().startswith("partly isometric: scale 0.955")
    # From zero on nothing is hidden, and a share that is high enough without the hidden mass is a verdict.
    assert coarse.isometry_bounds(0.0, 2.0) == pytest.approx((1.0, 1.0))
    assert coarse.isometry_bounds(0.95, 1.2) == pytest.approx((0.2, 0.2))


def test_names_are_escaped_in_a_notebook() -> None:
    html = Spectrum.from_singular_values([1.0], name="<script>")._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


@pytest.mark.parametrize(
    ("least", "most", "text"),
    [
        (7.0e-5, 3.4e-4, "0.007 to 0.034 %"),
        (0.25, 0.25, "25 %"),
        (0.2500001, 0.25, "25 %"),
        (0.98, 1.0, "98 to 100 %"),
    ],
)
def test_limits_of_a_share_are_both_shown_where_their_digits_differ(least, most, text):
    assert percent_text(least, most) == text
