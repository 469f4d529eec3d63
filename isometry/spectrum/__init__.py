"""A distribution of singular values and how well it is known. numpy alone; scipy where an interval is asked for."""

from __future__ import annotations

from isometry.spectrum.distribution import Curve, Distribution, Quadrature
from isometry.spectrum.spectrum import Extremes, Spectrum
from isometry.spectrum.summary import Summary

__all__ = ["Curve", "Distribution", "Extremes", "Quadrature", "Spectrum", "Summary"]
