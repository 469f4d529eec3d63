"""The module and operation at which a product stops being finite, from a second recording with module names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .graph import graph_of
from .program import Program, Step
from .recording import record
from .tape import NoRule


def first_nonfinite(
    function: Callable[[Tensor], Tensor],
    point: Tensor,
    module: nn.Module | None,
    block: Tensor,
    *,
    transposed: bool,
) -> str | None:
    """The origin of the first NaN or inf in a product, as "module 'layer.3' (ReLU), operation sqrt"; None if not found.

    Parameters
    ----------
    function, point :
        As recorded.
    module : nn.Module or None
        The module behind the function.
    block : Tensor
        Finite vectors whose products are not.
    transposed : bool
        Whether the products are J^T u; "first" is then counted from the output.
    """
    first: list[str] = []

    def observe(step: Step, made: Tensor) -> None:
        if not first and not bool(torch.isfinite(made).all()):
            edge = step.edge
            kind = type(module.get_submodule(edge.module)).__name__ if module is not None else ""
            where = (
                f"module {edge.module!r} ({kind}), "
                if edge.module
                else (f"the {kind} itself, " if kind else "")
            )
            first.append(f"{where}operation {edge.operation}")

    try:
        with module_names(module) as current_module:
            tape = record(function, point, current_module=current_module)
        shape = point.shape if transposed else tape.output.shape
        program = Program(graph_of(tape), shape, transposed=transposed)
        for vector in block:
            program.observed(vector[None], observe)
            if first:
                return first[0]
    except NoRule:
        return None
    return None


@contextmanager
def module_names(module: nn.Module | None) -> Iterator[Callable[[], str]]:
    """A function that returns the name of the innermost module that is running."""
    running: list[str] = []
    handles = []
    for name, part in module.named_modules() if module is not None else ():

        def enter(_: nn.Module, __: object, name: str = name) -> None:
            running.append(name)

        def leave(_: nn.Module, __: object, ___: object) -> None:
            running.pop()

        handles.append(part.register_forward_pre_hook(enter))
        handles.append(part.register_forward_hook(leave))
    try:
        yield lambda: running[-1] if running else ""
    finally:
        for handle in handles:
            handle.remove()
