"""From a function and a point to a replay of its Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from isometry.errors import ModelError

from .check import compare, compare_adjoint, reference_pull, reference_push, rounding_of
from .cuda_graph import Graphed, capture_on_one_pool
from .graph import build
from .program import Program
from .recording import NoRule, Tape, flat_tensors, record

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Replay:
    """J v and J^T u of one function at one point.

    Parameters
    ----------
    forward, reverse : Program
        (k, \\*input) -> (k, \\*output) and back.
    parameters : list
        Tensors of the model that the maps hold, with the version that they hold.
    bytes_per_probe : int
        Most memory that values take at once for each probe, in either direction, with room to work; 0 if not measured.
    pair : tuple of Tensor
        (v, J v, u, J^T u) of the random vectors, of whole numbers, it was checked with; empty if it was not.
    """

    forward: Program
    reverse: Program
    parameters: list[tuple[Tensor, int]]
    bytes_per_probe: int = 0
    pair: tuple[Tensor, ...] = ()

    def push(self, v: Tensor) -> Tensor:
        """J v."""
        self._refuse_changes()
        return self._graphs[0](v) if v.device.type == "cuda" else self.forward(v)

    def pull(self, u: Tensor) -> Tensor:
        """J^T u."""
        self._refuse_changes()
        return self._graphs[1](u) if u.device.type == "cuda" else self.reverse(u)

    @cached_property
    def _graphs(self) -> tuple[Graphed, Graphed]:
        """Both products on a GPU, where launching the kernels one by one takes longer than small ones run."""
        capture = capture_on_one_pool()
        return Graphed(self.forward, capture), Graphed(self.reverse, capture)

    def _refuse_changes(self) -> None:
        for tensor, version in self.parameters:
            if tensor._version != version:
                raise ModelError(
                    "a parameter of the model has changed since its Jacobian was linearised: make a new operator"
                )


def linearise(
    function: Function,
    point: Tensor,
    *,
    one_tap: bool = True,
    fourier: bool = True,
    look: Callable[[Tensor], None] = lambda _: None,
) -> Replay:
    """Record ``function`` at ``point`` and make both products of its Jacobian, untested.

    Parameters
    ----------
    function : callable
    point : Tensor
    one_tap : bool
        Whether convolutions whose kernel has a single tap that is not zero leave the others out.
    fourier : bool
        Whether circular convolutions of small maps are multiplied frequency by frequency.
    look : callable, optional
        Called with the output of the run that is recorded; what it raises is raised.

    Raises
    ------
    NoRule
        Naming the first operation that has no linear map.
    """
    tape = record(function, point)
    look(tape.output.detach())
    shape, parameters = tape.output.shape, _parameters(tape)
    graph = build(tape, one_tap=one_tap, fourier=fourier)
    return Replay(
        Program(graph, shape, transposed=False),
        Program(graph, point.shape, transposed=True),
        parameters,
    )


def checked_replay(
    function: Function,
    point: Tensor,
    value: Tensor,
    *,
    unit: float | None = None,
    seed: int = 5381,
    look: Callable[[Tensor], None] = lambda _: None,
) -> Replay:
    """A replay whose products of random vectors are those of torch.func, within 1000 units of rounding.

    J^T u is held against ``vjp`` (plain autograd where that fails), J v against ``jvp``, or, where an operation has no
    forward-mode formula, against J^T u by <J v, u> = <v, J^T u>.

    Parameters
    ----------
    function : callable
    point : Tensor
    value : Tensor
        function(point).
    unit : float, optional
        Of rounding; that of the type if not given.
    look : callable, optional
        Called with function(point) as it was when it was recorded, a second evaluation; what it raises is raised.

    Raises
    ------
    NoRule
        Where something cannot be recorded, or there is nothing to test it against.
    Disagreement
        Where the recorded map is not the Jacobian.
    """
    unit = torch.finfo(value.dtype).eps if unit is None else unit
    generator = torch.Generator().manual_seed(seed)
    # Odd whole numbers: none is zero, and sums with other whole numbers are not rounded.
    v, u = (
        (2 * torch.randint(-64, 64, like.shape, generator=generator) + 1).to(like) for like in (point, value)
    )
    return _checked(function, point, u, v, unit, seed, look)


def _checked(
    function: Function,
    point: Tensor,
    u: Tensor,
    v: Tensor,
    unit: float,
    seed: int,
    look: Callable[[Tensor], None],
) -> Replay:
    pulled = reference_pull(function, point, u)
    try:
        replay = linearise(function, point, look=look)
        (jtu,), reverse_bytes = replay.reverse.measured(u[None])
        (jv,), forward_bytes = replay.forward.measured(v[None])
    except NoRule:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        text = str(error).split("\n", 1)[0][:120]
        raise NoRule(f"a rule that fails ({type(error).__name__}: {text})") from error
    compare("J^T u", jtu, pulled, unit, partial(rounding_of, replay.reverse, u, jtu, seed))
    pushed = reference_push(function, point, v)
    if pushed is None:
        compare_adjoint(v, jv, u, jtu, unit)
    else:
        compare("J v", jv, pushed, unit, partial(rounding_of, replay.forward, v, jv, seed))
    return replace(replay, bytes_per_probe=max(reverse_bytes, forward_bytes), pair=(v, jv, u, jtu))


def _parameters(tape: Tape) -> list[tuple[Tensor, int]]:
    """What the tape holds that does not depend on the input: parameters, views of them, masks."""
    found: dict[int, Tensor] = {}
    for operation in tape.operations:
        for position, tensor in enumerate(flat_tensors(operation.args, operation.kwargs)):
            if position not in operation.sources and not tensor.is_inference():
                found[id(tensor)] = tensor
    return [(tensor, tensor._version) for tensor in found.values()]
