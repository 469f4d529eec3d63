"""`Advice`: what a measurement says to do, in one sentence with its numbers and the command that does it.

It follows from measured or recorded numbers alone, and is silent where the mean square singular value is within a
factor of two of 1, or where chance explains it.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .block_faults import HARMLESS_FACTOR
from .formatting import number_text, power_text

Array = NDArray[np.float64]

# All branches together may let the mean square grow by e^(c^2); the default of `isometry.tune_`.
BRANCH_GAIN = 0.5
# s_max over the root mean square from which on Gaussian weights are worth a sentence.
WIDE = 5.0
# sigma_w is critical to this relative difference.
_CRITICAL = 1e-3
_HARMLESS = math.log10(HARMLESS_FACTOR)
# Words in the class names of blocks with a scale of their own, and of those without.
_WEIGHTED = ("Linear", "Conv", "Dense", "Attention", "Bilinear", "Embed")
# Options of `isometry measure` that `isometry tune` has too, and which of them take no value.
_SHARED = frozenset({
    "--input", "--inputs", "--seed", "--weights", "--eval", "--no-batch-axis", "--arg", "--input-ids",
    "--image-channels", "--image-size", "--image-mean", "--image-std", "--wrt", "--output", "--dtype", "--device",
})  # fmt: skip
_FLAGS = frozenset({
    "--eval", "--no-batch-axis", "--tf32", "--overwrite", "--per-block", "--json",
})  # fmt: skip
_IN_PYTHON = "isometry.tune_(model, x)"


@dataclass(frozen=True)
class Advice:
    """One thing to do.

    Parameters
    ----------
    sentence : str
        What was found, and what to change by how much.
    numbers : mapping of str to float
        The numbers in it, by name.
    command : str
        What does it: a command line, or a call in Python.
    """

    sentence: str
    numbers: Mapping[str, float]
    command: str

    @property
    def text(self) -> str:
        """Sentence and command in one line."""
        return f"{self.sentence}: {self.command}" if self.command else self.sentence


def tuning_command(provenance: Mapping[str, Any]) -> str:
    """The command that tunes the model of a measurement at its inputs; a call in Python where no command made it."""
    words = _words(provenance.get("command"))
    if len(words) < 3 or words[:2] != ["isometry", "measure"]:
        return _IN_PYTHON
    kept, rest = ["isometry", "tune"], words[2:]
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.partition("=")
        if not word.startswith("-"):
            kept.append(word)
            continue
        has_value = not equals and name not in _FLAGS and bool(rest)
        value = [rest.pop(0)] if has_value else []
        if name in _SHARED:
            kept += [word, *value]
    # Quoted again: a file that somebody else made shows one command.
    return shlex.join([*kept, "-o", "tuned.safetensors"])


def advice_on_spectrum(
    provenance: Mapping[str, Any],
    *,
    log10_mean_square: float,
    relative_error: float,
    log10_s_max: float,
    zero_mass: float = 0.0,
) -> tuple[Advice, ...]:
    """What the spectrum of a whole model says, from its numbers and the recorded theory of its ensemble.

    Parameters
    ----------
    provenance : mapping
        Of the measurement; ``theory`` holds ``sigma_w``, ``critical_sigma_w``, ``critical_q_star`` and
        ``orthogonal_s_max_over_rms``, where a measurement recorded them.
    log10_mean_square, relative_error, log10_s_max : float
        The mean square with its standard error over probes, and the largest value.
    zero_mass : float
        Share of values that are zero: no weights make more of a layer of few units pass.
    """
    is_part = any(provenance.get(key) for key in ("part", "running_product_of"))
    if is_part or not _has_parameters(provenance) or not math.isfinite(log10_mean_square):
        return ()
    recorded = provenance.get("theory")
    theory = recorded if isinstance(recorded, Mapping) else {}
    found = []
    error = relative_error / math.log(10) if math.isfinite(relative_error) else 0.0
    of_others = log10_mean_square - math.log10(1 - zero_mass) if zero_mass < 1 else 0.0
    off = min(abs(log10_mean_square), abs(of_others)) > _HARMLESS + 3 * error
    sigma_w, critical, q_star = (
        _number(theory.get(key)) for key in ("sigma_w", "critical_sigma_w", "critical_q_star")
    )
    direction = (sigma_w - critical) * log10_mean_square
    if off and direction > 0 and abs(sigma_w / critical - 1) > _CRITICAL:
        at = f" (q* = {number_text(q_star)})" if math.isfinite(q_star) else ""
        found.append(
            Advice(
                f"sigma_w is {number_text(sigma_w)}; critical is {number_text(critical)}{at}",
                {"sigma_w": sigma_w, "critical_sigma_w": critical, "q_star": q_star},
                "isometry.critical_init_(model, x)",
            )
        )
    if off:
        found.append(
            Advice(
                f"mean s² is {power_text(log10_mean_square)}: scale the weights until every block keeps it",
                {"log10_mean_square": log10_mean_square},
                tuning_command(provenance),
            )
        )
    orthogonal = _number(theory.get("orthogonal_s_max_over_rms"))
    top = log10_s_max - 0.5 * log10_mean_square
    if top > math.log10(WIDE) and orthogonal * WIDE / 2 < 10 ** min(top, 300.0):
        found.append(
            Advice(
                f"s_max / rms is {number_text(10 ** min(top, 300.0))} with Gaussian weights; orthogonal ones give "
                f"{number_text(orthogonal)}",
                {"log10_s_max_over_rms": top, "orthogonal_s_max_over_rms": orthogonal},
                'isometry.critical_init_(model, x, weights="delta_orthogonal")',
            )
        )
    return tuple(found)


def advice_on_blocks(
    provenance: Mapping[str, Any],
    *,
    kinds: Sequence[str],
    blocks: Sequence[str],
    log10_gain: Array,
    log10_mean_square: float,
    log10_mean_square_stderr: float,
    fault: int | None,
    by_chance: bool,
    branches: Sequence[tuple[int, float, float]],
) -> tuple[Advice, ...]:
    """What the gains of blocks say: which weights to multiply by how much.

    Parameters
    ----------
    provenance : mapping
        Of the profile.
    kinds, blocks : sequences of str
        Classes and names of the blocks.
    log10_gain : (L,) array
        Of the running mean square.
    log10_mean_square, log10_mean_square_stderr : float
        Of the whole.
    fault : int or None
        The block at fault.
    by_chance : bool
        Whether the sum of the gains is within their fluctuation.
    branches : sequence of (int, float, float)
        Of each sum x + f(x) the block, and the mean square of f with its standard error.
    """
    total, error = log10_mean_square, log10_mean_square_stderr
    known = math.isfinite(total) and math.isfinite(error)
    if not known or by_chance or abs(total) <= _HARMLESS + 3 * error:
        return ()
    command = tuning_command(provenance)
    if fault is not None:
        if not _has_weights(kinds[fault]):
            return ()
        gain = float(log10_gain[fault])
        return (
            Advice(
                f"block {blocks[fault]} multiplies mean s² by {power_text(gain)}: multiply its weights by "
                f"{power_text(-gain / 2)}",
                {"log10_gain": gain, "log10_factor": -gain / 2},
                command,
            ),
        )
    in_sums = {block for block, _, _ in branches}
    if branches and total > 0 and sum(float(log10_gain[b]) for b in in_sums) > 0.5 * total:
        sizes = [size for _, size, _ in branches]
        whole = sum(sizes)
        spread = math.sqrt(sum(error**2 for _, _, error in branches))
        factor = BRANCH_GAIN / math.sqrt(whole) if whole > 0 else math.inf
        if factor >= 1:
            return ()
        return (
            Advice(
                f"{len(branches)} branches add up to {number_text(whole)} times the mean square of their stream: scale "
                f"each by {number_text(factor)}",
                {"branches": len(branches), "sum": whole, "sum_stderr": spread, "factor": factor},
                command,
            ),
        )
    count = sum(map(_has_weights, kinds))
    if count == 0 or any("Norm" in kind for kind in kinds):
        return ()
    gain, factor = 10 ** (total / count), 10 ** (-total / count / 2)
    verb = "lose" if total < 0 else "gain"
    each = f"{count} blocks with weights {verb} a factor {number_text(gain)} of mean s² each"
    if count == 1:
        each = f"1 block with weights {verb}s a factor {number_text(gain)} of mean s²"
    relative = error * math.log(10) / count
    return (
        Advice(
            f"{each}: multiply their weights by {number_text(factor)}",
            {
                "blocks": count, "gain": gain, "gain_stderr": gain * relative, "factor": factor,
                "factor_stderr": 0.5 * factor * relative,
            },
            command,
        ),
    )  # fmt: skip


def _has_weights(kind: str) -> bool:
    return any(word in kind for word in _WEIGHTED) or bool(re.search(r"Layer\b|Block", kind))


def _has_parameters(provenance: Mapping[str, Any]) -> bool:
    """Whether the model that was measured has any; a function has none to scale."""
    model = provenance.get("model")
    return not isinstance(model, str) or bool(re.search(r"\([1-9][0-9]* parameters\)", model))


def _words(command: object) -> list[str]:
    try:
        return shlex.split(command) if isinstance(command, str) else []
    except ValueError:
        return []


def _number(value: object) -> float:
    """A number from a file, which may hold anything; nan for what is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else math.nan  # type: ignore[arg-type]
