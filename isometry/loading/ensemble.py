"""What is recorded of a network, so that theory can predict its measurement later."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from isometry.loading.inputs import LoadedInput


def recorded_ensemble(module: Any, point: LoadedInput, *, loaded: bool, part: bool) -> dict[str, Any] | None:
    """What `compare --theory` will need: the ensemble that J is a draw from; None where it is of no known one.

    It is of the trunk alone (no stem, no head, no part), with weights as drawn; and it knows the variance q0 of the
    first pre-activations, from the mean square of this input.
    """
    ensemble = getattr(module, "ensemble", None)
    whole = getattr(module, "stem", None) is None and getattr(module, "head", None) is None
    if ensemble is None or loaded or part or not whole:
        return None
    if point.stationary and ensemble.residual is None:
        return dict(ensemble.to_dict())
    mean_square = (
        float(point.tensor.double().square().mean()) if point.tensor.is_floating_point() else math.nan
    )
    if not math.isfinite(mean_square):
        # Integers, nothing, NaN: the measurement will say what is wrong with such an input.
        return None
    q0 = ensemble.sigma_w**2 * mean_square + (ensemble.sigma_b or 0.0) ** 2
    return dict(replace(ensemble, q0=q0).to_dict())
