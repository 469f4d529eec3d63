"""From bidiagonal matrices to nodes and weights: stochastic Lanczos quadrature in singular values.

For a unit start vector v the Gauss rule of the measure sum_i (v_i . v)^2 delta(s_i) has as nodes the singular
values of B and as weights the squared first components of its right singular vectors (Golub & Meurant 2010,
Matrices, Moments and Quadrature, chapter 6; Ubaru, Chen & Saad 2017, SIAM J. Matrix Anal. 38, 1075).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .golub_kahan import Bidiagonals

Array = NDArray[np.float64]


@dataclass(frozen=True)
class GaussRules:
    """Nodes and weights of each probe, with the residuals of the nodes as singular values of A.

    Parameters
    ----------
    nodes, weights, residuals : (B, k, steps) arrays
        Inputs first, as a Spectrum has them; nodes descending; padding has weight 0 and residual inf.
    resolved : (B, k, steps) bool array
        True where the probe finished, and for padding.
    """

    nodes: Array
    weights: Array
    residuals: Array
    resolved: NDArray[np.bool_]

    def times(self, scale: Array) -> GaussRules:
        """The rules of A times the (B, k) factors."""
        scale = scale[..., None]
        return replace(self, nodes=self.nodes * scale, residuals=self.residuals * scale)


def gauss_rules(bidiagonals: Bidiagonals) -> GaussRules:
    """Gauss nodes and weights of every probe.

    The residual of node s_i is beta |last component of its left singular vector|: A v = s u holds exactly and
    A^T u - s v has that norm (Golub & Van Loan 2013, section 10.4). Where the recurrence broke down it is at most
    the entry that was taken as zero.
    """
    matrices = bidiagonals.matrices()
    k, batch, size, _ = matrices.shape
    nodes, weights = np.zeros((batch, k, size)), np.zeros((batch, k, size))
    residuals = np.full((batch, k, size), np.inf)
    remainder = bidiagonals.remainder()
    for probe in range(k):
        for index in range(batch):
            # Each on its own size: padding would mix its zero singular vectors with true ones.
            count = int(bidiagonals.steps[probe, index])
            left, values, right = np.linalg.svd(matrices[probe, index, :count, :count])
            mass = right[:, 0] ** 2
            nodes[index, probe, :count] = values
            weights[index, probe, :count] = mass / mass.sum()
            ends = remainder[probe, index] * np.abs(left[-1])
            residuals[index, probe, :count] = ends + bidiagonals.breakdown_residual[probe, index]
    present = np.arange(size) < bidiagonals.steps.T[..., None]
    return GaussRules(nodes, weights, residuals, bidiagonals.finished.T[..., None] | ~present)
