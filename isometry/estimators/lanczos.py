"""The distribution of all singular values from a few probes: Golub-Kahan and Gauss quadrature."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np

from isometry.distribution import Quadrature
from isometry.errors import InputError
from isometry.spectrum import Extremes, Spectrum

from .blocks import Operator, ShortSide, random_block
from .exact import Progress
from .golub_kahan import Bidiagonals, golub_kahan, joined, unseen_below
from .quadrature import GaussRules, gauss_rules

# A smallest value is reported as s_min only if it is known to one part in a hundred.
_RESOLVED = 1e-2


def lanczos(
    operator: Operator,
    *,
    probes: int = 16,
    steps: int = 50,
    top: int = 6,
    seed: int = 0,
    first_input: int = 0,
    memory_limit: int | None = None,
    progress: Progress | None = None,
) -> Spectrum:
    """The spectrum by stochastic Lanczos quadrature on the Golub-Kahan bidiagonalisation.

    Parameters
    ----------
    operator : Operator
        Anything with ``shape``, ``matmat`` and ``rmatmat``; with a batch, each sample has its own matrix.
    probes : int
        Random start vectors, uniform on the unit sphere of the shorter side. The standard error of the
        mean square falls as 1 / sqrt(probes).
    steps : int
        Golub-Kahan steps of each; one step is one J v and one J^T u. Resolves s down to about s_max / steps.
    top : int
        How many of the largest singular values to report with residuals.
    seed : int
        Every probe has its own stream, made of (seed, input, probe).
    first_input : int
        Number of the first sample of a batch, for inputs measured in several calls.
    memory_limit : int, optional
        Bytes for the Krylov bases, steps * (m + n) numbers for each probe of each input: probes that do not fit
        together go in groups, one after another, and at least one at a time.
    progress : callable, optional
        Called with (done, total) steps.

    Returns
    -------
    Spectrum
        Two errors stand apart in it: the statistical one over probes (``mean_square_stderr``,
        ``cdf_stderr``) and the truncation of the quadrature (``cdf_bounds``). The mean square is exact for
        each probe at any number of steps. What lies below max(s_max / steps, 8 units of rounding of s_max)
        is reported as mass below the floor, unless the probe's Krylov space closed.

    Notes
    -----
    A single start vector sees each distinct singular value once: ``top`` lists distinct values, without
    their multiplicities. The top values are lower bounds of the true ones, the bottom value an upper bound of s_min.

    Where one singular value carries nearly all of the mean square, the spread of the probes is a chi-square of one
    degree of freedom, and the 95 % interval of 16 probes covers 86 % of the time; take
    :func:`isometry.estimators.randomized`, which takes such values out first.
    """
    if probes < 1:
        raise InputError(f"at least one probe is needed; got {probes}")
    if top < 1:
        raise InputError(f"top is at least 1; got {top}")
    began = time.perf_counter()
    side = ShortSide(operator)
    total = min(steps, side.short)
    start = random_block(probes, side, seed, first_input=first_input)
    group = probes
    if memory_limit is not None:
        of_one_probe = total * (side.short + side.long) * side.batch * start.element_size()
        group = max(1, min(probes, memory_limit // of_one_probe))
    stages = total * math.ceil(probes / group)
    parts = []
    for number, first in enumerate(range(0, probes, group)):

        def report(done: int, before: int = number * total) -> None:
            if progress is not None:
                progress(before + done, stages)

        parts.append(_entries(golub_kahan(side, start[first : first + group], steps, on_step=report)))
    if progress is not None:
        progress(stages, stages)
    bidiagonals = joined(parts)
    rules = gauss_rules(bidiagonals)
    s_max = rules.nodes.max(axis=(1, 2))
    floor = np.maximum(side.noise_floor(s_max), unseen_below(bidiagonals))
    if not bidiagonals.finished.all():
        open_inputs = ~bidiagonals.finished.all(axis=0)
        floor = np.where(open_inputs, np.maximum(floor, s_max / total), floor)
    return Spectrum(
        Quadrature(rules.nodes, rules.weights, floor, rules.certain),
        method="lanczos",
        shape=side.shape,
        extremes=_extremes(side, rules, floor, top),
        products=side.products,
        seconds=time.perf_counter() - began,
        provenance={
            "dtype": str(side.dtype).removeprefix("torch."),
            "device": str(side.device),
            "seed": seed,
            "probes": probes,
            "steps": int(bidiagonals.steps.max()),
        },
    )


def _entries(bidiagonals: Bidiagonals) -> Bidiagonals:
    """Without the vectors, which have done their work: their memory is for the next group of probes."""
    return replace(bidiagonals, right=bidiagonals.right[..., :0].clone())


def _extremes(side: ShortSide, rules: GaussRules, floor: np.ndarray, top: int) -> Extremes:
    """The extreme nodes over the probes of each input, each with its residual and the rounding of the products."""
    batch, _, size = rules.nodes.shape
    count = min(top, size)
    values, residuals = np.zeros((batch, count)), np.zeros((batch, count))
    bottom, bottom_residual = np.zeros(batch), np.zeros(batch)
    s_max = rules.nodes.max(axis=(1, 2))
    noise = side.noise_floor(s_max)
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
    residuals += side.rounding_error(values, s_max[:, None])
    bottom_residual += side.rounding_error(bottom, s_max)
    resolved = (bottom_residual <= _RESOLVED * bottom) & (bottom > floor)
    return Extremes(values, residuals, bottom, bottom_residual, resolved)
