"""Errors of this package are never caught by a clause that is meant for errors of PyTorch, Python or the system.

Several of ours derive from built-in errors (InputError from ValueError), for users' sake. So a clause that catches such
a built-in one lets ours pass first, or stands around code that cannot raise them: calls of built-in functions and of
modules of others.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

import pytest

import isometry
from isometry import errors

ROOT = Path(isometry.__file__).parent
OURS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.IsometryError)
]
PACKAGES = ("jacobian", "estimators", "measurement", "depth", "spectrum", "comparison")


def caught(clause: ast.expr | None) -> list[str]:
    if clause is None:
        return ["BaseException"]
    if isinstance(clause, ast.Tuple):
        return [name for element in clause.elts for name in caught(element)]
    if isinstance(clause, ast.BinOp):
        return caught(clause.left) + caught(clause.right)
    return [clause.attr if isinstance(clause, ast.Attribute) else getattr(clause, "id", "?")]


def catches_ours(name: str) -> bool:
    kind = getattr(builtins, name, None)
    return isinstance(kind, type) and any(issubclass(ours, kind) for ours in OURS)


def is_ours(name: str) -> bool:
    return getattr(errors, name, None) in OURS


def outside(tree: ast.Module) -> set[str]:
    """Names of modules of others and what is imported from them."""
    found = set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif (
            isinstance(node, ast.ImportFrom)
            and node.level == 0
            and not (node.module or "").startswith("isometry")
        ):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def root(call: ast.Call) -> str:
    node: ast.AST = call.func
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return getattr(node, "id", "?")


def swallowing(source: str) -> Iterator[int]:
    """Line numbers of clauses that may catch an error of ours unasked."""
    tree = ast.parse(source)
    known = outside(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Try):
            continue
        calls = [
            part for line in node.body for part in ast.walk(line) if isinstance(part, ast.Call | ast.Yield)
        ]
        if all(isinstance(call, ast.Call) and root(call) in known for call in calls):
            continue
        passed = False
        for handler in node.handlers:
            names = caught(handler.type)
            passed = passed or any(map(is_ours, names))
            again = any(isinstance(line, ast.Raise) and line.exc is None for line in handler.body)
            if not passed and not again and any(map(catches_ours, names)):
                yield handler.lineno


@pytest.mark.parametrize("package", PACKAGES)
def test_no_clause_catches_our_errors_by_the_way(package: str) -> None:
    files = (
        [ROOT / f"{package}.py"] if not (ROOT / package).is_dir() else sorted((ROOT / package).rglob("*.py"))
    )
    found = [f"{path.relative_to(ROOT)}:{line}" for path in files for line in swallowing(path.read_text())]
    assert not found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("try:\n    model(x)\nexcept ValueError:\n    pass", [3]),
        ("try:\n    model(x)\nexcept (KeyError, OSError) as error:\n    raise NoRule from error", [3]),
        ("try:\n    model(x)\nexcept:\n    pass", [3]),
        ("try:\n    yield\nexcept ArithmeticError:\n    pass", [3]),
        ("try:\n    model(x)\nexcept Exception:\n    close()\n    raise", []),
        ("try:\n    model(x)\nexcept IsometryError:\n    raise\nexcept Exception:\n    pass", []),
        ("try:\n    model(x)\nexcept (RuntimeError, KeyError):\n    pass", []),
        ("import torch\ntry:\n    torch.load(x)\nexcept ValueError:\n    pass", []),
        ("try:\n    float(x)\nexcept ValueError:\n    pass", []),
    ],
)
def test_the_rule_itself(source: str, found: list[int]) -> None:
    assert list(swallowing(source)) == found
