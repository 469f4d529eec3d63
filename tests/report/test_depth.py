"""Along depth and along training: tables and lines on the terminal, pictures on the page."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from profile_samples import profile

from isometry.report.depth_pictures import STRETCHES, seen_blocks
from isometry.report.histories import History, histories_of
from isometry.report.html import render_html
from isometry.report.terminal_bands import band_line, print_bands
from isometry.report.terminal_profile import print_profile
from isometry.spectrum import Spectrum
from isometry.spectrum.block_profile import HEADINGS


def recorded(step: int, *, name: str = "run", scale: float = 1.0) -> Spectrum:
    values = scale * np.geomspace(0.1, 1, 20)
    record = {"step": step, "recording_overhead": 0.0421} if step else {"step": step}
    return replace(Spectrum.from_singular_values(values, name=f"{name} step {step}"), provenance=record)


def printed(width: int, *arguments: object, print_it=print_profile) -> str:
    file = io.StringIO()
    print_it(*arguments, file=file, width=width)
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_names_the_block_at_fault_within_its_width(width: int) -> None:
    text = printed(width, profile())
    assert max(map(len, text.splitlines())) <= width
    assert "block 2 (Linear) is at fault" in " ".join(text.split())
    for word in ("chi", "gain", "0.001 ± 0.25 %"):
        assert word in text
    assert ("8 x 8" in text) == (width == 140)


def test_of_a_deep_network_some_rows_and_the_fault_are_shown() -> None:
    gains = [1.0] * 500
    gains[333] = 0.01
    deep = profile(tuple(gains))
    shown = deep.shown(20)
    assert len(shown) <= 20
    assert {0, 333, 499} <= set(shown)
    assert "333" in printed(100, deep)
    assert profile().shown(20) == [0, 1, 2, 3]


def test_a_row_says_what_is_known_of_a_block() -> None:
    row = dict(zip(HEADINGS, profile().row(2), strict=True))
    assert row["chi"] == "0.001 ± 1e-05"
    assert row["mean s² so far"] == "0.0011"
    dead = dict(zip(HEADINGS, profile((1.0, 0.0, 1.0)).row(1), strict=True))
    assert (dead["gain"], dead["mean s² so far"]) == ("0", "0")


def test_lines_of_quantiles_stand_where_the_values_are() -> None:
    # Cells of a tenth of a decade from 10^-2 to 10^1.
    line = band_line(np.array([-1.0, -0.5, 0.2, 0.5, 0.7]), 0.9, -2.0, 1.0, 31)
    assert [line.index(sign) for sign in "─━●▲"] == [10, 15, 22, 29]
    assert line.rindex("─") == 27
    below = band_line(np.array([-np.inf, -np.inf, -0.5, 0.0, 0.5]), 0.9, -2.0, 1.0, 31)
    assert below[0] == "◂"


def test_a_history_is_what_has_one_name_and_steps() -> None:
    spectra = [recorded(step) for step in (200, 0, 100, 300)]
    other = [
        recorded(0, name="short"),
        recorded(5, name="short"),
        Spectrum.from_singular_values([1.0], name="net"),
    ]
    # Named like one, but never recorded by a callback.
    stranger = Spectrum.from_singular_values([1.0], name="run step 900")
    histories, rest = histories_of([*spectra, *other, stranger])
    assert [(one.name, one.steps) for one in histories] == [("run", (0, 100, 200, 300))]
    assert histories[0].cost == "Up to step 300 recording took 4.2 % of the training's own time."
    assert History("old", (0,), (recorded(0),)).cost == "", "an older recording did not say"
    assert [one.name for one in rest] == [
        "run step 0", "run step 300", "short step 0", "short step 5", "net", "run step 900",
    ]  # fmt: skip


def test_steps_are_printed_as_lines() -> None:
    steps = range(0, 4000, 100)
    spectra = [recorded(step, scale=1 + step / 400) for step in steps]
    text = printed(100, "a run", "step", list(steps), spectra, print_it=print_bands)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    marked = [line.index("▲") for line in lines[2:-1]]
    assert marked == sorted(marked), "s max grows"
    assert len(marked) == 24
    assert lines[2].split()[0] == "0"
    assert lines[-2].split()[0] == "3900"


def test_the_page_shows_depth_and_training() -> None:
    spectra = [recorded(step, name="<b>") for step in (0, 10, 20, 30)]
    history = History("<b>", (0, 10, 20, 30), tuple(spectra))
    nasty = profile(name="<script>", kind='"><svg onload=a>')
    text = render_html([spectra[0]], profiles=[nasty], histories=[history])
    # Four of the spectrum, three of the profile, one of the history.
    assert text.count("<svg") == 4 + 3 + 1
    assert "<script" not in text
    assert text.count("<b>") == 1, "the share in the verdict, and no name"
    assert "onload=a>" not in text
    assert text.count('class="fault"') == 1
    assert "is at fault" in text
    assert "recording took 4.2 %" in text


@pytest.mark.parametrize("gains", [(1.0,), (1.0, 0.0, 1.0), (1e-20,) * 2000])
def test_odd_profiles_have_a_page_and_a_table(gains: tuple[float, ...]) -> None:
    one = profile(gains)
    text = render_html([Spectrum.from_singular_values([1.0], name="net")], profiles=[one])
    assert len(text.encode()) < 300_000
    assert "nan" not in printed(100, one)
    assert "nan" not in text[text.index("Block by block") :].split("<svg")[0]


def test_what_a_picture_of_many_blocks_shows_holds_every_extreme() -> None:
    values = np.random.default_rng(0).standard_normal(20_000)
    values[12_345] = 100.0
    kept = seen_blocks(values, 777)
    assert {0, 777, 12_345, 19_999} <= set(kept.tolist())
    assert kept.size <= 2 * STRETCHES + 3
    assert values[kept].min() == values.min()
