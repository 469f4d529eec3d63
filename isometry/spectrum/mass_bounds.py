"""The Chebyshev-Markov-Stieltjes bounds of a measure of which a Gauss rule is known.

For a Gauss rule with nodes x_1 < x_2 < ... and partial sums S_j of its weights, S_{j-1} <= F(x_j -) <= F(x_j) <= S_j
(Szego, Orthogonal Polynomials, 1939, section 3.41). Between nodes the bounds lose one further weight on either side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def mass_at_most(nodes: Array, weights: Array, places: Array, *, extra: int = 0, left: bool = False) -> Array:
    """Sum of the weights of the nodes at or below each place, and of ``extra`` nodes more or, if negative, fewer.

    With ``left`` of the nodes below each place.

    The mass of a measure whose point masses the nodes are. For the nodes of a Gauss rule ``extra`` = -1 and 1 give a
    lower and an upper bound of the mass of the measure behind it.

    Parameters
    ----------
    nodes, weights : (K,) arrays
        In any order, of one probe.
    places : (P,) array
    """
    order = np.argsort(nodes, kind="stable")
    sums = np.concatenate([[0.0], np.cumsum(weights[order])])
    below = np.searchsorted(nodes[order], places, side="left" if left else "right")
    return np.asarray(sums[np.clip(below + extra, 0, nodes.size)])
