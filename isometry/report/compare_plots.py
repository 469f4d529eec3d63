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


def plot_comparison(comparison: Comparison, *, bins: int = 60, title: str | None = None) -> Figure:
    """Two axes in one figure: densities per decade of s, and cdfs with what chance allows around the prediction.

    Parameters
    ----------
    comparison : Comparison
    bins : int
        Cells of the measured histogram.
    title : str, optional
        The verdict if None, nothing if "".
    """
    with house_style():
        figure, (above, below) = new_figure(2, height=6.4, sharex=True, height_ratios=(1.3, 1.0))
        spectra, labels = _pair(comparison)
        plot_spectra(spectra, above, labels=labels, bins=bins)
        above.set_xlabel("")
        plot_comparison_cdf(comparison, below)
        text = comparison.verdict() if title is None else title
        if text:
            figure.suptitle(textwrap.fill(text, 92), x=0.02, ha="left", fontsize=11, parse_math=False)
    return figure


def plot_comparison_cdf(comparison: Comparison, ax: Axes | None = None) -> Axes:
    """The two cdfs in one ``ax``: the measured one with its error band (see `isometry.report.plots.plot_cdf`), and
    around the predicted one, dotted, what a network of this width shows by chance.

    Parameters
    ----------
    comparison : Comparison
    ax : Axes, optional
        Where to draw; a new figure if None.
    """
    with house_style():
        ax = new_figure()[1][0] if ax is None else ax
        _draw_cdfs(comparison, ax)
    return ax


def _draw_cdfs(comparison: Comparison, ax: Axes) -> None:
    spectra, labels = _pair(comparison)
    plot_spectra(spectra, ax, kind="cdf", labels=labels, legend=False)
    bound = comparison.chance.ks
    if math.isfinite(bound) and bound > 0:
        low, high = ax.get_xlim()
        x = np.linspace(low, high, 400)
        law = comparison.predicted.distribution.cdf(x * math.log(10))
        for side in (-bound, bound):
            ax.plot(x, np.clip(law + side, 0, 1), color="#555555", linestyle=":", linewidth=1.2)
        ax.plot([], [], color="#555555", linestyle=":", linewidth=1.2, label=f"by chance: ± {bound:.2g}")
        ax.legend(loc="upper left")


def _pair(comparison: Comparison) -> tuple[list[Spectrum], list[str]]:
    spectra = [comparison.measured, comparison.predicted]
    words: list[Any] = ["measured", "predicted"]
    return spectra, [spectrum.name or word for spectrum, word in zip(spectra, words, strict=True)]
