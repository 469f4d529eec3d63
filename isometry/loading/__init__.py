"""From words to objects: the MODEL and INPUT specs and the files of weights that a user names, made and read.

What the command line takes as arguments and a sweep as values of its grid. Code in a file or package that the user
names is run; nothing else is: weights and inputs are loaded as plain arrays.
"""

from __future__ import annotations

from isometry.loading.inputs import LoadedInput, load_input
from isometry.loading.models import LoadedModel, load_model
from isometry.loading.weights import load_weights

__all__ = ["LoadedInput", "LoadedModel", "load_input", "load_model", "load_weights"]
