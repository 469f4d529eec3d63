"""Several spectra over one axis, the same in every output: range, histograms or cdfs, and what lies beyond it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from isometry.report.drawing import (
    color_of,
    draw_cdf,
    draw_density,
    finish_axis,
    finish_density,
    picture_range,
    remember,
)
from isometry.spectrum import Spectrum

LN10 = float(np.log(10.0))
# Bands of more spectra than these hide one another.
MOST_BANDS = 8
BINS = 60


def panel_limits(spectra: Sequence[Spectrum], *, log: bool) -> tuple[float, float]:
    """Range of the x data; a law that extends far below the measured values is cropped."""
    low, high = picture_range(spectra, log=log)
    measured = [spectrum for spectrum in spectra if spectrum.kind == "measured" and spectrum.zero_mass < 1]
    if log and measured:
        bottom, top = picture_range(measured, log=log)
        low = max(low, bottom - 0.5 * (top - bottom))
    return low, high


def draw_panel(
    ax: Axes,
    shown: Sequence[tuple[Spectrum, str | None]],
    kind: str,
    limits: tuple[float, float],
    *,
    log: bool = True,
    bins: int = BINS,
    points: int = 400,
    explain: bool = False,
    label: str = "",
) -> None:
    """Draw spectra, each with its label, over x data within ``limits``.

    Parameters
    ----------
    ax : Axes
    shown : sequence of (Spectrum, str or None)
        A label of None is the name of the spectrum.
    kind : {"density", "cdf"}
    limits : (float, float)
    log : bool
        x data are log10 s, else s.
    bins, points : int
        Cells of a histogram; grid points of a cdf.
    explain : bool
        Whether the legend says what the bands of a cdf are.
    label : str
        Of the y axis.
    """
    spectra = [spectrum for spectrum, _ in shown]
    for index, (spectrum, name) in enumerate(shown):
        color = color_of(index, len(shown))
        if kind == "density":
            shift = index / max(len(shown), 8)
            draw_density(ax, spectrum, limits, log=log, label=name, bins=bins, color=color, shift=shift)
        elif len(shown) <= MOST_BANDS:
            draw_cdf(ax, spectrum, limits, log=log, label=name, color=color, points=points, explain=explain)
        else:
            x = np.linspace(*limits, points)
            (line,) = ax.plot(x, spectrum.distribution.cdf(x * LN10 if log else np.log(x)), color=color)
            remember(ax, line, spectrum.name if name is None else name)
    zero = kind == "density" and any(spectrum.zero_mass > 0 for spectrum in spectra)
    finish_axis(ax, log=log, low=limits[0], high=limits[1], zero=zero)
    if kind == "density":
        finish_density(ax, label or ("density per decade of s" if log else "density of s"))
    else:
        ax.set_ylabel(label or "share of singular values ≤ s")
        ax.set_ylim(0, 1.02)
