"""A spectrum's numbers as plain values, for JSON and for loggers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .wording import REPORTED_QUANTILES

if TYPE_CHECKING:
    from .spectrum import Spectrum


def json_record(spectrum: Spectrum) -> dict[str, Any]:
    """The reported numbers as plain JSON values; None stands for what is unknown or below the floor.

    Numbers that leave the range of floats are None and stand in the fields named ``log10_...``.
    """
    levels = [float(level) for level in REPORTED_QUANTILES]
    seed, dtype, device = (spectrum.provenance.get(key) for key in ("seed", "dtype", "device"))
    zero = spectrum.zero_mass
    measured = spectrum.kind == "measured"
    quantiles, log_quantiles = {}, {}
    for key, level, value, log10 in zip(
        REPORTED_QUANTILES, levels, spectrum.quantile(levels), spectrum.log10_quantile(levels), strict=True
    ):
        inside_zero = zero > 0 and level <= zero
        quantiles[key] = None if inside_zero and measured else _json(value, underflow=not inside_zero)
        log_quantiles[key] = _json(log10)
    low, high = spectrum.mean_square_interval()
    e = spectrum.extremes
    result: dict[str, Any] = {
        "name": spectrum.name,
        "kind": spectrum.kind,
        "method": spectrum.method,
        "shape": list(spectrum.shape) if spectrum.shape else None,
        "null_dimension": spectrum.null_dimension,
        "inputs": spectrum.n_inputs,
        "probes": spectrum.n_probes,
        "s_max": _json(spectrum.s_max),
        "s_max_residual": _json(spectrum.s_max_residual),
        "s_min": _json(spectrum.s_min, underflow=zero == 0),
        "s_min_residual": _json(spectrum.s_min_residual),
        "s_min_upper_bound": _json(spectrum.s_min_bound, underflow=zero == 0),
        "condition_number": _json(spectrum.condition_number),
        "mean_square": _json(spectrum.mean_square, underflow=math.isfinite(spectrum.log10_moment(1))),
        "mean_square_stderr": _json(spectrum.mean_square_stderr),
        "mean_square_stderr_inputs": _json(spectrum.moment_stderr(1, over="inputs")) if measured else None,
        "mean_square_interval95": [_json(low), _json(high)],
        "log10_mean_square": _json(spectrum.log10_moment(1)),
        "variance": _json(spectrum.variance),
        "quantiles": quantiles,
        "log10_quantiles": log_quantiles,
        "floor": _json(spectrum.floor),
        "below_floor": _json(spectrum.below_floor),
        "zero_mass": _json(zero),
        "isometry": {
            "low": 0.5,
            "high": 2.0,
            "fraction": spectrum.isometry(),
            "fraction_at_most": spectrum.isometry_bounds()[1],
            "stderr": _json(spectrum.isometry_stderr()),
            "limits95": list(spectrum.isometry_band()),
        },
        "verdict": spectrum.verdict(),
        "products": spectrum.products,
        "seconds": spectrum.seconds,
        "seed": seed,
        "dtype": dtype,
        "device": device,
    }
    if "stopped" in spectrum.provenance:
        result["stopped"] = dict(spectrum.provenance["stopped"])
    if e is not None and measured:
        best = int(e.top[:, 0].argmax())
        result["top"] = [
            {"s": float(s), "residual": float(r)}
            for s, r in zip(e.top[best, :10], e.top_residual[best, :10], strict=True)
            if math.isfinite(s)  # fewer were found than asked for
        ]
    return result


def flat_numbers(spectrum: Spectrum) -> dict[str, float]:
    """See :meth:`isometry.Spectrum.summary`."""
    zero, measured = spectrum.zero_mass, spectrum.kind == "measured"
    # What lies below the floor is not known; below a floor of zero it is zero.
    hidden = zero if measured and spectrum.floor > 0 else 0.0
    share, most = spectrum.isometry_bounds()
    lower, upper = spectrum.isometry_band()
    numbers = {
        "s_max": spectrum.s_max,
        "s_max_residual": spectrum.s_max_residual,
        "s_min": spectrum.s_min,
        "s_min_residual": spectrum.s_min_residual,
        "s_min_upper_bound": spectrum.s_min_bound,
        "condition_number": spectrum.condition_number,
        "mean_square": spectrum.mean_square,
        "mean_square_stderr": spectrum.mean_square_stderr,
        "log10_mean_square": spectrum.log10_moment(1),
        "isometry_share": share if most == share else math.nan,
        "isometry_share_lower": lower,
        "isometry_share_upper": upper,
        "zero_mass": zero,
        "floor": spectrum.floor,
    }
    for key in REPORTED_QUANTILES:
        level = float(key)
        value = math.nan if level <= hidden else float(spectrum.quantile(level))
        numbers[f"s_p{round(100 * level):02d}"] = value
    counts = {
        "inputs": spectrum.n_inputs,
        "probes": spectrum.n_probes,
        "null_dimension": spectrum.null_dimension,
        "products": spectrum.products,
        "seconds": spectrum.seconds,
    }
    return {key: float(value) for key, value in (numbers | counts).items()}


def _json(value: float, *, underflow: bool = False) -> float | None:
    """A float JSON can hold; None for nan and inf, and for a zero that is only an underflow."""
    value = float(value)
    return None if not math.isfinite(value) or (underflow and value == 0) else value
