"""Models, inputs and weights from the texts that name them on the command line and in grids.

Code in a file or package that the user names is run. Weights and inputs are loaded as plain arrays, never unpickled.

Names that are not in `__all__` are internal.
"""

from __future__ import annotations

from isometry.loading.arguments import LoadedCall, load_call
from isometry.loading.devices import device_of
from isometry.loading.images import ImageOptions
from isometry.loading.inputs import LoadedInput, load_input
from isometry.loading.models import LoadedModel, load_model
from isometry.loading.weights import load_weights

__all__ = [
    "ImageOptions", "LoadedCall", "LoadedInput", "LoadedModel", "device_of", "load_call", "load_input", "load_model",
    "load_weights",
]  # fmt: skip
