"""Replicas: the law's own networks, drawn and measured as the spectrum at hand was. What chance alone shows.

A replica is a list of ln s with masses. Which networks are drawn depends on what is known of the law:

* an ensemble and a width: networks of that ensemble and width (:mod:`isometry.theory.finitewidth`);
* a law from a network's own layers: their slopes are given, and levels are as rigid as those of a random matrix
  (singular values of a square Gaussian matrix at the levels of its own law);
* one network, measured twice (width = inf): its spectrum itself;
* a law and a width alone: that many independent draws from it. Spectra of networks are more rigid, so this allows more.

Each is then measured as the spectrum was: all values, or random probes followed by so many Golub-Kahan steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isometry.errors import InputError
from isometry.spectrum import Curve, Distribution, Quadrature, Spectrum

Array = NDArray[np.float64]

DRAWS = 120
SEED = 0
# Values beyond which a replica of a law alone is thinned to its quantiles.
MOST_VALUES = 2000
TABLE = 4000


@dataclass(frozen=True, eq=False)
class Replicas:
    """D measurements of networks of one law.

    Parameters
    ----------
    log_nodes, cumulative : (D, K) arrays
        ln s, increasing, and the mass up to and including each.
    log_mean_squares, log_s_maxima, log_s_minima : (D,) arrays
        As the measurement reports them; nan where unknown.
    mean_square : (float, float) or None
        Mean and standard deviation of ln m_1 over networks, where theory has them in closed form.
    source : str
        What was drawn, as a sentence.
    spread_error : float
        Relative error, about, of standard deviations over replicas that are not draws of the very networks.
    """

    log_nodes: Array = field(repr=False)
    cumulative: Array = field(repr=False)
    log_mean_squares: Array = field(repr=False)
    log_s_maxima: Array = field(repr=False)
    log_s_minima: Array = field(repr=False)
    mean_square: tuple[float, float] | None
    source: str
    spread_error: float = 0.0

    @property
    def count(self) -> int:
        """Number of replicas."""
        return int(self.log_nodes.shape[0])

    def moved(self, from_law: Distribution, to_law: Distribution) -> Replicas:
        """The same draws about another law: every value at the other law's place of the same level."""
        levels = (np.arange(TABLE) + 0.5) / TABLE
        before, after = np.asarray(from_law.quantile(levels)), np.asarray(to_law.quantile(levels))
        finite = np.isfinite(before) & np.isfinite(after)
        nodes = self.log_nodes
        # Beyond the law's ends the shift is that of the end.
        shift = np.interp(nodes, before[finite], (after - before)[finite]) if finite.any() else 0.0
        shift = np.where(np.isfinite(nodes), shift, 0.0)
        mean = to_law.log_moment(2) - from_law.log_moment(2)
        tops = [law.log_ends[1] for law in (from_law, to_law)]
        bottoms = [law.log_ends[0] for law in (from_law, to_law)]
        return replace(
            self,
            log_nodes=np.sort(nodes + shift, axis=1),
            log_mean_squares=self.log_mean_squares + mean,
            log_s_maxima=self.log_s_maxima + (tops[1] - tops[0] if all(map(math.isfinite, tops)) else 0.0),
            log_s_minima=self.log_s_minima
            + (bottoms[1] - bottoms[0] if all(map(math.isfinite, bottoms)) else 0.0),
            mean_square=self.mean_square and (self.mean_square[0] + mean, self.mean_square[1]),
        )

    def scaled(self, log_factor: float) -> Replicas:
        """Every singular value larger by a factor."""
        return replace(
            self,
            log_nodes=self.log_nodes + log_factor,
            log_mean_squares=self.log_mean_squares + 2 * log_factor,
            log_s_maxima=self.log_s_maxima + log_factor,
            log_s_minima=self.log_s_minima + log_factor,
            mean_square=self.mean_square and (self.mean_square[0] + 2 * log_factor, self.mean_square[1]),
        )


@dataclass(frozen=True, eq=False)
class _Networks:
    """Drawn networks before they are measured."""

    log_values: Array
    log_mean_squares: Array
    log_s_maxima: Array
    log_s_minima: Array
    mean_square: tuple[float, float] | None
    source: str
    spread_error: float = 0.0


def replicas(measured: Spectrum, law: Spectrum, *, width: float) -> Replicas | None:
    """Networks of ``law``, measured as ``measured`` was; None where nothing says what chance does.

    Parameters
    ----------
    measured, law : Spectrum
    width : float
        Independent units of a layer; inf for one network measured twice, nan if unknown.
    """
    networks = _networks(measured, law, width)
    return None if networks is None else _measured_like(networks, measured)


def _networks(measured: Spectrum, law: Spectrum, width: float) -> _Networks | None:
    if math.isnan(width):
        return None
    distribution = law.distribution
    if width == math.inf:
        size = min(
            MOST_VALUES, distribution.grid.size if isinstance(distribution, Quadrature) else MOST_VALUES
        )
        values = np.asarray(distribution.quantile((np.arange(size) + 0.5) / size))
        return _unsampled(np.tile(values, (DRAWS, 1)), "one network: its probes alone")
    ensemble = _ensemble(law) or (_ensemble(measured) if law.kind == "measured" else None)
    if ensemble is not None and not law.provenance.get("own_layers"):
        found = _of_ensemble(measured, law, ensemble, int(width))
        if found is not None:
            return found
    generator = np.random.default_rng(SEED)
    size = max(1, min(int(width), MOST_VALUES))
    if law.provenance.get("own_layers"):
        return _at_levels(
            law, _rigid_levels(size, generator), f"the rigidity of a random matrix of size {size}"
        )
    levels = np.sort(generator.random((DRAWS, size)), axis=1)
    return _at_levels(law, levels, f"{size} independent draws from the law (no random network is recorded)")


def _ensemble(spectrum: Spectrum) -> Mapping[str, object] | None:
    found = spectrum.provenance.get("ensemble")
    return found if isinstance(found, Mapping) else None


def _of_ensemble(
    measured: Spectrum, law: Spectrum, fields: Mapping[str, object], width: int
) -> _Networks | None:
    """Networks of the recorded ensemble; None where its record does not describe one."""
    # Late: a comparison without theory does without scipy.
    from isometry.theory.ensemble import Ensemble
    from isometry.theory.finitewidth import finite_width
    from isometry.theory.prediction import predict

    try:
        ensemble = Ensemble.from_dict(fields)
        curve = law.distribution
        if not isinstance(curve, Curve):
            curve = predict(ensemble).distribution
        assert isinstance(curve, Curve)
        found = finite_width(ensemble, curve, width, **_map_of(measured, width))
    except InputError:
        return None
    closed = (found.log_mean_square.mean, found.log_mean_square.std) if found.closed_mean_square else None
    return _Networks(
        found.log_values,
        found.log_mean_squares,
        found.log_s_maxima,
        found.log_s_minima,
        closed,
        found.source,
        found.spread_error,
    )


def _map_of(measured: Spectrum, width: int) -> dict[str, Any]:
    """The map and the kernel of a convolution, or the number of inputs, as the measurement recorded them.

    Raises
    ------
    InputError
        For a kernel that is not drawn here.
    """
    record = measured.provenance
    channels, kernel = record.get("channels"), record.get("kernel")
    places = 1
    if isinstance(channels, int) and channels == width and measured.shape:
        places = measured.shape[0] // channels
    if places * measured.n_inputs == 1:
        return {}
    side = math.isqrt(places)
    rows, columns = (side, side) if side * side == places else (1, places)
    law = kernel.get("law") if isinstance(kernel, Mapping) else "delta_orthogonal"
    if law == "gaussian":
        profile = tuple(tuple(float(share) for share in row) for row in kernel["profile"])  # type: ignore[index]
        return {"positions": (rows, columns), "profile": profile}
    if law != "delta_orthogonal":
        raise InputError(f"kernels of the law {law!r} are not drawn here")
    # Positions of a delta kernel, and inputs, share their weights and nothing else.
    return {"positions": (measured.n_inputs * rows, columns)}


def _rigid_levels(size: int, generator: np.random.Generator) -> Array:
    """Levels, (D, size), of the singular values of square Gaussian matrices in the quarter-circle law."""
    matrices = generator.standard_normal((DRAWS, size, size)) if size <= 64 else None
    levels = []
    for index in range(DRAWS):
        matrix = matrices[index] if matrices is not None else generator.standard_normal((size, size))
        s = np.clip(np.linalg.svd(matrix, compute_uv=False)[::-1] / math.sqrt(size), 0.0, 2.0)
        levels.append((s * np.sqrt(4.0 - s * s) / 2.0 + 2.0 * np.arcsin(s / 2.0)) / math.pi)
    return np.array(levels)


def _at_levels(law: Spectrum, levels: Array, source: str) -> _Networks:
    """Networks whose singular values are the law's quantiles at these levels, (D, M)."""
    table = np.asarray(law.distribution.quantile((np.arange(TABLE) + 0.5) / TABLE))
    return _unsampled(table[np.clip((levels * TABLE).astype(int), 0, TABLE - 1)], source)


def _unsampled(values: Array, source: str) -> _Networks:
    """Networks of given ln s, whose edges are not those of a random network."""
    top = values.max(axis=1)
    with np.errstate(invalid="ignore"):
        mean = np.log(np.mean(np.exp(2.0 * (values - top[:, None])), axis=1)) + 2.0 * top
    unknown = np.full(values.shape[0], np.nan)
    return _Networks(values, mean, unknown, unknown, None, source)


# ---- measured as the spectrum was -------------------------------------------------------------------------


def _measured_like(networks: _Networks, measured: Spectrum) -> Replicas:
    quadrature = measured.distribution
    values = networks.log_values
    if not isinstance(quadrature, Quadrature) or not quadrature.errors.random:
        cumulative = np.broadcast_to((np.arange(values.shape[1]) + 1.0) / values.shape[1], values.shape)
        nodes, mean = values, networks.log_mean_squares
    else:
        nodes, cumulative, change = _probed(values, quadrature)
        mean = networks.log_mean_squares + change
    return Replicas(
        nodes, cumulative, mean, networks.log_s_maxima, networks.log_s_minima,
        networks.mean_square if nodes is values else None, networks.source, networks.spread_error,
    )  # fmt: skip


def _probed(values: Array, quadrature: Quadrature) -> tuple[Array, Array, Array]:
    """Nodes, cumulative masses and the change of ln m_1 as random probes see networks, (D, M) ln s.

    In its singular basis J is diagonal, and a random probe is a random vector there too. Golub-Kahan steps without
    re-orthogonalisation suffice: copies of a node share its mass.
    """
    generator = np.random.default_rng(SEED + 1)
    probes = quadrature.n_probes * quadrature.n_inputs
    steps = int((quadrature.weights > 0).sum(axis=-1).max())
    found_nodes, found_masses, changes = [], [], []
    for row in values:
        top = row[-1]
        s = np.exp(row - top)
        start = generator.standard_normal((probes, s.size))
        group = min(quadrature.errors.orthogonal_group, s.size)
        for first in range(0, probes, group) if group > 1 else ():
            part = start[first : first + group]
            start[first : first + group] = np.linalg.qr(part.T)[0].T
        start /= np.linalg.norm(start, axis=1, keepdims=True)
        if steps >= s.size:
            nodes, masses = np.broadcast_to(s, start.shape), start**2
        else:
            nodes, masses = golub_kahan(s, start, steps)
        order = np.argsort(nodes, axis=None)
        with np.errstate(divide="ignore"):
            found_nodes.append(np.log(nodes.ravel()[order]) + top)
        mass = masses.ravel()[order] / probes
        found_masses.append(np.cumsum(mass))
        changes.append(math.log(float(mass @ nodes.ravel()[order] ** 2) / float(np.mean(s * s))))
    return np.array(found_nodes), np.array(found_masses), np.array(changes)


def golub_kahan(s: Array, start: Array, steps: int) -> tuple[Array, Array]:
    """Gauss nodes and masses, (probes, steps) each, of diag(s) from (probes, M) unit vectors."""
    probes = start.shape[0]
    matrix = np.zeros((probes, steps, steps))
    v, u, beta = start, np.zeros_like(start), np.zeros((probes, 1))
    for step in range(steps):
        u = s * v - beta * u
        alpha = np.linalg.norm(u, axis=1, keepdims=True)
        u = u / np.maximum(alpha, 1e-300)
        matrix[:, step, step] = alpha[:, 0]
        if step + 1 < steps:
            w = s * u - alpha * v
            beta = np.linalg.norm(w, axis=1, keepdims=True)
            # A finished probe stays finished: the rest of its matrix is zero.
            beta = np.where(beta > 1e-14, beta, 0.0)
            v = np.where(beta > 0, w / np.maximum(beta, 1e-300), 0.0)
            matrix[:, step, step + 1] = beta[:, 0]
    _, nodes, right = np.linalg.svd(matrix)
    return nodes, right[:, :, 0] ** 2


def network_width(measured: Spectrum, predicted: Spectrum) -> float:
    """Units of the narrowest layer, as far as the spectra know; nan where they do not."""
    for spectrum in (measured, predicted):
        ensemble = spectrum.provenance.get("ensemble")
        widths = ensemble.get("widths") if isinstance(ensemble, Mapping) else None
        if widths:
            return float(min(widths))
        own = spectrum.provenance.get("width")
        if isinstance(own, int | float) and own >= 1:
            return float(min(own, *(measured.shape or ())))
    if measured.kind == "predicted":
        return math.inf
    channels = measured.provenance.get("channels")
    if isinstance(channels, int) and isinstance(measured.provenance.get("ensemble"), Mapping):
        return float(channels)
    return float(min(measured.shape)) if measured.shape else math.nan
