"""Gaussian averages E f(sqrt(q) z) at many q: tabulated in log q where they are asked for often. Internal.

A sum over layers asks for an average at every layer. As a function of log q it is analytic in a strip of half-width
pi/2 about the real axis, whatever the kinks of f, so that a Chebyshev interpolant on a stretch of log q of length 1/2
gains more than a digit with each of its 16 points: it is exact to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

from isometry.theory.activations import Activation
from isometry.theory.gaussian import gaussian_average

Array = NDArray[np.float64]
Function = Callable[[Array], Array]

STRETCH = 0.5
POINTS = 16
# Averages taken one by one on a stretch before it is tabulated.
DIRECT = 8
# The trapezoid rule holds every smooth phi up to here.
LARGEST_SMOOTH = 4.0
_NODES = np.cos(np.pi * (np.arange(POINTS) + 0.5) / POINTS)
_TO_COEFFICIENTS = np.linalg.inv(chebyshev.chebvander(_NODES, POINTS - 1))


class AverageTable:
    """Averages of several functions of h over the pre-activations of variance q.

    Parameters
    ----------
    activation : Activation
        Its kinks are those of the functions.
    functions : sequence of callable
        Elementwise on (n,) arrays.
    """

    def __init__(self, activation: Activation, functions: Sequence[Function]) -> None:
        self._kinks, self._functions = activation.kinks, tuple(functions)
        z = np.linspace(-12.0, 12.0, 241)
        weight = np.exp(-0.5 * z * z)
        self._z, self._weight = z, weight / weight.sum()
        self._asked: dict[int, int] = {}
        self._tables: dict[int, list[list[float]]] = {}

    def __call__(self, q: float) -> list[float]:
        """The average of every function at variance q > 0."""
        place = math.log(q) / STRETCH
        number = math.floor(place)
        table = self._tables.get(number)
        if table is None:
            asked = self._asked[number] = self._asked.get(number, 0) + 1
            if asked <= DIRECT:
                return self._direct(q)
            table = self._tables[number] = self._tabulated(number)
        x = 2.0 * (place - number) - 1.0
        values = []
        for coefficients in table:
            value = 0.0
            for coefficient in coefficients:
                value = value * x + coefficient
            values.append(value)
        return values

    def _direct(self, q: float) -> list[float]:
        if self._kinks or q > LARGEST_SMOOTH:
            return [gaussian_average(function, q, kinks=self._kinks) for function in self._functions]
        # The trapezoid rule converges faster than any power for a smooth phi.
        h = math.sqrt(q) * self._z
        return [float(self._weight @ function(h)) for function in self._functions]

    def _tabulated(self, number: int) -> list[list[float]]:
        places = np.exp(STRETCH * (number + 0.5 * (_NODES + 1.0)))
        values = np.array([self._direct(float(q)) for q in places])
        coefficients = _TO_COEFFICIENTS @ values
        return [chebyshev.cheb2poly(column)[::-1].tolist() for column in coefficients.T]


def distinct(
    layers: Sequence[tuple[Activation, float, float]],
) -> list[tuple[Activation, float, float]]:
    """The layers that are not the same object, in order."""
    return list({id(layer): layer for layer in layers}.values())
