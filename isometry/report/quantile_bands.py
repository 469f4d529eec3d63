"""Spectra along an axis (inputs, blocks, training steps) as bands: quantiles of s, upright and in log10, and s_max."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from isometry.report.drawing import color_of, remember
from isometry.report.log_axis import label_log_axis
from isometry.spectrum import Spectrum
from isometry.spectrum.block_profile import band_values


def draw_bands(ax: Axes, places: ArrayLike, spectra: Sequence[Spectrum], *, apart: bool = False) -> None:
    """Draw the quantiles of each spectrum at its place on the x axis, over an upright axis of log10 s.

    Parameters
    ----------
    ax : Axes
    places : (n,) array
        Input numbers, training steps, numbers of blocks.
    spectra : sequence of n Spectrum
    apart : bool
        One bar for each place, for places without an order; otherwise bands that join them.

    Notes
    -----
    What lies below the floor of a measurement is drawn down to the lower edge: it may lie anywhere there.
    """
    x = np.asarray(places, float)
    quantiles, top = band_values(spectra)
    seen = np.concatenate([quantiles[np.isfinite(quantiles)], top[np.isfinite(top)]])
    low, high = (float(seen.min()), float(seen.max())) if seen.size else (-0.5, 0.5)
    hidden = bool(np.any(np.isneginf(quantiles)))
    if hidden:
        low = min([low, *(math.log10(spectrum.floor) for spectrum in spectra if spectrum.floor > 0)])
    margin = max(0.06 * (high - low), 0.05)
    bottom = low - (3 if hidden else 1) * margin
    lowest, lower, median, upper, highest = np.where(np.isneginf(quantiles), bottom, quantiles).T
    color, top_color = color_of(0, 2), color_of(1, 2)
    if apart:
        ax.vlines(x, lowest, highest, color=color, alpha=0.35, linewidth=2.5)
        ax.vlines(x, lower, upper, color=color, alpha=0.6, linewidth=5)
        (line,) = ax.plot(x, median, "o", color=color, markersize=4)
    else:
        ax.fill_between(x, lowest, highest, color=color, alpha=0.2, linewidth=0)
        ax.fill_between(x, lower, upper, color=color, alpha=0.3, linewidth=0)
        (line,) = ax.plot(x, median, color=color, marker="o" if x.size < 40 else "")
    (above,) = ax.plot(
        x, top, color=top_color, marker="^" if x.size < 40 else "", markersize=5, linewidth=0 if apart else 1
    )
    remember(ax, line, "median")
    remember(ax, Patch(color=color, alpha=0.5), "middle half, middle 90 %")
    remember(ax, above, "s_max")
    if hidden:
        remember(ax, Patch(color=color, alpha=0.2), "at the lower edge: below the floor")
    # s = 1 where it is near: isometry.
    if bottom - 1 < 0 < high + 1:
        ax.axhline(0.0, color="#555555", linewidth=1, linestyle=":")
        bottom, high = min(bottom, -margin), max(high, 0.0)
    ax.set_ylim(bottom, high + margin)
    label_log_axis(ax, upright=True)
    ax.set_ylabel("singular value s (log scale)")
