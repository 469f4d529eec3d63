"""All singular values, from the materialised matrix: the reference, and the cheapest way for a short side."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from isometry.errors import ConvergenceError
from isometry.progress import StepProgress
from isometry.spectrum import Quadrature, Spectrum

from .blocks import Operator, ShortSide, strictly
from .extreme_values import extremes_of_all


@strictly
def exact(operator: Operator, *, block: int = 256, progress: StepProgress | None = None) -> Spectrum:
    """The spectrum from the dense matrix, built in blocks from its shorter side, by its float64 SVD.

    Parameters
    ----------
    operator : Operator
        Anything with ``shape``, ``matmat`` and ``rmatmat``; with a batch, each sample has its own matrix. One that is
        ``reverse_only`` is built from its rows, whichever side is shorter.
    block : int
        Rows or columns made at once.
    progress : callable, optional
        Called with (done, total) vectors.

    Returns
    -------
    Spectrum
        Each of the min(m, n) singular values with mass 1 / min(m, n). The error of each is a few units of
        rounding of the *operator's* precision times s_max, stated as its residual; values below that are
        below the floor.

    Notes
    -----
    The matrix takes B * m * n numbers in float64. Its SVD costs about 4 m n min(m, n) operations a sample, most of them
    bound by memory. A float32 operator is decomposed by the eigenvalues of A A^T in float64 instead, several times
    faster on a processor: the square loses what lies below sqrt(2.2e-16) s_max, and products in float32 know nothing
    below 1e-6 s_max, which is the floor.
    """
    began = time.perf_counter()
    side = ShortSide(operator)
    dense = side.matrix(block, progress)
    # Scaled to order one: the squares inside an SVD of a matrix of size 1e-200 would underflow.
    scale = dense.abs().amax(dim=(1, 2))
    dense /= torch.where(scale > 0, scale, 1.0)[:, None, None]
    try:
        values = _singular_values(dense, side.eps) * scale[:, None]
    except torch.linalg.LinAlgError as error:
        raise ConvergenceError(f"the dense SVD did not converge ({error}); try method='lanczos'") from error
    singular_values = values.cpu().numpy() * side.scale[:, None]
    nodes = singular_values[:, None, :]
    floor = side.noise_floor(singular_values[:, 0])
    rounding = side.rounding_error(singular_values, singular_values[:, :1])
    return Spectrum(
        Quadrature(
            nodes, np.full(nodes.shape, 1.0 / side.short), floor, np.ones(nodes.shape, bool),
            side.precision.error_model(side.short),
        ),
        method="exact",
        shape=side.shape,
        extremes=extremes_of_all(singular_values, rounding, floor),
        products=side.products,
        seconds=time.perf_counter() - began,
        provenance={"dtype": str(side.dtype).removeprefix("torch."), "device": str(side.device)},
    )  # fmt: skip


def _singular_values(dense: Tensor, eps: float) -> Tensor:
    """(B, short) singular values of (B, short, long) float64 matrices of order one, descending.

    From the eigenvalues of A A^T where the error of A, ``eps`` of s_max, hides what the square loses: an eigenvalue is
    off by a few units of s_max^2, so that at the floor of 8 eps s_max a singular value is off by far less than that.
    """
    if eps**2 < torch.finfo(dense.dtype).eps:
        return torch.linalg.svdvals(dense)
    squares = torch.linalg.eigvalsh(dense @ dense.mT)
    # What rounding made negative is noise of that size, not a zero.
    return squares.abs().sqrt().sort(dim=-1, descending=True).values
