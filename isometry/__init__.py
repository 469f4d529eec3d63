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
    from .blockwise import measure_blocks
    from .comparison import Comparison, compare
    from .jacobian import JacobianOperator
    from .layerwise import predict_for
    from .measurement import measure
    from .nn import init
    from .nn.callbacks import IsometryCallback
    from .spectrum import Spectrum
    from .store import open_store
    from .sweeps import sweep
    from .theory.ensemble import Ensemble
    from .theory.meanfield import critical_point
    from .theory.predict import predict

_HOMES = {
    "Comparison": "isometry.comparison",
    "Ensemble": "isometry.theory.ensemble",
    "IsometryCallback": "isometry.nn.callbacks",
    "JacobianOperator": "isometry.jacobian",
    "Spectrum": "isometry.spectrum",
    "compare": "isometry.comparison",
    "critical_point": "isometry.theory.meanfield",
    "measure": "isometry.measurement",
    "measure_blocks": "isometry.blockwise",
    "open_store": "isometry.store",
    "predict": "isometry.theory.predict",
    "sweep": "isometry.sweeps",
    "predict_for": "isometry.layerwise",
}

__all__ = [
    "Comparison",
    "Ensemble",
    "IsometryCallback",
    "JacobianOperator",
    "Spectrum",
    "compare",
    "critical_point",
    "init",
    "measure",
    "measure_blocks",
    "open_store",
    "predict",
    "predict_for",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name == "init":
        value = import_module("isometry.nn.init")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'isometry' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
