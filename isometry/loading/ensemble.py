"""What is recorded of a network that was loaded, so that theory can predict its measurement later."""

from __future__ import annotations

from typing import Any

from isometry import provenance
from isometry.loading.inputs import LoadedInput


def recorded_ensemble(module: Any, point: LoadedInput, *, loaded: bool, part: bool) -> dict[str, Any] | None:
    """:func:`isometry.provenance.recorded_ensemble`, of what the loader knows of weights and input."""
    return provenance.recorded_ensemble(
        module, point.tensor, part=part, loaded=loaded, stationary=point.stationary
    )
