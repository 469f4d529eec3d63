"""The distribution of all singular values from a few probes: Golub-Kahan and Gauss quadrature."""

from __future__ import annotations

import time
from dataclasses import replace

from isometry.errors import InputError
from isometry.progress import StepProgress
from isometry.spectrum import Spectrum

from . import defaults
from .blocks import Operator, ShortSide, strictly
from .probe_rules import basis_bytes, measure_probes, merge, probe_groups


@strictly
def lanczos(
    operator: Operator,
    *,
    probes: int = defaults.PROBES,
    steps: int = defaults.STEPS,
    top: int = defaults.TOP,
    probe: str = "gaussian",
    seed: int = 0,
    first_input: int = 0,
    memory_limit: int | None = None,
    progress: StepProgress | None = None,
) -> Spectrum:
    """The spectrum by stochastic Lanczos quadrature on the Golub-Kahan bidiagonalisation.

    Parameters
    ----------
    operator : Operator
        Anything with ``shape``, ``matmat`` and ``rmatmat``; with a batch, each sample has its own matrix.
    probes : int
        Random start vectors on the unit sphere of the shorter side. The standard error of the mean square falls as
        1 / sqrt(probes).
    steps : int
        Golub-Kahan steps of each; one step is one J v and one J^T u. Resolves s down to about s_max / steps.
    top : int
        How many of the largest singular values to report with residuals.
    probe : {"gaussian", "rademacher", "orthogonal"}
        Uniform on the sphere (normalised Gaussian vectors); random signs; uniform and orthogonal to one another in
        fixed groups of 16. See docs/measuring.md for their measured variances.
    seed : int
        Every probe has its own stream, made of (seed, input, probe).
    first_input : int
        Number of the first sample of a batch, for inputs measured in several calls.
    memory_limit : int, optional
        Bytes for the Krylov bases, steps * (m + n) numbers for each probe of each input: probes that do not fit
        together go in groups, one after another. One that does not fit alone is refused.
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
    groups = probe_groups(
        range(probes), side.batch * basis_bytes(side.shape, total, side.dtype), memory_limit, side.device
    )
    inputs = range(first_input, first_input + side.batch)
    stages = total * len(groups)
    parts = []
    for number, group in enumerate(groups):

        def report(done: int, before: int = number * total) -> None:
            if progress is not None:
                progress(before + done, stages)

        parts.append(
            measure_probes(operator, inputs, group, steps=steps, seed=seed, probe=probe, on_step=report)
        )
    if progress is not None:
        progress(stages, stages)
    return replace(merge(parts, top=top), seconds=time.perf_counter() - began)
