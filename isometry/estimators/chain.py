"""All singular values of a product of factors, as a spectrum."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from isometry.jacobian import keeps_torch_state, strict_numerics
from isometry.progress import StepProgress
from isometry.spectrum import ErrorModel, LogValues, Spectrum
from isometry.spectrum.error_model import NO_PROBES

from .chain_factors import ChainFactor
from .graded_chain import chain_singular_values


@keeps_torch_state
def chain(
    factors: Sequence[ChainFactor],
    *,
    seed: int = 0,
    first_input: int = 0,
    device: torch.device | str = "cpu",
    progress: StepProgress | None = None,
) -> Spectrum:
    """The spectrum of J = J_L ... J_1, however many decades it covers, each value with a relative error.

    Parameters
    ----------
    factors : sequence of ChainFactor
        Maps on blocks of row vectors, the first one first; `MatrixFactor` is one for a matrix.
    seed, first_input : int
        Of the perturbations by which errors are measured.
    device : optional
        Where blocks of vectors lie.
    progress : callable, optional
        Called with (done, total) factors.

    Returns
    -------
    Spectrum
        With all min(m, n) singular values as logarithms (:class:`isometry.spectrum.LogValues`).

    Raises
    ------
    InputError
        Without a factor, or where two shapes do not meet.
    NonFiniteError
        Where a factor has NaN or inf, or overflows.
    ConvergenceError
        Where Jacobi's method does not converge.

    Notes
    -----
    See :mod:`isometry.estimators.graded_chain`. The error of a value is four times the root mean square of its
    movements when all factors are perturbed at random by more than their rounding: ``2 sqrt(n)`` units, or twice what
    their products round where that is more. It is measured, not proved: over the cases of the tests, against
    multi-precision arithmetic, the true error was at most two thirds of it, and in the median of a case a fiftieth.

    Examples
    --------
    >>> from isometry.estimators import MatrixFactor
    >>> step = MatrixFactor(torch.diag(torch.tensor([1.0, 1e-3], dtype=torch.float64)))
    >>> (chain([step] * 200).log_singular_values / np.log(10)).round(6).tolist()
    [0.0, -600.0]
    """
    began = time.perf_counter()
    with torch.no_grad(), strict_numerics(torch.device(device)):
        found = chain_singular_values(factors, seed=(seed, first_input), device=device, progress=progress)
    return Spectrum(
        LogValues(
            found.log_values[None], found.log_error[None], np.array([found.proved_zeros]),
            ErrorModel(NO_PROBES, rounding=max(factor.rounding for factor in factors), dimension=found.vectors),
        ),
        method="chain",
        shape=(factors[-1].shape[0], factors[0].shape[1]),
        products=found.vectors + 1,
        seconds=time.perf_counter() - began,
        provenance={
            "factors": len(factors),
            "decompositions": found.decompositions,
            "condition": found.condition,
            "perturbed": found.perturbed,
        },
    )  # fmt: skip
