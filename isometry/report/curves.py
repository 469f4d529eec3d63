"""One number against another over many spectra: points with error bars, and predictions as lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from isometry.errors import InputError
from isometry.report.canvas import house_style, new_figure
from isometry.report.drawing import color_of
from isometry.spectrum.formatting import plain

Array = NDArray[np.float64]

# From this ratio of largest to smallest on, an axis of positive numbers is logarithmic.
_WIDE = 20.0
_MOST_TICKS = 10
_MARKERS = "osD^vP*X"


def _nothing() -> Array:
    return np.empty(0)


@dataclass(frozen=True)
class Curve:
    """Points of one colour, and the prediction for them.

    Parameters
    ----------
    label : str
        What its points have in common.
    x, y, error : (n,) arrays
        Points by increasing x, and their errors; NaN where an error is not known. Where ``x`` is not numbers, its
        places along ``categories``.
    law_x, law_y : (m,) arrays
        What theory predicts there.
    joined : bool
        Whether the points belong to one curve, or are as many results of their own.
    """

    label: str
    x: Array
    y: Array
    error: Array
    law_x: Array = field(default_factory=_nothing)
    law_y: Array = field(default_factory=_nothing)
    joined: bool = True


def plot_curves(
    curves: Sequence[Curve],
    ax: Axes | None = None,
    *,
    x_label: str = "",
    y_label: str = "",
    categories: Sequence[str] = (),
    log_x: bool | None = None,
    log_y: bool | None = None,
    note: str = "",
) -> Axes:
    """Points with error bars, and theory as dashed lines, as an ``ax``.

    Parameters
    ----------
    curves : sequence of Curve
    ax : Axes, optional
        Where to draw; a new figure if None.
    x_label, y_label : str
    categories : sequence of str
        Names of the places 0, 1, ... along x, where x is not numbers.
    log_x, log_y : bool, optional
        Logarithmic axes; by default where all is positive and spans a factor of 20 or more, and for an x in
        equal ratios.
    note : str
        What the error bars are, for the legend.
    """
    if not any(len(curve.x) or len(curve.law_x) for curve in curves):
        raise InputError("there is nothing to draw: no point has both numbers")
    if ax is None:
        with house_style():
            return plot_curves(
                curves, new_figure()[1][0], x_label=x_label, y_label=y_label, categories=categories, log_x=log_x,
                log_y=log_y, note=note,
            )  # fmt: skip
    for index, curve in enumerate(curves):
        _draw(ax, curve, color_of(index, len(curves)), _MARKERS[index % len(_MARKERS)])
    places = np.unique(np.concatenate([np.concatenate([curve.x, curve.law_x]) for curve in curves]))
    heights = np.concatenate([np.concatenate([curve.y, curve.law_y]) for curve in curves])
    if categories:
        ax.set_xticks(range(len(categories)), [plain(name) for name in categories])
        ax.set_xlim(-0.5, len(categories) - 0.5)
    elif log_x or (log_x is None and (_is_wide(places) or _in_equal_ratios(places))):
        _logarithmic_x(ax, places)
    if log_y or (log_y is None and _is_wide(heights)):
        ax.set_yscale("log", nonpositive="clip")
    ax.set_xlabel(plain(x_label), parse_math=False)
    ax.set_ylabel(plain(y_label), parse_math=False)
    _legend(ax, curves, note)
    return ax


def _draw(ax: Axes, curve: Curve, color: str, marker: str) -> None:
    if len(curve.law_x):
        # Above the points, which would hide a law that agrees with them.
        ax.plot(curve.law_x, curve.law_y, color=color, linestyle="--", linewidth=1.6, zorder=3)
        if len(curve.law_x) == 1:
            ax.plot(
                curve.law_x, curve.law_y, color=color, linestyle="none", marker="_", markersize=16, zorder=3
            )
    if not len(curve.x):
        return
    known = np.isfinite(curve.error)
    ax.errorbar(
        curve.x[known],
        curve.y[known],
        curve.error[known],
        color=color,
        linestyle="none",
        linewidth=1.4,
        capsize=3,
    )
    thin: dict[str, Any] = {"linestyle": "-", "linewidth": 0.9, "alpha": 0.45}
    if curve.joined and not len(curve.law_x):
        ax.plot(curve.x, curve.y, color=color, **thin)
    ax.plot(curve.x, curve.y, color=color, linestyle="none", marker=marker, markersize=6)


def _legend(ax: Axes, curves: Sequence[Curve], note: str) -> None:
    handles: list[Line2D] = []
    for index, curve in enumerate(curves):
        if curve.label:
            handle = Line2D(
                [], [], color=color_of(index, len(curves)), label=plain(curve.label), linestyle="--"
            )
            if len(curve.x):
                handle.set(marker=_MARKERS[index % len(_MARKERS)], linestyle="none")
            handles.append(handle)
    if any(len(curve.x) for curve in curves):
        if any(len(curve.law_x) for curve in curves):
            handles.append(Line2D([], [], color="#555555", linestyle="--", linewidth=1.6, label="theory"))
        if note:
            handles.append(
                Line2D([], [], color="#555555", marker="|", linestyle="none", markersize=10, label=note)
            )
    if not handles:
        return
    if len(handles) > 6:
        ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    else:
        ax.legend(handles=handles, loc="best")


def _logarithmic_x(ax: Axes, places: Array) -> None:
    ax.set_xscale("log")
    if len(places) <= _MOST_TICKS:
        # Ticks at the values that were swept.
        ax.xaxis.set_major_locator(FixedLocator(places.tolist()))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_locator(NullLocator())


def _is_wide(values: Array) -> bool:
    return len(values) > 1 and bool(values.min() > 0) and float(values.max() / values.min()) >= _WIDE


def _in_equal_ratios(values: Array) -> bool:
    """Whether increasing values are like 1, 2, 4, 8."""
    if len(values) < 3 or values[0] <= 0:
        return False
    steps = np.diff(np.log(values))
    return bool(steps.min() > math.log(1.4) and steps.max() < 1.1 * steps.min())
