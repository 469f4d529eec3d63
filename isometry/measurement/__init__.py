"""Model and input -> `Spectrum`: the choice of a method, when to stop, and the record of what was done."""

from __future__ import annotations

from isometry.measurement.measurement import measure

__all__ = ["measure"]
