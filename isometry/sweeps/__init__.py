"""Sweeps: a grid of points, any executor, one file that a kill does not harm. See docs/sweeps.md."""

from __future__ import annotations

from isometry.sweeps.configuration import Point, point_of
from isometry.sweeps.grid import points_of
from isometry.sweeps.run import SweepResult, sweep

__all__ = ["Point", "SweepResult", "point_of", "points_of", "sweep"]
