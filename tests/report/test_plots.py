"""Pictures: what is drawn adds up to the distribution, and the same spectrum gives the same bytes."""

from __future__ import annotations

import math
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from isometry.errors import InputError
from isometry.report.plots import figure_of_spectra, plot_cdf, plot_density, plot_spectra, save_figure
from isometry.spectrum import Curve, Quadrature, Spectrum


def quarter_circle(zero: float = 0.0, atom: float = 0.0, points: int = 4000) -> Spectrum:
    """A predicted law: density sqrt(4 - s^2)/pi on [0, 2], with masses at zero and at s = 3."""
    s = 2 * np.sin(np.linspace(1e-4, math.pi / 2, points))
    share = 1 - zero - atom
    cdf = share * (s * np.sqrt(np.maximum(4 - s**2, 0)) / 2 + 2 * np.arcsin(s / 2)) / math.pi
    density = share * np.sqrt(np.maximum(4 - s**2, 0)) / math.pi * s
    places = np.array(([-np.inf] if zero else []) + ([math.log(3.0)] if atom else []))
    masses = np.array(([zero] if zero else []) + ([atom] if atom else []))
    return Spectrum(Curve(np.log(s), cdf, density, places, masses), method="predicted", name="theory")


def arcsine_quadrature(count: int = 12, probes: int = 5) -> Spectrum:
    """Gauss-Chebyshev rules for the arcsine law on [1, 3], one for each probe, slightly shaken."""
    angles = (2 * np.arange(1, count + 1) - 1) * math.pi / (2 * count)
    shake = 1 + 1e-3 * np.random.default_rng(1).standard_normal((1, probes, 1))
    nodes = np.broadcast_to(2 + np.cos(angles), (1, probes, count)) * shake
    weights = np.full(nodes.shape, 1 / count)
    return Spectrum(
        Quadrature(nodes, weights, np.zeros(1), np.zeros(nodes.shape, bool)), method="lanczos", name="arcsine"
    )


def drawn_mass(ax: mpl.axes.Axes) -> float:
    """Area under the outlines of all histograms in the axes."""
    outlines = [patch for patch in ax.patches if isinstance(patch, StepPatch) and patch.get_fill() is False]
    return sum(float(np.sum(p.get_data().values * np.diff(p.get_data().edges))) for p in outlines)


def legend_texts(ax: mpl.axes.Axes) -> list[str]:
    legend = ax.get_legend()
    return [text.get_text() for text in legend.get_texts()] if legend else []


@pytest.mark.parametrize("log", [True, False])
def test_a_histogram_holds_all_mass_that_is_not_at_zero(log: bool) -> None:
    values = np.random.default_rng(0).uniform(0.5, 2, 400)
    values[:100] = 0
    ax = plot_density(Spectrum.from_singular_values(values), log=log)
    assert drawn_mass(ax) == pytest.approx(0.75, abs=1e-12)
    assert any("25 % at zero" in text for text in legend_texts(ax))


def test_a_predicted_density_integrates_to_its_continuous_mass_and_shows_its_atoms() -> None:
    ax = plot_density(quarter_circle(zero=0.3, atom=0.2))
    x, y = next(line.get_data() for line in ax.lines if len(line.get_xdata()) > 100)
    # Cell means times cell widths: exactly the mass right of the first cell's edge s; the tail beyond it is not drawn.
    s = 10 ** (x[0] - 0.5 * (x[1] - x[0]))
    tail = (s * math.sqrt(4 - s**2) / 2 + 2 * math.asin(s / 2)) / math.pi
    assert tail < 0.002
    assert np.sum(y) * (x[1] - x[0]) == pytest.approx(0.5 * (1 - tail), abs=1e-6)
    assert legend_texts(ax) == ["theory", "   20 % at s = 3", "   30 % at zero"]


def test_the_arrow_of_a_point_mass_is_as_high_as_its_mass() -> None:
    ax = plot_density(quarter_circle(zero=0.0, atom=0.25))
    stem = next(line for line in ax.lines if len(line.get_xdata()) == 2)
    assert stem.get_xdata()[0] == pytest.approx(math.log10(3.0))
    assert stem.get_ydata()[1] == pytest.approx(0.97 * 0.25)


def test_an_isometry_is_an_arrow_and_does_not_flatten_its_neighbour() -> None:
    generator = np.random.default_rng(0)
    isometry = Spectrum.from_singular_values(1 + 1e-6 * generator.standard_normal(300), name="isometry")
    broad = Spectrum.from_singular_values(10 ** generator.uniform(-3, 1, 300), name="broad")
    ax = plot_spectra([isometry, broad])
    assert drawn_mass(ax) == pytest.approx(1.0, abs=1e-12)
    # The broad one has density 1/4 per decade; a needle in one of 60 cells would reach 15.
    assert ax.get_ylim()[1] < 1.0
    assert any(text.strip().startswith("100 % within") for text in legend_texts(ax))


def test_the_floor_of_a_measurement_is_named_with_its_mass() -> None:
    spectrum = Spectrum.from_singular_values([1.0, 0.5, 0.2, 1e-9], floor=1e-6)
    assert any("25 % below the floor (1e-06)" in text for text in legend_texts(plot_density(spectrum)))
    # Beside a spectrum that reaches further down, the arrow stands at the floor and as high as the mass.
    deep = Spectrum.from_singular_values([1.0, 1e-9], name="deep")
    ax = plot_spectra([spectrum, deep])
    marker = next(line for line in ax.lines if line.get_marker() == "<")
    assert (marker.get_xdata()[0], marker.get_ydata()[0]) == (pytest.approx(-6), pytest.approx(0.97 * 0.25))


def test_a_long_thin_tail_does_not_fill_the_picture_and_is_counted() -> None:
    t = np.array([-301.0, -1.0, 0.0]) * math.log(10)
    curve = Curve(t, np.array([0.0, 0.005, 1.0]), np.array([0.0, 0.0, 0.4]), np.empty(0), np.empty(0))
    ax = plot_density(Spectrum(curve, method="predicted", name="tail"))
    assert ax.get_xlim()[0] > -2
    assert any("0.5 % further left" in text for text in legend_texts(ax))


def test_the_cdf_band_contains_the_law_that_the_quadrature_stands_for() -> None:
    spectrum = arcsine_quadrature()
    ax = plot_cdf(spectrum)
    bands = [collection.get_paths()[0].vertices for collection in ax.collections]
    assert len(bands) == 2, "one band for the probes, one with the truncation on top"
    x, y = bands[1][:, 0], bands[1][:, 1]
    grid = np.log10(np.linspace(1.05, 2.95, 60))
    half = len(x) // 2
    upper = np.interp(grid, *sorted_curve(x[half:], y[half:]))
    lower = np.interp(grid, *sorted_curve(x[:half], y[:half]))
    lower, upper = np.minimum(lower, upper), np.maximum(lower, upper)
    truth = 1 - np.arccos(10**grid - 2) / math.pi
    assert np.all(lower <= truth + 1e-9)
    assert np.all(truth <= upper + 1e-9)
    # The bound is not vacuous: at most three weights and the spread of the probes wide.
    assert np.all(upper - lower <= 3.3 / 12)


def sorted_curve(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(x, kind="stable")
    return x[order], y[order]


def test_an_exact_measurement_has_no_band() -> None:
    assert not plot_cdf(Spectrum.from_singular_values([1.0, 2.0, 3.0])).collections


def test_a_given_ax_is_drawn_into_and_returned_and_settings_stay() -> None:
    figure = Figure()
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    before = dict(mpl.rcParams)
    assert plot_density(Spectrum.from_singular_values([1.0, 2.0]), ax) is ax
    assert plot_cdf(Spectrum.from_singular_values([1.0, 2.0])) is not ax
    assert dict(mpl.rcParams) == before


def test_two_calls_into_one_ax_show_both() -> None:
    ax = plot_density(Spectrum.from_singular_values(np.geomspace(0.01, 0.1, 50), name="low"))
    plot_density(Spectrum.from_singular_values(np.geomspace(1, 100, 50), name="high"), ax)
    low, high = ax.get_xlim()
    assert low <= -2
    assert high >= 2
    assert legend_texts(ax) == ["low", "high"]
    assert drawn_mass(ax) == pytest.approx(2.0)


@pytest.mark.parametrize("name", ["_hidden", "$x$ and $y$", "50 % & <b>", ""])
def test_any_name_is_shown_as_it_is(name: str) -> None:
    spectrum = Spectrum.from_singular_values(np.geomspace(0.1, 1, 40), name=name)
    ax = plot_density(spectrum)
    (text,) = ax.get_legend().get_texts()
    assert text.get_text().lstrip("\u200b") == (name or "measured (exact)")
    assert not text.get_parse_math()
    ax.figure.canvas.draw()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-3, 1, ["$10^{-3}$", "$10^{0}$"]),
        (-2, 2, ["0.01", "1", "100"]),
        (-0.05, 0.05, ["0.9", "1", "1.1"]),
        (-2000, 10, ["$10^{-1500}$"]),
    ],
)
def test_the_log_axis_is_labelled_with_values_of_s(low: float, high: float, expected: list[str]) -> None:
    t = np.linspace(low, high, 200) * math.log(10)
    cdf = np.linspace(0, 1, 200)
    density = np.full(200, 1 / (t[-1] - t[0]))
    ax = plot_density(Spectrum(Curve(t, cdf, density, np.empty(0), np.empty(0)), method="predicted"))
    ax.figure.canvas.draw()
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert set(expected) <= set(labels)
    assert "s" in ax.get_xlabel()
    assert "log" in ax.get_xlabel()


def test_all_singular_values_zero_is_a_picture_not_an_error() -> None:
    ax = plot_density(Spectrum.from_singular_values(np.zeros(5), name="dead"))
    assert any("100 % at zero" in text for text in legend_texts(ax))
    ax.figure.canvas.draw()


def test_more_spectra_than_colours_are_told_apart() -> None:
    spectra = [Spectrum.from_singular_values(np.geomspace(k, 10 * k, 30), name=str(k)) for k in range(1, 12)]
    ax = plot_spectra(spectra, kind="cdf")
    assert len({line.get_color() for line in ax.lines}) == 11


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_same_spectra_give_the_same_bytes(tmp_path, ending: str) -> None:
    spectra = [quarter_circle(zero=0.1), arcsine_quadrature()]
    first = save_figure(figure_of_spectra(spectra), tmp_path / f"first.{ending}")
    second = save_figure(figure_of_spectra(spectra), tmp_path / f"second.{ending}")
    assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"first.{ending}", f"second.{ending}"]


def test_an_unknown_ending_and_an_absent_folder_are_named(tmp_path) -> None:
    figure = plot_density(quarter_circle()).figure
    with pytest.raises(InputError, match=r"\.png, \.svg or \.pdf"):
        save_figure(figure, tmp_path / "picture.jpeg")
    with pytest.raises(InputError, match="cannot write"):
        save_figure(figure, tmp_path / "absent" / "picture.png")


def test_drawing_needs_neither_pyplot_nor_a_display(tmp_path) -> None:
    code = (
        "import sys; from isometry.spectrum import Spectrum\n"
        "Spectrum.from_singular_values([1.0, 2.0, 3.0]).plot().figure.savefig(sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png")], check=True, env={"MPLBACKEND": "TkAgg"}
    )
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "call",
    [
        lambda: plot_spectra([]),
        lambda: plot_spectra([quarter_circle()], kind="violin"),
        lambda: plot_spectra([quarter_circle()], labels=["a", "b"]),
    ],
)
def test_what_cannot_be_drawn_is_refused(call) -> None:
    with pytest.raises(InputError):
        call()
