"""Jacobian singular-value spectra of deep networks: measured, predicted, and brought to isometry.

>>> import torch, isometry
>>> from isometry.nn import VanillaCNN
>>> model = VanillaCNN(depth=100, channels=64, activation="tanh", init="delta_orthogonal", sigma_w=1.02)
>>> spectrum = isometry.measure(model, torch.randn(64, 16, 16))  # doctest: +SKIP
>>> print(spectrum)  # doctest: +SKIP

Everything public stands here; names are loaded when they are first used, so that ``import isometry`` is quick.
No module has the name of a public function: importing it would put the module where the function belongs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isometry import nn
    from isometry.comparison import Comparison, compare
    from isometry.depth import (
        critical_init_,
        lyapunov_exponents,
        measure_blocks,
        predict_for,
        predict_from_layers,
        tune_,
    )
    from isometry.jacobian import JacobianOperator
    from isometry.measurement import (
        Chain,
        Exact,
        Goal,
        Lanczos,
        Randomized,
        isometry_penalty,
        mean_square,
        measure,
        smallest_singular_value,
        spectral_norm,
    )
    from isometry.nn import init
    from isometry.spectrum import Spectrum
    from isometry.store import open_store
    from isometry.sweeps import sweep
    from isometry.theory import Ensemble, critical_point, predict
    from isometry.training import IsometryCallback

_HOMES = {
    "Chain": "isometry.measurement",
    "Comparison": "isometry.comparison",
    "Ensemble": "isometry.theory",
    "Exact": "isometry.measurement",
    "Goal": "isometry.measurement",
    "IsometryCallback": "isometry.training",
    "JacobianOperator": "isometry.jacobian",
    "Lanczos": "isometry.measurement",
    "Randomized": "isometry.measurement",
    "Spectrum": "isometry.spectrum",
    "compare": "isometry.comparison",
    "critical_init_": "isometry.depth",
    "critical_point": "isometry.theory",
    "init": "isometry.nn.init",
    "isometry_penalty": "isometry.measurement",
    "lyapunov_exponents": "isometry.depth",
    "mean_square": "isometry.measurement",
    "measure": "isometry.measurement",
    "measure_blocks": "isometry.depth",
    "nn": "isometry.nn",
    "open_store": "isometry.store",
    "predict": "isometry.theory",
    "predict_for": "isometry.depth",  # the former name of predict_from_layers
    "predict_from_layers": "isometry.depth",
    "smallest_singular_value": "isometry.measurement",
    "spectral_norm": "isometry.measurement",
    "sweep": "isometry.sweeps",
    "tune_": "isometry.depth",
}
__all__ = [
    "Chain",
    "Comparison",
    "Ensemble",
    "Exact",
    "Goal",
    "IsometryCallback",
    "JacobianOperator",
    "Lanczos",
    "Randomized",
    "Spectrum",
    "compare",
    "critical_init_",
    "critical_point",
    "init",
    "isometry_penalty",
    "lyapunov_exponents",
    "mean_square",
    "measure",
    "measure_blocks",
    "nn",
    "open_store",
    "predict",
    "predict_for",
    "predict_from_layers",
    "smallest_singular_value",
    "spectral_norm",
    "sweep",
    "tune_",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    value = import_module(home)
    # A package stands for itself: ``isometry.nn``, and ``isometry.init`` for ``isometry.nn.init``.
    if not home.endswith(f".{name}"):
        value = getattr(value, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
