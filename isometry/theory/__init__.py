"""Mean-field theory and free probability: what the spectrum should be. Never imports torch.

Names are loaded when they are first used: an `Ensemble` alone, which a measurement records, needs no scipy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isometry.theory.ensemble import Ensemble
    from isometry.theory.meanfield import critical_point
    from isometry.theory.prediction import predict

_HOMES = {
    "Ensemble": "isometry.theory.ensemble",
    "critical_point": "isometry.theory.meanfield",
    "predict": "isometry.theory.prediction",
}

__all__ = ["Ensemble", "critical_point", "predict"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value
