"""`BlockProfile`: the gain of every block of a network and of the product so far, and which block is at fault.

A network is y = f_L(... f_1(x)), J_b the Jacobian of block b at what reaches it, and J_b ... J_1 the running product.
chi_b = ||J_b||_F^2 / min(m_b, n_b) is the mean square singular value of the block, and
M_b = ||J_b ... J_1||_F^2 / min(m_b, n_0) that of the running product. The gain M_b / M_{b-1} is chi_b where the
singular directions of the block have nothing to do with those of the product before it, as mean-field theory assumes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isometry.errors import InputError

from .advice import Advice, advice_on_blocks
from .block_faults import HARMLESS_FACTOR, Finding, find_faults
from .formatting import error_text, json_ready, number_text, plain, power_text
from .spectrum import Spectrum
from .summary import LABELS

Array = NDArray[np.float64]

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
# What a table of blocks shows of each in any case.
HEADINGS = ("block", "kind", "J", "chi", LABELS["s_max"], "gain", f"{LABELS['mean_square']} so far")
# Added where there are sums x + f(x).
BRANCH_HEADING = "chi of f in x + f(x)"


@dataclass(frozen=True)
class ResidualGain:
    """Mean square singular values at a sum x + f(x) within a block.

    Parameters
    ----------
    block : int
        Number of the block, from 0.
    name : str
        Of the innermost module that holds the sum.
    chi, chi_stderr : float
        Of x -> x + f(x), with the standard error over probes; 0 where it is exact.
    branch_chi, branch_chi_stderr : float
        Of f.
    """

    block: int
    name: str
    chi: float
    chi_stderr: float
    branch_chi: float
    branch_chi_stderr: float


@dataclass(frozen=True, eq=False)
class BlockProfile:
    """Gains along the depth of a network, block by block.

    Parameters
    ----------
    blocks, kinds : tuples of L texts
        Names of the blocks, first one first, and what they are.
    shapes : (L, 2) int array
        (m_b, n_b): outputs and inputs of each block.
    chi, chi_stderr : (L,) arrays
        Mean square singular value of each block with its standard error over probes; 0 where the block was measured
        exactly.
    s_max, s_max_residual : (L,) arrays
        Largest singular value of each block; some singular value lies within the residual of it.
    log10_quantiles : (L, 5) array
        log10 of the quantiles of each block's singular values at LEVELS; -inf below its floor.
    log10_mean_square, log10_mean_square_stderr : (L,) arrays
        log10 of M_b, and its standard error over probes, in decades; -inf and nan where nothing passes.
    log10_gain, log10_gain_stderr : (L,) arrays
        log10 of M_b / M_{b-1}. The probes are the same before and behind the block, so the error is mostly far less
        than that of M_b itself.
    running : mapping of int to Spectrum
        The spectrum of the product of the first d blocks, at some depths d.
    residual_sums : tuple of ResidualGain
        The sums x + f(x) in the blocks, in order.
    name : str
        Name of the network's spectrum.
    provenance : mapping
        How it was measured: plain JSON values.
    """

    blocks: tuple[str, ...]
    kinds: tuple[str, ...]
    shapes: NDArray[np.int64]
    chi: Array
    chi_stderr: Array
    s_max: Array
    s_max_residual: Array
    log10_quantiles: Array
    log10_mean_square: Array
    log10_mean_square_stderr: Array
    log10_gain: Array
    log10_gain_stderr: Array
    running: Mapping[int, Spectrum] = field(default_factory=dict)
    residual_sums: tuple[ResidualGain, ...] = ()
    name: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.blocks)
        if count == 0:
            raise InputError("a profile has at least one block")
        for key, shape in {
            "kinds": (count,),
            "shapes": (count, 2),
            "log10_quantiles": (count, len(LEVELS)),
        }.items():
            if np.shape(getattr(self, key)) != shape:
                raise InputError(
                    f"{key} has the shape {np.shape(getattr(self, key))}, for {count} blocks not {shape}"
                )
        for key in PER_BLOCK:
            if np.shape(getattr(self, key)) != (count,):
                raise InputError(
                    f"{key} has the shape {np.shape(getattr(self, key))}; there are {count} blocks"
                )

    def __len__(self) -> int:
        return len(self.blocks)

    def __repr__(self) -> str:
        return plain(f"<BlockProfile of {len(self)} blocks: {self.verdict()}>")

    def at_fault(self) -> int | None:
        """Number (from 0) of the block that makes the mean square fall or grow; None where the blocks do it together.

        A block stands out where log10 of its gain differs from the median over the blocks of its kind (of all, where
        there are fewer than three of it) by more than 4 of its standard errors, 5 robust standard deviations (1.4826
        times the median absolute deviation) of theirs, and a factor of 1.5. Those that stand out in the direction of
        the failure are at fault where together they make up half of the total; the worst is returned. A block that
        changes the number of values is compared with what its fan allows (:mod:`isometry.spectrum.block_faults`).
        Behind a block that lets nothing pass no gain is known: that block is at fault. With one or two blocks a gain
        is compared with 1.
        """
        dead = np.flatnonzero(np.isneginf(self.log10_mean_square))
        if dead.size:
            return int(dead[0])
        return next(iter(self._finding.faults), None)

    @cached_property
    def _finding(self) -> Finding:
        with np.errstate(divide="ignore"):
            own = np.log10(self.chi)
        return find_faults(self.log10_gain, self.log10_gain_stderr, self.shapes, self.kinds, own)

    def verdict(self) -> str:
        """One sentence: how mean s² changes along the depth, and which block is at fault, or that all blocks are."""
        total, fault = float(self.log10_mean_square[-1]), self.at_fault()
        count = f"{len(self)} blocks" if len(self) > 1 else "1 block"
        end = f"mean s² is {power_text(total)} after {count}"
        if fault is not None and math.isinf(self.log10_mean_square[fault]):
            return f"nothing passes block {self.blocks[fault]} ({self.kinds[fault]}): behind it J is zero"
        found = self._finding
        if fault is not None:
            usual = ""
            if len(self) > 2:
                usual = f"; the median block by {power_text(float(np.median(self.log10_gain)))}"
            others = [self.blocks[block] for block in found.faults[1:]]
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            also = f"; {', '.join(others[:3])}{more} {'stand' if len(others) > 1 else 'stands'} out as well"
            return (
                f"{end}: block {self.blocks[fault]} ({self.kinds[fault]}) is at fault: it multiplies it by "
                f"{self.gain_text(fault)}{usual}{also if others else ''}"
            )
        if found.by_chance:
            return f"{end}, which is within the fluctuation of gains from block to block; no block stands out"
        if found.direction == 0:
            harmless = abs(total) <= math.log10(HARMLESS_FACTOR)
            return f"{end}: {'' if harmless else 'its changes of shape make it so; '}no block stands out"
        word = "falls" if found.direction < 0 else "grows"
        return f"{end}: it {word} along the whole depth, {self._together(found)}"

    def advice(self) -> tuple[Advice, ...]:
        """What to do, where something is to be done: which weights to multiply by how much."""
        return advice_on_blocks(
            self.provenance,
            kinds=self.kinds,
            blocks=self.blocks,
            log10_gain=self.log10_gain,
            log10_mean_square=float(self.log10_mean_square[-1]),
            log10_mean_square_stderr=float(self.log10_mean_square_stderr[-1]),
            fault=self.at_fault(),
            by_chance=self._finding.by_chance,
            branches=[(s.block, s.branch_chi, s.branch_chi_stderr) for s in self.residual_sums],
        )

    def _together(self, found: Finding) -> str:
        """How the blocks change it where none is at fault."""
        average = power_text(float(self.log10_mean_square[-1]) / len(self))
        if found.trend is not None:
            first, last = (power_text(gain) for gain in found.trend)
            text = f"by {first} per block at its beginning and by {last} at its end"
        elif found.alike:
            text = f"by {average} per block, all alike"
        else:
            text = f"by {average} per block on average"
        if found.outlier is None:
            return f"{text}; no block stands out"
        return (
            f"{text}; block {self.blocks[found.outlier]} ({self.kinds[found.outlier]}), by "
            f"{self.gain_text(found.outlier)}, is {100 * found.share:.0f} % of it"
        )

    def to_dict(self) -> dict[str, Any]:
        """The profile as plain JSON values; None stands for what is unknown or infinite."""
        fault = self.at_fault()
        plain: dict[str, Any] = json_ready(
            {
                "name": self.name,
                "blocks": self.blocks,
                "kinds": self.kinds,
                "shapes": self.shapes,
                **{key: getattr(self, key) for key in PER_BLOCK},
                "log10_quantiles": {
                    f"{level:g}": self.log10_quantiles[:, k] for k, level in enumerate(LEVELS)
                },
                "residual_sums": [asdict(found) for found in self.residual_sums],
                "running": {depth: self.running[depth].to_dict() for depth in sorted(self.running)},
                "at_fault": None if fault is None else self.blocks[fault],
                "verdict": self.verdict(),
                "advice": [asdict(one) for one in self.advice()],
            }
        )
        return plain

    def shown(self, most: int) -> list[int]:
        """Numbers (from 0) of at most ``most`` blocks: evenly spaced ones with both ends, and the block at fault."""
        if len(self) <= most:
            return list(range(len(self)))
        fault = self.at_fault()
        kept = set(np.linspace(0, len(self) - 1, most - (fault is not None)).round().astype(int).tolist())
        return sorted(kept | ({fault} if fault is not None else set()))

    @property
    def headings(self) -> tuple[str, ...]:
        """What a table of the blocks shows of each."""
        return (*HEADINGS, BRANCH_HEADING) if self.residual_sums else HEADINGS

    def row(self, block: int) -> tuple[str, ...]:
        """One block's texts, in the order of ``headings``."""
        rows, columns = self.shapes[block]
        return (
            self.blocks[block],
            self.kinds[block],
            f"{rows} x {columns}",
            error_text(float(self.chi[block]), float(self.chi_stderr[block])),
            number_text(float(self.s_max[block])),
            self.gain_text(block),
            power_text(float(self.log10_mean_square[block])),
            *((self._branch_text(block),) if self.residual_sums else ()),
        )

    def _branch_text(self, block: int) -> str:
        """chi of the branches of one block, of more than two the least and the largest."""
        sums = [found for found in self.residual_sums if found.block == block]
        if len(sums) <= 2:
            return ", ".join(error_text(found.branch_chi, found.branch_chi_stderr) for found in sums)
        values = [found.branch_chi for found in sums]
        return f"{number_text(min(values))} to {number_text(max(values))} ({len(sums)})"

    def gain_text(self, block: int) -> str:
        """The gain of one block with its standard error."""
        gain, error = float(self.log10_gain[block]), float(self.log10_gain_stderr[block])
        if not math.isfinite(gain):
            return "0" if math.isinf(self.log10_mean_square[block]) else "unknown"
        relative = math.log(10) * error
        if not relative > 0:
            return power_text(gain)
        return f"{power_text(gain)} ± {100 * relative:.2g} %"


# The arrays with one number for each block.
PER_BLOCK = (
    "chi", "chi_stderr", "s_max", "s_max_residual", "log10_mean_square", "log10_mean_square_stderr", "log10_gain",
    "log10_gain_stderr",
)  # fmt: skip


def band_values(spectra: Sequence[Spectrum]) -> tuple[Array, Array]:
    """log10 of the quantiles at LEVELS and of the largest s of each, (n, 5) and (n,); -inf below a floor."""
    quantiles = np.array([spectrum.log10_quantile(LEVELS) for spectrum in spectra])
    top = np.array([spectrum.distribution.log_range[1] / math.log(10) for spectrum in spectra])
    return quantiles, np.where(np.isnan(top), -np.inf, top)
