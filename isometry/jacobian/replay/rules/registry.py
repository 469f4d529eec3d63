"""The registry of rules: which function gives the linear maps of which aten operation.

A rule takes a recorded operation and returns its links. To add one, write a function in the module of its family and
decorate it with :func:`rule`; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isometry.jacobian.failures import FAILURES_OF_DERIVATIVES, is_out_of_memory
from isometry.jacobian.replay.maps import Differentiated, LinearMap, gather
from isometry.jacobian.replay.tape import NoRule, Operation, cached_by_identity, map_tensors, operation_name


class Link(NamedTuple):
    """A chain of maps from one tensor among the arguments to one output, both by position."""

    source: int
    result: int
    maps: tuple[LinearMap, ...]


Rule = Callable[[Operation], list[Link]]
RULES: dict[str, Rule] = {}
_RULES_BY_TAG: dict[torch.Tag, Rule] = {}
_SHARED: set[Rule] = set()


def rule(*names: str, shared: bool = False) -> Callable[[Rule], Rule]:
    """A decorator that makes a function the rule of the operations named.

    Parameters
    ----------
    names : str
        Of aten operations, without overload and without the underscore of writing in place.
    shared : bool
        Whether the links depend on shapes, options and constants alone, so that operations equal in them share their
        links: ten thousand equal layers pad in the same way.
    """

    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        if shared:
            _SHARED.add(function)
        return function

    return add


def rule_by_tag(tag: torch.Tag) -> Callable[[Rule], Rule]:
    """A decorator that makes a function the rule of all operations with a tag that have no rule by name."""

    def add(function: Rule) -> Rule:
        _RULES_BY_TAG[tag] = function
        return function

    return add


def links(operation: Operation, known: dict[Any, tuple[list[Link], Operation]]) -> list[Link]:
    """The links of one operation: by its rule, or by torch.func where it has none.

    Parameters
    ----------
    operation : Operation
    known : dict
        Cache of shared links; filled here.

    Raises
    ------
    NoRule
        Naming the operation where neither gives them.
    """
    if operation.function is None:
        return [Link(0, 0, (gather(*operation.args),))]
    found = rule_of(operation.function)
    if found is None or _is_complex(operation):
        return _differentiated(operation, NoRule(str(operation.function)))
    try:
        return _by_rule(found, operation, known)
    except NoRule as missing:
        return _differentiated(operation, missing)


def rule_of(function: Any) -> Rule | None:
    """The rule of an aten operation, by its name or a tag; None where its derivative comes from torch.func."""
    found = RULES.get(operation_name(function))
    return found or next((r for tag, r in _RULES_BY_TAG.items() if tag in function.tags), None)


def _is_complex(operation: Operation) -> bool:
    for position in operation.sources:
        if operation.tensors[position].is_complex():
            return True
    return any(output(operation, position).is_complex() for position in operation.used)


def _differentiated(operation: Operation, missing: NoRule) -> list[Link]:
    """A derivative by torch.func for each argument and output; raises ``missing`` where it has none."""
    if torch.Tag.nondeterministic_seeded in operation.function.tags:
        raise missing
    operation.by_torch_func = True
    given, run = tensors(operation), operation.functional()

    def function(position: int, result: int) -> Callable[[Tensor], Tensor]:
        def of(z: Tensor) -> Tensor:
            args, kwargs = map_tensors(
                operation.args, operation.kwargs, lambda p, tensor: z if p == position else tensor.detach()
            )
            made = run(*args, **kwargs)
            return made[result] if isinstance(made, list | tuple) else made

        return of

    try:
        return [
            Link(position, result, (Differentiated(function(position, result), given[position].detach()),))
            for position in operation.sources
            for result in operation.used
        ]
    except FAILURES_OF_DERIVATIVES as error:
        if is_out_of_memory(error):
            raise
        raise missing from error


def _by_rule(found: Rule, operation: Operation, known: dict[Any, tuple[list[Link], Operation]]) -> list[Link]:
    if found not in _SHARED:
        made = found(operation)
        _refuse_dropped_arguments(operation, made)
        return made
    key = _key(operation)
    if key not in known:
        # With the operation, so that the identities in the key stay those of its tensors.
        known[key] = (found(operation), operation)
    return known[key][0]


def _refuse_dropped_arguments(operation: Operation, made: list[Link]) -> None:
    """Raise NoRule where a rule made no map for an argument that autograd differentiates.

    A rule may leave out an argument only where the derivative is zero. Rules with shared links are not asked: they find
    by numbers which entries of which argument an output holds.
    """
    if len(operation.sources) == 1 and made:
        return
    dropped = set(operation.sources) - {link.source for link in made}
    if not dropped:
        return
    leaves: dict[int, Tensor] = {}

    def leaf(position: int, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if position not in dropped:
            return tensor
        leaves[position] = (tensor.clone() if tensor.is_inference() else tensor).requires_grad_()
        return leaves[position]

    args, kwargs = map_tensors(operation.args, operation.kwargs, leaf)
    with torch.enable_grad():
        out = operation.functional()(*args, **kwargs)
        used = [out[p] for p in operation.used] if isinstance(out, list | tuple) else [out]
        ends = [end for end in used if end.requires_grad]
        # Generic weights: the sum of a softmax has no derivative.
        weights = [torch.linspace(1, 2, end.numel()).to(end).view(end.shape) for end in ends]
        gradients = (
            torch.autograd.grad(ends, list(leaves.values()), weights, allow_unused=True) if ends else ()
        )
    if any(gradient is not None and bool((gradient != 0).any()) for gradient in gradients):
        raise NoRule(f"{operation.function} (a rule that drops an argument)")


def _key(operation: Operation) -> tuple[Any, ...]:
    """Equal for operations with the same options, constants and shapes of sources."""
    sources = {id(operation.tensors[position]) for position in operation.sources}

    def token(given: Any) -> Any:
        if isinstance(given, Tensor):
            # Of a source the layout; a constant, and a source that is a constant elsewhere, by its identity.
            is_source = id(given) in sources
            return (given.shape, given.stride(), given.dtype) if is_source else id(given)
        if isinstance(given, list | tuple):
            return tuple(map(token, given))
        # By its text, since 1, 1.0 and True are equal.
        return given if type(given) is int or given is None else repr(given)

    options = tuple(operation.kwargs.items()) if operation.kwargs else ()
    return operation.function, tuple(operation.results), token(operation.args), token(options)


# ---- reading an operation ------------------------------------------------------------------------------


def argument(operation: Operation, name: str, default: Any = None) -> Any:
    """An argument by its name in the schema."""
    if name in operation.kwargs:
        return operation.kwargs[name]
    position, usual = _schema_arguments(operation.function).get(name, (len(operation.args), default))
    return operation.args[position] if position < len(operation.args) else usual


@cached_by_identity
def _schema_arguments(function: Any) -> dict[str, tuple[int, Any]]:
    """Position and default value of each argument."""
    return {
        argument.name: (position, argument.default_value if argument.has_default_value() else None)
        for position, argument in enumerate(function._schema.arguments)
    }


def tensors(operation: Operation) -> list[Tensor]:
    """The tensors among the arguments, in order."""
    return operation.tensors


def output(operation: Operation, result: int) -> Tensor:
    """One output by its position."""
    return operation.output[result] if isinstance(operation.output, list | tuple) else operation.output


def only_argument(operation: Operation) -> Tensor:
    """The first tensor, where it alone depends on the input and only the first output is used.

    Raises
    ------
    NoRule
        Where another argument depends on the input, or another output is used.
    """
    if operation.sources.keys() != {0}:
        raise NoRule(f"{operation.function} (with parameters that depend on the input)")
    require_first_output(operation)
    return tensors(operation)[0]


def require_first_output(operation: Operation) -> None:
    """Raise NoRule where another output than the first is used."""
    if operation.used != [0] and any(operation.used):
        raise NoRule(f"{operation.function} (an output of it beside the first)")
