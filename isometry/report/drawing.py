"""One spectrum drawn into an axes: histogram or curve, arrows for point masses, bands of the cdf, legend and axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.transforms import blended_transform_factory
from numpy.typing import NDArray

from isometry.report.log_axis import label_log_axis
from isometry.spectrum import Spectrum
from isometry.spectrum.concentration import cell_masses, concentrations, shown_range
from isometry.spectrum.formatting import number_text, percent_text, plain

Array = NDArray[np.float64]

LN10 = math.log(10)
CURVE_CELLS = 600


def picture_range(spectra: Sequence[Spectrum], *, log: bool) -> tuple[float, float]:
    """Range of the x data that shows all of them, with room where all singular values are equal."""
    ranges = [shown_range(spectrum.distribution) for spectrum in spectra]
    finite = [pair for pair in ranges if not math.isnan(pair[0])]
    if not finite:
        return (-1.0, 1.0) if log else (0.0, 1.0)
    low, high = min(a for a, _ in finite) / LN10, max(b for _, b in finite) / LN10
    if not log:
        bottom, top = 10 ** max(low, -300.0), 10 ** min(high, 300.0)
        bottom = 0.0 if bottom < 0.2 * top else bottom - 0.02 * top
        return bottom, 1.02 * top
    # A cluster narrower than a hundredth of a decade is one value to the eye: show it with its surroundings.
    margin = 0.02 * (high - low) if high - low > 0.01 else 0.15
    return low - margin, high + margin


def draw_density(
    ax: Axes,
    spectrum: Spectrum,
    shown: tuple[float, float],
    *,
    log: bool,
    label: str | None,
    bins: int,
    color: str | None,
    shift: float = 0.0,
) -> None:
    """Histogram of a measured spectrum or curve of a predicted one, over x data from shown[0] to shown[1].

    ``shift`` in [0, 1) keeps the arrows of several masses at zero apart.
    """
    color = color or _next_color(ax)
    name = _label(spectrum, label)
    to_log = (lambda x: np.asarray(x) * LN10) if log else _safe_log
    coarse = np.linspace(*shown, bins + 1)
    clusters = concentrations(spectrum.distribution, to_log(coarse))
    cells = coarse if spectrum.kind == "measured" else np.linspace(*shown, CURVE_CELLS + 1)
    masses = cell_masses(spectrum.distribution, to_log(cells), without=clusters)
    density = masses / np.diff(cells)
    ax._isometry_highest = max(density.max(), getattr(ax, "_isometry_highest", 0.0))  # type: ignore[attr-defined]
    handle: Any
    if spectrum.kind == "measured":
        filled = ax.stairs(density, cells, fill=True, color=color, alpha=0.25, linewidth=0)
        outline = ax.stairs(density, cells, color=color, linewidth=1.4)
        handle = (filled, outline)
    else:
        (handle,) = ax.plot(0.5 * (cells[1:] + cells[:-1]), density, color=color)
    remember(ax, handle, name)
    for cluster in clusters:
        place = cluster.log_s / LN10 if log else math.exp(min(cluster.log_s, 709.0))
        remember(ax, _arrow_up(ax, place, cluster.mass, color), f"   {cluster.text()}")
    tail = float(spectrum.distribution.cdf(to_log(np.asarray(shown[0])), left=True)) - spectrum.zero_mass
    if tail >= 0.001:
        # Beside the arrow of a mass at zero, not on it.
        mark = _arrow_left(ax, tail, color, floor=None, shift=shift + 0.5 / 8)
        remember(ax, mark, f"   {percent_text(tail)} further left")
    if spectrum.zero_mass > 0:
        floor = math.log10(spectrum.floor) if log and spectrum.floor > 0 else None
        floor = floor if floor is not None and floor > shown[0] else None
        text = f"   {percent_text(spectrum.zero_mass)} {_zero_place(spectrum)}"
        remember(ax, _arrow_left(ax, spectrum.zero_mass, color, floor=floor, shift=shift), text)


def draw_cdf(
    ax: Axes,
    spectrum: Spectrum,
    shown: tuple[float, float],
    *,
    log: bool,
    label: str | None,
    color: str | None,
    points: int,
    explain: bool = False,
) -> None:
    """The cdf over x data from shown[0] to shown[1], with the bands that `plot_cdf` describes.

    With ``explain`` the legend says what the bands are.
    """
    color = color or _next_color(ax)
    x = np.linspace(*shown, points)
    t = x * LN10 if log else _safe_log(x)
    value = np.asarray(spectrum.distribution.cdf(t))
    (line,) = ax.plot(x, value, color=color, linestyle="--" if spectrum.kind == "predicted" else "-")
    remember(ax, line, _label(spectrum, label))
    if spectrum.kind != "measured":
        return
    s = np.exp(np.clip(t, -745.0, 709.0))
    lower, upper = spectrum.cdf_band(s)
    if not np.any(upper - lower > 1e-9):
        return
    outer = ax.fill_between(x, lower, upper, color=color, alpha=0.18, linewidth=0)
    least, most = (np.clip(bound, lower, upper) for bound in spectrum.cdf_bounds(s))
    if np.any(most - least > 1e-9):
        ax.fill_between(x, least, most, color=color, alpha=0.22, linewidth=0)
    if explain:
        remember(ax, outer, "   95 % band; darker: truncation alone")


def _arrow_up(ax: Axes, place: float, mass: float, color: str) -> Line2D:
    """A point mass: an arrow whose height in the frame is the mass."""
    transform = blended_transform_factory(ax.transData, ax.transAxes)
    ax.plot([place, place], [0, 0.97 * mass], color=color, transform=transform, solid_capstyle="butt")
    ax.plot([place], [0.97 * mass], color=color, marker="^", markersize=8, transform=transform, clip_on=False)
    return Line2D([], [], color=color, marker="^", markersize=7, linestyle="none")


def _arrow_left(ax: Axes, mass: float, color: str, *, floor: float | None, shift: float) -> Line2D:
    """Mass at zero or below the floor: a bar as high as the mass, that points to the left.

    It stands at the floor where that is in the picture (``floor``, in x data), since the mass is anywhere to the left
    of it; otherwise at the left edge.
    """
    transform = ax.transAxes if floor is None else blended_transform_factory(ax.transData, ax.transAxes)
    place = 0.006 + 0.03 * shift if floor is None else floor
    height = 0.97 * mass
    ax.plot([place] * 2, [0, height], color=color, linewidth=4, transform=transform, solid_capstyle="butt")
    ax.plot([place], [height], color=color, marker="<", markersize=8, transform=transform, clip_on=False)
    return Line2D([], [], color=color, marker="<", markersize=7, linestyle="none")


# ---- axes, labels, legend ------------------------------------------------------------------------------


def finish_axis(ax: Axes, *, log: bool, low: float, high: float, zero: bool) -> None:
    """Limits that hold everything drawn so far, also by earlier calls, and the x axis in values of s."""
    before = getattr(ax, "_isometry_range", None)
    if before is not None:
        low, high = min(low, before[0]), max(high, before[1])
    ax._isometry_range = (low, high)  # type: ignore[attr-defined]
    if log:
        ax.set_xlim(low - (0.06 * (high - low) if zero else 0.0), high)
        label_log_axis(ax)
        ax.set_xlabel("singular value s (log scale)")
    else:
        ax.set_xlim(low, high)
        ax.set_xlabel("singular value s")


def finish_density(ax: Axes, label: str) -> None:
    """The y axis from zero on: a density, or the mass of the arrows where only arrows were drawn."""
    drawn = getattr(ax, "_isometry_highest", 0.0)
    ax.set_ylim((0, 1.05 * drawn) if drawn > 0 else (0, 1 / 0.97))
    ax.set_ylabel(label if drawn > 0 else "mass of the arrows")


def remember(ax: Axes, handle: Any, label: str) -> None:
    """Legend entries are kept apart from the artists: Matplotlib hides labels that begin with an underscore."""
    entries = getattr(ax, "_isometry_legend", [])
    if label:
        entries.append((handle, label))
    ax._isometry_legend = entries  # type: ignore[attr-defined]


def legend_of(ax: Axes) -> list[tuple[Any, str]]:
    """(artist, text) of every entry of the legend of ``ax``."""
    return list(getattr(ax, "_isometry_legend", []))


def draw_legend(ax: Axes, *, outside: bool = False) -> None:
    entries = legend_of(ax)
    if not entries:
        return
    # A zero-width space keeps a name that begins with an underscore in the legend.
    names = [f"\u200b{label}" if label.startswith("_") else label for _, label in entries]
    handles = [handle for handle, _ in entries]
    if outside:
        legend = ax.legend(
            handles, names, loc="lower left", bbox_to_anchor=(0, 1.02), ncols=2, borderaxespad=0
        )
    else:
        legend = ax.legend(handles, names, loc="best")
    for text in legend.get_texts():
        text.set_parse_math(False)


def _label(spectrum: Spectrum, label: str | None) -> str:
    if label is not None:
        return label
    return plain(spectrum.name) or f"{spectrum.kind} ({spectrum.method})"


def _zero_place(spectrum: Spectrum) -> str:
    return f"below the floor ({number_text(spectrum.floor)})" if spectrum.floor > 0 else "at zero"


def legend_entries(spectrum: Spectrum) -> int:
    """How many legend entries a spectrum takes: its name, and at most one for each of its point masses."""
    return 1 + len(spectrum.atoms)


def color_of(index: int, count: int) -> str:
    """Cycle colours while they last; beyond, a colour-blind-safe ramp in the order given."""
    cycle = mpl.rcParams["axes.prop_cycle"].by_key().get("color", ["C0"])
    if count <= len(cycle):
        return str(cycle[index])
    return str(mpl.colors.to_hex(mpl.colormaps["cividis"](0.92 * index / (count - 1))))


def _next_color(ax: Axes) -> str:
    (line,) = ax.plot([], [])
    color = mpl.colors.to_hex(line.get_color())
    line.remove()
    return str(color)


def _safe_log(x: Any) -> Array:
    with np.errstate(divide="ignore"):
        return np.log(np.maximum(np.asarray(x, float), 0.0))
