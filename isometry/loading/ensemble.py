"""What is recorded of a network that was loaded, so that theory can predict its measurement later."""

from __future__ import annotations

from typing import Any

from isometry.loading.inputs import LoadedInput


def recorded_ensemble(module: Any, point: LoadedInput, *, loaded: bool, part: bool) -> dict[str, Any] | None:
    """:func:`isometry.measurement.provenance.recorded_ensemble`, of what the loader knows of weights and input."""
    # Loaded here: the help of the command line knows this package and does without torch.
    from isometry.measurement import provenance

    return provenance.recorded_ensemble(
        module, point.tensor, part=part, loaded=loaded, stationary=point.stationary
    )
