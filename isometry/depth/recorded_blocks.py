"""The blocks of a recorded model: its segments, grouped by the calls of modules that they ran in. Internal.

Several segments make a block where they ran in one call. By default that is the call of a module with paths side by
side: a transformer layer with both its residual sums and its norms, a block of a ResNet with the ReLU behind its sum. A
module that holds two or more of those, and the model itself, is opened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from isometry.errors import InputError, ModelError
from isometry.jacobian import JacobianSegment, JacobianSegments, ModuleCall

Stack = tuple[ModuleCall, ...]


@dataclass(frozen=True)
class RecordedBlock:
    """Successive segments that count as one: those with numbers start, ..., stop - 1."""

    name: str
    kind: str
    start: int
    stop: int


def recorded_blocks(
    chain: JacobianSegments, matches: Callable[[str], object] | None = None
) -> list[RecordedBlock]:
    """The blocks of a recorded model, first one first.

    Parameters
    ----------
    chain : JacobianSegments
    matches : callable, optional
        Whether a module of this name is a block; what lies between two of them is another. By default see above.

    Raises
    ------
    ModelError
        Where none of the modules that match lies between two cuts.
    """
    segments = chain.segments
    calls = _matching_calls(segments, matches) if matches is not None else _usual_calls(segments)
    found: list[RecordedBlock] = []
    names: Counter[str] = Counter()
    start = 0
    for _, group in groupby(range(len(segments)), key=lambda number: _key(calls[number], number, matches)):
        stop = start + len(list(group))
        call = calls[start]
        name, kind = (
            (_name(call, chain), call.kind) if call is not None else _described(segments[start:stop], chain)
        )
        names[name] += 1
        found.append(
            RecordedBlock(name if names[name] == 1 else f"{name} ({names[name]})", kind, start, stop)
        )
        start = stop
    return found


def _key(call: ModuleCall | None, number: int, matches: Callable[[str], object] | None) -> object:
    """What successive segments of one block have in common."""
    if call is not None or matches is not None:
        return call
    return number


def _usual_calls(segments: Sequence[JacobianSegment]) -> list[ModuleCall | None]:
    """The call that each segment counts with; None for one that is a block of its own."""
    # What is done before the model runs, as cutting joined inputs apart, is in no call.
    stacks = (stack for segment in segments for stack in segment.stacks)
    model = next((stack[0] for stack in stacks if stack), None)
    branched = {
        segment.calls[-1]: segment.calls
        for segment in segments
        if len(segment.stacks) > 1 and segment.calls and segment.calls[-1] != model
    }
    # Of how many calls with paths side by side each is the innermost around.
    held = Counter(
        next((call for call in reversed(stack[:-1]) if call in branched), None) for stack in branched.values()
    )
    opened = {call for call in branched if held[call] > 1} | {model}
    found: list[ModuleCall | None] = []
    for segment in segments:
        outermost = next((call for call in segment.calls if call in branched and call not in opened), None)
        innermost = segment.calls[-1] if segment.calls and len(segment.stacks) == 1 else None
        found.append(outermost or (innermost if innermost not in opened else None))
    return found


def _matching_calls(
    segments: Sequence[JacobianSegment], matches: Callable[[str], object]
) -> list[ModuleCall | None]:
    """The outermost call that matches, of each segment that ran in one such call and, beside it, in none.

    A module that only holds others, as a ModuleList, is called with each of them.
    """

    def outermost(stack: Stack) -> ModuleCall | None:
        for call in stack:
            parts = call.name.split(".")
            holders = (".".join(parts[:length]) for length in range(1, len(parts)))
            holder = next((name for name in holders if matches(name)), None)
            if holder is not None:
                return ModuleCall(holder, 1, "modules")
            if call.name and matches(call.name):
                return call
        return None

    calls = [{outermost(stack) for stack in segment.stacks} - {None} for segment in segments]
    if not any(len(found) == 1 for found in calls):
        names = sorted({call.name for found in calls for call in found if call is not None})
        if not names:
            raise InputError("no module that matches blocks= runs on this input")
        raise ModelError(
            f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''} cannot be measured as blocks: other paths from "
            "the input to the output pass beside them. Name modules around them by blocks="
        )
    return [found.pop() if len(found) == 1 else None for found in calls]


def _name(call: ModuleCall, chain: JacobianSegments) -> str:
    return call.name if chain.times_called(call.name) <= 1 else f"{call.name} (call {call.number})"


def _described(segments: Sequence[JacobianSegment], chain: JacobianSegments) -> tuple[str, str]:
    """Name and kind of segments that ran in several calls, or in the model itself."""
    common = segments[0].calls
    for segment in segments:
        common = tuple(call for call in common if call in segment.calls)
    inside = list(dict.fromkeys(_inside(segments, len(common))))
    if not inside and common and common[-1].name:
        return _name(common[-1], chain), common[-1].kind
    if not inside:
        operations = list(dict.fromkeys(name for segment in segments for name in segment.operations))
        return _listed(operations), "function"
    first, last = _name(inside[0], chain), _name(inside[-1], chain)
    return first if first == last else f"{first} to {last}", _listed([call.kind for call in inside])


def _inside(segments: Sequence[JacobianSegment], depth: int) -> Iterator[ModuleCall]:
    for segment in segments:
        for stack in segment.stacks:
            # The model itself has no name.
            named = next((call for call in stack[depth:] if call.name), None)
            if named is not None:
                yield named


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(texts[:3]) + (", ..." if len(texts) > 3 else "")
