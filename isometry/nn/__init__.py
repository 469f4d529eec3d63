"""Initialisers and reference networks: how a network is brought to isometry."""

from __future__ import annotations

from isometry.nn.layers import ConvolutionLayer, DenseLayer, Trunk
from isometry.nn.models import MLP, ResNet, VanillaCNN

__all__ = ["MLP", "ConvolutionLayer", "DenseLayer", "ResNet", "Trunk", "VanillaCNN"]
