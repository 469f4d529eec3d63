"""The rows a report shows of a profile: all blocks of a shallow network, of a deep one those that say most."""

from __future__ import annotations

import numpy as np

from isometry.report.numbers import plain
from isometry.spectrum.block_profile import BlockProfile, power_text

HEADINGS = ("block", "kind", "J", "chi", "s max", "gain", "mean s² so far")


def shown_blocks(profile: BlockProfile, most: int) -> list[int]:
    """Numbers (from 0) of at most ``most`` blocks: evenly spaced ones with both ends, and the block at fault."""
    count = len(profile)
    if count <= most:
        return list(range(count))
    fault = profile.at_fault()
    kept = set(np.linspace(0, count - 1, most - (fault is not None)).round().astype(int).tolist())
    return sorted(kept | ({fault} if fault is not None else set()))


def block_row(profile: BlockProfile, block: int) -> tuple[str, ...]:
    """One block's cells, in the order of HEADINGS."""
    rows, columns = profile.shapes[block]
    error = profile.chi_stderr[block]
    return (
        plain(profile.blocks[block]),
        plain(profile.kinds[block]),
        f"{rows} x {columns}",
        f"{profile.chi[block]:.4g}" + (f" ± {error:.1g}" if error > 0 else ""),
        f"{profile.s_max[block]:.4g}",
        profile.gain_text(block),
        power_text(float(profile.log10_mean_square[block])),
    )
