"""Which singular values a random start block rules out, with a stated probability.

A block of b random directions of a space of dimension n holds, of the squared length of any fixed unit vector w, a
share that follows Beta(b / 2, (n - b) / 2): it is below the quantile q with probability delta only. So does the block
that a Krylov space was started from, for w the right singular vector of the largest (or of the smallest) singular
value sigma, found or not. What the space has seen of w is then not free any more. With the relations of
:mod:`.block_krylov`, lambda = sigma^2 and y = F^T w,

    z = V^T w = Y diag(s / (lambda - s^2)) (G X)^T y,        c = the rows of z that belong to the start block,

so that the share ||c||^2 of the start is at most the largest ||c||^2 / (||y||^2 + ||z||^2) over y: the matrix form
of the Christoffel function (Golub & Meurant 2010, chapters 2 and 6). A sigma for which it falls below q is ruled out.

For one start vector and one product this is the bound ||A v|| / sqrt(q) of Dixon (1983, SIAM J. Numer. Anal. 20,
812); for k steps it is never worse than sigma <= s_1 cosh(arccosh(1 / sqrt(q)) / (2 k - 1)), the form of Kuczynski
& Wozniakowski (1992, SIAM J. Matrix Anal. 13, 1094), which knows the number of steps alone; where the Krylov space
closes it is exact. It needs a start that is random and independent of A, and a space that was never cut. Rounding of
the two relations, 8 units of s_max, is magnified by 1 / sqrt(q) at most; that is added.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from .block_krylov import BlockKrylov, RitzTriplets
from .quadrature import GaussRules

Array = NDArray[np.float64]

_BISECTIONS = 60


def least_share(dimension: int, width: int, delta: float) -> float:
    """q: what a block of ``width`` random directions holds of a fixed unit vector, but with probability ``delta``."""
    if width >= dimension:
        return 1.0
    return float(betaincinv(width / 2, (dimension - width) / 2, delta))


def rounding(space: BlockKrylov, delta: float) -> float:
    """What rounding may move a bound by, relative to s_max."""
    if space.complete:
        return 0.0
    return 8 * space.side.eps / math.sqrt(least_share(space.dimension, space.start_width, delta))


def above(space: BlockKrylov, triplets: RitzTriplets, delta: float) -> Array:
    """(B,) M: no singular value of the operator of ``space`` lies above M, but with probability ``delta``."""
    return _ends(space, triplets, delta, top=True)


def below(space: BlockKrylov, triplets: RitzTriplets, delta: float) -> Array:
    """(B,) m: no singular value of the operator of ``space`` lies below m, but with probability ``delta``."""
    return _ends(space, triplets, delta, top=False)


def below_probes(
    rules: GaussRules,
    steps: NDArray[np.int64],
    finished: NDArray[np.bool_],
    dimension: NDArray[np.int64],
    eps: float,
    delta: float = 1e-3,
) -> Array:
    """(B,) m: no singular value lies below m, but with probability ``delta``, as Gauss rules of random probes show.

    Parameters
    ----------
    rules : GaussRules
        Of k probes of each input, uniform on the sphere and independent (orthogonal ones miss less).
    steps, finished : (B, k) arrays
        Steps of each, and whether its recurrence broke down.
    dimension : (B,) array
        Of the space that the probes were drawn from. A rule of so many nodes has all singular values of the operator.
    eps : float
        Unit of rounding.

    Notes
    -----
    For a single start vector f = 1 and the Christoffel function is a quotient of sums over nodes. What each probe can
    hold at most of the singular vector to sigma adds up over the probes, and their sum is below its own quantile with
    probability delta only. The components of the first and of the last vector along the Ritz vectors alternate in sign.
    """
    batch, count, size = rules.nodes.shape
    ends = np.zeros(batch)
    sign = np.where(np.arange(size) % 2, -1.0, 1.0)
    for index in range(batch):
        present = np.isfinite(rules.residuals[index])
        s = np.where(present, rules.nodes[index], np.inf)
        smallest, scale = float(s.min()), float(rules.nodes[index].max())
        if np.any(finished[index] & (steps[index] == dimension[index])):
            ends[index] = smallest
            continue
        if scale == 0:
            continue
        share = count * float(betaincinv(count / 2, count * (dimension[index] - 1) / 2, delta))
        s = np.where(present, rules.nodes[index], 0.0) / scale
        pull = np.where(present, s * np.where(present, rules.residuals[index], 0.0) / scale, 0.0)
        start = np.sqrt(rules.weights[index])
        closed = finished[index][:, None]

        def compatible(
            sigma: float, s: Array = s, pull: Array = pull, start: Array = start, closed: Array = closed
        ) -> float:
            gaps = (s - sigma) * (s + sigma)
            z = np.divide(pull, gaps, out=np.zeros(gaps.shape), where=pull > 0)
            # Where a recurrence broke down its residual is a bound, whatever its direction.
            along = np.sum(start * z * np.where(closed, 1.0, sign), axis=1) ** 2
            return float(
                np.minimum(along / np.where(closed[:, 0], 1.0, 1 + np.sum(z * z, axis=1)), 1.0).sum()
            )

        inside, outside = smallest / scale * (1 - 1e-12), 0.0
        if compatible(0.0) < share:
            for _ in range(_BISECTIONS):
                middle = 0.5 * (inside + outside)
                inside, outside = (middle, outside) if compatible(middle) >= share else (inside, middle)
        ends[index] = scale * max(outside - 8 * eps * math.sqrt(count / share), 0.0)
    return ends


def _ends(space: BlockKrylov, triplets: RitzTriplets, delta: float, *, top: bool) -> Array:
    if space.complete:
        return triplets.values[:, 0 if top else -1]
    share = least_share(space.dimension, space.start_width, delta)
    ends = np.zeros(space.side.batch)
    for index in range(ends.size):
        s = triplets.values[index]
        scale = s[0]
        if scale == 0:
            # Whatever the start block touches is mapped to zero, and nothing leaves it: A is zero.
            continue
        start = triplets.right[index, : space.start_width]
        edge = _edge(s / scale, start, triplets.coupling[index] / scale, share, top=top)
        noise = rounding(space, delta)
        ends[index] = scale * (edge + noise if top else max(edge - noise, 0.0))
    return ends


def _edge(s: Array, start: Array, coupling: Array, share: float, *, top: bool) -> float:
    """The largest (smallest) sigma that is not ruled out, by bisection; s_1 = 1."""
    if top:
        inside, outside = 1.0, 1.0
        while compatible_share(outside := 2 * outside, s, start, coupling) >= share:
            inside = outside
    else:
        inside, outside = float(s[-1]), 0.0
        if compatible_share(0.0, s, start, coupling) >= share:
            return 0.0
    for _ in range(_BISECTIONS):
        middle = 0.5 * (inside + outside)
        if compatible_share(middle, s, start, coupling) >= share:
            inside = middle
        else:
            outside = middle
    return outside


def compatible_share(sigma: float, s: Array, start: Array, coupling: Array) -> float:
    """The largest share of the start block that a singular vector to ``sigma`` can have had.

    Parameters
    ----------
    sigma : float
        Outside the range of the Ritz values ``s``, (j,).
    start : (b, j) array
        The rows of Y that belong to the start block.
    coupling : (f, j) array
        G X.
    """
    gaps = (sigma - s) * (sigma + s)
    if np.any(gaps == 0):
        return 1.0
    # From the singular values of the weights and not from their squares: next to a Ritz value they are huge.
    _, sizes, turn = np.linalg.svd(coupling * (s / gaps), full_matrices=False)
    shares = (sizes / np.hypot(1.0, sizes))[:, None] * (turn @ start.T)
    return float(np.linalg.svd(shares, compute_uv=False)[0] ** 2)
