"""Reports of spectra: on the terminal, as pictures, as one HTML file. Names are loaded when they are first used.

What is not in ``__all__`` is internal to isometry.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = [
    "figure_of_spectra",
    "house_style",
    "plot_cdf",
    "plot_comparison",
    "plot_comparison_cdf",
    "plot_density",
    "plot_spectra",
    "print_bands",
    "print_profile",
    "print_report",
    "render_html",
    "save_figure",
    "write_html",
]
# Loaded by name: whoever takes one thing does not load Matplotlib for the others.
_MODULES = {
    "canvas": ("house_style", "save_figure"),
    "compare_plots": ("plot_comparison", "plot_comparison_cdf"),
    "html": ("render_html", "write_html"),
    "plots": ("figure_of_spectra", "plot_cdf", "plot_density", "plot_spectra"),
    "terminal": ("print_report",),
    "terminal_bands": ("print_bands",),
    "terminal_profile": ("print_profile",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"isometry.report.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
