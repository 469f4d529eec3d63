"""Arithmetic on ln s where s itself may leave the range of floats."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from isometry.errors import InputError

Array = NDArray[np.float64]


def exponential(log: float) -> float:
    """e^log, 0 below the range of floats and inf above it."""
    return math.exp(log) if log < 709.78 else math.inf


def times_exp(values: Array, shift: float) -> Array:
    """``values * exp(shift)`` where the product is a float although exp(shift) may not be one."""
    half = float(np.exp(np.clip(shift / 2, -700.0, 700.0)))
    with np.errstate(over="ignore"):
        shifted = np.asarray(values, float) * half * half
    if not np.array_equal(np.isfinite(shifted), np.isfinite(values)):
        raise InputError(f"singular values times exp({shift:g}) leave the range of floats")
    return shifted


def same_place(t: Array) -> Array:
    """How far apart two values of ln s may be and still mean the same s.

    ln and exp do not undo one another to the last bit. Without this a point mass would lie beyond the very s
    that :meth:`isometry.spectrum.Quadrature.quantile` names, and its mass would be missing from the cdf there.
    """
    return 4 * np.finfo(float).eps * np.maximum(1.0, np.abs(np.where(np.isfinite(t), t, 0.0)))
