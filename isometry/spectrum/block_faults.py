"""Which blocks of a network make its mean square singular value grow or fall: one, all alike, or along a trend.

Let g_b be log10 of the gain of block b and S their sum. A block of equal width counts with x_b = g_b. One that changes
the number of values, m outputs of n inputs, has no gain that is right for forward and backward pass alike: random
weights of variance 1/m keep ||J v|| (Glorot & Bengio 2010), of variance 1/n they multiply its square by m/n (He et al.
2015, arXiv:1502.01852), and the mean of n/m values by (m/n)^2. It counts with the excess over these, 0 between them,
and with that of its own mean square singular value where it is less: an average over positions passes little of what
the layers before it have made alternate, which is their doing.

Gains of a network of finite width fluctuate from block to block, and the sum of L of them as a random walk: for
gains g of variance v in ln g with mean 1, S is normal with variance L v around -L v / 2 (Hanin & Nica 2018,
arXiv:1812.05994, where v = 5/width for Gaussian ReLU layers). v is that of the blocks of each kind, by the median
absolute deviation from their median; a sum within 3 of its standard deviations has no cause but chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# A block stands out where it is away from the others of its kind by so many standard errors, by so many robust standard
# deviations of theirs, and by this factor.
STANDARD_ERRORS = 4.0
DEVIATIONS = 5.0
SMALLEST_FACTOR = 1.5
# Blocks that stand out are at fault where together they make up this share of the whole.
SHARE = 0.5
# A mean square singular value within this factor of 1 has no fault to look for.
HARMLESS_FACTOR = 2.0
# Where the whole is harmless, a block is at fault from this factor on.
COMPENSATED_FACTOR = 10.0
# Standard deviations of the sum of gains that fluctuate from block to block.
FLUCTUATIONS = 3.0
# A trend is one over at least so many blocks, whose rank correlation with the depth is so many of its standard errors.
TREND_BLOCKS, TREND_ERRORS = 6, 6.0


@dataclass(frozen=True)
class Finding:
    """What makes the mean square singular value grow or fall.

    Parameters
    ----------
    direction : int
        1 where it grows, -1 where it falls, 0 where it does neither, or by changes of shape alone.
    faults : tuple of int
        Numbers of the blocks at fault, the worst first; empty where the blocks do it together.
    share : float
        The part of the total that the faults, or else the block that stands out most, account for; nan without one.
    outlier : int or None
        The block that stands out most, where it is not at fault.
    trend : (float, float) or None
        log10 of the gain in the first and in the last quarter of the blocks, without those that stand out
        against the direction, where it rises or falls along them.
    alike : bool
        Whether no block of equal width is away from the others.
    by_chance : bool
        Whether it would grow or fall, but by no more than gains fluctuate from block to block.
    """

    direction: int
    faults: tuple[int, ...] = ()
    share: float = math.nan
    outlier: int | None = None
    trend: tuple[float, float] | None = None
    alike: bool = False
    by_chance: bool = False


def find_faults(
    log10_gain: Array,
    log10_gain_stderr: Array,
    shapes: NDArray[np.int64],
    kinds: Sequence[str],
    log10_chi: Array | None = None,
) -> Finding:
    """What the gains of blocks of these shapes (m_b, n_b) and kinds come from; every gain is finite.

    ``log10_chi`` are their own mean square singular values, which gains differ from as far as the blocks before pass
    some directions and not others; the gains themselves if not given.
    """
    counted, changes = counted_gains(log10_gain, shapes, log10_chi)
    total, harmless = float(counted.sum()), math.log10(HARMLESS_FACTOR)
    # Both with and without the changes of shape.
    least = min(np.sign(total) * total, np.sign(total) * float(log10_gain.sum()))
    fluctuation = _fluctuation(counted, changes, kinds)
    drift = 0.5 * math.log(10) * fluctuation**2 if total < 0 else 0.0
    by_chance = harmless < least <= FLUCTUATIONS * fluctuation + drift
    direction = int(np.sign(total)) if least > harmless and not by_chance else 0
    smallest = math.log10(SMALLEST_FACTOR)
    usual, spread = _others(counted, changes, kinds)
    away = counted - usual
    noise = STANDARD_ERRORS * np.nan_to_num(log10_gain_stderr, nan=np.inf)
    out = np.abs(away) > np.maximum(np.maximum(noise, spread), smallest)
    alike = not bool((out & ~changes).any())
    rest = ~changes
    if direction:
        # What acts against the failure is not its cause.
        along = (np.sign(away) == direction) & (direction * counted > 0)
        rest &= along | ~out
        out &= along
    trend = _trend(counted[rest], smallest)
    order = np.argsort(-np.where(out, np.abs(away), -1.0))[: int(out.sum())]
    if not order.size:
        return Finding(direction, trend=trend, alike=alike, by_chance=by_chance)
    worst = tuple(int(block) for block in order)
    if not direction:
        # Others make up for it; norms and heads usually do for each other.
        stands_out = abs(counted[worst[0]]) > math.log10(COMPENSATED_FACTOR)
        return Finding(0, worst[:1] if stands_out else (), by_chance=by_chance)
    share = float(counted[order].sum() / total)
    if share >= SHARE:
        return Finding(direction, worst, share)
    share = float(counted[worst[0]] / total)
    return Finding(direction, (), share, worst[0], trend, alike)


def _others(counted: Array, changes: NDArray[np.bool_], kinds: Sequence[str]) -> tuple[Array, Array]:
    """What each block is compared with, and how far the others are from it.

    The median over the blocks of its kind, or over all blocks where there are fewer than three of it, with 5 robust
    standard deviations; 0 and 0 for a block that changes the shape, and where there are fewer than three of any kind.
    """
    usual, spread = np.zeros_like(counted), np.zeros_like(counted)
    kind = np.array(kinds)
    for block in np.flatnonzero(~changes):
        others = counted[~changes & (kind == kind[block])]
        if others.size < 3:
            others = counted[~changes]
        if others.size >= 3:
            usual[block] = np.median(others)
            spread[block] = DEVIATIONS * 1.4826 * np.median(np.abs(others - usual[block]))
    return usual, spread


def _fluctuation(counted: Array, changes: NDArray[np.bool_], kinds: Sequence[str]) -> float:
    """The standard deviation of the sum of gains that are independent and vary as those of their kind do, in decades.

    Kinds with fewer than three blocks show no variation.
    """
    variance, kind = 0.0, np.array(kinds)
    for name in set(kinds):
        gains = counted[~changes & (kind == name)]
        if gains.size >= 3:
            deviation = 1.4826 * float(np.median(np.abs(gains - np.median(gains))))
            variance += gains.size * deviation**2
    return math.sqrt(variance)


def counted_gains(
    log10_gain: Array, shapes: NDArray[np.int64], log10_chi: Array | None = None
) -> tuple[Array, NDArray[np.bool_]]:
    """x_b of every block, and which blocks change the number of values."""
    rows, columns = shapes[:, 0].astype(float), shapes[:, 1].astype(float)
    changes = rows != columns
    entering = columns[0]
    fan = np.log10(rows / columns)
    low, high = np.where(fan < 0, 2 * fan, 0.0), np.where(fan < 0, 0.0, fan)

    def excess(length: Array) -> Array:
        """Of log10 of the gain of ||J v||^2."""
        return np.maximum(length - high, 0.0) + np.minimum(length - low, 0.0)

    # The mean square is over min(m, n_0) singular values.
    found = excess(log10_gain + np.log10(np.minimum(rows, entering) / np.minimum(columns, entering)))
    if log10_chi is not None:
        own = excess(log10_chi + np.log10(np.minimum(rows, columns) / columns))
        found = np.where(found > 0, np.clip(own, 0.0, found), np.clip(own, found, 0.0))
    return np.where(changes, found, log10_gain), changes


def _trend(gains: Array, smallest: float) -> tuple[float, float] | None:
    """The mean gain of the first and of the last quarter where the gains rise or fall clearly, else None.

    Clearly: Spearman's rank correlation with the depth is 6 of its standard errors.
    """
    count = gains.size
    if count < TREND_BLOCKS:
        return None
    # Gains that rounding alone tells apart have no order.
    ranks = np.argsort(np.argsort(np.round(gains, 9), kind="stable"), kind="stable")
    if np.ptp(gains) <= smallest:
        return None
    rho = float(np.corrcoef(ranks, np.arange(count))[0, 1])
    error = math.sqrt(max(1 - rho**2, 0.0) / (count - 2))
    quarter = max(count // 4, 1)
    first, last = float(gains[:quarter].mean()), float(gains[-quarter:].mean())
    clear = abs(rho) > TREND_ERRORS * error and abs(last - first) > smallest
    return (first, last) if clear else None
