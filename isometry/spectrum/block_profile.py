"""`BlockProfile`: the gain of every block of a network and of the product so far, and which block is at fault.

A network is y = f_L(... f_1(x)), J_b the Jacobian of block b at what reaches it, and J_b ... J_1 the running product.
chi_b = ||J_b||_F^2 / min(m_b, n_b) is the mean square singular value of the block, and
M_b = ||J_b ... J_1||_F^2 / min(m_b, n_0) that of the running product. The gain M_b / M_{b-1} is chi_b where the
singular directions of the block have nothing to do with those of the product before it, as mean-field theory assumes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isometry.errors import InputError

from .formatting import error_text, json_ready, number_text, plain, power_text
from .spectrum import Spectrum
from .summary import LABELS

Array = NDArray[np.float64]

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
# What a table of blocks shows of each.
HEADINGS = ("block", "kind", "J", "chi", LABELS["s_max"], "gain", f"{LABELS['mean_square']} so far")
# A block stands out where its gain differs from the others' by so many standard errors, by so many robust standard
# deviations of the gains of all blocks, and by this factor.
STANDARD_ERRORS = 4.0
DEVIATIONS = 5.0
SMALLEST_FACTOR = 1.5


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
        """Number (from 0) of the block that loses or amplifies the signal most; None where no block stands out.

        A block stands out where log10 of its gain differs from the median of all gains by more than 4 of its standard
        errors, 5 robust standard deviations (1.4826 times the median absolute deviation) of the gains of all blocks,
        and a factor of 1.5. Behind a block that lets nothing pass no gain is known: that block is at fault. With one or
        two blocks a gain is compared with 1.
        """
        dead = np.flatnonzero(np.isneginf(self.log10_mean_square))
        if dead.size:
            return int(dead[0])
        usual, spread = 0.0, 0.0
        if len(self) > 2:
            usual = float(np.median(self.log10_gain))
            spread = DEVIATIONS * 1.4826 * float(np.median(np.abs(self.log10_gain - usual)))
        away = np.abs(self.log10_gain - usual)
        noise = STANDARD_ERRORS * np.nan_to_num(self.log10_gain_stderr, nan=np.inf)
        bar = np.maximum(noise, max(spread, math.log10(SMALLEST_FACTOR)))
        worst = int(np.argmax(np.where(away > bar, away, -1.0)))
        return worst if away[worst] > bar[worst] else None

    def verdict(self) -> str:
        """One sentence: how mean s² changes along the depth, and which block is at fault."""
        total, fault = float(self.log10_mean_square[-1]), self.at_fault()
        count = f"{len(self)} blocks" if len(self) > 1 else "1 block"
        end = f"mean s² is {power_text(total)} after {count}"
        if fault is not None and math.isinf(self.log10_mean_square[fault]):
            return f"nothing passes block {self.blocks[fault]} ({self.kinds[fault]}): behind it J is zero"
        if fault is not None:
            usual = (
                ""
                if len(self) < 3
                else f"; the median block by {power_text(float(np.median(self.log10_gain)))}"
            )
            return (
                f"{end}: block {self.blocks[fault]} ({self.kinds[fault]}) is at fault: it multiplies it by "
                f"{self.gain_text(fault)}{usual}"
            )
        if abs(total) <= math.log10(2):
            return f"{end}: no block stands out"
        each = power_text(total / len(self))
        word = "falls" if total < 0 else "grows"
        return f"{end}: it {word} along the whole depth, by {each} per block on average; no block stands out"

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
                "running": {depth: self.running[depth].to_dict() for depth in sorted(self.running)},
                "at_fault": None if fault is None else self.blocks[fault],
                "verdict": self.verdict(),
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

    def row(self, block: int) -> tuple[str, ...]:
        """One block's texts, in the order of HEADINGS."""
        rows, columns = self.shapes[block]
        return (
            self.blocks[block],
            self.kinds[block],
            f"{rows} x {columns}",
            error_text(float(self.chi[block]), float(self.chi_stderr[block])),
            number_text(float(self.s_max[block])),
            self.gain_text(block),
            power_text(float(self.log10_mean_square[block])),
        )

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
