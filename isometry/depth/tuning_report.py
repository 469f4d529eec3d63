"""`TuningReport`: what `tune_` measured before and after, and by how much it scaled which weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from isometry.spectrum import Spectrum
from isometry.spectrum.block_profile import BlockProfile
from isometry.spectrum.formatting import error_text, json_ready, number_text, plain, power_text

# Of how many weights a text shows the factors.
MOST_SHOWN = 12


@dataclass(frozen=True)
class TunedWeights:
    """Weights that one factor scales.

    Parameters
    ----------
    module : str
        The module of the last of them.
    role : str
        "layer": all paths pass through it, and chi is the mean square gain from the layer before to this one, each at
        what leaves it. "branch": f in x + f(x), and chi is the mean square of f relative to that of x. "share": one of
        several weighted paths of a sum, and chi is its running mean square.
    parameters : tuple of str
        Their names.
    factor : float
        What they are multiplied by; 1 where nothing had to be changed.
    chi, chi_stderr, chi_after, chi_after_stderr : float
        Before and after, with standard errors over probes; 0 where they are exact.
    log10_mean_square, log10_mean_square_after : float
        log10 of the running mean square behind them.
    """

    module: str
    role: str
    parameters: tuple[str, ...]
    factor: float
    chi: float
    chi_stderr: float
    chi_after: float
    chi_after_stderr: float
    log10_mean_square: float
    log10_mean_square_after: float


@dataclass(frozen=True, eq=False)
class TuningReport:
    """A model before and after `tune_`.

    Parameters
    ----------
    before, after : Spectrum
        Of the whole model.
    profile_before, profile_after : BlockProfile or None
        Block by block; None where its blocks cannot be measured one by one.
    weights : tuple of TunedWeights
        In the order in which they act.
    left_alone : tuple of (str, str)
        Weights that were not scaled, each with the reason.
    sweeps : int
        Recordings of the model that the factors took.
    dry_run : bool
        Whether the model was left as it was; ``after`` is then measured on a copy.
    name : str
    seconds : float
    changed : tuple of TunedWeights
        Those of ``weights`` whose factor is not 1.
    """

    before: Spectrum
    after: Spectrum
    profile_before: BlockProfile | None
    profile_after: BlockProfile | None
    weights: tuple[TunedWeights, ...]
    left_alone: tuple[tuple[str, str], ...]
    sweeps: int
    dry_run: bool
    name: str = ""
    seconds: float = 0.0
    changed: tuple[TunedWeights, ...] = field(init=False)

    def __post_init__(self) -> None:
        changed = tuple(w for w in self.weights if w.factor != 1.0)
        object.__setattr__(self, "changed", changed)

    def factors(self) -> dict[str, float]:
        """Name of each parameter -> what it is multiplied by, for those that change."""
        return {name: w.factor for w in self.changed for name in w.parameters}

    def text(self) -> str:
        """The report as text: before and after, and the factors."""
        verb = "would be scaled" if self.dry_run else "scaled"
        rows = [("", "before", "after"), *_compared(self.before, self.after)]
        widths = [max(len(row[k]) for row in rows) for k in range(3)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        lines += ["", f"{_count(len(self.changed), 'factor')}: weights {verb} as follows" if self.changed else
                  "nothing had to be scaled"]  # fmt: skip
        for weights in _some(self.changed):
            lines.append(f"  {self._line(weights)}" if weights is not None else "  ...")
        for reason, names in self._reasons().items():
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            lines.append(f"left alone, {reason}: {shown}")
        return plain("\n".join(lines), keep="\n")

    def _reasons(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, reason in self.left_alone:
            found.setdefault(reason, []).append(name)
        unchanged = [weights.module for weights in self.weights if weights.factor == 1.0]
        if unchanged:
            found["as their gain is right or harmless"] = unchanged
        return found

    @staticmethod
    def _line(weights: TunedWeights) -> str:
        what = {"layer": "chi", "branch": "mean square of the branch over its stream", "share": "share"}
        return (
            f"{', '.join(weights.parameters)} by {number_text(weights.factor)}: {what[weights.role]} from "
            f"{error_text(weights.chi, weights.chi_stderr)} to "
            f"{error_text(weights.chi_after, weights.chi_after_stderr)}"
        )

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        log10 = [s.reported.log10_mean_square for s in (self.before, self.after)]
        return (
            f"<TuningReport: {_count(len(self.changed), 'factor')}, mean s² from {power_text(log10[0])} to "
            f"{power_text(log10[1])}{', dry run' if self.dry_run else ''}>"
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        found: dict[str, Any] = json_ready(
            {
                "name": self.name,
                "dry_run": self.dry_run,
                "sweeps": self.sweeps,
                "weights": [
                    {
                        "module": w.module,
                        "role": w.role,
                        "parameters": list(w.parameters),
                        "factor": w.factor,
                        "chi": w.chi,
                        "chi_stderr": w.chi_stderr,
                        "chi_after": w.chi_after,
                        "chi_after_stderr": w.chi_after_stderr,
                        "log10_mean_square": w.log10_mean_square,
                        "log10_mean_square_after": w.log10_mean_square_after,
                    }
                    for w in self.weights
                ],
                "left_alone": [{"name": name, "reason": reason} for name, reason in self.left_alone],
                "before": self.before.to_dict(),
                "after": self.after.to_dict(),
                "profile_before": None if self.profile_before is None else self.profile_before.to_dict(),
                "profile_after": None if self.profile_after is None else self.profile_after.to_dict(),
            }
        )
        return found


def top_over_scale(spectrum: Spectrum) -> float:
    """ln of the largest singular value over the root mean square."""
    summary = spectrum.reported
    return math.log(10) * (summary.log10_s_max - summary.log10_scale)


def _compared(before: Spectrum, after: Spectrum) -> list[tuple[str, str, str]]:
    rows = []
    texts = [spectrum.reported.cells() for spectrum in (before, after)]
    for key, label in (("mean_square", "mean s²"), ("s_max", "s_max"), ("quantile_0.5", "median"),
                       ("spread", "near the scale"), ("isometry", "in [0.5, 2]")):  # fmt: skip
        rows.append((label, texts[0][key], texts[1][key]))
    ratios = [number_text(math.exp(min(top_over_scale(s), 700.0))) for s in (before, after)]
    rows.insert(2, ("s_max / rms", ratios[0], ratios[1]))
    return rows


def _some(weights: Sequence[TunedWeights]) -> list[TunedWeights | None]:
    if len(weights) <= MOST_SHOWN:
        return list(weights)
    half = MOST_SHOWN // 2
    return [*weights[:half], None, *weights[-half:]]


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
