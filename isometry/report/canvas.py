"""The figure style, figures without a window, and picture files with reproducible bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from isometry.errors import InputError

STYLE_FILE = Path(__file__).with_name("isometry.mplstyle")


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the style of isometry's figures; the user's own settings are restored afterwards."""
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
