"""Randomized SVD: the leading singular triplets with residuals, and the distribution of the rest.

Halko, Martinsson & Tropp 2011 (SIAM Review 53, 217; arXiv 0909.4061), algorithms 4.4 (power) and the block
Krylov variant of Musco & Musco 2015 (arXiv 1504.05477). What the leading space leaves over is measured by
Golub-Kahan on the deflated operator, so that the result is a distribution of all singular values.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from isometry.distribution import Quadrature
from isometry.errors import InputError
from isometry.spectrum import Extremes, Spectrum

from .blocks import Operator, ShortSide, random_block
from .exact import Progress
from .golub_kahan import Bidiagonals, golub_kahan, unseen_below
from .quadrature import GaussRules, gauss_rules


def randomized(
    operator: Operator,
    *,
    rank: int = 20,
    oversample: int = 10,
    iterations: int = 2,
    krylov: bool = False,
    probes: int = 8,
    steps: int = 30,
    seed: int = 0,
    first_input: int = 0,
    progress: Progress | None = None,
) -> Spectrum:
    """The leading ``rank`` singular values with residuals, and the rest as a quadrature.

    Parameters
    ----------
    operator : Operator
        Anything with ``shape``, ``matmat`` and ``rmatmat``; with a batch, each sample has its own matrix.
    rank : int
        Leading triplets wanted.
    oversample : int
        Further vectors in the sketch.
    iterations : int
        Power iterations, each one A and one A^T on the whole sketch. More when the spectrum decays slowly.
    krylov : bool
        Keep the sketches of all iterations (block Krylov): more accurate for as many products, more memory.
    probes, steps : int
        For the distribution of what is left after deflation.
    seed, first_input, progress :
        As for :func:`isometry.estimators.lanczos`.

    Returns
    -------
    Spectrum
        ``extremes.top`` holds ``rank`` values; A v = s u is exact for each and its residual is
        ||A^T u - s v||, computed, not estimated. Where Golub-Kahan finds a larger value in the rest, that one stands
        first (the leading triplets are then far from converged, as their residuals say). The standard error of the
        mean square comes from the deflated part alone, so it is small where few singular values dominate.
        ``cdf_bounds`` take the leading values for exact: they hold to within the residuals.
    """
    if rank < 1 or oversample < 0 or iterations < 0:
        raise InputError(
            f"rank is at least 1, oversample and iterations at least 0; got {rank}, {oversample}, {iterations}"
        )
    if probes < 1 or steps < 1:
        raise InputError(f"probes and steps are at least 1; got {probes}, {steps}")
    began = time.perf_counter()
    side = ShortSide(operator)
    width = min(rank + oversample, side.short)
    stages = iterations + 2 + min(steps, side.short)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, stages)

    basis = _leading_space(side, width, iterations, krylov, seed, first_input, tick)
    rank = min(rank, basis.shape[0])
    images = side.apply(basis)
    # A V = U S W^T: rotated by W, the basis gives triplets that satisfy A v = s u exactly.
    left, values, right = torch.linalg.svd(_columns(images).double(), full_matrices=False)
    values, left, right = values[:, :rank], left[:, :, :rank], right[:, :rank]
    vectors = _columns(basis).double() @ right.transpose(1, 2)
    back = _columns(side.adjoint(_block(left).to(side.dtype))).double()
    residuals = torch.linalg.vector_norm(back - vectors * values[:, None, :], dim=1)
    tick()
    s, error = values.cpu().numpy(), residuals.cpu().numpy()
    noise = side.noise_floor(s[:, 0])
    if rank == side.short:
        if progress is not None:
            progress(stages, stages)
        return _complete(side, s, error, noise, began, seed)

    frame = vectors.to(side.dtype)

    def outside(block: Tensor) -> Tensor:
        """The part of a (k, B, short) block orthogonal to the leading right singular vectors."""
        for _ in range(2):
            overlap = torch.einsum("bdr,kbd->kbr", frame, block)
            block = block - torch.einsum("bdr,kbr->kbd", frame, overlap)
        return block

    start = outside(random_block(probes, side, seed, first_input=first_input, stream=1))
    start = start / torch.linalg.vector_norm(start, dim=-1, keepdim=True)
    rest = golub_kahan(
        side, start, steps, within=outside, dimension=side.short - rank, on_step=lambda _: tick()
    )
    if progress is not None:
        progress(stages, stages)
    rules = gauss_rules(rest)
    share = rank / side.short
    leading = np.broadcast_to(s[:, None, :], (side.batch, probes, rank))
    nodes = np.concatenate([leading, rules.nodes], axis=-1)
    weights = np.concatenate([np.full(leading.shape, 1.0 / side.short), (1 - share) * rules.weights], axis=-1)
    certain = np.concatenate([np.ones(leading.shape, bool), rules.certain], axis=-1)
    floor = np.maximum(noise, unseen_below(rest.closing.T))
    if not rest.finished.all():
        rest_max = rules.nodes.max(axis=(1, 2))
        floor = np.maximum(floor, np.where(rest.finished.all(axis=0), 0.0, rest_max / rest.alpha.shape[-1]))
    # Where the spectrum decays slowly the rest may hold a larger value than a few power iterations found.
    (found, found_error), (bottom, bottom_error) = _ends_of_the_rest(side, rest, rules)
    larger = found > s[:, 0]
    top, top_error = s.copy(), error.copy()
    top[larger, 0], top_error[larger, 0] = found[larger], found_error[larger]
    # A v of length t for a unit v: some singular value lies in [0, t], whatever A^T u says.
    top_error += side.rounding_error(top, s[:, :1])
    bottom_residual = np.minimum(bottom_error, bottom) + side.rounding_error(bottom, s[:, 0])
    return Spectrum(
        Quadrature(nodes, weights, floor, certain),
        method="randomized",
        shape=side.shape,
        extremes=Extremes(
            top, top_error, bottom, bottom_residual,
            (bottom_residual <= 1e-2 * bottom) & (bottom > floor),
        ),
        products=side.products,
        seconds=time.perf_counter() - began,
        provenance=_provenance(side, seed) | {"rank": rank, "probes": probes, "steps": int(rest.steps.max())},
    )  # fmt: skip


def _leading_space(
    side: ShortSide,
    width: int,
    iterations: int,
    krylov: bool,
    seed: int,
    first_input: int,
    tick: Callable[[], None],
) -> Tensor:
    """An orthonormal basis (width or more, B, short) near the leading right singular vectors."""
    sketch = random_block(width, side, seed, first_input=first_input, stream=2)
    kept = []
    for _ in range(iterations + 1):
        sketch = _orthonormal(side.adjoint(_orthonormal(side.apply(sketch))))
        kept.append(sketch)
        tick()
    if not krylov:
        return sketch
    return _orthonormal(torch.cat(kept)[-side.short :])


def _columns(block: Tensor) -> Tensor:
    """(k, B, d) -> (B, d, k)."""
    return block.permute(1, 2, 0)


def _block(columns: Tensor) -> Tensor:
    """(B, d, k) -> (k, B, d)."""
    return columns.permute(2, 0, 1)


def _orthonormal(block: Tensor) -> Tensor:
    """An orthonormal basis of the span of each sample's block, by QR in float64."""
    columns = _columns(block).double()
    scale = columns.abs().amax(dim=(1, 2), keepdim=True)
    q = torch.linalg.qr(columns / torch.where(scale > 0, scale, torch.ones_like(scale)))[0]
    return _block(q).to(block.dtype)


def _ends_of_the_rest(
    side: ShortSide, rest: Bidiagonals, rules: GaussRules
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The largest and the smallest triplet of the rest over the probes of each input: (s, residual), (B,) each.

    The residuals are those in A itself, with two more products. Those of the deflated operator would leave out
    what A^T u has along the leading vectors, which is large where they are not converged.
    """
    real = np.isfinite(rules.residuals)
    largest = np.where(real, rules.nodes, -np.inf).max(axis=2).argmax(axis=1)
    smallest = np.where(real, rules.nodes, np.inf).min(axis=2).argmin(axis=1)
    vectors = np.zeros((2, side.batch, rest.right.shape[2]))
    basis = torch.zeros(2, side.batch, *rest.right.shape[2:], dtype=torch.float64, device=side.device)
    for index in range(side.batch):
        for end, probe in enumerate((largest[index], smallest[index])):
            count = int(rest.steps[probe, index])
            right = np.linalg.svd(rest.matrices()[probe, index, :count, :count])[2]
            vectors[end, index, :count] = right[-end]
            basis[end, index] = rest.right[probe, index]
    v = torch.einsum("ebj,ebjd->ebd", torch.from_numpy(vectors).to(side.device), basis)
    image = side.apply(v.to(side.dtype)).double()
    s = torch.linalg.vector_norm(image, dim=-1, keepdim=True)
    back = side.adjoint((image / torch.where(s > 0, s, 1.0)).to(side.dtype)).double()
    residual = torch.linalg.vector_norm(back - s * v, dim=-1)
    return list(zip(s[..., 0].cpu().numpy(), residual.cpu().numpy(), strict=True))


def _provenance(side: ShortSide, seed: int) -> dict[str, object]:
    return {"dtype": str(side.dtype).removeprefix("torch."), "device": str(side.device), "seed": seed}


def _complete(
    side: ShortSide, s: np.ndarray, error: np.ndarray, noise: np.ndarray, began: float, seed: int
) -> Spectrum:
    """The sketch spans the whole short side: every singular value is there and nothing is left over."""
    nodes = s[:, None, :]
    error = error + side.rounding_error(s, s[:, :1])
    return Spectrum(
        Quadrature(nodes, np.full(nodes.shape, 1.0 / side.short), noise, np.ones(nodes.shape, bool)),
        method="randomized",
        shape=side.shape,
        extremes=Extremes(s, error, s[:, -1], error[:, -1], s[:, -1] > noise),
        products=side.products,
        seconds=time.perf_counter() - began,
        provenance=_provenance(side, seed) | {"rank": side.short},
    )
