"""How much the Jacobians of several inputs differ in their mean square, beside what the probes alone would show."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .spectrum import Spectrum


@dataclass(frozen=True)
class InputSpread:
    """Spread of E[s^2] and of the fraction in [0.5, 2] over the inputs of one measurement.

    Parameters
    ----------
    mean, deviation : float
        Mean and standard deviation over inputs of E[s^2].
    probe_error : float
        Root mean square of the inputs' own standard errors over probes; nan where one probe tells none.
    least, most : float
        The smallest and largest fraction of singular values in [0.5, 2].
    """

    mean: float
    deviation: float
    probe_error: float
    least: float
    most: float


def input_spread(spectrum: Spectrum) -> InputSpread:
    """The spread over the inputs of a measurement over two or more."""
    each = [spectrum.input(index) for index in range(spectrum.n_inputs)]
    means = np.array([one.mean_square for one in each])
    errors = np.array([one.mean_square_stderr for one in each])
    shares = [one.isometry() for one in each]
    return InputSpread(
        float(means.mean()),
        float(means.std(ddof=1)),
        math.sqrt(float(np.mean(errors**2))),
        min(shares),
        max(shares),
    )
