"""A stochastic measurement under way: which probes of which inputs are done, to how many steps, and what they show.

Inputs go in groups, each with an operator of its own, and probes in groups within them. Both follow from
the options. After an interrupt :meth:`Sampling.spectrum` has what completed steps have found.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from isometry.errors import FallbackWarning
from isometry.estimators.probe_rules import (
    ProbeRecurrence,
    ProbeRules,
    basis_bytes,
    join_inputs,
    merge,
    probe_groups,
)
from isometry.jacobian import JacobianOperator
from isometry.measurement.distributed import SINGLE_PROCESS, ProcessGroup
from isometry.measurement.stopping import Goal, Limits, reach
from isometry.spectrum import Spectrum


class Operators:
    """The operators of groups of inputs, made when they are needed; the last one made is kept.

    Parameters
    ----------
    make : callable
        Inputs -> JacobianOperator.
    x : Tensor
    whole : JacobianOperator
        That of all of ``x``.
    """

    def __init__(
        self, make: Callable[[Tensor], JacobianOperator], x: Tensor, whole: JacobianOperator
    ) -> None:
        self._make, self._x, self.whole = make, x, whole
        self.count = whole.batch or 1
        self._inputs, self._last = range(self.count), whole

    def __call__(self, inputs: range) -> JacobianOperator:
        if inputs != self._inputs:
            with warnings.catch_warnings():
                # The first operator has said it for all of them.
                warnings.simplefilter("ignore", FallbackWarning)
                self._last = self._make(self._x[inputs.start : inputs.stop])
            self._inputs = inputs
        return self._last


class Sampling:
    """ProbeRules of a stochastic measurement, as far as they are.

    Parameters
    ----------
    operators : Operators
    at_once : int
        Inputs of a group.
    seed, probe, top :
        As for :func:`isometry.measure`.
    memory_limit : int
        Bytes for the Krylov bases.
    keep : bool
        Keep the bases, so that steps can be added.
    tell : callable
        Called with (steps done, steps aimed at) of all groups together.
    group : ProcessGroup
        Processes among which the groups are shared out; each has all rows in the end. Not with ``keep``.
    most_together : int, optional
        Probes of a group at the most, however many fit.
    """

    def __init__(
        self,
        operators: Operators,
        at_once: int,
        *,
        seed: int,
        probe: str,
        top: int,
        memory_limit: int,
        keep: bool,
        tell: Callable[[int, int], Any],
        group: ProcessGroup = SINGLE_PROCESS,
        most_together: int | None = None,
    ) -> None:
        self._operators, self._tell = operators, tell
        self._process_group, self._most_together = group, most_together
        self._groups = [
            range(first, min(first + at_once, operators.count))
            for first in range(0, operators.count, at_once)
        ]
        self._options = {"seed": seed, "probe": probe}
        self._top, self._memory_limit = top, memory_limit
        self._cells: dict[tuple[range, range], ProbeRecurrence | ProbeRules] = {}
        self._pieces: list[range] = []
        self._aim = 0
        self.fixed = not keep
        self.probes, self.steps = 0, 0

    @property
    def inputs(self) -> int:
        """Number of inputs, measured or not."""
        return self._operators.count

    @property
    def products(self) -> int:
        """Products spent so far."""
        return sum(cell.products for cell in self._cells.values())

    @property
    def finished(self) -> bool:
        """Whether the Krylov space of every row is closed, so that there are no more steps to take."""
        return all(
            bool(cell.finished.all()) if isinstance(cell, ProbeRules) else cell.finished
            for cell in self._cells.values()
        )

    @property
    def begun(self) -> bool:
        """Whether there is anything to report: one whole step of one group."""
        return any(isinstance(cell, ProbeRules) or cell.steps > 0 for cell in self._cells.values())

    def basis_bytes(self, probes: int, steps: int) -> int:
        """Bytes of the Krylov bases of so many probes of all inputs."""
        whole = self._operators.whole
        return self.inputs * probes * basis_bytes(whole.shape, steps, whole.dtype)

    def make_room(self, probes: int, steps: int) -> bool:
        """Whether the bases of so many probes and steps may be kept, or need not be.

        Where they do not fit and only probes are added, bases are given up: from then on steps are ``fixed``.
        """
        if self.fixed or self.basis_bytes(probes, steps) <= self._memory_limit:
            return True
        if steps > self.steps:
            return False
        self._cells = {
            key: cell if isinstance(cell, ProbeRules) else cell.rules() for key, cell in self._cells.items()
        }
        self.fixed = True
        return True

    def extend(self, probes: int, steps: int, *, watch: Callable[[], None] = lambda: None) -> None:
        """Add what is missing to so many probes of every input with so many steps; ``watch`` is called at each."""
        whole = self._operators.whole
        of_one = len(self._groups[0]) * basis_bytes(whole.shape, steps, whole.dtype)
        pieces = self._pieces + probe_groups(
            range(self.probes, probes), of_one, self._memory_limit, whole.device, most=self._most_together
        )
        self._aim = min(steps, *whole.shape)
        work = self._process_group.share([(inputs, piece) for inputs in self._groups for piece in pieces])
        for number, (inputs, piece) in enumerate(work):
            cell = self._cells.get((inputs, piece))
            if isinstance(cell, ProbeRules):
                continue

            def on_step(done: int, before: int = number * self._aim) -> None:
                self._tell(before + done, len(work) * self._aim)
                watch()

            operator = self._operators(inputs)
            if cell is None:
                cell = ProbeRecurrence(operator, inputs, piece, steps=steps, **self._options)  # type: ignore[arg-type]
                self._cells[inputs, piece] = cell
            cell.advance(operator, steps, on_step=on_step)
            if self.fixed:
                self._cells[inputs, piece] = cell.rules()
        self._tell(len(work) * self._aim, len(work) * self._aim)
        if self._process_group.size > 1:
            self._cells = dict(self._process_group.gather(list(self._cells.items())))
        self._pieces, self.probes, self.steps = pieces, probes, steps

    def run(self, goal: Goal | None, limits: Limits, *, began: float, catch: bool) -> str | None:
        """All that is to be done; returns why it stopped, None where all of what was asked for is done.

        With ``catch`` an interrupt ends it, where there is something to report.
        """
        try:
            if goal is not None:
                return reach(goal, self, limits, began=began)
            self.extend(limits.probes, limits.steps)
        except KeyboardInterrupt:
            if not (catch and self.begun):
                raise
            return "interrupted"
        return None

    def spectrum(self) -> Spectrum:
        """What is known so far.

        Probes with fewer steps than others would make it worse, and count only where there are no others. After the
        first round every input has rules; within it, the inputs that are through.
        """
        enough = self.steps or self._aim
        found: dict[range, list[ProbeRules]] = {}
        for (inputs, _), cell in sorted(
            self._cells.items(), key=lambda item: (item[0][0].start, item[0][1].start)
        ):
            if isinstance(cell, ProbeRules):
                found.setdefault(inputs, []).append(cell)
            elif cell.steps >= enough or (cell.steps and cell.finished):
                found.setdefault(inputs, []).append(cell.rules())
        if not found:
            inputs, rows = next(
                (inputs, cell.rules())
                for (inputs, _), cell in self._cells.items()
                if not isinstance(cell, ProbeRules) and cell.steps
            )
            found = {inputs: [rows]}
        counts = [len(rows) for rows in found.values()]
        if self.steps == 0:
            parts = [row for rows in found.values() if len(rows) == max(counts) for row in rows]
        else:
            parts = [row for rows in found.values() for row in rows[: min(counts)]]
        return replace(merge(parts, top=self._top), products=self.products)


def whole_inputs(
    operators: Operators,
    at_once: int,
    estimate: Callable[..., Spectrum],
    *,
    tell: Callable[[int, int], Any],
    catch: bool,
    otherwise: Spectrum | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> tuple[Spectrum, str | None]:
    """By a method of which no part of an input is of use: the spectrum, and "interrupted" where it was.

    Groups of inputs are shared out among ``group``; each has the whole in the end. With ``catch`` an interrupt leaves
    the inputs that are through, or ``otherwise`` what was known before.
    """
    parts: list[Spectrum] = []
    firsts = range(0, operators.count, at_once)
    try:
        for first in group.share(firsts):
            inputs = range(first, min(first + at_once, operators.count))

            def tick(done: int, total: int, inputs: range = inputs) -> None:
                tell(inputs.start * total + done * len(inputs), operators.count * total)

            parts.append(estimate(operators(inputs), first_input=first, progress=tick))
    except KeyboardInterrupt:
        if not catch or (not parts and otherwise is None):
            raise
        if not parts:
            assert otherwise is not None, "just asked"
            return otherwise, "interrupted"
        return join_inputs(parts), "interrupted"
    found = group.gather(list(zip(group.share(firsts), parts, strict=True)))
    return join_inputs([part for _, part in sorted(found, key=lambda item: item[0])]), None
