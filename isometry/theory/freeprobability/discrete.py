"""The law of a product of free factors with given singular values: J = A_K ... A_1.

Internal but for `Factor` and `free_product`.

Nothing is assumed of the factors but that they are free of each other: each A_l is a list of squared singular values
a with multiplicities, as measured from a weight matrix or from the slopes phi'(h) of one layer. With unnormalised
t = Tr J J^T (z - J J^T)^-1, which does not change under AB -> BA, the product of S-transforms of rectangular factors
(Benaych-Georges 2009, arXiv 0807.4898; Chhaibi et al. 2021, arXiv 2111.00841, for networks) reads

    sum_i a_li / (w_l - a_li) = t   for every factor l,        z = prod_l w_l  prod_j t / (t + N_j),

N_j the dimensions between neighbouring factors. In the variables v_l = log(-w_l), u = log(-t / (t + n)) all this is
real on the negative axis of z, where the root is unique, and `continuation` follows it around the circle |z| = lambda
to the positive axis: no root has to be chosen. The cdf needs no integration: with
Phi(z) = (1/n) Tr log(z - J J^T) the equations integrate to

    n (Phi - log z) = sum_l sum_i log(1 - a_li / w_l) + sum_j N_j log(1 + t / N_j),      F(lambda) = 1 - Im Phi / pi.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isometry.errors import InputError
from isometry.spectrum import Curve, Spectrum
from isometry.theory.freeprobability.discrete_curve import Problem, free_curve

Array = NDArray[np.float64]

MOMENT_ORDER = 6
# Places of the curve.
GRID_POINTS = 320
# Squared singular values within this of each other, at mean 1, are one: an isometry stored in float32.
ROUNDING = 1e-5
# The lower end of the curve is where a tenth of one direction is left below it, within these limits.
TAIL_MASS = (1e-6, 1e-3)
# A value with a larger share is a point mass of a law that is a single factor.
MOST_ATOMS = 64


@dataclass(frozen=True, eq=False)
class Factor:
    """One factor A of a product, by its singular values.

    Parameters
    ----------
    singular_values : (k,) array
        Singular values of A, >= 0.
    multiplicities : (k,) array
        How many directions have each; they sum to min(rows, columns).
    rows, columns : int
        Shape of A.
    name : str
        For messages.
    """

    singular_values: Array
    multiplicities: Array
    rows: int
    columns: int
    name: str = ""

    def __post_init__(self) -> None:
        total = float(np.sum(self.multiplicities))
        if not abs(total - self.side) < 1e-6 * self.side:
            raise InputError(
                f"the multiplicities of {self.name or 'a factor'} sum to its shorter side, {self.side}; got {total:.6g}"
            )

    @classmethod
    def from_values(
        cls,
        singular_values: ArrayLike,
        *,
        rows: int | None = None,
        columns: int | None = None,
        weights: ArrayLike | None = None,
        name: str = "",
    ) -> Factor:
        """Factor with these singular values, equally weighted or with the fractions ``weights``; square by default."""
        values = np.abs(np.asarray(singular_values, float).ravel())
        rows = values.size if rows is None else rows
        columns = rows if columns is None else columns
        side = min(rows, columns)
        fractions = np.full(values.size, 1.0 / max(values.size, 1))
        if weights is not None:
            fractions = np.asarray(weights, float).ravel()
        if values.size == 0 or fractions.shape != values.shape or not np.all(np.isfinite(values)):
            raise InputError(
                f"a factor needs finite singular values and a weight for each; {name or 'this one'} has "
                f"{values.size} values and {fractions.size} weights"
            )
        if np.any(fractions < 0) or not abs(fractions.sum() - 1) < 1e-6:
            raise InputError(
                f"the weights of a factor are fractions that sum to 1; got {fractions.sum():.6g}"
            )
        distinct, where = np.unique(values, return_inverse=True)
        return cls(distinct, np.bincount(where, weights=fractions) * side, int(rows), int(columns), name)

    @property
    def side(self) -> int:
        """min(rows, columns)."""
        return min(self.rows, self.columns)

    @property
    def mean_square(self) -> float:
        """Mean of s^2 over the min(rows, columns) singular values."""
        return float(self.multiplicities @ self.singular_values**2 / self.side)


def free_product(
    factors: Sequence[Factor], *, grid_points: int = GRID_POINTS, bins: int | None = None
) -> Spectrum:
    """The law that the singular values of A_K ... A_1 have when the factors are free of each other.

    Parameters
    ----------
    factors : sequence of Factor
        In the order in which they act: the first next to the input. Columns of each are the rows of the one before.
    grid_points : int
        Places of the curve, roughly.
    bins : int, optional
        Distinct values kept of each factor; neighbours are merged to their mean (of s^2), finer at the two ends. By
        default from 40 to 192, fewer the more factors there are (96 change the cdf by 2e-4, 48 by 1e-3). Moments
        use all values in any case.

    Returns
    -------
    Spectrum
        A curve with its point masses, exact moments m_1 .. m_6 and shape (rows of A_K, columns of A_1); atoms
        alone where a single factor is not a multiple of an isometry.

    Raises
    ------
    InputError
        When shapes do not fit, or a factor is zero.
    ConvergenceError
        When the curve does not have the mass or the mean it must have; no curve is returned then.
    """
    _check_chain(factors)
    problem = _problem(factors, bins or int(np.clip(6_000 // max(len(factors), 1), 40, 192)))
    moments = _log_moments(problem)
    shape = (factors[-1].rows, factors[0].columns)
    # Every multiple of an isometry takes one dimension between factors with it, so one factor is always left.
    law = _single(problem, moments) if len(problem.full) == 1 else free_curve(problem, moments, grid_points)
    return Spectrum(law, method="free product", shape=shape)


# ---- the problem in numbers ----------------------------------------------------------------------------


def _problem(factors: Sequence[Factor], bins: int) -> Problem:
    """The factors as arrays, multiples of an isometry left out."""
    side = min(factors[-1].rows, factors[0].columns)
    log_scale, kept, sizes = 0.0, [], []
    interfaces = [factor.rows for factor in factors[:-1]]
    for factor in factors:
        # Divided by the largest first: squares of 1e-200 would underflow.
        top = float(factor.singular_values.max())
        squares, weights = (factor.singular_values / top) ** 2, factor.multiplicities / factor.side
        mean = float(weights @ squares)
        log_scale += 2 * math.log(top) + math.log(mean)
        squares = squares / mean
        if np.ptp(squares) < ROUNDING:
            squares, weights = np.ones(1), np.ones(1)
        if squares.size == 1 and factor.side in interfaces:
            # A multiple of an isometry: w = a (t + n_l) / t, which cancels one interface of its own dimension.
            interfaces.remove(factor.side)
            continue
        kept.append((squares, weights))
        sizes.append(factor.side)
    merged = [_merged(squares, weights, bins) for squares, weights in kept]
    width = max((values.size for values, _ in merged), default=0)
    values, weights = np.ones((len(merged), width)), np.zeros((len(merged), width))
    for row, (a, p) in enumerate(merged):
        values[row, : a.size], weights[row, : a.size] = a, p
    # A dimension smaller than that of J forces zeros; rank by rank the scarcest decides.
    ranks = [size * (1.0 - float(p[a == 0].sum())) for (a, p), size in zip(kept, sizes, strict=True)]
    rank = min([side, *interfaces, *ranks])
    return Problem(
        values, weights, np.array(sizes, float) / side, np.array(interfaces, float) / side, log_scale,
        tuple(kept), max(0.0, 1.0 - rank / side) if rank < side * (1 - 1e-12) else 0.0,
        _heavy_atom(kept, sizes, interfaces, side), float(np.clip(0.1 / side, *TAIL_MASS)),
    )  # fmt: skip


def _check_chain(factors: Sequence[Factor]) -> None:
    if not factors:
        raise InputError("a product needs at least one factor; got none")
    for before, after in itertools.pairwise(factors):
        if before.rows != after.columns:
            raise InputError(
                f"{after.name or 'a factor'} takes {after.columns} inputs but {before.name or 'the one before'} gives "
                f"{before.rows}"
            )
    for factor in factors:
        if not factor.singular_values.max() > 0:
            raise InputError(
                f"all singular values of {factor.name or 'a factor'} are zero: so is the whole product"
            )


def _merged(values: Array, weights: Array, bins: int) -> tuple[Array, Array]:
    """At most about ``bins`` values with the same mean; heavy ones stay by themselves, both ends stay fine."""
    if values.size <= bins:
        return values, weights
    edges = np.sin(0.5 * np.pi * np.arange(1, bins) / bins) ** 2
    heavy = (weights > 1.0 / bins) | (values == 0)
    # A heavy value is a segment of its own and parts the light ones on its two sides.
    segment = 2 * np.cumsum(heavy) - heavy
    cell = np.searchsorted(edges, np.cumsum(weights) - 0.5 * weights)
    _, group = np.unique(segment * (bins + 1) + cell, return_inverse=True)
    mass = np.bincount(group, weights=weights)
    return np.bincount(group, weights=weights * values) / mass, np.asarray(mass, float)


def _heavy_atom(
    kept: list[tuple[Array, Array]], sizes: list[int], interfaces: list[int], side: int
) -> tuple[float, float]:
    """(ln lambda before scaling, mass) of the directions in which every factor has its commonest value, or mass 0.

    Subspaces in general position meet in sum_l k_l - sum_j N_j dimensions.
    """
    log_place, count = 0.0, -float(sum(interfaces))
    for (values, weights), size in zip(kept, sizes, strict=True):
        heaviest = int(np.argmax(weights))
        if values[heaviest] <= 0:
            return 0.0, 0.0
        log_place += math.log(values[heaviest])
        count += size * float(weights[heaviest])
    return log_place, max(0.0, count / side) if count / side > 1e-9 else 0.0


# ---- one factor, and moments ---------------------------------------------------------------------------


def _single(problem: Problem, moments: tuple[float, ...]) -> Curve:
    """The law of one factor: its common values as atoms, a line through the many others."""
    values, weights = problem.full[0]
    with np.errstate(divide="ignore"):
        log_s = 0.5 * (np.log(values) + problem.log_scale)
    heavy = (weights > 1.0 / MOST_ATOMS) | (values == 0)
    if np.count_nonzero(~heavy) < 3:
        heavy[:] = True
    t, mass = log_s[~heavy], weights[~heavy]
    if t.size == 0:
        return Curve(t, t, t, log_s, weights, moments)
    total = np.cumsum(mass)
    # The first and last point carry the whole range: half a value's mass more than the middle of each step.
    cdf = (total - 0.5 * mass - 0.5 * mass[0]) * total[-1] / (total[-1] - 0.5 * (mass[0] + mass[-1]))
    return Curve(t, cdf, np.gradient(cdf, t), log_s[heavy], weights[heavy], moments)


def _log_moments(problem: Problem) -> tuple[float, ...]:
    """ln m_1 .. ln m_6 of lambda: 1/z as a power series in t / n, reverted."""
    order = MOMENT_ORDER
    # 1/z = m prod_l (y_l / m) prod_j (m + N_j), y_l = 1 / w_l, in m = t / n.
    log_lead, series = 0.0, np.zeros(order)
    series[0] = 1.0
    for (values, weights), size in zip(problem.full, problem.sizes, strict=True):
        powers = np.array([weights @ values**k for k in range(1, order + 1)])
        # m / size = powers[0] y + powers[1] y^2 + ...
        ratio = _reverted(powers)
        scaled = ratio[:order] / size ** np.arange(1, order + 1)
        log_lead += math.log(scaled[0])
        series = _product(series, scaled / scaled[0])
    for size in problem.interfaces:
        log_lead += math.log(size)
        linear = np.zeros(order)
        linear[:2] = 1.0, 1.0 / size
        series = _product(series, linear)
    # 1/z = e^lead m (1 + c_1 m + ...)  <->  m = sum_k M_k z^-k.
    moments = _reverted(series)
    return tuple(
        float(math.log(moment) + k * (problem.log_scale - log_lead))
        for k, moment in enumerate(moments, start=1)
    )


def _product(a: Array, b: Array) -> Array:
    return np.convolve(a, b)[: a.size]


def _reverted(coefficients: Array) -> Array:
    """Coefficients b of y = b_1 x + b_2 x^2 + ... where x = a_1 y + a_2 y^2 + ...: Lagrange's inversion."""
    order = coefficients.size
    # (y / x(y))^k, whose coefficient k - 1 is k b_k.
    inverse = np.zeros(order)
    inverse[0] = 1.0 / coefficients[0]
    for k in range(1, order):
        inverse[k] = -float(coefficients[1 : k + 1] @ inverse[k - 1 :: -1][:k]) / coefficients[0]
    result, power = np.empty(order), np.zeros(order)
    power[0] = 1.0
    for k in range(1, order + 1):
        power = _product(power, inverse)
        result[k - 1] = power[k - 1] / k
    return result
