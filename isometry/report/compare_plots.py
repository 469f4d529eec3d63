"""Pictures of a comparison: the two densities above, the two cdfs with the measurement's error band below."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isometry.comparison import Comparison
from isometry.spectrum import Spectrum

from .plots import house_style, new_figure, plot_spectra


def plot_comparison(comparison: Comparison, *, bins: int | None = None, title: str | None = None) -> Figure:
    """Two axes in one figure: densities per decade of s, and cdfs with the expected fluctuation around the prediction.

    Parameters
    ----------
    comparison : Comparison
    bins : int, optional
        Cells of the measured histogram above the floor. By default 60, or 16 for a quadrature, whose nodes lie apart.
    title : str, optional
        The verdict if None, nothing if "".
    """
    with house_style():
        figure, (above, below) = new_figure(2, height=6.4, sharex=True, height_ratios=(1.3, 1.0))
        spectra, labels = _pair(comparison)
        plot_spectra(spectra, above, labels=labels, bins=_bins(comparison, bins))
        above.set_xlabel("")
        plot_comparison_cdf(comparison, below)
        _show_from_floor(comparison, above)
        text = comparison.verdict() if title is None else title
        if text:
            figure.suptitle(textwrap.fill(text, 84), x=0.02, ha="left", fontsize=11, parse_math=False)
    return figure


def plot_comparison_cdf(comparison: Comparison, ax: Axes | None = None) -> Axes:
    """The two cdfs in one ``ax``: the measured one with its error band (see `isometry.report.plots.plot_cdf`), and
    around the predicted one, dotted, the expected fluctuation of a network of this width.

    Parameters
    ----------
    comparison : Comparison
    ax : Axes, optional
        Where to draw; a new figure if None.
    """
    with house_style():
        ax = new_figure()[1][0] if ax is None else ax
        _draw_cdfs(comparison, ax)
        _show_from_floor(comparison, ax)
    return ax


def _draw_cdfs(comparison: Comparison, ax: Axes) -> None:
    spectra, labels = _pair(comparison)
    plot_spectra(spectra, ax, kind="cdf", labels=labels, legend=False)
    bound = comparison.expected_fluctuation.ks
    if math.isfinite(bound) and bound > 0:
        low, high = ax.get_xlim()
        x = np.linspace(low, high, 400)
        law = comparison.predicted.distribution.cdf(x * math.log(10))
        for side in (-bound, bound):
            ax.plot(x, np.clip(law + side, 0, 1), color="#555555", linestyle=":", linewidth=1.2)
        ax.plot(
            [],
            [],
            color="#555555",
            linestyle=":",
            linewidth=1.2,
            label=f"expected fluctuation: ± {bound:.2g}",
        )
        ax.legend(loc="upper left")


def _bins(comparison: Comparison, shown: int | None) -> int:
    """Cells over the whole range of which about ``shown`` are above the floor."""
    if shown is None:
        shown = 60 if comparison.measured.distribution.all_resolved else 16
    ranges = [spectrum.distribution.log_range for spectrum in (comparison.measured, comparison.predicted)]
    low, high = min(a for a, _ in ranges), max(b for _, b in ranges)
    floor = math.log(comparison.floor) if comparison.floor > 0 else low
    if not (math.isfinite(low) and low < floor < high):
        return shown
    return min(round(shown * (high - low) / (high - floor)), 20 * shown)


def _show_from_floor(comparison: Comparison, ax: Axes) -> None:
    """Crop the axis far below the floor: nothing is compared there, and a law may extend over many decades."""
    low, high = ax.get_xlim()
    if comparison.floor > 0:
        floor = math.log10(comparison.floor)
        ax.set_xlim(left=max(low, floor - 0.15 * (high - floor)))


def _pair(comparison: Comparison) -> tuple[list[Spectrum], list[str]]:
    spectra = [comparison.measured, comparison.predicted]
    words: list[Any] = ["measured", "predicted"]
    return spectra, [spectrum.name or word for spectrum, word in zip(spectra, words, strict=True)]
