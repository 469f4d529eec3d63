"""The unit of work of a stochastic measurement: the Gauss rules of some probes of some inputs, and their union.

B inputs and k probes have B x k Gauss rules (nodes, weights), one for each probe of each Jacobian.
:func:`measure_probes` computes those of a range of probes of a range of inputs. A rule depends on (seed, input, probe)
alone and is made of numpy arrays, so that it may come from another process. :func:`merge` joins units to a spectrum, in
the order of their numbers. A product of many vectors at once sums in another order than one of few: rules repeat bit
for bit where the units are the same, which :func:`probe_groups` ensures, and to rounding otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from isometry.errors import InputError
from isometry.spectrum import Extremes, LogValues, Quadrature, Spectrum

from . import defaults
from .blocks import Operator, Precision, ShortSide, random_block, strictly
from .exclusion import below_probes
from .extreme_values import extremes_of_found
from .golub_kahan import Recurrence, breakdown_floor
from .quadrature import GaussRules, gauss_rules

Array = NDArray[np.float64]

# What rounding leaves of the masses of other nodes where there are none. A probe sees as little of a single direction
# of n with a probability of sqrt(n) * 3e-7.
_ALL = 1e-13
# Probes whose products are made together: a processor gains little beyond, a graphics card is idle below.
_TOGETHER = {"cpu": 16, "cuda": 256}


@dataclass(frozen=True)
class ProbeRules:
    """Gauss rules of a range of probes of a range of inputs.

    Parameters
    ----------
    inputs, probes : range
        Their numbers within the whole measurement.
    rules : GaussRules
        (B, k, K) arrays.
    steps, finished, breakdown_residual : (B, k) arrays
        Steps of each rule, whether its recurrence broke down, and the entry taken as zero there.
    shape : (int, int)
        (m, n) of each J.
    precision : Precision
    products : int
        Products spent on them.
    seed : int
    probe, dtype, device : str
    """

    inputs: range
    probes: range
    rules: GaussRules
    steps: NDArray[np.int64]
    finished: NDArray[np.bool_]
    breakdown_residual: Array
    shape: tuple[int, int]
    precision: Precision
    products: int
    seed: int
    probe: str
    dtype: str
    device: str


class ProbeRecurrence:
    """The recurrences of some probes of some inputs. They keep their bases, so that steps can be added.

    Parameters
    ----------
    operator : Operator
        With a batch of ``len(inputs)``, or without a batch for one input.
    inputs, probes : range
        Their numbers within the whole measurement.
    seed : int
    probe : {"gaussian", "rademacher", "orthogonal"}
    steps : int
        How many will be taken, as far as that is known: on a CUDA device whose free memory does not hold bases of that
        length they are kept in pinned host memory.
    """

    @strictly
    def __init__(
        self,
        operator: Operator,
        inputs: range,
        probes: range,
        *,
        seed: int = 0,
        probe: str = "gaussian",
        steps: int = 0,
    ) -> None:
        side = ShortSide(operator)
        self.inputs, self.probes, self.seed, self.probe = inputs, probes, seed, probe
        start = random_block(
            len(probes), side, seed, first_input=inputs.start, first_probe=probes.start, probe=probe
        )
        needed = len(probes) * side.batch * basis_bytes(side.shape, steps, side.dtype)
        self._recurrence = Recurrence(side, start, offload=_exceeds_device(needed, side.device))
        self._side, self._products = side, 0

    @property
    def steps(self) -> int:
        """Whole steps done."""
        return self._recurrence.steps

    @property
    def finished(self) -> bool:
        """Whether no step is left to take."""
        return self._recurrence.finished

    @property
    def products(self) -> int:
        """Products spent so far."""
        return self._products + self._side.products

    @strictly
    def advance(
        self, operator: Operator, steps: int, *, on_step: Callable[[int], None] | None = None
    ) -> None:
        """Go on until ``steps`` are done in all. ``operator`` may have been made anew since."""
        self._products, self._side = self.products, ShortSide(operator, like=self._side)
        self._recurrence.advance(self._side, steps, on_step=on_step)

    def rules(self) -> ProbeRules:
        """The Gauss rules of the steps so far."""
        side, bidiagonals = self._side, self._recurrence.bidiagonals(vectors=False)
        scale = side.scale[:, None]
        return ProbeRules(
            self.inputs, self.probes, gauss_rules(bidiagonals).times(scale),
            bidiagonals.steps.T, bidiagonals.finished.T, bidiagonals.breakdown_residual.T * scale,
            side.shape, side.precision, self.products, self.seed, self.probe,
            str(side.dtype).removeprefix("torch."), str(side.device),
        )  # fmt: skip


@strictly
def measure_probes(
    operator: Operator,
    inputs: range,
    probes: range,
    *,
    steps: int,
    seed: int = 0,
    probe: str = "gaussian",
    on_step: Callable[[int], None] | None = None,
) -> ProbeRules:
    """The Gauss rules of these probes of these inputs, by ``steps`` steps of Golub-Kahan: a unit of work."""
    recurrence = ProbeRecurrence(operator, inputs, probes, seed=seed, probe=probe, steps=steps)
    recurrence.advance(operator, steps, on_step=on_step)
    return recurrence.rules()


def basis_bytes(shape: tuple[int, int], steps: int, dtype: torch.dtype) -> int:
    """Bytes of the two bases of one probe of one input."""
    return min(steps, *shape) * sum(shape) * dtype.itemsize


def probe_groups(
    probes: range,
    bytes_of_one: int,
    memory_limit: int | None,
    device: torch.device,
    *,
    most: int | None = None,
) -> list[range]:
    """The ranges in which probes are measured, one after another: as many together as the limit holds, or ``most``.

    They follow from options alone, not from the number of processes or the free memory, so that the rules repeat bit
    for bit.

    Raises
    ------
    InputError
        Not even one probe fits.
    """
    most = most or _TOGETHER.get(device.type, min(_TOGETHER.values()))
    if memory_limit is not None:
        if bytes_of_one > memory_limit:
            raise InputError(
                f"the Krylov bases of a single probe take {bytes_of_one / 1e9:.3g} GB, more than memory_limit "
                f"({memory_limit / 1e9:.3g} GB): take fewer steps or inputs, or raise memory_limit"
            )
        most = min(most, memory_limit // bytes_of_one)
    return [range(first, min(first + most, probes.stop)) for first in range(probes.start, probes.stop, most)]


def merge(parts: Sequence[ProbeRules], *, top: int = defaults.TOP) -> Spectrum:
    """The spectrum of units that were measured apart, without gap or overlap, in any order.

    Parameters
    ----------
    parts : sequence of ProbeRules
    top : int
        How many of the largest singular values to report with residuals.
    """
    order = sorted(parts, key=lambda part: (part.inputs.start, part.probes.start))
    each = []
    for inputs, group in groupby(order, key=lambda part: part.inputs):
        same = list(group)
        _refuse_gaps([part.probes for part in same], f"probes of inputs {inputs.start} to {inputs.stop - 1}")
        each.append((inputs, _of_the_same_inputs(same, top)))
    _refuse_gaps([inputs for inputs, _ in each], "inputs")
    if len({spectrum.n_probes for _, spectrum in each}) > 1:
        raise InputError("every input needs as many probes as the others")
    return join_inputs([spectrum for _, spectrum in each])


def _refuse_gaps(ranges: list[range], what: str) -> None:
    for before, after in pairwise(ranges):
        if before.stop != after.start:
            raise InputError(
                f"{what}: {after.start} follows {before.stop - 1}; a part is missing, or there twice"
            )


def _of_the_same_inputs(parts: list[ProbeRules], top: int) -> Spectrum:
    first = parts[0]
    rules = join_probes([part.rules for part in parts])
    steps, finished, breakdown_residual = (
        np.concatenate([getattr(part, name) for part in parts], axis=1)
        for name in ("steps", "finished", "breakdown_residual")
    )
    noise = first.precision.noise_floor(rules.nodes.max(axis=(1, 2)), int(steps.max()))
    floor = np.maximum(noise, quadrature_floor(rules, steps, finished, breakdown_residual))
    return Spectrum(
        Quadrature(
            rules.nodes, rules.weights, floor, rules.resolved,
            first.precision.error_model(min(first.shape), first.probe),
            counted_by(rules, on_the_sphere=first.probe != "rademacher"),
        ),
        method="lanczos",
        shape=first.shape,
        extremes=_extremes(first, rules, steps, finished, floor, top),
        products=sum(part.products for part in parts),
        provenance={
            "dtype": first.dtype, "device": first.device, "seed": first.seed, "probe": first.probe,
            "probes": steps.shape[1], "steps": int(steps.max()),
        },
    )  # fmt: skip


def quadrature_floor(
    rules: GaussRules, steps: NDArray[np.int64], finished: NDArray[np.bool_], breakdown_residual: Array
) -> Array:
    """(B,) what the rules of an input do not tell from zero, from (B, k) steps, breakdowns and their residuals.

    Rules that have not broken down resolve s down to about s_max / steps.
    """
    fewest = np.where(finished, np.inf, steps).min(axis=1)
    return np.maximum(breakdown_floor(breakdown_residual), rules.nodes.max(axis=(1, 2)) / fewest)


def counted_by(rules: GaussRules, *, on_the_sphere: bool = True) -> NDArray[np.bool_]:
    """Where a probe's space closed on a single singular value: all are that value, and the mass has no part of chance.

    A probe on the sphere sees every singular vector; one of random signs may miss all others.
    """
    return rules.resolved & (rules.weights > 1 - _ALL) & on_the_sphere


def join_probes(rules: list[GaussRules]) -> GaussRules:
    """One array of rules from groups of probes, in order."""
    size = max(part.nodes.shape[-1] for part in rules)

    def joined(name: str, fill: float | bool) -> np.ndarray:
        arrays = [getattr(part, name) for part in rules]
        return np.concatenate([_padded(array, size, fill) for array in arrays], axis=1)

    return GaussRules(
        joined("nodes", 0.0), joined("weights", 0.0), joined("residuals", np.inf), joined("resolved", True)
    )


def _padded(array: np.ndarray, size: int, fill: float | bool) -> np.ndarray:
    gap = [(0, 0)] * (array.ndim - 1) + [(0, size - array.shape[-1])]
    return np.pad(array, gap, constant_values=fill)


def times(spectrum: Spectrum, scale: Array) -> Spectrum:
    """The spectrum of Jacobians that are those of ``spectrum`` times the (B,) factors."""
    if np.all(scale == 1):
        return spectrum
    d, e = spectrum.quadrature, spectrum.extremes
    assert e is not None, "a measurement"
    return replace(
        spectrum,
        distribution=replace(d, nodes=d.nodes * scale[:, None, None], floor=d.floor * scale),
        extremes=Extremes(
            e.top * scale[:, None], e.top_residual * scale[:, None], e.bottom * scale, e.bottom_residual * scale,
            e.bottom_resolved,
        ),
    )  # fmt: skip


def join_inputs(spectra: Sequence[Spectrum]) -> Spectrum:
    """One spectrum of the spectra of groups of inputs, all by one method, in the order of the inputs."""
    if len(spectra) == 1:
        return spectra[0]
    products = sum(s.products for s in spectra)
    values = [s.distribution for s in spectra if isinstance(s.distribution, LogValues)]
    if values:
        joined = LogValues(
            np.concatenate([v.log_values for v in values]),
            np.concatenate([v.log_error for v in values]),
            np.concatenate([v.proved_zeros for v in values]),
            replace(values[0].errors, rounding=max(v.errors.rounding for v in values)),
        )
        return replace(spectra[0], distribution=joined, products=products)
    quadratures = [s.quadrature for s in spectra]
    extremes = [s.extremes for s in spectra if s.extremes is not None]
    width = max(q.nodes.shape[-1] for q in quadratures)
    ranks = max(e.top.shape[-1] for e in extremes)
    return replace(
        spectra[0],
        distribution=Quadrature(
            np.concatenate([_padded(q.nodes, width, 0.0) for q in quadratures]),
            np.concatenate([_padded(q.weights, width, 0.0) for q in quadratures]),
            np.concatenate([q.floor for q in quadratures]),
            np.concatenate([_padded(q.resolved, width, True) for q in quadratures]),
            replace(quadratures[0].errors, rounding=max(q.errors.rounding for q in quadratures)),
            np.concatenate([_padded(q.counted, width, True) for q in quadratures]),
        ),
        extremes=Extremes(
            np.concatenate([_padded(e.top, ranks, np.nan) for e in extremes]),
            np.concatenate([_padded(e.top_residual, ranks, np.nan) for e in extremes]),
            np.concatenate([e.bottom for e in extremes]),
            np.concatenate([e.bottom_residual for e in extremes]),
            np.concatenate([e.bottom_resolved for e in extremes]),
        ),
        products=products,
    )


def _extremes(
    part: ProbeRules,
    rules: GaussRules,
    steps: NDArray[np.int64],
    finished: NDArray[np.bool_],
    floor: Array,
    top: int,
) -> Extremes:
    """The extreme nodes over the probes of each input, each with its residual and the rounding of the products."""
    precision, (batch, _, size) = part.precision, rules.nodes.shape
    count = min(top, size)
    values, residuals = np.zeros((batch, count)), np.zeros((batch, count))
    bottom, bottom_residual = np.zeros(batch), np.zeros(batch)
    s_max = rules.nodes.max(axis=(1, 2))
    vectors = int(steps.max())
    noise = precision.noise_floor(s_max, vectors)
    for index in range(batch):
        nodes, errors = rules.nodes[index], rules.residuals[index]
        # The probe with the largest node; among equals to rounding the one that knows it best.
        equals = np.flatnonzero(nodes[:, 0] >= nodes[:, 0].max() - noise[index])
        best = int(equals[errors[equals, 0].argmin()])
        present = np.isfinite(errors[best])
        found = int(min(count, present.sum()))
        values[index, :found] = nodes[best, :found]
        residuals[index, :found] = errors[best, :found]
        values[index, found:], residuals[index, found:] = np.nan, np.nan
        smallest = [
            (row[np.isfinite(e)][-1], e[np.isfinite(e)][-1]) for row, e in zip(nodes, errors, strict=True)
        ]
        bottom[index], bottom_residual[index] = min(smallest)
    short = np.full(batch, min(part.shape))
    # Random signs may miss a singular vector altogether: they rule nothing out before they have filled the space.
    seen = finished & ((steps == short[:, None]) | (part.probe != "rademacher"))
    lower = below_probes(rules, steps, seen, short, precision.eps)
    return extremes_of_found(
        values,
        residuals + precision.rounding_error(values, s_max[:, None], vectors),
        [(bottom, bottom_residual)],
        lower=lower if part.probe != "rademacher" else np.where(seen.any(axis=1), lower, 0.0),
        floor=floor,
        rounding=precision.rounding_error(bottom, s_max, vectors),
    )


def _exceeds_device(needed: int, device: torch.device) -> bool:
    """Whether bases of that size leave no room for the products on a CUDA device."""
    return device.type == "cuda" and needed > 0.7 * torch.cuda.mem_get_info(device)[0]
