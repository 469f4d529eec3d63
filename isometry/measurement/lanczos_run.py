"""A stochastic measurement in progress: the steps of each probe of each input, and the spectrum so far. Internal.

Inputs go in groups, each with an operator of its own, and probes in groups within them. Both follow from the options.
After an interrupt :meth:`LanczosRun.spectrum` has what the completed steps have found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from isometry.estimators.probe_rules import ProbeRecurrence, ProbeRules, basis_bytes, merge, probe_groups
from isometry.measurement.distributed import SINGLE_PROCESS, ProcessGroup
from isometry.measurement.operators import Operators
from isometry.progress import StepProgress
from isometry.spectrum import Spectrum

_Unit = tuple[range, range]


class LanczosRun:
    """The Gauss rules of a stochastic measurement, as far as they have been computed.

    Parameters
    ----------
    operators : Operators
    inputs_per_group : int
    seed, probe, top :
        As for :func:`isometry.measure`.
    keep_bases : bool
        Keep the Krylov bases, so that steps can be added.
    progress : callable
        Called with (steps done, steps aimed at) of all groups together.
    processes : ProcessGroup
        The groups are distributed over them; each process has all rules in the end. Not with ``keep_bases``.
    max_probes_per_group : int, optional
        Probes of a group at the most, however many fit.
    """

    def __init__(
        self,
        operators: Operators,
        inputs_per_group: int,
        *,
        seed: int,
        probe: str,
        top: int,
        keep_bases: bool,
        progress: StepProgress,
        processes: ProcessGroup = SINGLE_PROCESS,
        max_probes_per_group: int | None = None,
    ) -> None:
        self._operators, self._progress = operators, progress
        self._processes, self._max_probes_per_group = processes, max_probes_per_group
        self._input_groups = operators.groups(inputs_per_group)
        self._seed, self._probe, self._top = seed, probe, top
        self._memory_limit = operators.whole.memory_limit
        self._units: dict[_Unit, ProbeRecurrence | ProbeRules] = {}
        self._probe_groups: list[range] = []
        self._aim = 0
        self.fixed = not keep_bases
        self.probes, self.steps = 0, 0

    @property
    def inputs(self) -> int:
        """Number of inputs, measured or not."""
        return self._operators.count

    @property
    def products(self) -> int:
        """Products spent so far."""
        return sum(unit.products for unit in self._units.values())

    @property
    def finished(self) -> bool:
        """Whether the recurrence of every probe broke down, so that there are no more steps to take."""
        return all(
            bool(unit.finished.all()) if isinstance(unit, ProbeRules) else unit.finished
            for unit in self._units.values()
        )

    @property
    def begun(self) -> bool:
        """Whether there is anything to report: one whole step of one group."""
        return any(isinstance(unit, ProbeRules) or unit.steps > 0 for unit in self._units.values())

    def make_room(self, probes: int, steps: int) -> bool:
        """Whether the bases of so many probes and steps may be kept, or need not be.

        Where they do not fit and only probes are added, bases are given up: from then on steps are ``fixed``.
        """
        whole = self._operators.whole
        needed = self.inputs * probes * basis_bytes(whole.shape, steps, whole.dtype)
        if self.fixed or needed <= self._memory_limit:
            return True
        if steps > self.steps:
            return False
        self._units = {
            key: unit if isinstance(unit, ProbeRules) else unit.rules() for key, unit in self._units.items()
        }
        self.fixed = True
        return True

    def extend(self, probes: int, steps: int, *, on_step: Callable[[], None] = lambda: None) -> None:
        """Add what is missing to so many probes of every input with so many steps; ``on_step`` is called after each."""
        whole = self._operators.whole
        of_one = len(self._input_groups[0]) * basis_bytes(whole.shape, steps, whole.dtype)
        groups = self._probe_groups + probe_groups(
            range(self.probes, probes),
            of_one,
            self._memory_limit,
            whole.device,
            most=self._max_probes_per_group,
        )
        self._aim = min(steps, *whole.shape)
        work = self._processes.share([(inputs, group) for inputs in self._input_groups for group in groups])
        for number, unit in enumerate(work):

            def report(done: int, before: int = number * self._aim) -> None:
                self._progress(before + done, len(work) * self._aim)
                on_step()

            self._advance(unit, steps, report)
        self._progress(len(work) * self._aim, len(work) * self._aim)
        if self._processes.size > 1:
            self._units = dict(self._processes.gather(list(self._units.items())))
        self._probe_groups, self.probes, self.steps = groups, probes, steps

    def _advance(self, key: _Unit, steps: int, report: Callable[[int], None]) -> None:
        """Go on with one group of probes of one group of inputs until it has that many steps."""
        unit, (inputs, probes) = self._units.get(key), key
        if isinstance(unit, ProbeRules):
            return
        operator = self._operators(inputs)
        if unit is None:
            unit = ProbeRecurrence(operator, inputs, probes, steps=steps, seed=self._seed, probe=self._probe)
            self._units[key] = unit
        unit.advance(operator, steps, on_step=report)
        if self.fixed:
            self._units[key] = unit.rules()

    def spectrum(self) -> Spectrum:
        """The spectrum of what is known so far.

        Probes with fewer steps than others would make it worse, and count only where there are no others. After the
        first round every input has rules; within it, the inputs that are through.
        """
        enough = self.steps or self._aim
        found: dict[range, list[ProbeRules]] = {}
        for (inputs, _), unit in sorted(
            self._units.items(), key=lambda item: (item[0][0].start, item[0][1].start)
        ):
            if isinstance(unit, ProbeRules):
                found.setdefault(inputs, []).append(unit)
            elif unit.steps >= enough or (unit.steps and unit.finished):
                found.setdefault(inputs, []).append(unit.rules())
        if not found:
            inputs, rules = next(
                (inputs, unit.rules())
                for (inputs, _), unit in self._units.items()
                if not isinstance(unit, ProbeRules) and unit.steps
            )
            found = {inputs: [rules]}
        counts = [len(parts) for parts in found.values()]
        if self.steps == 0:
            parts = [part for parts in found.values() if len(parts) == max(counts) for part in parts]
        else:
            parts = [part for parts in found.values() for part in parts[: min(counts)]]
        return replace(merge(parts, top=self._top), products=self.products)
