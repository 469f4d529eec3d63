"""The operators of groups of inputs, and the methods that measure whole inputs, group after group. Internal."""

from __future__ import annotations

from collections.abc import Callable

from isometry.errors import FallbackWarning
from isometry.estimators.probe_rules import join_inputs
from isometry.jacobian import JacobianOperator, warnings_silenced
from isometry.measurement.distributed import SINGLE_PROCESS, ProcessGroup
from isometry.progress import StepProgress
from isometry.spectrum import Spectrum


class Operators:
    """The operators of groups of inputs, made when they are needed; the last one made is kept.

    Parameters
    ----------
    whole : JacobianOperator
        That of all inputs.
    """

    def __init__(self, whole: JacobianOperator) -> None:
        self.whole = whole
        self.count = whole.batch or 1
        self._inputs, self._last = range(self.count), whole

    def __call__(self, inputs: range) -> JacobianOperator:
        if inputs != self._inputs:
            # The first operator has warned for all of them.
            with warnings_silenced(FallbackWarning):
                self._last = self.whole.of_inputs(inputs)
            self._inputs = inputs
        return self._last

    def groups(self, inputs_per_group: int) -> list[range]:
        """The inputs in groups of that size."""
        starts = range(0, self.count, inputs_per_group)
        return [range(start, min(start + inputs_per_group, self.count)) for start in starts]


def measure_groups(
    operators: Operators,
    inputs_per_group: int,
    run: Callable[..., Spectrum],
    *,
    seed: int,
    progress: StepProgress,
    return_partial: bool,
    fallback: Spectrum | None = None,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> tuple[Spectrum, str | None]:
    """The spectrum of a method that yields nothing for a part of an input, and "interrupted" where it was.

    Groups of inputs are distributed over ``processes``; each has the whole in the end. With ``return_partial`` an
    interrupt returns the inputs that are complete, or ``fallback`` where none is.
    """
    parts: list[Spectrum] = []
    groups = processes.share(operators.groups(inputs_per_group))
    try:
        for inputs in groups:

            def report(done: int, total: int, inputs: range = inputs) -> None:
                progress(inputs.start * total + done * len(inputs), operators.count * total)

            parts.append(run(operators(inputs), seed=seed, first_input=inputs.start, progress=report))
    except KeyboardInterrupt:
        known = join_inputs(parts) if parts else fallback
        if not return_partial or known is None:
            raise
        return known, "interrupted"
    found = processes.gather(list(zip([inputs.start for inputs in groups], parts, strict=True)))
    return join_inputs([part for _, part in sorted(found, key=lambda item: item[0])]), None
