"""`classifier`: a vanilla CNN whose stem and head fit a data set."""

from __future__ import annotations

import math
from typing import Any

from isometry.nn.models import VanillaCNN
from isometry.training.data import Dataset

# Largest map that a trunk of thousands of layers should work on, as in Xiao et al. 2018.
_LARGEST_MAP = 8


def classifier(dataset: Dataset, **options: Any) -> VanillaCNN:
    """A `VanillaCNN` whose stem halves the images until the trunk's map is at most 8 x 8, as in Xiao et al. 2018.

    Parameters
    ----------
    dataset : Dataset
        Gives channels, size and classes.
    **options
        ``depth``, ``channels`` and the other arguments of `VanillaCNN`.
    """
    halvings = max(0, math.ceil(math.log2(max(dataset.image_size) / _LARGEST_MAP)))
    return VanillaCNN(
        **options, in_channels=dataset.in_channels, num_classes=dataset.num_classes, image_size=dataset.image_size,
        stem_strides=(1,) + (2,) * halvings,
    )  # fmt: skip
