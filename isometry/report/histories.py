"""Spectra recorded during training as one history: the same Jacobian at several steps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from isometry.spectrum import Spectrum

# Fewer spectra are no history; they stand side by side.
FEWEST = 3
_STEP = re.compile(r"(.*) step (\d+)")


@dataclass(frozen=True)
class History:
    """Spectra of one recording, in order of their steps."""

    name: str
    steps: tuple[int, ...]
    spectra: tuple[Spectrum, ...]

    @property
    def cost(self) -> str:
        """A sentence with the cost of recording; empty where it was not recorded."""
        share = self.spectra[-1].provenance.get("recording_overhead")
        if not isinstance(share, float) or not share >= 0:
            return ""
        return f"Up to step {self.steps[-1]} recording took {100 * share:.2g} % of the training's own time."


def histories_of(spectra: Sequence[Spectrum]) -> tuple[list[History], list[Spectrum]]:
    """(histories, spectra to show side by side); the first and the last spectrum of a history are among the latter.

    A spectrum of a history is named "NAME step 100" and records that step (`isometry.training.callbacks`).
    """
    recordings: dict[str, dict[int, Spectrum]] = {}
    for spectrum in spectra:
        found = _STEP.fullmatch(spectrum.name)
        if found is not None and spectrum.provenance.get("step") == int(found[2]):
            recordings.setdefault(found[1], {})[int(found[2])] = spectrum
    histories = []
    inner: set[str] = set()
    for name, by_step in recordings.items():
        if len(by_step) >= FEWEST:
            steps = tuple(sorted(by_step))
            histories.append(History(name, steps, tuple(by_step[step] for step in steps)))
            inner |= {by_step[step].name for step in steps[1:-1]}
    return histories, [spectrum for spectrum in spectra if spectrum.name not in inner]
