"""From a function and a point to a replay of its Jacobian: its linear maps, recorded once and applied to blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from isometry.errors import ModelError

from .cheaper_convolutions import use_fourier_blocks, use_single_taps
from .check import compare, compare_adjoint, reference_matmat, reference_rmatmat, rounding_of
from .cuda_graph import Graphed, capture_on_one_pool
from .fusion import fuse
from .graph import Graph, graph_of
from .program import Program
from .recording import record
from .tape import NoRule, Tape, flat_tensors

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Replay:
    """J v and J^T u of one function at one point.

    Parameters
    ----------
    direct, transposed : Program
        J v, (k, \\*input) -> (k, \\*output), and J^T u.
    parameters : list
        Tensors of the model that the maps hold, with the version that they hold.
    bytes_per_probe : int
        Peak of memory that values take for each probe, in either product, with room to work; 0 if not measured.
    checked : tuple of Tensor
        (v, J v, u, J^T u) of the random vectors, of whole numbers, it was checked with; empty if it was not.
    """

    direct: Program
    transposed: Program
    parameters: list[tuple[Tensor, int]]
    bytes_per_probe: int = 0
    checked: tuple[Tensor, ...] = ()

    def matmat(self, v: Tensor) -> Tensor:
        """J v for a block."""
        self._refuse_changes()
        return self._graphs[0](v) if v.device.type == "cuda" else self.direct(v)

    def rmatmat(self, u: Tensor) -> Tensor:
        """J^T u for a block."""
        self._refuse_changes()
        return self._graphs[1](u) if u.device.type == "cuda" else self.transposed(u)

    @cached_property
    def _graphs(self) -> tuple[Graphed, Graphed]:
        """Both products on a GPU, where launching the kernels one by one takes longer than small ones run."""
        capture = capture_on_one_pool()
        return Graphed(self.direct, capture), Graphed(self.transposed, capture)

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
    single_taps: bool = True,
    fourier: bool = True,
    on_output: Callable[[Tensor], None] | None = None,
) -> Replay:
    """The replay of the Jacobian of ``function`` at ``point``, unchecked.

    Parameters
    ----------
    function : callable
    point : Tensor
    single_taps : bool
        Whether convolutions whose kernel has a single tap that is not zero leave the others out.
    fourier : bool
        Whether circular convolutions of small maps are multiplied frequency by frequency.
    on_output : callable, optional
        Called with the output of the run that is recorded; its exceptions pass.

    Raises
    ------
    NoRule
        Naming the first operation that has no linear map.
    """
    tape = record(function, point)
    if on_output is not None:
        on_output(tape.output.detach())
    shape, parameters = tape.output.shape, parameters_of(tape)
    graph = graph_of(tape)
    fuse(graph)
    return replay_of(graph, point.shape, shape, parameters, single_taps=single_taps, fourier=fourier)


def replay_of(
    graph: Graph,
    input_shape: Sequence[int],
    output_shape: Sequence[int],
    parameters: list[tuple[Tensor, int]],
    *,
    single_taps: bool = True,
    fourier: bool = True,
) -> Replay:
    """The replay of a fused graph between values of these shapes; its convolutions are made cheaper in place."""
    if single_taps:
        use_single_taps(graph)
    if fourier:
        use_fourier_blocks(graph)
    return Replay(
        Program(graph, output_shape, transposed=False),
        Program(graph, input_shape, transposed=True),
        parameters,
    )


def checked_replay(
    function: Function,
    point: Tensor,
    value: Tensor,
    *,
    unit: float | None = None,
    seed: int = 5381,
    on_output: Callable[[Tensor], None] | None = None,
) -> Replay:
    """A replay whose products of random vectors are those of torch.func, within 1000 units of rounding.

    J^T u is compared with ``vjp`` (plain autograd where that fails), J v with ``jvp``, or, where an operation has no
    forward-mode formula, with J^T u by <J v, u> = <v, J^T u>.

    Parameters
    ----------
    function : callable
    point : Tensor
    value : Tensor
        function(point).
    unit : float, optional
        Of rounding; that of the type if not given.
    on_output : callable, optional
        Called with the output of the run that is recorded, a second evaluation; its exceptions pass.

    Raises
    ------
    NoRule
        Where something cannot be recorded, or there is nothing to compare with.
    Disagreement
        Where the recorded map is not the Jacobian.
    """
    unit = torch.finfo(value.dtype).eps if unit is None else unit
    generator = torch.Generator().manual_seed(seed)
    # Odd whole numbers: none is zero, and sums with other whole numbers are not rounded.
    v, u = (
        (2 * torch.randint(-64, 64, like.shape, generator=generator) + 1).to(like) for like in (point, value)
    )
    expected = reference_rmatmat(function, point, u)
    try:
        replay = linearise(function, point, on_output=on_output)
        (jtu,), transposed_bytes = replay.transposed.with_peak_bytes(u[None])
        (jv,), direct_bytes = replay.direct.with_peak_bytes(v[None])
    except NoRule:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        text = str(error).split("\n", 1)[0][:120]
        raise NoRule(f"a rule that fails ({type(error).__name__}: {text})") from error
    compare("J^T u", jtu, expected, unit, partial(rounding_of, replay.transposed, u, jtu, seed))
    tangent = reference_matmat(function, point, v)
    if tangent is None:
        compare_adjoint(v, jv, u, jtu, unit)
    else:
        compare("J v", jv, tangent, unit, partial(rounding_of, replay.direct, v, jv, seed))
    return replace(replay, bytes_per_probe=max(transposed_bytes, direct_bytes), checked=(v, jv, u, jtu))


def parameters_of(tape: Tape) -> list[tuple[Tensor, int]]:
    """The tensors on the tape that do not depend on the input (parameters, views of them, masks), with versions."""
    found: dict[int, Tensor] = {}
    for operation in tape.operations:
        for position, tensor in enumerate(flat_tensors(operation.args, operation.kwargs)):
            if position not in operation.sources and not tensor.is_inference():
                found[id(tensor)] = tensor
    return [(tensor, tensor._version) for tensor in found.values()]
