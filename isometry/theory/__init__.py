"""Mean-field theory and free probability: what the spectrum of a random network is. Never imports torch.

Public are the names here and the modules `activations`, `laws` (spectra in closed form), `meanfield` and
`freeprobability`; the other modules are internal. Names are loaded when they are first used: an `Ensemble` alone, which
a measurement records, needs no scipy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isometry.theory.activations import ACTIVATION_NAMES, Activation, get_activation
    from isometry.theory.ensemble import Ensemble
    from isometry.theory.freeprobability import Factor, free_product
    from isometry.theory.gaussian import gaussian_average
    from isometry.theory.meanfield import (
        CriticalPoint,
        FixedPoint,
        c_map,
        c_star,
        chi_1,
        chi_c,
        critical_point,
        critical_variances,
        fixed_point,
        fixed_points,
        q_map,
        xi_c,
        xi_q,
    )
    from isometry.theory.prediction import predict

_NAMES = {
    "activations": "ACTIVATION_NAMES Activation get_activation",
    "ensemble": "Ensemble",
    "freeprobability": "Factor free_product",
    "gaussian": "gaussian_average",
    "meanfield": "CriticalPoint FixedPoint c_map c_star chi_1 chi_c critical_point critical_variances fixed_point "
    "fixed_points q_map xi_c xi_q",
    "prediction": "predict",
}
_HOMES = {name: f"isometry.theory.{module}" for module, names in _NAMES.items() for name in names.split()}

__all__ = [
    "ACTIVATION_NAMES",
    "Activation",
    "CriticalPoint",
    "Ensemble",
    "Factor",
    "FixedPoint",
    "c_map",
    "c_star",
    "chi_1",
    "chi_c",
    "critical_point",
    "critical_variances",
    "fixed_point",
    "fixed_points",
    "free_product",
    "gaussian_average",
    "get_activation",
    "predict",
    "q_map",
    "xi_c",
    "xi_q",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
