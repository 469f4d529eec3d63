"""From a function and a point to a replay of its Jacobian: its linear maps, recorded once and applied to blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from isometry.errors import IsometryError, ModelError
from isometry.jacobian.failures import first_line, is_out_of_memory
from isometry.jacobian.reference import (
    NoReference,
    reference_matmat,
    reference_rmatmat,
    sensitivity_of_matmat,
    sensitivity_of_rmatmat,
)
from isometry.jacobian.rounding import (
    UNITS_ALLOWED,
    generic_vectors,
    nonlinearity,
    relative_difference,
    rounding_by_depth,
    with_sum,
)

from .cheaper_convolutions import use_fourier_blocks, use_single_taps
from .check import compare, compare_adjoint
from .cuda_graph import Graphed, capture_on_one_pool
from .fusion import fuse
from .graph import Graph, graph_of
from .program import Program
from .recording import record
from .tape import NoRule, Operation, Tape, flat_tensors

Function = Callable[[Tensor], Tensor]

# Exact for generic vectors, which have two binary digits to spare, and no power of two.
_SCALE = -0.75


@dataclass(frozen=True, eq=False)
class Replay:
    """J v and J^T u of one function at one point.

    Parameters
    ----------
    direct, transposed : Program
        J v, (k, \\*input) -> (k, \\*output), and J^T u.
    parameters : list
        Tensors of the model that the maps hold, with the version that they hold.
    casts : bool
        Whether a value on the way is of a coarser type than the point.
    bytes_per_probe : int
        Peak of memory that values take for each probe, in either product, with room to work; 0 if not measured.
    checked : tuple of Tensor
        (v, J v, u, J^T u) of the random vectors it was checked with; empty if it was not.
    error : float
        How far these products are off, relative: their nonlinearity, and their difference from those of torch.func.
    by_torch_func : tuple of str
        Operations whose derivative is that of torch.func, for want of a rule: slower.
    reached : tuple of Tensor
        Tensors asked for that the recorded run has used.
    """

    direct: Program
    transposed: Program
    parameters: list[tuple[Tensor, int]]
    casts: bool = False
    bytes_per_probe: int = 0
    checked: tuple[Tensor, ...] = ()
    error: float = 0.0
    by_torch_func: tuple[str, ...] = ()
    reached: tuple[Tensor, ...] = ()

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

    Raises
    ------
    NoRule
        Naming the first operation that has no linear map.
    """
    return _from_tape(record(function, point), point, single_taps=single_taps, fourier=fourier)


def _from_tape(tape: Tape, point: Tensor, *, single_taps: bool = True, fourier: bool = True) -> Replay:
    shape, parameters, casts = tape.output.shape, parameters_of(tape.operations), _casts(tape, point.dtype)
    graph = graph_of(tape)
    fuse(graph)
    made = replay_of(graph, point.shape, shape, parameters, single_taps=single_taps, fourier=fourier)
    return replace(made, casts=casts)


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
        by_torch_func=graph.by_torch_func,
    )


def checked_replay(
    function: Function,
    point: Tensor,
    value: Tensor,
    *,
    unit: float | None = None,
    seed: int = 5381,
    on_output: Callable[[Tensor], None] | None = None,
    by_autograd: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    asked_for: Container[int] = (),
) -> Replay:
    """A replay whose products of random vectors are those of torch.func, as far as rounding allows.

    J^T u is compared with ``by_autograd``, or ``vjp`` (plain autograd where that fails), and J v with J^T u by
    <J v, u> = <v, J^T u>. Forward mode, which runs batch-norm in Python and costs more than all of the rest, is asked
    too where evaluations differ. What a comparison leaves open is in ``error``.

    The replay has -3/4 u in place of u: it rounds at other places, so that the same kernels do not hide their rounding,
    and a derivative that depends on the sign of u shows. Vectors with an exact sum measure the rounding further where
    the run makes tensors of a coarser type, or where that comparison finds more than a few units.

    Parameters
    ----------
    function : callable
    point : Tensor
    value : Tensor
        function(point).
    unit : float, optional
        Of rounding; that of the type if not given.
    on_output : callable, optional
        Called with the output of each further evaluation: that of ``vjp``, the one recorded, that of forward mode.
    by_autograd : callable, optional
        J^T u and the output by autograd; the output is ``value`` itself where that evaluation was tracked. By ``vjp``
        if not given.
    asked_for : container of int, optional
        Identities of tensors: those that the recorded run has used are in ``reached``.

    Raises
    ------
    NoRule
        Where something cannot be recorded, or there is nothing to compare with.
    Disagreement
        Where the recorded map is not the Jacobian.
    """
    unit = torch.finfo(value.dtype).eps if unit is None else unit
    observe = on_output or (lambda _: None)
    (v, w), (u, t) = generic_vectors(point, 2, seed), generic_vectors(value, 2, seed + 1)
    try:
        expected, output = reference_rmatmat(function, point, u) if by_autograd is None else by_autograd(u)
    except NoReference as missing:
        raise NoRule(str(missing)) from missing
    if output is not value:
        observe(output)
    with _failures_are_no_rules():
        tape = record(function, point, asked_for=asked_for)
    observe(tape.output.detach())
    if output is value and not torch.equal(tape.output, value):
        # In a new process the first evaluation may differ from all others by the order of its sums.
        expected, output = reference_rmatmat(function, point, u)
        observe(output)
    depth = rounding_by_depth(len(tape.operations), unit)
    with _failures_are_no_rules():
        replay = _from_tape(tape, point)
        forward, direct_bytes = replay.direct.with_peak_bytes(v[None])
        scaled, scaled_expected = _SCALE * u, _SCALE * expected.double()
        reverse, transposed_bytes = replay.transposed.with_peak_bytes(scaled[None])
        jv, jtu = forward[0], reverse[0]
        nonlinear = 0.0
        if replay.casts:
            sums = replay.direct(with_sum(v, w)), replay.transposed(with_sum(u, t))
            nonlinear = max(map(nonlinearity, sums))
        elif relative_difference(jtu, scaled_expected) > UNITS_ALLOWED * unit:
            # Of the same sign: what depends on the sign is no rounding.
            nonlinear = relative_difference(-_SCALE * replay.transposed(-u[None])[0].double(), jtu)
    of_jtu = partial(sensitivity_of_rmatmat, function, point, u, expected)
    # Evaluations that differ by rounding have Jacobians that do.
    allowed = max(nonlinear, relative_difference(tape.output, output))
    error = max(depth, nonlinear, compare("J^T u", jtu, scaled_expected, unit, allowed, of_jtu))
    difference = compare_adjoint(v, jv, scaled, jtu, unit, 2 * allowed, of_jtu)
    # Of an error in a generic direction, <J v, u> shows one part in sqrt(m).
    error = max(error, 2 * difference * math.sqrt(value.numel()))
    repeats = torch.equal(tape.output, output) and torch.equal(value, output)
    tangent = None if repeats else reference_matmat(function, point, v)
    if tangent is not None:
        observe(tangent[1])
        allowed = max(nonlinear, relative_difference(tape.output, tangent[1]))
        of_jv = partial(sensitivity_of_matmat, function, point, v, jv)
        error = max(error, compare("J v", jv, tangent[0], unit, allowed, of_jv))
    return replace(
        replay, bytes_per_probe=max(transposed_bytes, direct_bytes), checked=(v, jv, scaled, jtu), error=error,
        reached=tuple(tape.reached),
    )  # fmt: skip


@contextmanager
def _failures_are_no_rules() -> Iterator[None]:
    """Errors that PyTorch raises in a rule become NoRule; ours, and lack of memory, pass."""
    try:
        yield
    except (NoRule, IsometryError):
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        raise NoRule(f"a rule that fails ({type(error).__name__}: {first_line(error)[:120]})") from error


def _casts(tape: Tape, dtype: torch.dtype) -> bool:
    """Whether an operation on the tape makes a tensor of a coarser type than ``dtype``."""
    outputs = [flat_tensors((operation.output,), {}) for operation in tape.operations]
    kinds = {made.dtype for several in outputs for made in several}
    coarse = torch.finfo(dtype).eps
    return any(kind.is_floating_point and torch.finfo(kind).eps > coarse for kind in kinds)


def parameters_of(operations: Sequence[Operation]) -> list[tuple[Tensor, int]]:
    """The arguments that do not depend on the input (parameters, views of them, masks), with their versions."""
    found: dict[int, Tensor] = {}
    for operation in operations:
        for position, tensor in enumerate(operation.tensors):
            if position not in operation.sources and not tensor.is_inference():
                found[id(tensor)] = tensor
    return [(tensor, tensor._version) for tensor in found.values()]
