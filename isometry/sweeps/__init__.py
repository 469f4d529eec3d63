"""Sweeps: every point of a grid, on any executor, into one resumable file. See docs/sweeps.md.

Names are loaded when they are first used, because a new worker sets its number of threads before it loads NumPy and
torch.

Names that are not in `__all__` are internal.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isometry.sweeps.configuration import Point, point_of
    from isometry.sweeps.grid import points_of
    from isometry.sweeps.run import SweepResult, sweep

_HOMES = {
    "Point": "isometry.sweeps.configuration",
    "SweepResult": "isometry.sweeps.run",
    "point_of": "isometry.sweeps.configuration",
    "points_of": "isometry.sweeps.grid",
    "sweep": "isometry.sweeps.run",
}

__all__ = ["Point", "SweepResult", "point_of", "points_of", "sweep"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value
