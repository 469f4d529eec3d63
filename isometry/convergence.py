"""Whether the reported extreme values are known as well as was asked, and the warnings where they are not."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from isometry.errors import ConvergenceWarning
from isometry.spectrum import Spectrum

# How many top values of an exact measurement, which lists them all, are meant where nobody says.
DEFAULT_TOP = 6


def converged(spectrum: Spectrum, tol: float) -> bool:
    """Whether every reported top value of the spectrum has a relative residual of at most ``tol``."""
    return _worst_residual(spectrum) <= tol


def _worst_residual(spectrum: Spectrum) -> float:
    """The largest relative residual of the reported top values; 0 where there are none."""
    e = spectrum.extremes
    if e is None:
        return 0.0
    # An exact measurement lists all its values, down to those that rounding drowns: only the leading ones count.
    asked = spectrum.provenance.get("options", {}).get("top") or DEFAULT_TOP
    count = asked if spectrum.method == "exact" else e.top.shape[1]
    top, residual = e.top[:, :count], e.top_residual[:, :count]
    known = np.isfinite(top) & (top > spectrum.floor if spectrum.method == "exact" else top > 0)
    return float(np.max(residual[known] / top[known], initial=0.0))


def warn_unconverged(spectrum: Spectrum, tol: float) -> None:
    worst = _worst_residual(spectrum)
    if worst <= tol:
        return
    warnings.warn(
        f"the worst relative residual of the top values is {worst:.1e}, above tol={tol:g}: take more steps, or "
        "method='randomized' with a larger rank",
        ConvergenceWarning,
        stacklevel=3,
    )


def warn_of_underflow(spectrum: Spectrum, dtype: torch.dtype) -> None:
    """Say so where J is so small that its entries may have been lost below the smallest float."""
    e = spectrum.extremes
    smallest = torch.finfo(dtype).tiny / torch.finfo(dtype).eps
    if e is None or bool(np.all(e.top[:, 0] >= smallest)):
        return
    s_max = float(e.top[:, 0].min())
    cure = (
        "" if dtype == torch.float64 else "; if the network is merely deep, measure with dtype=torch.float64"
    )
    warnings.warn(
        f"s_max is {s_max:.2g}: either nothing of the output depends on the input (units that are cut off), or the "
        f"products underflow in {dtype}{cure}",
        ConvergenceWarning,
        stacklevel=3,
    )
