"""Logarithms on the branches of the closed half-planes, which the equations of free probability need. Internal."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ComplexArray = NDArray[np.complex128]


def lower_log(values: ComplexArray) -> ComplexArray:
    """log with arguments in [-pi, 0]: the branch of the closed lower half-plane, negative reals included."""
    signed = np.array(values, complex)
    signed.imag[signed.imag == 0.0] = -0.0
    return np.log(signed)


def upper_log(values: ComplexArray) -> ComplexArray:
    """log with arguments in [0, pi]: the branch of the closed upper half-plane, negative reals included."""
    signed = np.array(values, complex)
    signed.imag[signed.imag == 0.0] = 0.0
    return np.log(signed)


def lower_log_of_sum(excess: ComplexArray, whole: ComplexArray) -> ComplexArray:
    """`lower_log` of ``whole`` = 1 + ``excess``, whose argument has the digits of a small excess."""
    result = lower_log(whole)
    small = np.abs(excess) < 0.5
    result.imag[small] = np.arctan2(excess.imag, whole.real)[small]
    return result
