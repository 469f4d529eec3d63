"""A distribution of singular values and how well it is known. numpy alone; scipy where an interval is asked for.

Public are the names in ``__all__``; what else the modules hold is internal.
"""

from __future__ import annotations

from isometry.spectrum.curve import Curve
from isometry.spectrum.distribution import Distribution
from isometry.spectrum.error_model import ErrorModel
from isometry.spectrum.extremes import Extremes
from isometry.spectrum.log_values import LogValues
from isometry.spectrum.quadrature import Quadrature
from isometry.spectrum.spectrum import Spectrum
from isometry.spectrum.summary import Summary

__all__ = [
    "Curve",
    "Distribution",
    "ErrorModel",
    "Extremes",
    "LogValues",
    "Quadrature",
    "Spectrum",
    "Summary",
]
