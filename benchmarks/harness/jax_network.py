"""The circular CNN in JAX with the same weights, its convolutions as one matrix product each (im2col).

That is how matfree is at its best on a processor: XLA's own convolution is several times slower there, and slower still
transposed. Channels come last, so that a block of probes is one product (k * positions, 9 c) by (9 c, c) a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from . import networks


def circular_cnn(network: dict[str, Any]) -> tuple[Callable[[Any], Any], np.ndarray]:
    """(function, x): flat vectors in and out, positions first and channels last; J is ours up to that permutation.

    Raises
    ------
    AssertionError
        Where the outputs of the two networks differ by more than rounding.
    """
    import jax.numpy as jnp

    model, point = networks.build(network)
    channels, size, _ = point.shape
    kernels = [
        jnp.asarray(layer.weight.detach().permute(2, 3, 1, 0).reshape(-1, channels).numpy())
        for layer in model.trunk
    ]
    biases = [jnp.asarray(layer.bias.detach().numpy()) for layer in model.trunk]

    def columns(h: Any) -> Any:
        """(size, size, c) to (size^2, 9 c): each position with its eight neighbours around the torus."""
        h = jnp.concatenate([h[-1:], h, h[:1]], axis=0)
        h = jnp.concatenate([h[:, -1:], h, h[:, :1]], axis=1)
        shifts = [h[i : i + size, j : j + size] for i in range(3) for j in range(3)]
        return jnp.concatenate(shifts, axis=-1).reshape(size * size, 9 * channels)

    def function(flat: Any) -> Any:
        h = flat.reshape(size, size, channels)
        for kernel, bias in zip(kernels, biases, strict=True):
            h = jnp.tanh(columns(h) @ kernel + bias).reshape(size, size, channels)
        return h.reshape(-1)

    x = point.permute(1, 2, 0).reshape(-1).numpy()
    with torch.no_grad():
        expected = model(point).permute(1, 2, 0).reshape(-1).numpy()
    found = np.asarray(function(jnp.asarray(x)))
    allowed = 1e-4 * np.abs(expected).max()
    assert np.abs(found - expected).max() <= allowed, "the network in JAX is not the network in PyTorch"
    return function, x
