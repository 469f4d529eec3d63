"""The blocks of a sequential network: children, layers of a reference network, or modules by a pattern. Internal."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from isometry.depth.chain import Function, Step, steps_of
from isometry.errors import InputError, ModelError
from isometry.nn.network import Network


@dataclass(frozen=True)
class Block:
    """Layers that count as one.

    Parameters
    ----------
    name : str
        Of the module, or "FIRST to LAST" for the layers between two blocks.
    kind : str
        Class of the module, or those of the layers.
    function : callable
        Tensor -> Tensor.
    module : str or None
        Name of the module that ends the block, None where no single module is the block.
    """

    name: str
    kind: str
    function: Function
    module: str | None


def blocks_of(model: nn.Module, pattern: str | None = None) -> list[Block]:
    """The blocks of a chain, first one first.

    Parameters
    ----------
    model : nn.Module
        `torch.nn.Sequential`, nested as well, or a reference network of `isometry.nn`.
    pattern : str, optional
        Regular expression: a module whose whole name matches it is a block, and what lies between two of them is
        another. By default the children of a Sequential, or stem, layers and head of a reference network.

    Raises
    ------
    ModelError
        When the model is no chain of layers.
    InputError
        When the pattern is no regular expression or matches no module.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    names = frozenset(_usual_blocks(model) if pattern is None else _matching(pattern, list(modules)))
    try:
        walked = list(steps_of("", model, names))
    except ModelError as error:
        raise ModelError(
            f"the blocks of this model cannot be measured one by one: {error}. Where its order is known to you, name "
            "the parts that are no chains by blocks=, a regular expression (--blocks), or measure between two modules "
            "with source= and target="
        ) from error
    found: list[Block] = []
    between: list[Step] = []
    for step in walked:
        if step.name in names:
            found += _joined(between)
            between = []
            found.append(Block(step.name, type(modules[step.name]).__name__, step.function, step.name))
        else:
            between.append(step)
    found += _joined(between)
    if not names:
        what = "one module whose inside is not known" if found else "empty"
        raise ModelError(
            f"this {type(model).__name__} is {what}: there are no blocks to measure. Build it as torch.nn.Sequential "
            "of its layers"
        )
    return found


def block_pattern(model: object, pattern: str | None) -> Callable[[str], object] | None:
    """Whether a module of a name is a block, None without a pattern.

    Raises
    ------
    InputError
        Where the pattern is no regular expression or matches no module of the model.
    """
    if pattern is None:
        return None
    named = list(model.named_modules(remove_duplicate=False)) if isinstance(model, nn.Module) else []
    names = set(_matching(pattern, [name for name, _ in named]))
    # A module with several names runs under its first.
    chosen = {id(module) for name, module in named if name in names}
    return frozenset(name for name, module in named if id(module) in chosen).__contains__


def _usual_blocks(model: nn.Module) -> list[str]:
    if isinstance(model, Network):
        ends = {"stem": model.stem, "head": model.head}
        trunk = [f"trunk.{name}" for name in model.trunk._modules]
        return [*trunk, *(name for name, module in ends.items() if module is not None)]
    # A child that stands in a chain twice is a block twice, where `named_children` has it once.
    return list(model._modules)


def _matching(pattern: str, known: Sequence[str]) -> list[str]:
    try:
        matches = re.compile(pattern).fullmatch
    except re.error as error:
        raise InputError(f"blocks={pattern!r} is no regular expression: {error}") from error
    names = [name for name in known if name and matches(name)]
    if not names:
        raise InputError(
            f"no module's whole name matches blocks={pattern!r}; there are {', '.join(known[1:9]) or 'none'}"
            + (", ..." if len(known) > 9 else "")
        )
    return names


def _joined(steps: Sequence[Step]) -> list[Block]:
    """The layers between two blocks as one of its own."""
    if not steps:
        return []
    functions = [step.function for step in steps]

    def function(z: Tensor) -> Tensor:
        for one in functions:
            z = one(z)
        return z

    first, last = steps[0].name, steps[-1].name
    kinds = [type(step.module).__name__ if step.module is not None else step.name for step in steps]
    name = first if first == last else f"{first} to {last}"
    return [Block(name, ", ".join(kinds[:3]) + (", ..." if len(kinds) > 3 else ""), function, None)]
