"""Chains of every kind with their singular values in multi-precision arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import numpy as np
from numpy.typing import NDArray

Matrices = list[NDArray[np.float64]]


def network(
    kind: str, width: int, depth: int, *, widths: Callable[[int], int] | None = None, seed: int = 0
) -> Matrices:
    """Jacobians of the layers of a random network at a random input, the first one first."""
    generator = np.random.default_rng(seed)
    h, found = generator.normal(size=width), []
    for layer in range(depth):
        n = h.size
        m = widths(layer) if widths else n
        dense = kind != "convolution"
        weight = generator.normal(size=(m, n)) / np.sqrt(n) if dense else _convolution(generator, n)
        z = weight @ h
        if kind == "relu":
            found.append((z > 0)[:, None] * weight)
            h = np.maximum(z, 0.0)
            continue
        step = (1 - np.tanh(z) ** 2)[:, None] * weight
        found.append(np.eye(n) + step if kind == "residual" else step)
        h = np.tanh(z) + (h if kind == "residual" else 0)
    return found


def _convolution(generator: np.random.Generator, size: int) -> NDArray[np.float64]:
    """Two channels on a circle, three taps."""
    places = size // 2
    taps = generator.normal(size=(2, 2, 3)) / np.sqrt(6)
    weight = np.zeros((2, places, 2, places))
    for tap in range(3):
        for place in range(places):
            weight[:, place, :, (place + tap - 1) % places] += taps[:, :, tap]
    return weight.reshape(size, size)


def log_singular_values(matrices: Matrices, digits: int) -> NDArray[np.float64]:
    """ln of the singular values of the product, descending, -inf for a zero, by arithmetic of so many digits."""
    with mpmath.workdps(digits):
        product = mpmath.matrix(matrices[0].tolist())
        for matrix in matrices[1:]:
            product = mpmath.matrix(matrix.tolist()) * product
        if product.rows < product.cols:
            product = product.T
        values = [abs(s) for s in mpmath.svd_r(product, compute_uv=False)]
        smallest = max(values) * mpmath.mpf(10) ** (20 - digits)
        logs = [float(mpmath.log(s)) if s > smallest else -np.inf for s in values]
    return np.sort(logs)[::-1]
