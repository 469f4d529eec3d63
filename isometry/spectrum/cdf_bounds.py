"""Bounds on the fraction of singular values at or below s that hold: truncation, probes, residuals and rounding in one.

F(s) is the expectation, over probes, of the measure that a probe sees. Three errors part it from what is at hand:

* truncation: of each probe's measure only a Gauss rule is known, which bounds it from both sides, without exception
  (`.mass_bounds`);
* chance: the mean over probes strays from F by an amount whose distribution is known (`.probe_intervals`);
* place: a node is known to rounding, a deflated value to its residual.

**Deflation.** With A V = U S exactly and residuals e_r = ||A^T u_r - s_r v_r||, probes on the complement of V see
C = P A^T A P. For t away from every s_r, Sylvester's law of inertia gives the number of singular values of A above t
as that of the s_r above t plus the number of positive eigenvalues of C - t^2 - R S (S^2 - t^2)^-1 S R^T. The last
term is at most sum e_r^2 s_r^2 / |s_r^2 - t^2| over the s_r above t on one side, below t on the other: residuals
enter squared. A value within its own residual of t may lie on either side of it (Cauchy's interlacing).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from isometry.errors import InputError

from .error_model import ErrorModel
from .extremes import Extremes
from .mass_bounds import mass_at_most
from .probe_intervals import band_half_width, limits_by_variance, probe_degrees, share_limits

Array = NDArray[np.float64]

# Sums of masses are known to rounding.
_ROUNDING = 1e-12


class GaussRules(Protocol):
    """The nodes and weights of a `.quadrature.Quadrature`."""

    @property
    def nodes(self) -> Array: ...

    @property
    def weights(self) -> Array: ...

    @property
    def floor(self) -> Array: ...

    @property
    def resolved(self) -> NDArray[np.bool_]: ...

    @property
    def counted(self) -> NDArray[np.bool_]: ...

    @property
    def dimension(self) -> int: ...


@dataclass(frozen=True)
class CdfBounds:
    """Bounds of the fraction of singular values at or below each of some places.

    It lies in [resolved_lower + share * F', resolved_upper + share * F''], where F' and F'' are expectations of masses
    that random probes see, and the mean masses of these probes lie above ``sampled_lower`` and below
    ``sampled_upper``.

    Parameters
    ----------
    resolved_lower, resolved_upper : (points,) arrays
        Fraction of all singular values that were found one by one and lie there certainly, or possibly.
    sampled_lower, sampled_upper : (points,) arrays
        Bounds of the mean mass over the probes, of the values that were not.
    share : float
        Fraction of all singular values that was not found one by one; 0 for an exact measurement.
    degrees : float
        The variance of the mean mass is at most 2 F (1 - F) / degrees (`.probe_intervals.probe_degrees`).
    on_the_sphere : bool
        Whether probes were uniform on the sphere, so that more than the variance is known.
    """

    resolved_lower: Array
    resolved_upper: Array
    sampled_lower: Array
    sampled_upper: Array
    share: float
    degrees: float
    on_the_sphere: bool = True

    @property
    def of_the_rules(self) -> tuple[Array, Array]:
        """Bounds of the fraction that resolved values and the probes' own measures have there: truncation alone."""
        return (
            self.resolved_lower + self.share * self.sampled_lower,
            self.resolved_upper + self.share * self.sampled_upper,
        )

    def limits(self, confidence: float, *, simultaneous: bool = False) -> tuple[Array, Array]:
        """Lower and upper limit of the fraction, each in [0, 1]."""
        lower, upper = self.sampled_lower, self.sampled_upper
        if self.share > 0 and not self.on_the_sphere:
            if simultaneous:
                raise InputError(
                    "a simultaneous band is known for probes that are uniform on the sphere, and these are random "
                    "signs: measure with probe='gaussian' or 'orthogonal', or take the pointwise band"
                )
            lower, upper = limits_by_variance(lower, upper, self.degrees, confidence)
        elif self.share > 0 and simultaneous:
            stray = band_half_width(self.degrees, confidence)
            lower, upper = np.maximum(lower - stray, 0), np.minimum(upper + stray, 1)
        elif self.share > 0:
            lower, upper = share_limits(lower, upper, self.degrees, confidence)
        slack = _ROUNDING * self.share
        return (
            np.clip(self.resolved_lower + self.share * lower - slack, 0, 1),
            np.clip(self.resolved_upper + self.share * upper + slack, 0, 1),
        )

    def minus(self, other: CdfBounds) -> CdfBounds:
        """Bounds of the difference of two fractions, of which ``other`` is the smaller one."""
        return CdfBounds(
            np.maximum(self.resolved_lower - other.resolved_upper, 0), self.resolved_upper - other.resolved_lower,
            np.maximum(self.sampled_lower - other.sampled_upper, 0),
            np.maximum(self.sampled_upper - other.sampled_lower, 0),
            self.share, self.degrees, self.on_the_sphere,
        )  # fmt: skip


def cdf_limits(
    quadrature: GaussRules,
    extremes: Extremes | None,
    errors: ErrorModel,
    s: Array,
    confidence: float,
    *,
    low: Array | None = None,
    simultaneous: bool = False,
) -> tuple[Array, Array]:
    """Limits of the fraction of singular values at or below ``s``, from ``low`` on where that is given.

    See :meth:`isometry.Spectrum.cdf_band` and :meth:`isometry.Spectrum.isometry_band`.
    """
    _check_confidence(confidence)
    found = cdf_bounds(quadrature, extremes, errors, s.ravel())
    if low is not None:
        found = found.minus(cdf_bounds(quadrature, extremes, errors, low.ravel()))
    lower, upper = found.limits(confidence, simultaneous=simultaneous)
    return lower.reshape(s.shape), upper.reshape(s.shape)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"a confidence lies between 0 and 1, such as 0.95; got {confidence}")


def cdf_bounds(quadrature: GaussRules, extremes: Extremes | None, errors: ErrorModel, s: Array) -> CdfBounds:
    """What a measurement says of the fraction of singular values at or below ``s``, (points,).

    It says the same of those below s: a value that cannot be told from s counts for the upper bound alone.
    """
    inputs, probes, _ = quadrature.nodes.shape
    n = quadrature.dimension
    known, sampled = np.zeros((2, s.size)), np.zeros((2, s.size))
    dimensions: list[float] = []
    for index in range(inputs):
        places = _node_errors(quadrature, extremes, errors, index)
        for probe in range(probes):
            nodes, weights, sure = (
                array[index, probe] for array in (quadrature.nodes, quadrature.weights, quadrature.resolved)
            )
            count = weights * n
            found = quadrature.counted[index, probe] & (weights > 0)
            rest = ~found & (weights > 0)
            radius = places.radius(nodes[found], deflated=bool(rest.any()))
            known += places.known(nodes[found], radius, np.round(count[found]), s)
            if rest.any():
                single, gauss = rest & sure, rest & ~sure
                for bound, place, extra in zip(
                    sampled, places.around(s, nodes[found], radius), (-1, 1), strict=True
                ):
                    bound += mass_at_most(nodes[single], weights[single], place)
                    bound += mass_at_most(nodes[gauss], weights[gauss], place, extra=extra)
                dimensions.append(n * float(weights[rest].sum()))
    rows = inputs * probes
    known /= n * rows
    if not dimensions:
        return CdfBounds(known[0], known[1], sampled[0], sampled[1], 0.0, np.inf)
    share = sum(dimensions) / (n * rows)
    sampled = np.clip(sampled / (rows * share), 0, 1)
    # All mass is all values, but all mass less its rounding would be nearly all values only.
    sampled[1] = np.where(sampled[1] > 1 - _ROUNDING, 1.0, sampled[1])
    degrees = probe_degrees(dimensions) if errors.on_the_sphere else sum(dimensions)
    return CdfBounds(known[0], known[1], sampled[0], sampled[1], share, degrees, errors.on_the_sphere)


@dataclass(frozen=True)
class _NodeErrors:
    """How far the singular values of one input may lie from where they were found.

    Parameters
    ----------
    floor : float
        What is found at or below it lies anywhere in [0, floor].
    rounding, relative : float
        A node s is known to within max(rounding, relative * s).
    top, residual : (r,) arrays
        Singular values with residuals, ascending.
    """

    floor: float
    rounding: float
    relative: float
    top: Array
    residual: Array

    def radius(self, values: Array, *, deflated: bool) -> Array:
        """Distance within which a singular value of that rank lies: the residual of the value among the top ones.

        A value that is not among them is known to rounding, but not if probes saw only what it left over: then it is
        anywhere.
        """
        radius = np.full(values.shape, np.inf) if deflated else self._to_rounding(values)
        if self.top.size:
            after = (
                np.clip(np.searchsorted(self.top, values), 1, self.top.size - 1) if self.top.size > 1 else 0
            )
            before = np.maximum(np.asarray(after) - 1, 0)
            nearer = np.abs(self.top[before] - values) <= np.abs(self.top[after] - values)
            match = np.where(nearer, before, after)
            same = np.abs(self.top[match] - values) <= self.rounding
            radius = np.where(same, np.maximum(self.residual[match], self.rounding), radius)
        return radius

    def known(self, values: Array, radius: Array, counts: Array, s: Array) -> Array:
        """How many of the values lie at or below each s certainly, and possibly, (2, points)."""
        hidden = values <= self.floor
        ends = (
            np.where(hidden, np.maximum(values + radius, self.floor), values + radius),
            np.where(hidden, 0.0, values - radius),
        )
        return np.array([mass_at_most(end, counts, s) for end in ends])

    def around(self, s: Array, values: Array, radius: Array) -> tuple[Array, Array]:
        """Places between which the cdf of what is left over equals that of its part of J at s."""
        lower, upper = place_bounds(s, values, radius)
        lower = np.minimum(lower - self.rounding, lower * (1 - self.relative))
        upper = np.maximum(upper + self.rounding, upper * (1 + self.relative))
        return np.where(s < self.floor, -1.0, lower), np.maximum(upper, self.floor)

    def _to_rounding(self, values: Array) -> Array:
        return np.maximum(self.rounding, self.relative * values)


def place_bounds(s: Array, values: Array, radius: Array) -> tuple[Array, Array]:
    """sqrt(s^2 -+ sum e_r^2 s_r^2 / |s_r^2 - s^2|) over the values further from s than their residuals e_r.

    Where a value comes within its residual and leaves the sum, the sum would fall: it is kept from falling, so that
    the places rise with s.
    """
    found = np.isfinite(radius) & (radius > 0)
    if not found.any():
        return s, s
    unit = float(values.max())
    t, value, error = s / unit, values[found] / unit, radius[found] / unit
    edges = value - error, value + error

    def squares(t: Array, sign: int) -> Array:
        away = edges[0] >= t[:, None] if sign > 0 else edges[1] <= t[:, None]
        gap = np.where(away, np.abs(value**2 - t[:, None] ** 2), np.inf)
        return np.asarray(t**2 + sign * (error**2 * value**2 / gap).sum(axis=1))

    with np.errstate(invalid="ignore", over="ignore"):
        before, after = squares(t, -1), squares(t, 1)
        for edge, square in zip(edges[1], squares(edges[1], -1), strict=True):
            before = np.where(t <= edge, np.minimum(before, square), before)
        for edge, square in zip(edges[0], squares(edges[0], 1), strict=True):
            after = np.where(t >= edge, np.maximum(after, square), after)
    return unit * np.sqrt(np.maximum(before, 0)), unit * np.sqrt(after)


def _node_errors(
    quadrature: GaussRules, extremes: Extremes | None, errors: ErrorModel, index: int
) -> _NodeErrors:
    """Rounding, residuals and floor of one input.

    Full re-orthogonalisation leaves every node within some units of rounding of s_max, growing with the length of
    the sums; 10 sqrt(n) is also what closes a Krylov space (`isometry.estimators.golub_kahan`).
    """
    top, residual = np.empty(0), np.empty(0)
    if extremes is not None:
        top, residual = extremes.top[index], extremes.top_residual[index]
    all_found = np.all(quadrature.resolved[index]) and top.size >= quadrature.dimension
    units = 8.0 if all_found else 10 * np.sqrt(quadrature.dimension)
    order = np.argsort(top)[: int(np.isfinite(top).sum())]
    return _NodeErrors(
        floor=float(quadrature.floor[index]),
        rounding=float(units * errors.eps * quadrature.nodes[index].max()),
        relative=errors.rounding,
        top=top[order],
        residual=residual[order],
    )
