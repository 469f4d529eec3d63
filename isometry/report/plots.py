"""Pictures of spectra: density of log10 s, cumulative distribution with its error band, several in one picture.

Every function draws into the Matplotlib ``ax`` it is given (or a new one, in the style of the house) and
returns it. The x data of a logarithmic picture are log10 s, labelled with the values of s: a deep network's
singular values leave the range of floats. A point mass has no density, so it is an arrow whose height is its
mass (the top of the frame is 100 %); mass at zero is an arrow that leaves the picture to the left, mass below the
floor of a measurement one that points to the left from there. pyplot and its global state are not used: a notebook
shows ``ax.figure``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import blended_transform_factory
from numpy.typing import NDArray

from isometry.errors import InputError
from isometry.spectrum import Spectrum

from .concentration import cell_masses, concentrations, shown_range
from .log_axis import label_log_axis
from .numbers import plain

Array = NDArray[np.float64]

STYLE_FILE = Path(__file__).with_name("isometry.mplstyle")
LN10 = math.log(10)
CURVE_CELLS = 600


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the style of the house, whatever the user's own settings; they are back afterwards."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(mpl.rc_params_from_file(STYLE_FILE, use_default_template=False))
        yield


def new_figure(rows: int = 1, *, height: float | None = None, **options: Any) -> tuple[Figure, list[Axes]]:
    """(figure, its axes from top to bottom), without a window and without pyplot.

    Parameters
    ----------
    rows : int
        Number of axes, one above the other.
    height : float, optional
        Height in inches; the width is the style's.
    **options
        For ``Figure.subplots``: ``sharex``, ``height_ratios``, ...
    """
    with house_style():
        width, default_height = mpl.rcParams["figure.figsize"]
        figure = Figure(figsize=(width, height or default_height))
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, 1, squeeze=False, **options)
    return figure, list(axes[:, 0])


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
    low, high = _shown_range([spectrum], log=log)
    _draw_density(ax, spectrum, (low, high), log=log, label=label, bins=bins, color=color)
    _finish(ax, log=log, low=low, high=high, zero=spectrum.zero_mass > 0)
    _density_axis(ax, "density per decade of s" if log else "density of s")
    _legend(ax)
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

    The darker band is two standard errors over probes to either side. The lighter one adds the truncation error
    of the quadrature, which the Chebyshev-Markov-Stieltjes inequalities bound (Szego 1939, section 3.41).
    A prediction and an exact measurement have neither.

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
    low, high = _shown_range([spectrum], log=log)
    _draw_cdf(ax, spectrum, (low, high), log=log, label=label, color=color, points=points)
    ax.set_ylabel("fraction of singular values ≤ s")
    _finish(ax, log=log, low=low, high=high, zero=False)
    ax.set_ylim(0, 1.02)
    _legend(ax)
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
    low, high = _shown_range(spectra, log=True)
    for index, spectrum in enumerate(spectra):
        label = labels[index] if labels is not None else None
        color = _color(index, len(spectra))
        if kind == "density":
            _draw_density(
                ax, spectrum, (low, high), log=True, label=label, bins=bins, color=color,
                shift=index / max(len(spectra), 8),
            )  # fmt: skip
        else:
            _draw_cdf(ax, spectrum, (low, high), log=True, label=label, color=color, points=400)
    zero = kind == "density" and any(spectrum.zero_mass > 0 for spectrum in spectra)
    _finish(ax, log=True, low=low, high=high, zero=zero)
    if kind == "density":
        _density_axis(ax, "density per decade of s")
    else:
        ax.set_ylabel("fraction ≤ s")
        ax.set_ylim(0, 1.02)
    if legend:
        _legend(ax)
    return ax


def figure_of_spectra(
    spectra: Sequence[Spectrum], *, labels: Sequence[str] | None = None, title: str = ""
) -> Figure:
    """One picture of all: the densities above, the cumulative distributions with their bands below."""
    with house_style():
        entries = sum(1 + len(_masses(spectrum)) for spectrum in spectra)
        height = 5.6 + 0.22 * max(entries - 4, 0)
        figure, (above, below) = new_figure(2, height=height, sharex=True, height_ratios=(1.7, 1.0))
        plot_spectra(spectra, above, kind="density", labels=labels, legend=False)
        plot_spectra(spectra, below, kind="cdf", labels=labels, legend=False)
        _legend(above, outside=entries > 4)
        above.set_xlabel("")
        if title:
            above.set_title(title, parse_math=False)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str], *, kind: str | None = None) -> Path:
    """Write a figure to a PNG, SVG or PDF file, the same bytes each time; returns the path.

    ``kind`` is "png", "svg" or "pdf"; by default the ending of the path says it.
    Written under another name and renamed, so that an interrupted run leaves the old picture.
    """
    target = Path(path)
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    kind = kind or target.suffix.lower().removeprefix(".")
    if kind not in metadata:
        raise InputError(f"a picture is written as .png, .svg or .pdf; got {target.name!r}")
    partial = target.with_name(f".{target.name}.partial")
    try:
        with house_style():
            figure.savefig(partial, format=kind, metadata=metadata[kind])
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"cannot write the picture {target}: {error.strerror or error}") from error
    return target


# ---- drawing one spectrum ------------------------------------------------------------------------------


def _shown_range(spectra: Sequence[Spectrum], *, log: bool) -> tuple[float, float]:
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


def _draw_density(
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
    _remember(ax, handle, name)
    for cluster in clusters:
        place = cluster.log_s / LN10 if log else math.exp(min(cluster.log_s, 709.0))
        _remember(ax, _arrow_up(ax, place, cluster.mass, color), f"   {cluster.text()}")
    tail = float(spectrum.distribution.cdf(to_log(np.asarray(shown[0])), left=True)) - spectrum.zero_mass
    if tail >= 0.001:
        _remember(ax, Line2D([], [], linestyle="none"), f"   {100 * tail:.2g} % further left")
    if spectrum.zero_mass > 0:
        floor = math.log10(spectrum.floor) if log and spectrum.floor > 0 else None
        floor = floor if floor is not None and floor > shown[0] else None
        text = f"   {100 * spectrum.zero_mass:.3g} % {_zero_place(spectrum)}"
        _remember(ax, _arrow_left(ax, spectrum.zero_mass, color, floor=floor, shift=shift), text)


def _draw_cdf(
    ax: Axes,
    spectrum: Spectrum,
    shown: tuple[float, float],
    *,
    log: bool,
    label: str | None,
    color: str | None,
    points: int,
) -> None:
    color = color or _next_color(ax)
    x = np.linspace(*shown, points)
    t = x * LN10 if log else _safe_log(x)
    value = np.asarray(spectrum.distribution.cdf(t))
    (line,) = ax.plot(x, value, color=color, linestyle="--" if spectrum.kind == "predicted" else "-")
    _remember(ax, line, _label(spectrum, label))
    if spectrum.kind != "measured":
        return
    s = np.exp(np.clip(t, -745.0, 709.0))
    lower, upper = spectrum.cdf_bounds(s)
    error = 2 * np.nan_to_num(spectrum.cdf_stderr(s))
    if np.any(error > 0):
        ax.fill_between(
            x,
            np.clip(value - error, 0, 1),
            np.clip(value + error, 0, 1),
            color=color,
            alpha=0.28,
            linewidth=0,
        )
    if np.any(upper - lower > 1e-9):
        ax.fill_between(
            x,
            np.clip(lower - error, 0, 1),
            np.clip(upper + error, 0, 1),
            color=color,
            alpha=0.13,
            linewidth=0,
        )


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


def _finish(ax: Axes, *, log: bool, low: float, high: float, zero: bool) -> None:
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


def _density_axis(ax: Axes, label: str) -> None:
    """The y axis of a density from zero on; of masses alone where all that was drawn are arrows."""
    drawn = getattr(ax, "_isometry_highest", 0.0)
    ax.set_ylim((0, 1.05 * drawn) if drawn > 0 else (0, 1 / 0.97))
    ax.set_ylabel(label if drawn > 0 else "mass of the arrows")


def _remember(ax: Axes, handle: Any, label: str) -> None:
    """Legend entries are kept apart from the artists: Matplotlib hides labels that begin with an underscore."""
    entries = getattr(ax, "_isometry_legend", [])
    if label:
        entries.append((handle, label))
    ax._isometry_legend = entries  # type: ignore[attr-defined]


def _legend(ax: Axes, *, outside: bool = False) -> None:
    entries = getattr(ax, "_isometry_legend", [])
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
    return f"below the floor ({spectrum.floor:.1g})" if spectrum.floor > 0 else "at zero"


def _masses(spectrum: Spectrum) -> list[Any]:
    """What will need a legend entry of its own beside the spectrum's."""
    return [*spectrum.atoms] if spectrum.kind == "predicted" else [1] * (spectrum.zero_mass > 0)


def _color(index: int, count: int) -> str:
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


__all__ = [
    "figure_of_spectra",
    "house_style",
    "new_figure",
    "plot_cdf",
    "plot_density",
    "plot_spectra",
    "save_figure",
]
