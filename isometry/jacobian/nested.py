"""Tensors in nested containers, named by their paths: ``decoder.0.logits``.

A path is the keys, positions and names of attributes from the outside to the inside, joined by dots.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

# So many paths are listed in a message.
_LISTED = 12
# Containers are opened so deep, other objects only near the outside: they may lead anywhere.
_CONTAINER_DEPTH, _OBJECT_DEPTH = 20, 2


def tensors_by_path(
    value: Any, path: str = "", *, objects: bool = True, depth: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a value with its path; ``path`` is that of the value.

    With ``objects`` also those in the attributes of objects that are no containers.
    """
    if isinstance(value, Tensor):
        yield path, value
    elif depth < (_CONTAINER_DEPTH if is_container(value) else _OBJECT_DEPTH * objects):
        for key, held in _entries(value):
            inside = f"{path}.{key}" if path else str(key)
            yield from tensors_by_path(held, inside, objects=objects, depth=depth + 1)


def is_container(value: Any) -> bool:
    """Whether :func:`with_tensors` looks into it."""
    return isinstance(value, Mapping | list | tuple | deque) or (
        dataclasses.is_dataclass(value) and not isinstance(value, type)
    )


def with_tensors(value: Any, change: Callable[[str, Tensor], Tensor], path: str = "") -> Any:
    """The value with every tensor in mappings, tuples, lists and dataclasses replaced by ``change(path, tensor)``.

    Containers are made anew; any other object is passed on as it is.
    """
    if isinstance(value, Tensor):
        return change(path, value)
    if not is_container(value):
        return value
    made = {
        key: with_tensors(held, change, f"{path}.{key}" if path else str(key))
        for key, held in _entries(value)
    }
    if isinstance(value, Mapping):
        return _mapping_like(value, made)
    if isinstance(value, list | deque):
        copied = copy.copy(value)
        for position, held in enumerate(made.values()):
            copied[position] = held
        return copied
    if isinstance(value, tuple):
        return _tuple_like(value, list(made.values()))
    fields = {field.name for field in dataclasses.fields(value) if field.init}
    return dataclasses.replace(value, **{name: held for name, held in made.items() if name in fields})


def element(value: Any, path: str | int) -> Any:
    """What lies in a value at a path.

    Raises
    ------
    KeyError
        Where nothing does.
    """
    if isinstance(path, int):
        return _entry(value, path)
    # A key may hold dots itself: the longest first.
    parts = path.split(".")
    for stop in range(len(parts), 0, -1):
        try:
            held = _entry(value, ".".join(parts[:stop]))
            return held if stop == len(parts) else element(held, ".".join(parts[stop:]))
        except KeyError:
            continue
    raise KeyError(path)


def listed(value: Any) -> str:
    """The kind of a value, and the paths and shapes of the tensors in it."""
    kind = type(value).__name__
    found = list(tensors_by_path(value))
    if not found or isinstance(value, Tensor):
        return f"a {kind}"
    texts = [f"{path} {tuple(tensor.shape)}" for path, tensor in found[:_LISTED]]
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return f"a {kind} with {', '.join(texts)}{more}"


def _entries(value: Any) -> Iterator[tuple[Any, Any]]:
    """Keys and values of a mapping, positions or names and items of a sequence, names and values of attributes."""
    if isinstance(value, Mapping):
        yield from [(key, value[key]) for key in value]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from zip(value._fields, value, strict=True)
    elif isinstance(value, list | tuple | deque):
        yield from enumerate(list(value))
    elif is_container(value):
        yield from ((field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value))
    elif hasattr(value, "__dict__") and not callable(value):
        yield from ((name, held) for name, held in vars(value).items() if not name.startswith("_"))


def _entry(value: Any, key: str | int) -> Any:
    """One entry of a container or an attribute of an object, by its key, position or name; KeyError without it."""
    if isinstance(value, Tensor):
        raise KeyError(key)
    position = int(key) if isinstance(key, int) or re.fullmatch("-?[0-9]+", key) else None
    if isinstance(value, Mapping):
        # By its keys first: "values" and "items" are names of methods as well.
        for known in (key, position):
            if known is not None and known in value:
                return value[known]
    if position is not None and not isinstance(value, Mapping):
        try:
            return value[position]
        except (IndexError, TypeError) as error:
            raise KeyError(key) from error
    if isinstance(key, str) and hasattr(value, key):
        return getattr(value, key)
    if position is not None and hasattr(value, "to_tuple"):
        # Outputs of transformers are tuples as well.
        try:
            return value.to_tuple()[position]
        except IndexError as error:
            raise KeyError(key) from error
    raise KeyError(key)


def _mapping_like(value: Mapping[Any, Any], made: dict[Any, Any]) -> Any:
    try:
        copied: Any = copy.copy(value)
        for key, held in made.items():
            copied[key] = held
    except TypeError:
        # One that cannot be written to.
        return made
    return copied


def _tuple_like(value: tuple[Any, ...], items: list[Any]) -> Any:
    if all(new is old for new, old in zip(items, value, strict=True)):
        return value
    if hasattr(value, "_make"):
        return value._make(items)
    return tuple(items) if type(value) is tuple else type(value)(items)
