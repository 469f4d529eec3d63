"""The terminal report: right numbers, within the width, in any encoding."""

from __future__ import annotations

import io
import math
import time

import numpy as np
import pytest
from rich.cells import cell_len

from isometry.errors import InputError
from isometry.report.tables import print_table
from isometry.report.terminal import print_report
from isometry.spectrum import Curve, Quadrature, Spectrum
from isometry.spectrum.histogram import histogram


def report(*spectra: Spectrum, width: int | None = 80) -> str:
    stream = io.StringIO()
    print_report(list(spectra), file=stream, width=width)
    return stream.getvalue()


def decades() -> Spectrum:
    """Singular values 10, 1 (three of them), 0.1, 0.01, and two below the floor."""
    return Spectrum.from_singular_values([10, 1, 1, 1, 0.1, 0.01, 1e-9, 1e-10], floor=1e-6, name="decades")


def test_the_histogram_counts() -> None:
    cells = histogram([decades()])
    middles = 0.5 * (cells.edges[1:] + cells.edges[:-1])
    mass = {round(float(m), 9): float(w) for m, w in zip(middles, cells.masses[0], strict=True) if w > 0}
    assert mass == pytest.approx({1.0: 1 / 8, 0.0: 3 / 8, -1.0: 1 / 8, -2.0: 1 / 8})
    assert cells.at_zero[0] == 0.25


@pytest.mark.parametrize("spread", [1e-12, 1e-6, 1e-3])
def test_an_isometry_is_one_row_whichever_side_of_one_rounding_leaves_it(spread: float) -> None:
    values = 1 + spread * np.linspace(-1, 1, 50)
    cells = histogram([Spectrum.from_singular_values(values)])
    assert cells.masses.shape == (1, 1)
    assert cells.masses[0, 0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("low", "high"), [(-20.0, 1.0), (-2000.0, 3.0), (0.0, 0.31), (2.99, 3.01), (-0.7, 0.7)]
)
def test_the_histogram_holds_everything_in_few_rows_with_round_edges(low: float, high: float) -> None:
    t = np.linspace(low, high, 300) * math.log(10)
    curve = Curve(t, np.linspace(0, 1, 300), np.full(300, 1 / (t[-1] - t[0])), np.empty(0), np.empty(0))
    cells = histogram([Spectrum(curve, method="predicted")])
    assert 1 <= cells.masses.shape[1] <= 16
    assert cells.masses.sum() == pytest.approx(1.0, abs=1e-9)
    width = cells.edges[1] - cells.edges[0]
    leading = width / 10 ** math.floor(math.log10(width) + 1e-9)
    assert min(abs(leading - digit) for digit in (1, 2, 5)) < 1e-6


def test_a_long_thin_tail_is_gathered_in_the_last_row() -> None:
    # 99.5 % of the mass over one decade, the rest spread over the 300 below it.
    t = np.array([-301.0, -1.0, 0.0]) * math.log(10)
    curve = Curve(t, np.array([0.0, 0.005, 1.0]), np.array([0.0, 0.0, 0.4]), np.empty(0), np.empty(0))
    spectrum = Spectrum(curve, method="predicted", name="tail")
    cells = histogram([spectrum])
    assert cells.open_below
    assert cells.edges[0] > -2
    assert cells.masses.sum() == pytest.approx(1.0)
    assert any(line.strip().startswith("≤ -1") for line in report(spectrum).splitlines())


def test_bars_are_as_long_as_their_masses() -> None:
    """To an eighth of a cell, whichever row; the longest of them belongs to the largest mass."""
    eighths = {letter: 8 - k for k, letter in enumerate("█▉▊▋▌▍▎▏")}
    found = {}
    for line in report(decades()).splitlines():
        if line.rstrip().endswith("%") and (bar := [letter for letter in line if letter in eighths]):
            found[line[:16].strip()] = sum(eighths[letter] for letter in bar)
    longest = found["0"]
    assert longest > 8 * 10
    assert found == pytest.approx(
        {
            "+1": longest / 3,
            "0": longest,
            "-1": longest / 3,
            "-2": longest / 3,
            "below floor": 2 * longest / 3,
        },
        abs=1,
    )


def test_what_a_person_looks_for_is_there() -> None:
    text = report(decades())
    for words in (
        "8 x 8",
        "s_max",
        "median",
        "mean",
        "< 1e-06",
        "in [0.5, 2]",
        "37.5 %",
        "below floor",
        "25.0%",
    ):
        assert words in text
    assert "not isometric" in text


@pytest.mark.parametrize("width", [30, 44, 60, 80, 130, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    spectra = [
        Spectrum.from_singular_values(np.geomspace(1e-5, 10, 99), name=f"a rather long name, number {k}")
        for k in range(5)
    ]
    lines = report(*spectra, width=width).splitlines()
    # 44 columns are the least a report needs: a label and one column.
    assert max(cell_len(line.rstrip()) for line in lines) <= max(width, 44)


def test_as_many_side_by_side_as_fit() -> None:
    spectra = [Spectrum.from_singular_values([1.0, 2.0], name=f"spectrum{k}") for k in range(3)]
    first = report(*spectra, width=80).splitlines()[0]
    assert [name in first for name in ("spectrum0", "spectrum1", "spectrum2")] == [True, True, False]
    assert "spectrum2" in report(*spectra, width=120).splitlines()[0]


def test_output_that_is_no_terminal_has_no_escapes() -> None:
    assert "\x1b" not in report(decades())


@pytest.mark.parametrize(("variable", "colours"), [("FORCE_COLOR", True), ("NO_COLOR", False)])
def test_no_color_is_honoured(monkeypatch, variable: str, colours: bool) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv(variable, "1")
    text = report(decades())
    # Colour codes are 30..37 and 90..97; bold and dim are none.
    assert any(f"\x1b[{code}m" in text for code in (31, 32, 36)) is colours


def test_an_ascii_stream_gets_ascii() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    probed = np.random.default_rng(0).uniform(0.5, 2, (1, 4, 6))
    spectrum = Spectrum(
        Quadrature(probed, np.full(probed.shape, 1 / 6), np.zeros(1), np.zeros(probed.shape, bool)),
        method="lanczos", name="größe",
    )  # fmt: skip
    print_report([spectrum], file=stream, width=80)
    stream.flush()
    text = raw.getvalue().decode("ascii")
    assert "###" in text
    assert "mean s^2" in text
    assert "+-" in text
    assert "gr\\xf6" in text


def test_a_name_from_a_file_cannot_steer_the_terminal_or_the_markup() -> None:
    text = report(Spectrum.from_singular_values([1.0], name="\x1b[2J[red]x[/red]"))
    assert "\x1b" not in text
    assert "[red]x[/red]" in text


def test_a_law_says_what_is_infinite_and_what_is_zero() -> None:
    t = np.linspace(-1, 0, 50)
    curve = Curve(t, np.linspace(0, 0.5, 50), np.full(50, 0.5), np.array([-np.inf]), np.array([0.5]))
    predicted = Spectrum(curve, method="predicted")
    rows = dict(predicted.rows())
    assert (rows["J"], rows["condition number"], rows["quantile 0.25"]) == ("infinite width", "infinite", "0")


def test_numbers_outside_the_range_of_floats_are_powers_of_ten() -> None:
    rows = dict(Spectrum.from_singular_values([1.0, 2.0]).log_shifted(0.0).rows())
    assert rows["mean s²"] == "2.5"
    t = np.linspace(-2001, -2000, 50)
    curve = Curve(t, np.linspace(0, 1, 50), np.full(50, 1.0), np.empty(0), np.empty(0))
    rows = dict(Spectrum(curve, method="predicted").rows())
    # Median e^-2000.5 and mean square e^-4001 * sinh(1), in powers of ten.
    assert rows["median"] == f"1e{-2000.5 / math.log(10):.2f}"
    assert rows["mean s²"] == f"1e{(-4001 + math.log(math.sinh(1))) / math.log(10):.2f}"


def test_nothing_to_report_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        print_report([], file=io.StringIO())


def test_a_long_table_takes_time_in_its_number_of_rows():
    rows = [[f"s{i}", "exact", "1"] for i in range(20_000)]
    for width in ("pipe", "terminal"):
        file = io.StringIO()
        file.isatty = lambda terminal=width == "terminal": terminal
        began = time.process_time()
        print_table(["name", "method", "s_max"], rows, right=["s_max"], file=file)
        # Seconds where each cell looks at its whole column.
        assert time.process_time() - began < 2
        assert len(file.getvalue().splitlines()) == len(rows) + 1
