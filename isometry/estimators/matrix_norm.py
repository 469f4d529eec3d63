"""The norm of a matrix that is at hand, between two bounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isometry.jacobian import MatrixOperator

from . import exclusion
from .block_krylov import BlockKrylov
from .blocks import ShortSide, random_block

# An SVD is quicker up to here; more vectors than the second number are not taken.
_DENSE_SIDE, _MOST_VECTORS = 128, 400
_BLOCK, _STREAM, _LOOKS = 2, 5, 4


@dataclass(frozen=True, eq=False)
class SpectralNorm:
    """||A|| of a square matrix, and where it is reached.

    Parameters
    ----------
    lower, upper : float
        Rounding included; ``upper`` may fail with probability ``delta``, and does not where ``delta`` is 0.
    right : (n,) Tensor
        Unit vector with ||A right|| at least ``lower``.
    delta : float
    """

    lower: float
    upper: float
    right: Tensor
    delta: float


def spectral_norm(matrix: Tensor, *, rtol: float, delta: float, seed: int) -> SpectralNorm:
    """||A|| of an (n, n) float64 matrix to a relative width of ``rtol``, or what 400 vectors show of it."""
    side = ShortSide(MatrixOperator(matrix))
    if side.short <= _DENSE_SIDE:
        _, values, turn = torch.linalg.svd(matrix)
        noise = float(side.noise_floor(values[:1].cpu().numpy())[0])
        return SpectralNorm(float(values[0]) - noise, float(values[0]) + noise, turn[0], 0.0)
    space = BlockKrylov(side, random_block(_BLOCK, side, seed, stream=_STREAM), _MOST_VECTORS, seed=seed)
    while True:
        for _ in range(_LOOKS):
            if not space.complete and space.size + space.width <= space.capacity:
                space.expand()
        triplets = space.ritz()
        value = float(triplets.values[0, 0])
        noise = float(side.rounding_error(triplets.values[:, 0], triplets.values[:, 0], space.size)[0])
        upper = float(exclusion.above(space, triplets, delta)[0])
        full = space.complete or space.size + space.width > space.capacity
        if full or upper - value <= rtol * upper:
            break
    right = space.right_vectors(triplets, 1)[0, 0]
    scale = float(side.scale[0])
    return SpectralNorm(
        scale * (value - noise), scale * (upper + noise), right, 0.0 if space.complete else delta
    )
