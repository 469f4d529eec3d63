"""The part of a model between two named modules: a tensor put into ``source``, and the value that leaves ``target``."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from isometry.errors import InputError, IsometryError

from .failures import failed_call

Run = Callable[[], Any]


class _Reached(Exception):
    """Ends a run of the model at a module, with the value wanted."""

    def __init__(self, value: Any) -> None:
        self.value = value


def named_module(module: nn.Module | None, name: str | None) -> nn.Module | None:
    """The module of that name, None for no name; raises InputError with the nearest names where there is none."""
    if name is None:
        return None
    modules = dict(module.named_modules()) if module is not None else {}
    if name not in modules:
        near = get_close_matches(name, modules, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else "named_layers(model, x) lists them"
        raise InputError(f"the model has no module named {name!r}; {hint}")
    return modules[name]


def tensor_entering(run: Run, module: nn.Module, name: str, inputs: str) -> Tensor:
    """The first floating tensor that enters a module when the model runs on ``inputs``, which are described so."""

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = _first_tensor(args, kwargs)
        if found is None:
            raise InputError(f"no real floating tensor enters module {name!r}; choose another source=")
        raise _Reached(found[1])

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.no_grad():
            run()
    except _Reached as reached:
        return reached.value.detach().clone()
    except IsometryError:
        raise
    except Exception as error:
        raise failed_call(error, inputs) from error
    finally:
        handle.remove()
    raise InputError(
        f"module {name!r} is not called when the model runs on this input; choose another source="
    )


def run_between(
    run: Run,
    source: nn.Module | None,
    entering: Tensor | None,
    target: nn.Module | None,
    target_name: str | None,
) -> Any:
    """The value that leaves ``target`` when the model runs with ``entering`` put into ``source``.

    Without ``source`` nothing is put anywhere; without ``target`` it is the value of the model. A module that is called
    several times counts with its first call.
    """
    handles = []
    entered = source is None
    if source is not None:

        def put(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            nonlocal entered
            found = _first_tensor(args, kwargs)
            if entered or found is None or entering is None:
                return None
            entered = True
            where = found[0]
            if isinstance(where, int):
                return (*args[:where], entering.clone(), *args[where + 1 :]), kwargs
            return args, {**kwargs, where: entering.clone()}

        handles.append(source.register_forward_pre_hook(put, with_kwargs=True))
    if target is not None:

        def stop(_: nn.Module, args: Any, value: Any) -> None:
            if not entered:
                raise InputError(
                    f"module {target_name!r} (target) runs before the source; exchange them or choose others"
                )
            raise _Reached(value)

        handles.append(target.register_forward_hook(stop))
    try:
        value = run()
    except _Reached as reached:
        return reached.value
    finally:
        for handle in handles:
            handle.remove()
    if target is not None:
        raise InputError(f"module {target_name!r} is not called on this input; choose another target=")
    return value


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str | int, Tensor] | None:
    """The first floating tensor among a module's arguments, with its position or name."""
    arguments: list[tuple[str | int, Any]] = [*enumerate(args), *kwargs.items()]
    for where, value in arguments:
        if isinstance(value, Tensor) and value.is_floating_point():
            return where, value
    return None
