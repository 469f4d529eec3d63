"""The leading singular triplets deflated exactly, and the distribution of the rest from random probes.

||A||_F^2 = ||A V||_F^2 + ||A P||_F^2 for any orthonormal V with complement P, so that the noise of the probes is that
of the rest alone: the variance-reduced trace estimator of Meyer, Musco, Musco & Woodruff 2021 (Hutch++, arXiv
2010.09649), with V from a block Krylov space instead of a sketch (Chen & Hallman 2023, arXiv 2205.01736). The space
gives A V, the triplets and their residuals without further products (:mod:`.block_krylov`; Musco & Musco 2015, arXiv
1504.05477); Golub-Kahan on A P makes it a distribution of all singular values.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isometry.errors import InputError
from isometry.progress import StepProgress
from isometry.spectrum import Quadrature, Spectrum

from . import defaults
from .block_krylov import BlockKrylov, RitzTriplets
from .blocks import SVD_COPIES, Operator, ShortSide, random_block, random_bytes, strictly
from .exclusion import below_probes
from .extreme_values import extremes_of_all, extremes_of_found
from .golub_kahan import Bidiagonals, golub_kahan, recurrence_bytes
from .probe_rules import basis_bytes, counted_by, join_probes, probe_groups, quadrature_floor, times
from .quadrature import GaussRules, gauss_rules

Array = NDArray[np.float64]

_BLOCK = 4
_PROBE, _LEADING = 1, 2
# Products for each leading triplet wanted, and for ten beyond.
_PRODUCTS_EACH, _BEYOND = 6, 10
# Two for each of the two ends of the rest.
_END_PRODUCTS = 4


@strictly
def randomized(
    operator: Operator,
    *,
    rank: int = defaults.RANK,
    tol: float = defaults.TOL,
    products: int | None = None,
    probes: int = defaults.REST_PROBES,
    steps: int = defaults.REST_STEPS,
    seed: int = 0,
    first_input: int = 0,
    memory_limit: int | None = None,
    progress: StepProgress | None = None,
) -> Spectrum:
    """The leading singular values with residuals, deflated exactly, and the rest as a quadrature.

    Parameters
    ----------
    operator : Operator
        Anything with ``shape``, ``matmat`` and ``rmatmat``; with a batch, each sample has its own matrix.
    rank : int
        Leading triplets wanted: these are deflated in any case, and with them every further one that has converged.
    tol : float
        Residual, relative to its value, at which a triplet counts as converged.
    products : int, optional
        Products of each input at most. What ``probes`` and ``steps`` leave of them goes into leading triplets, as many
        as that gives; by default 6 products for each of ``rank`` + 10. The number depends on the options alone, so
        that each of a batch is measured as if alone.
    probes, steps : int
        For the distribution of what is left after deflation.
    memory_limit : int, optional
        Bytes for the Krylov bases. The search for the leading triplets restarts where its own do not fit; probes that
        do not fit together go in groups.
    seed, first_input, progress :
        As for :func:`isometry.estimators.lanczos`.

    Returns
    -------
    Spectrum
        ``extremes.top`` holds all deflated ones, ``rank`` or more; A v = s u is exact for each and its residual
        is ||A^T u - s v||. Where Golub-Kahan finds a larger value in the rest, that one stands first (the leading
        triplets are then far from converged, as their residuals say). The standard error of the
        mean square comes from the deflated part alone, so it is small where few singular values dominate.
        ``cdf_bounds`` take the leading values for exact: they hold to within the residuals.

    Raises
    ------
    InputError
        A budget or a memory that holds nothing beside the probes; the message says how much it takes.

    Notes
    -----
    Which leading values are certain not to miss one: :func:`isometry.estimators.leading_triplets`.
    """
    if rank < 1 or not tol > 0:
        raise InputError(f"rank is at least 1 and tol positive; got {rank}, {tol}")
    if probes < 1 or steps < 1:
        raise InputError(f"probes and steps are at least 1; got {probes}, {steps}")
    began = time.perf_counter()
    side = ShortSide(operator)
    rank, width = min(rank, side.short), min(_BLOCK, side.short)
    budget = _budget(side.short, rank, width, products, probes, steps)
    capacity = _capacity(side.shape, side.batch, side.dtype, rank, budget, memory_limit)
    counter = _Counter(
        progress, math.ceil(min(budget, 2 * side.short) / (2 * width)), min(steps, side.short) * probes
    )
    start = random_block(width, side, seed, first_input=first_input, stream=_LEADING)
    # All of it will be used: growing by halves would hold the old bases beside the new ones.
    space = BlockKrylov(side, start, capacity, seed=seed, first_input=first_input, room=capacity)
    triplets = _leading(space, rank, budget, counter)
    if space.complete:
        counter.end()
        spectrum = _complete(side, triplets.values, seed)
        return replace(times(spectrum, side.scale), seconds=time.perf_counter() - began)
    deflation = _Deflation.of(space, triplets, _kept(triplets, rank, tol))
    del space
    counter.end_search()
    rest = _sample_rest(
        side,
        deflation,
        probes,
        steps,
        seed=seed,
        first_input=first_input,
        memory_limit=memory_limit,
        counter=counter,
    )
    counter.end()
    spectrum = _joined(side, deflation, rest)
    return replace(
        times(spectrum, side.scale),
        seconds=time.perf_counter() - began,
        provenance=_provenance(side, seed) | {
            "rank": rank, "taken_out": deflation.most, "probes": probes, "steps": int(rest.steps.max()),
        },
    )  # fmt: skip


def predicted_products(shape: tuple[int, int], rank: int, probes: int, steps: int) -> int:
    """Products that :func:`randomized` spends on an input by default: the most, but for a rest that breaks down."""
    short = min(shape)
    rank, width = min(rank, short), min(_BLOCK, short)
    blocks = _blocks(_budget(short, rank, width, None, probes, steps), rank, width)
    if blocks * width >= short:
        return 2 * short
    return 2 * blocks * width + 2 * probes * min(steps, short - rank) + _END_PRODUCTS


def search_bytes(shape: tuple[int, int], rank: int, dtype: torch.dtype) -> int:
    """Bytes of the two bases of the search for the leading triplets of an input, without a memory limit."""
    budget = _budget(min(shape), min(rank, min(shape)), min(_BLOCK, *shape), None, 1, 1)
    return basis_bytes(shape, _capacity(shape, 1, dtype, rank, budget, None), dtype)


def predicted_bytes(
    shape: tuple[int, int],
    inputs: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    rank: int,
    probes: int,
    steps: int,
    memory_limit: int,
) -> tuple[int, int]:
    """Bytes at the peaks of the search and of the sampling of so many inputs together, products not counted.

    How many triplets are deflated is known only afterwards: at most as many as the search has vectors.
    """
    (short, long), e = sorted(shape), dtype.itemsize
    rank, width = min(rank, short), min(_BLOCK, short)
    budget = _budget(short, rank, width, None, probes, steps)
    capacity = _capacity(shape, inputs, dtype, rank, budget, memory_limit)
    vectors = min(_blocks(budget, rank, width) * width, short)
    # A restart makes both kinds of vectors beside the bases, the deflation those of the short side.
    keep = min(rank + (capacity - rank) // 2, capacity - width) if vectors > capacity else 0
    made = max(keep * (short + long), capacity * short if vectors < short else 0)
    # A block, what of it lies along a basis, both factors of QR and its copies; and a start.
    block = width * (10 * long * e + 2 * short * e) + random_bytes(short, width, dtype)
    # H, its factors for each input with their copies in ``dtype``, and LAPACK's.
    projected = (4 * inputs + SVD_COPIES) * 8 * capacity**2
    search = inputs * (capacity * (short + long) + made) * e + inputs * block + projected
    if vectors >= short:
        return search, 0
    deflated = min(vectors, capacity) * short * e * inputs
    of_probe = inputs * basis_bytes(shape, steps, dtype)
    groups = probe_groups(
        range(probes), of_probe, max(memory_limit - rank * short * e * inputs, of_probe), device
    )
    together = len(groups[0])
    # The vectors of both ends of each group, stacked, and one basis in float64 for them.
    ends = 8 * short * (4 * len(groups) * inputs + min(steps, short))
    # The projector makes a correction and a difference.
    rest = (
        recurrence_bytes(shape, together * inputs, steps, dtype, device) + 2 * together * inputs * short * e
    )
    return search, deflated + rest + ends


class _Counter:
    """Blocks of the search and steps of the rest, as (done, total) for whoever listens."""

    def __init__(self, progress: StepProgress | None, searches: int, steps: int) -> None:
        self._progress, self._searches, self._total, self._done = progress, searches, searches + steps, 0

    def add(self, count: int = 1) -> None:
        self._done = min(self._done + count, self._total)
        if self._progress is not None:
            self._progress(self._done, self._total)

    def end_search(self) -> None:
        self.add(self._searches - self._done)

    def end(self) -> None:
        self.add(self._total)


@dataclass(frozen=True)
class _Deflation:
    """The leading triplets of each input.

    Parameters
    ----------
    values, residuals : (B, most) arrays
        nan where an input has fewer.
    present : (B, most) bool array
    basis : (B, short, most) tensor
        Right singular vectors; zero columns where an input has fewer.
    """

    values: Array
    residuals: Array
    present: NDArray[np.bool_]
    basis: Tensor

    @classmethod
    def of(cls, space: BlockKrylov, triplets: RitzTriplets, counts: NDArray[np.int64]) -> _Deflation:
        """The first ``counts`` triplets of each input."""
        most = int(counts.max())
        present = np.arange(most) < counts[:, None]
        values, residuals = (
            np.where(present, x[:, :most], np.nan) for x in (triplets.values, triplets.residuals)
        )
        columns = torch.from_numpy(present[:, None]).to(space.side.device)
        return cls(
            values, residuals, present, space.right_vectors(triplets, most).transpose(1, 2).mul_(columns)
        )

    @property
    def most(self) -> int:
        """Triplets of the input that has most of them."""
        return int(self.present.shape[1])

    @property
    def counts(self) -> NDArray[np.int64]:
        """(B,) triplets of each input."""
        return self.present.sum(axis=1)

    def projector(self, block: Tensor) -> Tensor:
        """The part of a (k, B, short) block orthogonal to the leading right singular vectors."""
        for _ in range(2):
            overlap = torch.einsum("bdr,kbd->kbr", self.basis, block)
            block = block - torch.einsum("bdr,kbr->kbd", self.basis, overlap)
        return block


@dataclass(frozen=True)
class _Rest:
    """Gauss rules of the deflated operator, (B, k) ``steps``, ``finished`` and residuals, and its extreme triplets."""

    rules: GaussRules
    steps: NDArray[np.int64]
    finished: NDArray[np.bool_]
    breakdown_residual: Array
    largest: tuple[Array, Array]
    smallest: tuple[Array, Array]


def _sample_rest(
    side: ShortSide,
    deflation: _Deflation,
    probes: int,
    steps: int,
    *,
    seed: int,
    first_input: int,
    memory_limit: int | None,
    counter: _Counter,
) -> _Rest:
    """Golub-Kahan on A P, P the projector of the deflation, from ``probes`` random vectors of each input."""
    dimension = side.short - int(deflation.counts.min())
    of_one = side.batch * basis_bytes(side.shape, min(steps, dimension), side.dtype)
    room = None if memory_limit is None else memory_limit - deflation.basis.nbytes
    arrays, rules, ends = [], [], []
    for group in probe_groups(range(probes), of_one, room, side.device):
        count = len(group)
        start = random_block(
            count, side, seed, first_input=first_input, first_probe=group.start, stream=_PROBE
        )
        start = deflation.projector(start)
        start = start / torch.linalg.vector_norm(start, dim=-1, keepdim=True)
        part = golub_kahan(
            side, start, steps, projector=deflation.projector, dimension=dimension,
            on_step=lambda _, count=count: counter.add(count),  # type: ignore[misc]
        )  # fmt: skip
        rules.append(gauss_rules(part))
        ends.append(_ends(part, rules[-1]))
        arrays.append((part.steps.T, part.finished.T, part.breakdown_residual.T))
        # Its basis is not needed any more, and the next group needs the room.
        del part
    taken, finished, residual = (np.concatenate(each, axis=1) for each in zip(*arrays, strict=True))
    largest, smallest = _as_triplets(side, ends)
    return _Rest(join_probes(rules), taken, finished, residual, largest, smallest)


def _joined(side: ShortSide, deflation: _Deflation, rest: _Rest) -> Spectrum:
    """One spectrum of the deflated triplets, each of mass 1 / min(m, n), and of the rest."""
    rules, s, counts = rest.rules, deflation.values, deflation.counts
    rows = (*rules.nodes.shape[:2], deflation.most)
    leading = np.broadcast_to(np.nan_to_num(s)[:, None], rows)
    masses = np.broadcast_to(deflation.present[:, None] / side.short, rows)
    nodes = np.concatenate([leading, rules.nodes], axis=-1)
    weights = np.concatenate([masses, (1 - counts / side.short)[:, None, None] * rules.weights], axis=-1)
    resolved = np.concatenate([np.ones(rows, bool), rules.resolved], axis=-1)
    counted = np.concatenate([np.ones(rows, bool), counted_by(rules)], axis=-1)
    vectors = deflation.most + int(rest.steps.max())
    noise = side.noise_floor(s[:, 0], vectors)
    floor = np.maximum(noise, quadrature_floor(rules, rest.steps, rest.finished, rest.breakdown_residual))
    # Where the spectrum decays slowly the rest may hold a larger value than the search found.
    found, found_error = rest.largest
    larger = found > s[:, 0]
    top, top_error = s.copy(), deflation.residuals.copy()
    top[larger, 0], top_error[larger, 0] = found[larger], found_error[larger]
    top_error += side.rounding_error(top, s[:, :1], vectors)
    beyond = below_probes(rules, rest.steps, rest.finished, side.short - counts, side.eps)
    extremes = extremes_of_found(
        top,
        top_error,
        # Deflated values may be the smallest ones, where all others are alike.
        [rest.smallest, _smallest_deflated(deflation)],
        lower=_lower_bound(s, deflation.residuals + side.rounding_error(s, s[:, :1], vectors), beyond),
        floor=floor,
        rounding=side.rounding_error(rest.smallest[0], s[:, 0], vectors),
    )
    return Spectrum(
        Quadrature(
            nodes, weights, floor, resolved, side.precision.error_model(side.short, "gaussian"), counted
        ),
        method="randomized",
        shape=side.shape,
        extremes=extremes,
        products=side.products,
    )


def _smallest_deflated(deflation: _Deflation) -> tuple[Array, Array]:
    """(s, residual) of the smallest of the deflated triplets, (B,) each."""
    last = (deflation.counts - 1)[:, None]
    return tuple(
        np.take_along_axis(part, last, axis=1)[:, 0] for part in (deflation.values, deflation.residuals)
    )  # type: ignore[return-value]


def _lower_bound(s: Array, residuals: Array, beyond: Array) -> Array:
    """(B,) what no singular value of A lies below, where none of A P lies below ``beyond``.

    For t below all s_r, A has no singular value below t where C - t^2 is positive beyond the term of the residuals:
    beyond^2 - t^2 >= sum e_r^2 s_r^2 / (s_r^2 - t^2) (Sylvester's law of inertia; `isometry.spectrum.cdf_bounds`).
    """
    t = np.maximum(np.minimum(beyond, np.nanmin(s - residuals, axis=1)), 0.0)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = np.nansum((residuals * s) ** 2 / (s**2 - t**2), axis=1)
    return np.sqrt(np.maximum(t[:, 0] ** 2 - moved, 0.0))


def _budget(short: int, rank: int, width: int, products: int | None, probes: int, steps: int) -> int:
    """Products of each input for the leading triplets."""
    least = 2 * max(rank, width)
    if products is None:
        return max(least, _PRODUCTS_EACH * (rank + _BEYOND))
    budget = products - 2 * probes * min(steps, short) - _END_PRODUCTS
    if budget < least:
        raise InputError(
            f"products={products} leaves {max(budget, 0)} for the leading triplets beside {probes} probes of {steps} "
            f"steps; {rank} of them take {least} at least: take fewer probes or steps"
        )
    return budget


def _capacity(
    shape: tuple[int, int], inputs: int, dtype: torch.dtype, rank: int, budget: int, memory_limit: int | None
) -> int:
    """Vectors of the leading space: all that the budget gives, as far as they fit."""
    short = min(shape)
    rank, width = min(rank, short), min(_BLOCK, short)
    capacity = min(width * math.ceil(max(budget // 2, rank) / width), short)
    if memory_limit is not None:
        of_one = inputs * basis_bytes(shape, 1, dtype)
        least = min(capacity, rank + 2 * width)
        if least * of_one > memory_limit:
            raise InputError(
                f"a space for {rank} leading triplets takes {least * of_one / 1e9:.3g} GB, more than memory_limit "
                f"({memory_limit / 1e9:.3g} GB): take a smaller rank or fewer inputs, or raise memory_limit"
            )
        capacity = min(capacity, memory_limit // of_one)
    return capacity


def _blocks(budget: int, rank: int, width: int) -> int:
    """Blocks of the search: as many as the budget pays for, and enough for ``rank`` vectors."""
    return max(budget // (2 * width), math.ceil(rank / width))


def _leading(space: BlockKrylov, rank: int, budget: int, counter: _Counter) -> RitzTriplets:
    """The triplets of a space grown by as many blocks as the budget has, whatever they find."""
    for _ in range(_blocks(budget, rank, space.width)):
        if space.size + space.width > space.capacity:
            keep = min(rank + (space.capacity - rank) // 2, space.capacity - space.width)
            space.restart(space.ritz(), keep)
        space.expand()
        counter.add()
        if space.complete:
            break
    return space.ritz()


def _kept(triplets: RitzTriplets, rank: int, tol: float) -> NDArray[np.int64]:
    """(B,) how many to deflate: the wanted ones, and every further one down to the first that has not converged."""
    converged = triplets.residuals <= tol * triplets.values
    return np.maximum(np.logical_and.accumulate(converged, axis=1).sum(axis=1), rank)


def _ends(rest: Bidiagonals, rules: GaussRules) -> tuple[np.ndarray, Tensor]:
    """Largest and smallest node over the probes of each input, (2, B), and their right vectors, (2, B, short)."""
    real = np.isfinite(rules.residuals)
    places = (
        np.where(real, rules.nodes, -np.inf).max(axis=2),
        np.where(real, rules.nodes, np.inf).min(axis=2),
    )
    which = (places[0].argmax(axis=1), places[1].argmin(axis=1))
    batch = rules.nodes.shape[0]
    values = np.stack([place[np.arange(batch), probe] for place, probe in zip(places, which, strict=True)])
    vectors = rest.right.new_zeros(2, batch, rest.right.shape[-1], dtype=torch.float64)
    for index in range(batch):
        for end in range(2):
            probe = which[end][index]
            count = int(rest.steps[probe, index])
            right = np.linalg.svd(rest.matrices()[probe, index, :count, :count])[2][-end]
            basis = rest.right[probe, index, :count].double()
            vectors[end, index] = torch.from_numpy(right).to(basis.device) @ basis
    return values, vectors


def _as_triplets(
    side: ShortSide, ends: list[tuple[np.ndarray, Tensor]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The largest and the smallest triplet over groups of probes as triplets of A: (s, residual), (B,) each.

    The residuals are those in A itself, with two more products each. Those of the deflated operator would leave out
    what A^T u has along the leading vectors, which is large where they are not converged.
    """
    values = np.stack([end[0] for end in ends])
    best = np.stack([values[:, 0].argmax(axis=0), values[:, 1].argmin(axis=0)])
    vectors = torch.stack([end[1] for end in ends])
    v = torch.stack([vectors[best[end], end, np.arange(side.batch)] for end in range(2)])
    image = side.apply(v.to(side.dtype)).double()
    s = torch.linalg.vector_norm(image, dim=-1, keepdim=True)
    back = side.adjoint((image / torch.where(s > 0, s, 1.0)).to(side.dtype)).double()
    residual = torch.linalg.vector_norm(back - s * v, dim=-1)
    return list(zip(s[..., 0].cpu().numpy(), residual.cpu().numpy(), strict=True))


def _provenance(side: ShortSide, seed: int) -> dict[str, object]:
    return {"dtype": str(side.dtype).removeprefix("torch."), "device": str(side.device), "seed": seed}


def _complete(side: ShortSide, s: np.ndarray, seed: int) -> Spectrum:
    """The space is the whole short side: every singular value is there and nothing is left over."""
    nodes = s[:, None, :]
    error, noise = side.rounding_error(s, s[:, :1], side.short), side.noise_floor(s[:, 0], side.short)
    return Spectrum(
        Quadrature(
            nodes,
            np.full(nodes.shape, 1.0 / side.short),
            noise,
            np.ones(nodes.shape, bool),
            side.precision.error_model(side.short),
        ),
        method="randomized",
        shape=side.shape,
        extremes=extremes_of_all(s, error, noise),
        products=side.products,
        provenance=_provenance(side, seed) | {"rank": side.short},
    )
