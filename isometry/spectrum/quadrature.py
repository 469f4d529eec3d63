"""`Quadrature`: nodes and weights, per input and per probe, as a measurement leaves them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isometry.errors import InputError

from .distribution import checked_probability
from .error_model import ErrorModel, mean_factor
from .extremes import Extremes
from .log_scale import same_place, times_exp
from .mass_bounds import mass_at_most
from .probe_means import ProbeMean, probe_mean

Array = NDArray[np.float64]

# Units of rounding of s_max up to which a singular value that random probes found is zero.
_UNITS_OF_ZERO = 8


@dataclass(frozen=True, eq=False)
class Quadrature:
    """Nodes and weights per input and probe.

    Parameters
    ----------
    nodes : (inputs, probes, K) array
        Singular values, >= 0, in any order. Padding has weight 0.
    weights : (inputs, probes, K) array
        Mass of each node; every (input, probe) row sums to 1.
    floor : (inputs,) array
        Nodes at or below it cannot be told from zero: they count as one mass at zero.
    resolved : (inputs, probes, K) bool array
        True where the mass at the node is that of a resolved singular value; False where the node is a
        Gauss node, whose mass stands for its neighbourhood (see :meth:`cdf_bounds`).
    errors : ErrorModel
        How random the probes were and how well the products are known.
    counted : (inputs, probes, K) bool array, optional
        True where the mass at the node is the number of singular values there over ``dimension``, without chance: they
        were found one by one, or all are the same. By default all where there were no random probes, else none.
    """

    nodes: Array
    weights: Array
    floor: Array
    resolved: NDArray[np.bool_] = field(repr=False)
    errors: ErrorModel = field(default_factory=ErrorModel)
    counted: NDArray[np.bool_] = field(default=None, repr=False)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        if self.counted is None:
            object.__setattr__(self, "counted", np.full(np.shape(self.nodes), not self.errors.random))
        nodes, weights = np.asarray(self.nodes, float), np.asarray(self.weights, float)
        shapes = [nodes.shape, weights.shape, np.shape(self.resolved), np.shape(self.counted)]
        if nodes.ndim != 3 or len(set(shapes)) > 1:
            raise InputError(
                "nodes, weights, resolved and counted are (inputs, probes, K) arrays of one shape; got "
                + ", ".join(map(str, shapes))
            )
        if nodes.size == 0:
            raise InputError("a distribution needs at least one node")
        if not (np.all(np.isfinite(nodes)) and np.all(np.isfinite(weights))):
            raise InputError("nodes or weights hold NaN or inf")
        if np.any(nodes < 0) or np.any(weights < 0):
            raise InputError("singular values and weights are not negative")
        if not np.allclose(weights.sum(-1), 1.0, atol=1e-6):
            raise InputError(f"the weights of every row sum to 1; got sums {weights.sum(-1).ravel()[:5]}")
        if np.shape(self.floor) != (nodes.shape[0],):
            raise InputError(f"floor has one entry per input ({nodes.shape[0]}); got {np.shape(self.floor)}")

    @property
    def kind(self) -> str:
        return "measured"

    @property
    def n_inputs(self) -> int:
        return int(self.nodes.shape[0])

    @property
    def n_probes(self) -> int:
        return int(self.nodes.shape[1])

    @property
    def highest_floor(self) -> float:
        return float(self.floor.max())

    @property
    def dimension(self) -> int:
        """Number of singular values of each input; where it is not known, the largest number of nodes of a row."""
        return self.errors.dimension or int((self.weights > 0).sum(-1).max())

    def of_dimension(self, dimension: int) -> Quadrature:
        """The same, known to stand for so many singular values of each input.

        Raises
        ------
        InputError
            When it is known to stand for another number.
        """
        if self.errors.dimension == dimension:
            return self
        if self.errors.dimension is not None:
            raise InputError(
                f"the quadrature stands for {self.errors.dimension} singular values of each input, and a Jacobian of "
                f"this shape has {dimension}"
            )
        return replace(self, errors=replace(self.errors, dimension=dimension))

    @cached_property
    def nodes_above_floor(self) -> Array:
        """Nodes with everything at or below the floor set to zero; (inputs, probes, K)."""
        return np.where(self.nodes <= self.floor[:, None, None], 0.0, self.nodes)

    @cached_property
    def _pooled(self) -> tuple[Array, Array]:
        """Distinct log nodes, ascending, and the cumulative mass up to and including each."""
        rows = self.nodes.shape[0] * self.nodes.shape[1]
        present = self.weights > 0
        s, w = self.nodes_above_floor[present], self.weights[present] / rows
        values, where = np.unique(s, return_inverse=True)
        mass = np.bincount(where, weights=w)
        cumulative = np.cumsum(mass)
        with np.errstate(divide="ignore"):
            return np.log(values), cumulative / cumulative[-1]

    @property
    def relative_error(self) -> float:
        return float(np.nan)

    @property
    def end_errors(self) -> tuple[float, float]:
        return 0.0, 0.0

    @property
    def proved_zero_mass(self) -> float:
        return float(np.nan)

    @property
    def zero_mass(self) -> float:
        t, cumulative = self._pooled
        return float(cumulative[0]) if t[0] == -np.inf else 0.0

    @property
    def log_range(self) -> tuple[float, float]:
        finite = self._pooled[0][np.isfinite(self._pooled[0])]
        return (float(finite[0]), float(finite[-1])) if finite.size else (np.nan, np.nan)

    @property
    def log_ends(self) -> tuple[float, float]:
        return self.log_range

    @property
    def all_resolved(self) -> bool:
        return bool(np.all(self.resolved))

    @property
    def singular(self) -> bool:
        below = self.resolved & (self.weights > 0) & (self.nodes <= self.floor[:, None, None])
        if self.errors.random:
            # Where a recurrence broke down the floor is higher than rounding: what lies below is small, not zero.
            zero = _UNITS_OF_ZERO * self.errors.eps * self.nodes.max(axis=(1, 2))
            below &= self.nodes <= zero[:, None, None]
        return bool(np.any(below))

    @property
    def grid(self) -> Array:
        nodes = self.nodes_above_floor[self.weights > 0]
        return np.unique(np.log(nodes[nodes > 0]))

    @property
    def point_masses(self) -> tuple[Array, Array]:
        if self.zero_mass > 0:
            return np.array([-np.inf]), np.array([self.zero_mass])
        return np.empty(0), np.empty(0)

    def cdf(self, log_s: ArrayLike, *, left: bool = False) -> Array:
        t, cumulative = self._pooled
        points = np.asarray(log_s, float)
        slack = same_place(points)
        index = np.searchsorted(
            t, points - slack if left else points + slack, side="left" if left else "right"
        )
        return np.concatenate([[0.0], cumulative])[index]

    def quantile(self, p: ArrayLike) -> Array:
        t, cumulative = self._pooled
        # A cumulative sum carries rounding: p = 1/3 must find the node whose mass is 1/3.
        index = np.searchsorted(cumulative, checked_probability(p) - 8e-16 * t.size, side="left")
        return t[np.minimum(index, t.size - 1)]

    def log_moment(self, power: float) -> float:
        """ln E[s^power]; the nodes below the floor count with the values they have.

        Their share of a positive moment is below floor^power, so it does not matter; for a negative
        power the moment of a distribution with mass at zero is infinite.
        """
        if power < 0 and self.zero_mass > 0:
            return float(np.inf)
        values = self.row_moments(power)[1]
        scale = self.row_moments(power)[0]
        mean = float(values.mean())
        return float(np.log(mean) + scale) if mean > 0 else float(-np.inf)

    def row_moments(self, power: float) -> tuple[float, Array]:
        """(scale, (inputs, probes) array a): E[s^power] of each row is exp(scale) * a."""
        scale, powers = self._powers(power)
        return scale, np.sum(self.weights * powers, axis=-1)

    def _powers(self, power: float) -> tuple[float, Array]:
        """(scale, a): s^power of each node is exp(scale) * a."""
        present = self.weights > 0
        # Scaled by the node that dominates, the largest or for a negative power the smallest: no power overflows.
        dominant = self.nodes[present].max() if power >= 0 else self.nodes[present].min()
        dominant = float(dominant) or 1.0
        with np.errstate(divide="ignore"):
            powers = (np.where(present, self.nodes, dominant) / dominant) ** power
            return power * float(np.log(dominant)), powers

    def row_cdf(self, log_s: ArrayLike, *, left: bool = False) -> Array:
        """Mass of {ln s <= log_s} for every row, (inputs, probes, *log_s.shape)."""
        return self._row_masses(self.weights, log_s, left=left)

    def _row_masses(self, weights: Array, log_s: ArrayLike, *, left: bool) -> Array:
        points = np.asarray(log_s, float)
        slack = same_place(points)
        places = points - slack if left else points + slack
        logs = self._log(self.nodes_above_floor)
        found = [
            mass_at_most(logs[row], weights[row], places, left=left) for row in np.ndindex(logs.shape[:2])
        ]
        return np.reshape(found, (*logs.shape[:2], *points.shape))

    @staticmethod
    def _log(values: Array) -> Array:
        with np.errstate(divide="ignore"):
            return np.log(values)

    def cdf_bounds(self, log_s: ArrayLike) -> tuple[Array, Array]:
        """Lower and upper bound on the cdf of the measures the probes see.

        Of Gauss nodes the Chebyshev-Markov-Stieltjes inequalities (`.mass_bounds`). Masses of resolved nodes are exact
        down to the floor; below it they may lie anywhere from zero to the floor.
        This is the truncation error alone; the statistical error of the probes comes on top.
        """
        points = np.asarray(log_s, float)
        reach = np.atleast_1d(points + same_place(points)).ravel()
        lower, upper = np.zeros(reach.size), np.zeros(reach.size)
        floor = np.broadcast_to(self.floor[:, None, None], self.nodes.shape)
        lowest, highest = self._log(self.nodes_above_floor), self._log(np.maximum(self.nodes, floor))
        logs = self._log(self.nodes)
        for row in np.ndindex(self.nodes.shape[:2]):
            sure, weights = self.resolved[row], self.weights[row]
            found, gauss = weights[sure], (logs[row][~sure], weights[~sure])
            lower += mass_at_most(highest[row][sure], found, reach) + mass_at_most(*gauss, reach, extra=-1)
            upper += mass_at_most(lowest[row][sure], found, reach) + mass_at_most(*gauss, reach, extra=1)
        rows = self.n_inputs * self.n_probes
        return (lower / rows).reshape(points.shape), np.minimum(upper / rows, 1.0).reshape(points.shape)

    def limits(
        self,
        s: Array,
        extremes: Extremes | None,
        confidence: float,
        *,
        low: Array | None = None,
        simultaneous: bool = False,
    ) -> tuple[Array, Array]:
        # Loaded here, as is all that takes SciPy.
        from .cdf_bounds import cdf_limits

        return cdf_limits(self, extremes, self.errors, s, confidence, low=low, simultaneous=simultaneous)

    def share_below_floor(self, low: float) -> float:
        hidden = self.weights * (self.nodes <= self.floor[:, None, None]) * (self.floor >= low)[:, None, None]
        return float(hidden.sum(-1).mean())

    def standard_error(self, values: Array, *, over: str = "probes") -> float:
        if over == "probes" and not np.any(self._chance):
            return 0.0
        return self.errors.standard_error(values, over=over)

    @property
    def _chance(self) -> NDArray[np.bool_]:
        """Nodes whose masses random probes gave."""
        return (self.weights > 0) & ~self.counted

    def moment_mean(self, order: int) -> tuple[float, ProbeMean]:
        scale, powers = self._powers(2 * order)
        # E s^(4 k) takes k + 1 Gauss nodes, or the singular values themselves.
        gauss = self._chance & ~self.resolved
        count = gauss.sum(axis=-1)
        known_law = bool(np.all((count == 0) | ((order >= 1) & (count > order))))
        errors = replace(self.errors, dimension=self.dimension)
        return scale, probe_mean(powers, self.weights, self.counted, errors, known_law=known_law)

    def share_stderr(self, log_s: ArrayLike, *, low: float | None = None) -> Array:
        points = np.asarray(log_s, float).ravel()
        w = np.where(self._chance, self.weights, 0.0)
        masses = self._row_masses(w, points, left=False).mean(axis=1)
        if low is not None:
            masses = masses - self._row_masses(w, low, left=True).mean(axis=1)[..., None]
        part = w.sum(axis=-1).mean(axis=1)[:, None]
        share = np.clip(np.divide(masses, part, out=np.zeros(masses.shape), where=part > 0), 0.0, 1.0)
        n, errors = self.dimension, self.errors
        factor = mean_factor(self.n_probes, errors.orthogonal_group, n) / self.n_probes
        # Of random signs the bound: see `.probe_intervals`.
        variance = (
            part**2 * share * (1 - share) * 2 / (part * n + (2 if errors.on_the_sphere else 0) + (part == 0))
        )
        found = np.sqrt(factor * variance.sum(axis=0)) / self.n_inputs
        return np.asarray(found.reshape(np.shape(log_s)))

    def input(self, index: int) -> Quadrature:
        if not -self.n_inputs <= index < self.n_inputs:
            raise InputError(f"input {index} was asked for; there are {self.n_inputs}")
        pick = [index]
        return replace(
            self, nodes=self.nodes[pick], weights=self.weights[pick], floor=self.floor[pick],
            resolved=self.resolved[pick], counted=self.counted[pick],
        )  # fmt: skip

    def shifted(self, shift: float) -> Quadrature:
        return replace(self, nodes=times_exp(self.nodes, shift), floor=times_exp(self.floor, shift))
