"""Pictures of spectra: density of log10 s, cumulative distribution with its error band, several in one picture.

Every function draws into the Matplotlib ``ax`` it is given (or a new one, in the style of isometry's figures) and
returns it. The x data of a logarithmic picture are log10 s, labelled with the values of s: a deep network's
singular values leave the range of floats. A point mass has no density, so it is an arrow whose height is its
mass (the top of the frame is 100 %); mass at zero is an arrow that leaves the picture to the left, mass below the
floor of a measurement one that points to the left from there. pyplot and its global state are not used: a notebook
shows ``ax.figure``.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isometry.errors import InputError
from isometry.report.canvas import house_style, new_figure, save_figure
from isometry.report.drawing import (
    draw_cdf,
    draw_density,
    draw_legend,
    finish_axis,
    finish_density,
    legend_entries,
    picture_range,
)
from isometry.report.panels import draw_panel, panel_limits
from isometry.spectrum import Spectrum


def plot_density(
    spectrum: Spectrum,
    ax: Axes | None = None,
    *,
    log: bool = True,
    label: str | None = None,
    bins: int = 60,
    color: str | None = None,
) -> Axes:
    """The density of the singular values, as an ``ax``.

    Parameters
    ----------
    spectrum : Spectrum
        Measured: a histogram. Predicted: a curve.
    ax : Axes, optional
        Where to draw; a new figure if None.
    log : bool
        Density per decade over log10 s; otherwise density over s.
    label : str, optional
        Legend entry; the spectrum's name if None, nothing if "".
    bins : int
        Cells of the histogram. More than 30 % of all mass in one cell is drawn as an arrow with its mass.
    color : str, optional
        The next of the colour cycle if None.
    """
    if ax is None:
        with house_style():
            ax = new_figure()[1][0]
            return plot_density(spectrum, ax, log=log, label=label, bins=bins, color=color)
    low, high = picture_range([spectrum], log=log)
    draw_density(ax, spectrum, (low, high), log=log, label=label, bins=bins, color=color)
    finish_axis(ax, log=log, low=low, high=high, zero=spectrum.zero_mass > 0)
    finish_density(ax, "density per decade of s" if log else "density of s")
    draw_legend(ax)
    return ax


def plot_cdf(
    spectrum: Spectrum,
    ax: Axes | None = None,
    *,
    log: bool = True,
    label: str | None = None,
    color: str | None = None,
    points: int = 400,
) -> Axes:
    """The cumulative distribution with its error bands, as an ``ax``.

    The lighter band is :meth:`isometry.Spectrum.cdf_band`: at each s it holds the true cdf with 95 %
    confidence. The darker one is its part by truncation of the quadrature alone, which the Chebyshev-Markov-Stieltjes
    inequalities bound (Szego 1939, section 3.41). A prediction has neither, an exact measurement only below its floor.

    Parameters
    ----------
    spectrum : Spectrum
    ax : Axes, optional
        Where to draw; a new figure if None.
    log, label, color
        As in :func:`plot_density`.
    points : int
        Grid points over the range shown.
    """
    if ax is None:
        with house_style():
            ax = new_figure()[1][0]
            return plot_cdf(spectrum, ax, log=log, label=label, color=color, points=points)
    low, high = picture_range([spectrum], log=log)
    draw_cdf(ax, spectrum, (low, high), log=log, label=label, color=color, points=points, explain=True)
    ax.set_ylabel("fraction of singular values ≤ s")
    finish_axis(ax, log=log, low=low, high=high, zero=False)
    ax.set_ylim(0, 1.02)
    draw_legend(ax)
    return ax


def plot_spectra(
    spectra: Sequence[Spectrum],
    ax: Axes | None = None,
    *,
    kind: str = "density",
    labels: Sequence[str] | None = None,
    bins: int = 60,
    legend: bool = True,
) -> Axes:
    """Several spectra over one axis of log10 s, on the same cells, as an ``ax``.

    Parameters
    ----------
    spectra : sequence of Spectrum
    ax : Axes, optional
        Where to draw; a new figure if None.
    kind : {"density", "cdf"}
    labels : sequence of str, optional
        One for each; the names if None.
    bins : int
        Cells of the histograms over the range common to all.
    legend : bool
    """
    if not spectra:
        raise InputError("there is no spectrum to draw: the list is empty")
    if kind not in ("density", "cdf"):
        raise InputError(f'kind is "density" or "cdf"; got {kind!r}')
    if labels is not None and len(labels) != len(spectra):
        raise InputError(f"there are {len(spectra)} spectra but {len(labels)} labels")
    if ax is None:
        with house_style():
            ax = new_figure()[1][0]
            return plot_spectra(spectra, ax, kind=kind, labels=labels, bins=bins, legend=legend)
    names = labels if labels is not None else [None] * len(spectra)
    shown = list(zip(spectra, names, strict=True))
    label = "" if kind == "density" else "fraction ≤ s"
    draw_panel(ax, shown, kind, panel_limits(spectra, log=True), bins=bins, label=label)
    if legend:
        draw_legend(ax)
    return ax


def figure_of_spectra(
    spectra: Sequence[Spectrum], *, labels: Sequence[str] | None = None, title: str = ""
) -> Figure:
    """One picture of all: the densities above, the cumulative distributions with their bands below."""
    with house_style():
        entries = sum(legend_entries(spectrum) for spectrum in spectra)
        height = 5.6 + 0.22 * max(entries - 4, 0)
        figure, (above, below) = new_figure(2, height=height, sharex=True, height_ratios=(1.7, 1.0))
        plot_spectra(spectra, above, kind="density", labels=labels, legend=False)
        plot_spectra(spectra, below, kind="cdf", labels=labels, legend=False)
        draw_legend(above, outside=entries > 4)
        above.set_xlabel("")
        if title and entries > 4:
            # Above the legend, which stands above the axes.
            figure.suptitle(
                title, x=0.02, ha="left", fontsize=mpl.rcParams["axes.titlesize"], parse_math=False
            )
        elif title:
            above.set_title(title, parse_math=False)
    return figure


__all__ = [
    "figure_of_spectra",
    "house_style",
    "new_figure",
    "plot_cdf",
    "plot_density",
    "plot_spectra",
    "save_figure",
]
