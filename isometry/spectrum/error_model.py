"""`ErrorModel`: how random the probes of a measurement were, and how well its products are known.

Every bound, interval, standard error and stopping rule follows from the nodes of a quadrature, its extremes and this.
The record of a measurement (``Spectrum.provenance``) enters none of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isometry.errors import InputError

Array = NDArray[np.float64]

PROBES = ("gaussian", "rademacher", "orthogonal")
NO_PROBES = "none"


@dataclass(frozen=True)
class ErrorModel:
    """What parts a quadrature from the singular values, beside truncation: chance and rounding.

    Parameters
    ----------
    probe : {"gaussian", "rademacher", "orthogonal", "none"}
        Kind of probes: uniform on the sphere; random signs; uniform and orthogonal to one another in groups; or none,
        where all singular values were computed.
    orthogonal_group : int
        Number of consecutive probes that are orthogonal to one another; 1 where none are.
    eps : float
        Unit of rounding of the precision of the products; 0 for a prediction.
    rounding : float
        Relative error of a product by rounding, beside some ``eps`` of the largest singular value.
    dimension : int, optional
        min(m, n), the number of singular values; None where it is not known. A `Spectrum` with a shape knows it.

    Raises
    ------
    InputError
        For a kind of probes that is none of these, or a number out of its range.
    """

    probe: str = "gaussian"
    orthogonal_group: int = 1
    eps: float = float(np.finfo(float).eps)
    rounding: float = 0.0
    dimension: int | None = None

    def __post_init__(self) -> None:
        if self.probe not in (*PROBES, NO_PROBES):
            raise InputError(f"probe is one of {', '.join(PROBES)} or {NO_PROBES}; got {self.probe!r}")
        for name, value, least in (
            ("orthogonal_group", self.orthogonal_group, 1),
            ("eps", self.eps, 0),
            ("rounding", self.rounding, 0),
            ("dimension", 1 if self.dimension is None else self.dimension, 1),
        ):
            if not least <= value < math.inf:
                raise InputError(
                    f"{name} of an error model is a finite number of at least {least}; got {value!r}"
                )

    @property
    def random(self) -> bool:
        """Whether there were random probes."""
        return self.probe != NO_PROBES

    @property
    def on_the_sphere(self) -> bool:
        """Whether each probe was uniform on the sphere, so that the distribution of the mass it sees is known."""
        return self.probe != "rademacher"

    def standard_error(self, values: Array, *, over: str = "probes") -> float:
        """Standard error of the mean of an (inputs, probes) array of values that random probes gave.

        ``over="probes"``: the error of the number for the very inputs measured; nan for a single probe.
        ``over="inputs"``: the error of the mean over the population the inputs were drawn from (it contains the probe
        error); nan for one input.
        """
        inputs, probes = values.shape
        if over == "inputs":
            return float(values.mean(1).std(ddof=1) / math.sqrt(inputs)) if inputs > 1 else math.nan
        if over != "probes":
            raise InputError(f'over is "probes" or "inputs"; got {over!r}')
        if probes == 1:
            return math.nan
        spread = float(values.var(axis=1, ddof=1).sum())
        if self.dimension is not None:
            spread *= orthogonal_factor(probes, self.orthogonal_group, self.dimension)
        return math.sqrt(spread / probes) / inputs


def orthogonal_factor(probes: int, group: int, dimension: int) -> float:
    """Variance of a mean over probes that are orthogonal in groups, over what their own spread would make of it.

    A uniform orthonormal frame of n vectors sums any quadratic form to its trace, without chance. So two of its
    vectors, of as many as there are, have values of covariance -V / (n - 1), V being the variance of each. With p the
    share of pairs that are of one group, the sample variance of k probes has the mean V (1 + p / (n - 1)), and their
    mean the variance V (1 - p (k - 1) / (n - 1)) / k. For one group this is the correction 1 - k / n of a sample
    without replacement (Cochran 1977, Sampling Techniques, theorem 2.2).
    """
    if dimension < 2:
        return 1.0
    return mean_factor(probes, group, dimension) / (1 + _pairs(probes, group) / (dimension - 1))


def mean_factor(probes: int, group: int, dimension: float) -> float:
    """Variance of a mean over probes that are orthogonal in groups, over that of independent ones."""
    if dimension < 2:
        return 1.0
    return max(1 - _pairs(probes, group) * (probes - 1) / (dimension - 1), 0.0)


def _pairs(probes: int, group: int) -> float:
    """Share of pairs of probes that are of one group; the last group may be a part of one."""
    if probes < 2:
        return 0.0
    whole, rest = divmod(probes, group)
    return (whole * group * (group - 1) + rest * (rest - 1)) / (probes * (probes - 1))
