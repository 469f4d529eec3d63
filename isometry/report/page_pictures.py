"""The pictures of the report page: distributions over s and over log10 s, and how inputs differ.

Small ones, readable on a telephone; a wide page sets two beside each other. Each comes as an SVG element with a text
that says what is seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from isometry.report.canvas import house_style, new_figure
from isometry.report.drawing import legend_of
from isometry.report.inline_svg import inline_svg
from isometry.report.panels import MOST_BANDS, draw_panel, panel_limits
from isometry.report.quantile_bands import draw_bands
from isometry.spectrum import Spectrum
from isometry.spectrum.formatting import plain

SIZE = (5.4, 3.7)
# So many inputs at most are drawn, the first ones.
MOST_INPUTS = 100
LN10 = math.log(10)


@dataclass(frozen=True)
class LegendEntry:
    """One entry of a legend: a symbol, its colour on the page (a CSS variable), and its text."""

    symbol: str
    color: str
    text: str


@dataclass(frozen=True)
class Picture:
    """An SVG element with its heading and its legend, which wraps with the width of the page."""

    heading: str
    svg: Markup
    legend: Sequence[LegendEntry] = ()


# Over so many decades a picture over s is left out where half of the values not zero are below a thousandth of s_max.
MOST_DECADES = 20


def small_figure() -> tuple[Figure, Axes]:
    """A figure of the page's size with one axes, in the style of isometry's figures."""
    figure, (ax,) = new_figure(height=SIZE[1])
    figure.set_size_inches(*SIZE)
    # Fixed margins: to lay the axes out by their texts takes as long as all the drawing.
    figure.set_layout_engine("none")
    ax.set_position((0.165, 0.165, 0.82, 0.805))
    return figure, ax


def picture(figure: Figure, *, name: str, heading: str, description: str) -> Picture:
    """The figure with a single axes as a picture of the page."""
    (ax,) = figure.axes
    entries = [
        LegendEntry(_symbol(handle), f"var(--x{_color(handle)})", text.strip())
        for handle, text in legend_of(ax)
    ]
    svg = inline_svg(figure, name=name, title=heading, description=description)  # escapes what it is given
    return Picture(heading, Markup(svg), entries)


def distribution_pictures(spectrum: Spectrum, law: Spectrum | None, *, name: str) -> list[Picture]:
    """Density and cdf over log10 s and over s, with the law the spectrum should follow over it, where one is known."""
    label = plain(spectrum.name) or spectrum.method
    shown = [(spectrum, label)] if law is None else [(spectrum, label), (law, "predicted law")]
    scales = (True, False) if _fits_a_plain_axis(spectrum) else (True,)
    return [_panel(kind, shown, log=log, name=name) for log in scales for kind in ("density", "cdf")]


def overlay_pictures(spectra: Sequence[Spectrum]) -> list[Picture]:
    """Densities and cdfs of several spectra over one axis of log10 s."""
    shown = [(spectrum, plain(spectrum.name) or spectrum.method) for spectrum in spectra]
    return [_panel(kind, shown, log=True, name="all") for kind in ("density", "cdf")]


def _panel(kind: str, shown: Sequence[tuple[Spectrum, str]], *, log: bool, name: str) -> Picture:
    """One picture of spectra, each with its label."""
    spectra = [spectrum for spectrum, _ in shown]
    limits = panel_limits(spectra, log=log)
    with house_style():
        figure, ax = small_figure()
        draw_panel(ax, shown, kind, limits, log=log, points=300, explain=len(shown) <= 2)
    over = "log10 s" if log else "s"
    heading = f"Density over {over}" if kind == "density" else f"Cumulative share over {over}"
    return picture(
        figure,
        name=f"{name}-{kind}-{'log' if log else 'plain'}",
        heading=heading,
        description=_described(shown, kind, over),
    )


def _fits_a_plain_axis(spectrum: Spectrum) -> bool:
    """Whether a picture over s itself shows something.

    Its largest value is a float that Matplotlib can scale, and not all but a few values lie in its first pixel.
    """
    lowest, highest = spectrum.distribution.log_range
    if math.isnan(highest):
        return True
    middle = float(spectrum.distribution.quantile(1 - (1 - spectrum.zero_mass) / 2))
    crowded = highest - lowest > MOST_DECADES * LN10 and highest - middle > 3 * LN10
    return abs(highest) < 250 * LN10 and not crowded


def _described(shown: Sequence[tuple[Spectrum, str]], kind: str, over: str) -> str:
    """Alternative text of the picture."""
    each = "; ".join(
        f"{label}: median {spectrum.quantile_text(0.5)}, 5 % at most {spectrum.quantile_text(0.05)}, 5 % above "
        f"{spectrum.quantile_text(0.95)}"
        for spectrum, label in shown[:8]
    )
    rest = f"; and {len(shown) - 8} more" if len(shown) > 8 else ""
    bands = " with its error bands" if len(shown) <= MOST_BANDS else ""
    what = "Histogram" if kind == "density" else f"Cumulative distribution{bands}"
    return f"{what} over {over}. {each}{rest}. The numbers stand in the table of the page."


def _symbol(handle: object) -> str:
    """A character that looks like the artist."""
    if isinstance(handle, Line2D):
        marker = {"^": "▲", "<": "◀", "o": "●"}.get(str(handle.get_marker()), "")
        return marker or {"--": "╍", "None": ""}.get(str(handle.get_linestyle()), "━")
    return "■"


def _color(handle: object) -> str:
    """The colour of the artist, as six hexadecimal digits."""
    one = handle[-1] if isinstance(handle, tuple) else handle
    if isinstance(one, Line2D):
        return mpl.colors.to_hex(one.get_color())[1:]
    assert isinstance(one, Artist)
    edge = one.get_edgecolor() if hasattr(one, "get_edgecolor") else "black"
    return mpl.colors.to_hex(edge)[1:]


# ---- inputs --------------------------------------------------------------------------------------------


def input_picture(spectrum: Spectrum, *, name: str) -> Picture:
    """Median, quantiles and s_max of every input, one beside the other."""
    count = min(spectrum.n_inputs, MOST_INPUTS)
    each = [spectrum.input(index) for index in range(count)]
    with house_style():
        figure, ax = small_figure()
        draw_bands(ax, np.arange(count), each, apart=True)
        ax.set_xlabel("input")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    description = (
        f"For each of {count} inputs the median of its singular values, the ranges of the middle half and of the "
        "middle nine tenths, and s_max. The numbers are in the table beside it."
    )
    return picture(figure, name=name, heading="Singular values of each input", description=description)
