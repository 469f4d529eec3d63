"""New weights that are kept only where they bring a spectrum nearer to isometry. Internal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from isometry.depth.critical_report import listed
from isometry.errors import NotImprovedError
from isometry.spectrum import Spectrum
from isometry.spectrum.formatting import number_text

Filled = list[tuple[Tensor, Tensor]]
"""Parameters, each with its new values."""


def write(values: Filled) -> None:
    """Copy the new values into the parameters."""
    with torch.no_grad():
        for parameter, new in values:
            parameter.copy_(new)


@contextmanager
def undone_on_error(filled: Filled) -> Iterator[None]:
    """Give the parameters their old bits back where anything is raised inside."""
    old = [(parameter, parameter.detach().clone()) for parameter, _ in filled]
    try:
        yield
    except BaseException:
        _restore(old)
        raise


def _restore(old: Filled) -> None:
    """Write the old values, however often an interrupt comes meanwhile."""
    while True:
        try:
            write(old)
        except KeyboardInterrupt:
            continue
        return


def refuse_worse(before: Spectrum, after: Spectrum, zero_cause: str, left: Sequence[str]) -> None:
    """Raise NotImprovedError where a spectrum is further from isometry than another, beyond the errors of both.

    Parameters
    ----------
    before, after : Spectrum
    zero_cause : str
        Why the Jacobian is zero afterwards, where it is.
    left : sequence of str
        Names of what was left alone, for the message.
    """
    undone = "critical_init_ was undone, and the weights are as they were"
    if not math.isfinite(after.log10_moment(1)):
        raise NotImprovedError(
            f"{undone}: the Jacobian is zero at this input with the new weights as well"
            f"{f' ({zero_cause})' if zero_cause else ''}: the network is dead here. Give another input, or look at "
            "isometry.measure_blocks for the block that is zero"
        )
    found = _worse(before, after)
    if found:
        raise NotImprovedError(
            f"{undone}: {found}. Either the model was closer to isometry before, or its inputs are not what the gains "
            "are for: mean square 1 where the model does not normalise them (try input_mean_square=). "
            "isometry.measure_blocks shows where the size changes"
            + (f". Left alone were {listed(left)}" if left else "")
        )


def _worse(before: Spectrum, after: Spectrum) -> str:
    """What became worse, beyond the errors; empty where nothing did."""
    old, new = before.log10_moment(1), after.log10_moment(1)
    m, n = after.shape or (1, 1)
    # Layers keep the mean square of entries, and m of them for n are a mean square of m/n: from there to 1 all is kept.
    widest = math.log10(max(m / n, 1.0))
    old, new = (max(one - widest, 0.0, -one) for one in (old, new))
    if math.isfinite(old) and new - old > math.hypot(_error(before), _error(after)) + 1e-6:
        return (
            f"the mean square of its singular values went from {number_text(before.mean_square)} to "
            f"{number_text(after.mean_square)}, further from {f'1 to {m / n:.3g}' if m > n else '1'}"
        )
    (_, most), (least, _) = _share(after), _share(before)
    middle = 0.5 * (most + least)
    chance = math.sqrt(2 * max(middle * (1 - middle), 0.0) / min(after.shape or (1,)))
    if most < least - 3 * chance:
        return (
            f"the share of singular values within a factor of two of their scale went from at least {least:.0%} to at "
            f"most {most:.0%}"
        )
    return ""


def _error(spectrum: Spectrum) -> float:
    """Of log10 of the mean square: three standard errors of the probes, two of a draw of N = min(m, n) values."""
    mean = spectrum.mean_square
    if not 0 < mean < math.inf:
        return 0.0
    probes = spectrum.mean_square_stderr if math.isfinite(spectrum.mean_square_stderr) else 0.0
    chance = math.sqrt(max(spectrum.variance, 0.0) / min(spectrum.shape or (1,)))
    return math.hypot(3 * probes, 2 * chance) / mean / math.log(10)


def _share(spectrum: Spectrum) -> tuple[float, float]:
    """Limits of 95 % for the share within a factor of two of the root mean square."""
    scale = math.sqrt(spectrum.mean_square)
    if not 0 < scale < math.inf:
        return spectrum.spread_bounds()
    return spectrum.isometry_band(scale / 2, scale * 2)
