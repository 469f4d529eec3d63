"""The files of its own folder that a model file imports, transitively, found without running any. Internal.

Found are import statements, wherever they stand, and `importlib.import_module` and `__import__` of a literal name.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

# (path, size, time of change) of all files that were looked at, and what came of it.
_State = tuple[tuple[Path, int, int], ...]
_KNOWN: dict[Path, tuple[_State, tuple[Path, ...]]] = {}


def imported_files(path: Path) -> tuple[Path, ...]:
    """Files in the folder of this Python file that it imports, and that these import, in order."""
    start = path.resolve()
    known = _KNOWN.get(start)
    # A new file in the folder may be what an import finds first.
    if known is not None and known[0] == _state((start, start.parent, *known[1])):
        return known[1]
    found: set[Path] = set()
    waiting = [start]
    while waiting:
        new = set(_imports(waiting.pop(), start.parent)) - found - {start}
        found |= new
        waiting += [file for file in new if file.suffix == ".py"]
    files = tuple(sorted(found))
    _KNOWN[start] = _state((start, start.parent, *files)), files
    return files


def module_file(name: str, folder: Path) -> Path | None:
    """The source of a module of that name in the folder; None where it is not there."""
    place = folder.joinpath(*name.split("."))
    found = (place / "__init__.py", place.with_name(f"{place.name}.py"))
    return next((file for file in found if file.is_file()), None)


def _state(files: tuple[Path, ...]) -> _State:
    found = []
    for file in files:
        try:
            state = file.stat()
            found.append((file, state.st_size, state.st_mtime_ns))
        except OSError:
            found.append((file, -1, -1))
    return tuple(found)


def _imports(file: Path, folder: Path) -> Iterator[Path]:
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return  # whoever runs it is told
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files_of(folder, alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = folder if not node.level else file.parents[min(node.level, len(file.parents)) - 1]
            words = node.module.split(".") if node.module else []
            for alias in node.names:
                yield from _files_of(base, [*words, alias.name])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield from _files_of(folder, node.args[0].value.strip(".").split("."))


def _files_of(base: Path, words: list[str]) -> list[Path]:
    """The files that are run when ``words[0].words[1]...`` is imported from ``base``."""
    found = []
    for count in range(len(words) + 1):
        place = base.joinpath(*words[:count])
        candidates = [place / "__init__.py"] if count == 0 else [
            place / "__init__.py", *(place.with_name(place.name + end) for end in (".py", *EXTENSION_SUFFIXES))
        ]  # fmt: skip
        found += [file.resolve() for file in candidates if file.is_file()]
    return found
