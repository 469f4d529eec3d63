"""Initialisers, in place, in the manner of `torch.nn.init`; and the singular values of a convolution.

>>> import torch
>>> from isometry.nn import init
>>> layer = torch.nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular")
>>> _ = init.orthogonal_conv_(layer.weight, gain=1.1)
>>> init.conv_singular_values(layer.weight, 8).round(decimals=5).unique()
tensor([1.1000], dtype=torch.float64)
"""

from __future__ import annotations

from isometry.nn.convolution import conv_singular_values
from isometry.nn.critical import critical_init_
from isometry.nn.initialisers import (
    delta_orthogonal_,
    gaussian_,
    orthogonal_,
    orthogonal_conv_,
)
from isometry.nn.mirrored import mirrored_

__all__ = [
    "conv_singular_values",
    "critical_init_",
    "delta_orthogonal_",
    "gaussian_",
    "mirrored_",
    "orthogonal_",
    "orthogonal_conv_",
]
