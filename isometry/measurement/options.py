"""The options of `measure` that belong to its method, its goal, its operator or its run. Internal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from typing import Any, TypedDict

from isometry.errors import InputError
from isometry.jacobian import JacobianOperator, Output, Wrt
from isometry.measurement.methods import Method, named_method
from isometry.measurement.stopping import Goal


class OperatorOptions(TypedDict, total=False):
    """Keywords of :class:`isometry.JacobianOperator` beside those that every measurement names itself."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any] | None
    wrt: Wrt
    source: str | None
    target: str | None
    output: Output
    products: str | None
    tf32: bool


class MeasureOptions(OperatorOptions, total=False):
    """Keywords of :func:`isometry.measure`, where they are documented; None is as good as left out."""

    # Of the method.
    probes: int | None
    steps: int | None
    top: int | None
    tol: float | None
    rank: int | None
    probe: str | None
    # Of the goal.
    rtol: float | None
    quantity: str | None
    budget: int | str | None
    # Of the run.
    on_interrupt: str
    shared: bool


_OF_METHOD = ("probes", "steps", "top", "tol", "rank", "probe")
_OF_GOAL = ("rtol", "quantity", "budget")
_OF_OPERATOR = tuple(OperatorOptions.__annotations__)
# Recorded as options; probes, steps and probe stand apart in the provenance, and the operator has its own.
_RECORDED = ("top", "rank", "tol", *_OF_GOAL)


def given_options(options: Mapping[str, Any], function: Callable[..., Any]) -> dict[str, Any]:
    """The options that were given: without None and False.

    Raises
    ------
    TypeError
        For a name that is neither an option nor a parameter of the function, with the names that are near it.
    """
    known = list(MeasureOptions.__annotations__)
    for name in options:
        if name not in known:
            near = get_close_matches(name, [*known, *signature(function).parameters], n=3, cutoff=0.6)
            hint = f"did you mean {' or '.join(near)}?" if near else f"the options are {', '.join(known)}"
            raise TypeError(f"{function.__name__}() got an unexpected keyword argument {name!r}: {hint}")
    return {name: value for name, value in options.items() if value is not None and value is not False}


def method_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that belong to the method."""
    return {name: options[name] for name in _OF_METHOD if name in options}


def operator_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that belong to the operator."""
    return {name: options[name] for name in _OF_OPERATOR if name in options}


def requested_method(method: str | Method, options: Mapping[str, Any]) -> Method | None:
    """The method asked for, by its name and options or as an object; None for "auto"."""
    if isinstance(method, str):
        return named_method(method, method_options(options))
    if not isinstance(method, Method):
        raise InputError(
            f"method is a name or an object such as isometry.measurement.Lanczos(probes=32); got {method!r}"
        )
    _refuse(method_options(options), f"the method: {type(method).__name__}(...)")
    return method


def requested_goal(goal: Goal | None, options: Mapping[str, Any]) -> Goal | None:
    """The goal asked for, as an object or by its options; None where the work is given by probes and steps."""
    if goal is None:
        return Goal.of(options.get("rtol"), options.get("quantity"), options.get("budget"))
    if not isinstance(goal, Goal):
        raise InputError(f"goal is an isometry.measurement.Goal; got {goal!r}")
    _refuse({name: options[name] for name in _OF_GOAL if name in options}, "the goal: Goal(...)")
    if goal.rtol is None and goal.budget is None:
        raise InputError(f"{goal} asks for nothing: give it rtol or budget")
    return goal


def refuse_operator_options(options: Mapping[str, Any]) -> None:
    """Raise InputError where options of the operator are given beside a ready one."""
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    _refuse(given, "the operator: JacobianOperator(...)")


def _refuse(options: Mapping[str, Any], owner: str) -> None:
    if options:
        names = " and ".join(options)
        verb = "belongs" if len(options) == 1 else "belong"
        raise InputError(f"{names} {verb} to {owner}")


def recorded_options(
    operator: JacobianOperator, options: Mapping[str, Any], method: str | Method, goal: Goal | None
) -> dict[str, Any]:
    """What the provenance records of the options, given by keyword or on an object."""
    made_with = ("batched", "wrt", "source", "target", "output", "memory_limit")
    found = {name: operator.options[name] for name in made_with}
    found["tf32"] = operator.options["tf32"] or None
    found["products"] = "reverse" if operator.options["products"] == "reverse" else None
    for given in (goal, None if isinstance(method, str) else method):
        found |= {name: getattr(given, name) for name in _RECORDED if hasattr(given, name)}
    return found | {name: options[name] for name in _RECORDED if name in options}
