"""Pictures of a comparison: the two densities above, the two cdfs below, with what chance shows at this width."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isometry.comparison import Comparison
from isometry.spectrum import Spectrum

from .drawing import draw_legend, legend_of, remember
from .panels import BINS, draw_panel, panel_limits
from .plots import house_style, new_figure

LN10 = math.log(10)
# Room below the floor, of what is shown above it.
BELOW_FLOOR = 0.15


def plot_comparison(comparison: Comparison, *, bins: int | None = None, title: str | None = None) -> Figure:
    """Two axes in one figure: densities per decade of s, and cdfs with the range of networks of this width.

    Parameters
    ----------
    comparison : Comparison
    bins : int, optional
        Cells of the measured histogram, 60 by default.
    title : str, optional
        The verdict if None, nothing if "".
    """
    text = comparison.verdict() if title is None else title
    lines = textwrap.wrap(text, 84) if text else []
    with house_style():
        shown, limits = _shown(comparison), _limits(comparison)
        figure, (above, below) = new_figure(
            2, height=6.6 + 0.2 * len(lines), sharex=True, height_ratios=(1.3, 1.0)
        )
        draw_panel(above, shown, "density", limits, bins=bins or BINS)
        _draw_cdfs(comparison, below, limits)
        for handle, label in legend_of(below)[len(shown) :]:
            remember(above, handle, label)
        # Above the axes: between the curves there is no place that is free in every comparison.
        draw_legend(above, outside=True)
        above.set_xlabel("")
        if lines:
            figure.suptitle("\n".join(lines), x=0.02, ha="left", fontsize=11, parse_math=False)
    return figure


def plot_comparison_cdf(comparison: Comparison, ax: Axes | None = None) -> Axes:
    """The two cdfs in one ``ax``: the measured one with its error band (see `isometry.report.plots.plot_cdf`), and in
    grey where 95 % of right networks of this width, measured this way, have theirs.

    Parameters
    ----------
    comparison : Comparison
    ax : Axes, optional
        Where to draw; a new figure if None.
    """
    with house_style():
        ax = new_figure()[1][0] if ax is None else ax
        _draw_cdfs(comparison, ax, _limits(comparison))
        draw_legend(ax)
    return ax


def _draw_cdfs(comparison: Comparison, ax: Axes, limits: tuple[float, float]) -> None:
    draw_panel(ax, _shown(comparison), "cdf", limits)
    x = np.linspace(*limits, 400)
    lower, upper = comparison.expected_fluctuation.cdf_band(x * LN10)
    if np.all(np.isfinite(lower)):
        band = ax.fill_between(x, lower, upper, color="#777777", alpha=0.35, linewidth=0, zorder=1)
        remember(ax, band, "95 % of right networks of this width")


def _limits(comparison: Comparison) -> tuple[float, float]:
    """As every picture of the two, and not far below the floor: nothing is compared there."""
    low, high = panel_limits([spectrum for spectrum, _ in _shown(comparison)], log=True)
    if math.isfinite(comparison.log_floor):
        floor = comparison.log_floor / math.log(10)
        if floor < high:
            low = max(low, floor - BELOW_FLOOR * (high - floor))
    return low, high


def _shown(comparison: Comparison) -> list[tuple[Spectrum, Any]]:
    return [
        (comparison.measured, comparison.measured.name or "measured"),
        (comparison.predicted, comparison.predicted.name or "predicted"),
    ]
