"""Whether the reported extreme values are known as well as was asked, and the warnings where they are not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from isometry.errors import ConvergenceWarning, warn_caller
from isometry.estimators.defaults import TOP
from isometry.spectrum import Spectrum

# A relative error beyond which a value is hardly known.
_LARGE_ERROR = 0.5
_CAUSES = {
    "budget": "the budget ended first",
    "probes": "there were no more probes to take; raise probes",
    "steps": "there were no more steps to take; raise steps",
    "memory": "more Krylov bases do not fit; raise memory_limit",
    "rounding": "the rest is rounding; measure with dtype=torch.float64",
    "exact": "the rest is rounding; measure with dtype=torch.float64",
}


def converged(spectrum: Spectrum, tol: float, *, top: int | None = None) -> bool:
    """Whether every reported top value has a relative residual of at most ``tol``; ``top`` as `worst_residual`."""
    return worst_residual(spectrum, top=top) <= tol


def worst_residual(spectrum: Spectrum, count: int | None = None, *, top: int | None = None) -> float:
    """The largest relative residual of the leading ``count`` or all reported top values; 0 where there are none.

    An exact measurement lists all its values, down to those that rounding drowns: of it the leading ``top`` (6).
    """
    e = spectrum.extremes
    if e is None:
        return 0.0
    exact = not spectrum.distribution.errors.random
    count = count or ((top or TOP) if exact else e.top.shape[1])
    values, residual = e.top[:, :count], e.top_residual[:, :count]
    known = np.isfinite(values) & (values > (spectrum.floor if exact else 0))
    return float(np.max(residual[known] / values[known], initial=0.0))


def warn_unconverged(spectrum: Spectrum, tol: float, *, top: int | None = None) -> None:
    """Say so where a reported top value has a larger relative residual; ``top`` as `worst_residual`."""
    worst = worst_residual(spectrum, top=top)
    if worst <= tol:
        return
    warn_caller(
        f"the worst relative residual of the top values is {worst:.1e}, above tol={tol:g}: take more steps, or "
        "method='randomized' with a larger rank",
        ConvergenceWarning,
    )


def warn_of_underflow(spectrum: Spectrum, dtype: str, cause: str = "") -> None:
    """Say so where J is so small that its entries may have been lost below the smallest float.

    ``cause`` is the reason why J is zero, where it is known.
    """
    e = spectrum.extremes
    smallest = float(np.finfo(dtype).tiny / np.finfo(dtype).eps)
    if e is None:
        # Scales are logarithms there, and do not underflow.
        is_zero = bool(np.any(spectrum.distribution.row_moments(2)[1] == 0))
        s_max = 0.0 if is_zero else math.inf
    else:
        s_max = float(e.top[:, 0].min())
    if s_max >= smallest:
        return
    cure = "" if dtype == "float64" else "; if the network is merely deep, measure with dtype=torch.float64"
    warn_caller(
        f"s_max is {s_max:.2g}: "
        + (
            cause
            or "either nothing of the output depends on the input (units that are cut off), or the products underflow "
            f"in torch.{dtype}{cure}"
        ),
        ConvergenceWarning,
    )


def warn_of_relative_errors(spectrum: Spectrum) -> None:
    """Say so where values that are known one by one have relative errors beyond one half."""
    worst = spectrum.worst_relative_error
    if worst > _LARGE_ERROR:
        warn_caller(
            f"the relative error of some singular value is {worst:.1g}: the rounding of the products hides it; measure "
            "with dtype=torch.float64, or take the values whose relative_errors are small",
            ConvergenceWarning,
        )


def stopped_short(spectrum: Spectrum) -> bool:
    """Whether it stopped before the error that was asked for was reached."""
    return _short(spectrum.stopped)


def _short(stopped: Mapping[str, Any]) -> bool:
    return "rtol" in stopped and not stopped.get("error", math.inf) <= stopped["rtol"]


def warn_stopped(stopped: Mapping[str, Any]) -> None:
    """Say so where a measurement was interrupted, or stopped before it knew its quantity as well as was asked."""
    if stopped["reason"] == "interrupted":
        text = "interrupted: this is what was known by then; provenance['stopped'] marks it as partial"
    elif _short(stopped):
        known = f"{stopped['error']:.2g}" if "error" in stopped else "nothing"
        cause = _CAUSES[stopped["reason"]]
        text = f"{stopped['quantity']} is known to {known}, not to rtol={stopped['rtol']:g}: {cause}"
    else:
        return
    warn_caller(text, ConvergenceWarning)
