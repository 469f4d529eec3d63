"""From a grid to its points: the product of the axes, of each group of zipped axes, and of the seeds.

kind = "compare"                  # measure (default), predict, compare or train
seeds = 3                         # 0, 1, 2; or a list
[fixed]                           # the same at every point
model = "mlp"
[axes]                            # every combination
depth = [4, 16]
sigma_w = { from = 0.9, to = 1.1, count = 5 }      # spacing = "log" for equal ratios
[[zip]]                           # first with first, second with second, ...
init = ["orthogonal", "gaussian"]
q_star = [0.05, 0.2]
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from isometry.errors import SpecError
from isometry.sweeps.configuration import Point, point_of
from isometry.sweeps.keys import Wrong, choice, number, unknown_key, whole

Grid = str | Path | Mapping[str, Any] | Iterable[Mapping[str, Any]]
Choices = list[dict[str, Any]]

_TABLES = ("kind", "seeds", "fixed", "axes", "zip")
_RANGE = ("from", "to", "count", "spacing")


def points_of(grid: Grid) -> list[Point]:
    """The points of a grid, each once, in the order of the grid.

    Parameters
    ----------
    grid : path, mapping, or iterable of mappings
        A TOML file, the same tables as a mapping, or the configurations themselves.

    Raises
    ------
    SpecError
        When the grid cannot be read, or a key or value of it is not valid. Nothing has run then.

    Examples
    --------
    >>> grid = {"fixed": {"model": "mlp", "width": 8}, "axes": {"depth": [2, 4]}, "seeds": 3}
    >>> [point.values["depth"] for point in points_of(grid)]
    [2, 2, 2, 4, 4, 4]
    """
    if isinstance(grid, str | Path):
        where, configurations = str(grid), expand(_read(Path(grid)), str(grid))
    elif isinstance(grid, Mapping):
        where, configurations = "the grid", expand(grid, "the grid")
    else:
        where, configurations = "", _listed(grid)
    points: dict[str, Point] = {}
    for index, configuration in enumerate(configurations):
        point = point_of(configuration, where or f"configuration {index}")
        points.setdefault(point.key, point)
    if not points:
        raise SpecError(f"{where or 'the list of configurations'} has no points")
    return list(points.values())


def expand(grid: Mapping[str, Any], where: str = "the grid") -> Choices:
    """The configurations of a grid, before they are made canonical."""
    for key in grid:
        if key not in _TABLES:
            error = unknown_key(str(key), _TABLES, where)
            raise SpecError(f"{error}; what a point is told stands under [fixed], [axes] or [[zip]]")
    axes, fixed = _table(grid, "axes", where), _table(grid, "fixed", where)
    zips = grid.get("zip", [])
    if not isinstance(zips, list) or not all(isinstance(entry, Mapping) for entry in zips):
        raise SpecError(f"{where}: zipped axes are written as [[zip]], a list of tables")
    choices: list[Choices] = [
        [{key: value} for value in _values(key, values, where)] for key, values in axes.items()
    ]
    choices += [_zipped(entry, where) for entry in zips]
    if "seeds" in grid:
        choices.append([{"seed": seed} for seed in _seeds(grid["seeds"], where)])
    _refuse_repeated(
        [*fixed, *axes, *(key for entry in zips for key in entry), *(["seed"] if "seeds" in grid else [])],
        where,
    )
    kind = {"kind": grid["kind"]} if "kind" in grid else {}
    return [
        {**kind, **fixed, **{key: value for part in parts for key, value in part.items()}}
        for parts in itertools.product(*choices)
    ]


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise SpecError(f"the grid {str(path)!r} can not be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # also a table within a table within a thousand others
        raise SpecError(f"{path} is not valid TOML: {error}") from error


def _listed(grid: Iterable[Mapping[str, Any]]) -> Choices:
    try:
        found = list(grid)
    except TypeError:
        raise SpecError(
            f"a grid is a TOML file, a mapping with axes, or an iterable of configurations; got {type(grid).__name__}"
        ) from None
    for index, entry in enumerate(found):
        if not isinstance(entry, Mapping):
            raise SpecError(f"configuration {index} is a mapping of keys to values; got {entry!r}")
    return [dict(entry) for entry in found]


def _table(grid: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    table = grid.get(name, {})
    if not isinstance(table, Mapping):
        raise SpecError(f"{where}: {name} is a table, [{name}]; got {table!r}")
    for key in table:
        if key in _TABLES:
            raise SpecError(
                f"{where}: {key} stands under [{name}]; write it at the top of the file, before the first table"
            )
    return dict(table)


def _values(key: str, values: Any, where: str) -> list[Any]:
    """The values of an axis: a list, or a range with both ends."""
    if isinstance(values, Mapping):
        return _range(key, values, where)
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise SpecError(
            f"{where}: the axis {key} is a list of values, or a range such as {{from = 1, to = 2, count = 5}}; got "
            f"{values!r}. What has one value stands under [fixed]"
        )
    found = list(values)
    if not found:
        raise SpecError(f"{where}: the axis {key} has no values")
    return found


def _range(key: str, table: Mapping[str, Any], where: str) -> list[float]:
    for entry in table:
        if entry not in _RANGE:
            raise unknown_key(str(entry), _RANGE, f"{where}: the range of {key}")
    try:
        low, high = number()(table.get("from")), number()(table.get("to"))
        count, spacing = whole(2)(table.get("count")), choice("linear", "log")(table.get("spacing", "linear"))
    except Wrong as error:
        raise SpecError(
            f"{where}: a range is {{from = 1.0, to = 2.0, count = 5}}, with spacing 'linear' or 'log'; that of {key} "
            f"has {dict(table)!r}, where {error} is wanted"
        ) from error
    if spacing == "log":
        if low <= 0 or high <= 0:
            raise SpecError(f"{where}: the range of {key} has equal ratios, so its ends lie above zero")
        low, high = math.log(low), math.log(high)
    steps = [low + (high - low) * index / (count - 1) for index in range(count)]
    # Twelve digits: 0.9 + 2 * 0.05 is 1.0 for the reader, and the same key as 1.0.
    return [float(f"{math.exp(step) if spacing == 'log' else step:.12g}") for step in steps]


def _zipped(table: Mapping[str, Any], where: str) -> Choices:
    columns = {key: _values(key, values, where) for key, values in table.items()}
    lengths = {key: len(values) for key, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise SpecError(f"{where}: zipped axes are of one length; got {lengths or 'an empty [[zip]]'}")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _seeds(seeds: Any, where: str) -> list[int]:
    if isinstance(seeds, int) and not isinstance(seeds, bool) and seeds > 0:
        return list(range(seeds))
    if isinstance(seeds, Iterable) and not isinstance(seeds, str | bytes | Mapping):
        found = list(seeds)
        if found:
            return found
    raise SpecError(f"{where}: seeds is how many there are, or a list of them; got {seeds!r}")


def _refuse_repeated(keys: list[str], where: str) -> None:
    for key in keys:
        if keys.count(key) > 1:
            raise SpecError(f"{where}: {key} is given twice; a key stands in one table only")
