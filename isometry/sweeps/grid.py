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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isometry.errors import SpecError
from isometry.sweeps.configuration import Point, point_of
from isometry.sweeps.keys import Wrong, choice, number, shown, unknown_key, whole

Grid = str | Path | Mapping[str, Any] | Iterable[Mapping[str, Any]]
Choices = list[dict[str, Any]]

_TABLES = ("kind", "seeds", "fixed", "axes", "zip")
_RANGE = ("from", "to", "count", "spacing")


# Points of a grid beyond which it is taken for a mistake.
MAX_POINTS = 1_000_000


class Plan:
    """The points of a grid, made one by one: each iteration makes them anew, each point once.

    Parameters
    ----------
    grid, max_points
        As for `points_of`.

    Raises
    ------
    SpecError
        When the grid cannot be read or has too many points; keys and values are checked in the iteration.
    """

    def __init__(self, grid: Grid, *, max_points: int = MAX_POINTS) -> None:
        self._listed: Choices | None = None
        self._digests: dict[tuple[Any, ...], dict[str, str]] = {}
        if isinstance(grid, str | Path):
            self._where, self._tables = str(grid), _read(Path(grid))
        elif isinstance(grid, Mapping):
            self._where, self._tables = "the grid", dict(grid)
        else:
            self._where, self._listed = "", _listed(grid, max_points)
            return
        self._kept = _choices(self._tables, self._where, max_points)

    def __iter__(self) -> Iterator[Point]:
        known: set[bytes] = set()
        configurations = self._kept() if self._listed is None else self._listed
        for index, configuration in enumerate(configurations):
            point = point_of(configuration, self._where or f"configuration {index}", known=self._digests)
            key = bytes.fromhex(point.key)
            if key not in known:
                known.add(key)
                yield point
        if not known:
            raise SpecError(f"{self._where or 'the list of configurations'} has no points")


def points_of(grid: Grid, *, max_points: int = MAX_POINTS) -> list[Point]:
    """The points of a grid, each once, in the order of the grid.

    Parameters
    ----------
    grid : path, mapping, or iterable of mappings
        A TOML file, the same tables as a mapping, or the configurations themselves.
    max_points : int
        More are refused before they are made.

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
    return list(Plan(grid, max_points=max_points))


def _choices(grid: Mapping[str, Any], where: str, max_points: int) -> Callable[[], Iterator[dict[str, Any]]]:
    """What makes the configurations of a grid, before they are made canonical.

    They are counted before any axis is expanded.
    """
    for key in grid:
        if key not in _TABLES:
            error = unknown_key(str(key), _TABLES, where)
            raise SpecError(f"{error}; what a point is told stands under [fixed], [axes] or [[zip]]")
    axes, fixed = _table(grid, "axes", where), _table(grid, "fixed", where)
    zips = grid.get("zip", [])
    if not isinstance(zips, list) or not all(isinstance(entry, Mapping) for entry in zips):
        raise SpecError(f"{where}: zipped axes are written as [[zip]], a list of tables")
    axes = {key: _axis(key, values, where, max_points) for key, values in axes.items()}
    zips = [{key: _axis(key, values, where, max_points) for key, values in entry.items()} for entry in zips]
    seeds = _seeds(grid["seeds"], where, max_points) if "seeds" in grid else range(1)
    _refuse_repeated(
        [*fixed, *axes, *(key for entry in zips for key in entry), *(["seed"] if "seeds" in grid else [])],
        where,
    )
    lengths = [_length(values) for values in axes.values()]
    lengths += [max(map(_length, entry.values()), default=1) for entry in zips]
    # len() refuses a range of more than 2^63.
    _refuse_many(
        math.prod([*lengths, seeds.stop if isinstance(seeds, range) else len(seeds)]), where, max_points
    )
    choices: list[Choices] = [
        [{key: value} for value in _expanded(key, values, where)] for key, values in axes.items()
    ]
    choices += [_zipped(entry, where) for entry in zips]
    if "seeds" in grid:
        choices.append([{"seed": seed} for seed in seeds])
    first = {**({"kind": grid["kind"]} if "kind" in grid else {}), **fixed}

    def expand() -> Iterator[dict[str, Any]]:
        for parts in itertools.product(*choices):
            yield {**first, **{key: value for part in parts for key, value in part.items()}}

    return expand


def _refuse_many(count: int, where: str, max_points: int) -> None:
    if count > max_points:
        told = f"{count:,}" if count < 10**15 else f"about 1e{math.floor(math.log10(count))}"
        raise SpecError(
            f"{where} has {told} points, more than {max_points:,}. Is a range or the seeds larger than meant? "
            "max_points= (--max-points) allows more"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise SpecError(f"the grid {str(path)!r} can not be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # also a table within a table within a thousand others
        raise SpecError(f"{path} is not valid TOML: {error}") from error


def _listed(grid: Iterable[Mapping[str, Any]], max_points: int) -> Choices:
    try:
        found = list(itertools.islice(grid, max_points + 1))
    except TypeError:
        raise SpecError(
            f"a grid is a TOML file, a mapping with axes, or an iterable of configurations; got {type(grid).__name__}"
        ) from None
    if len(found) > max_points:
        raise SpecError(
            f"the list of configurations has more than {max_points:,} points; max_points= (--max-points) allows more"
        )
    for index, entry in enumerate(found):
        if not isinstance(entry, Mapping):
            raise SpecError(f"configuration {index} is a mapping of keys to values; got {shown(entry)}")
    return [dict(entry) for entry in found]


def _table(grid: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    table = grid.get(name, {})
    if not isinstance(table, Mapping):
        raise SpecError(f"{where}: {name} is a table, [{name}]; got {shown(table)}")
    for key in table:
        if key in _TABLES:
            raise SpecError(
                f"{where}: {key} stands under [{name}]; write it at the top of the file, before the first table"
            )
    return dict(table)


@dataclass(frozen=True)
class _Range:
    """``count`` values from ``low`` to ``high``, of equal differences or, with ``log``, equal ratios."""

    low: float
    high: float
    count: int
    log: bool

    def values(self) -> list[float]:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        steps = [low + (high - low) * index / (self.count - 1) for index in range(self.count)]
        # Twelve digits: 0.9 + 2 * 0.05 is 1.0 for the reader, and the same key as 1.0.
        return [float(f"{math.exp(step) if self.log else step:.12g}") for step in steps]


def _axis(key: str, values: Any, where: str, max_points: int) -> list[Any] | _Range:
    """The values of an axis: a list, or a range with both ends, not expanded yet."""
    if isinstance(values, Mapping):
        return _range(key, values, where)
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise SpecError(
            f"{where}: the axis {key} is a list of values, or a range such as {{from = 1, to = 2, count = 5}}; got "
            f"{shown(values)}. What has one value stands under [fixed]"
        )
    found = list(itertools.islice(values, max_points + 1))
    if not found:
        raise SpecError(f"{where}: the axis {key} has no values")
    return found


def _length(values: list[Any] | _Range) -> int:
    return values.count if isinstance(values, _Range) else len(values)


def _expanded(key: str, values: list[Any] | _Range, where: str) -> list[Any]:
    try:
        return values.values() if isinstance(values, _Range) else values
    except OverflowError:
        raise SpecError(f"{where}: the range of {key} leaves the range of floats") from None


def _range(key: str, table: Mapping[str, Any], where: str) -> _Range:
    for entry in table:
        if entry not in _RANGE:
            raise unknown_key(str(entry), _RANGE, f"{where}: the range of {key}")
    try:
        low, high = number()(table.get("from")), number()(table.get("to"))
        count, spacing = whole(2)(table.get("count")), choice("linear", "log")(table.get("spacing", "linear"))
    except Wrong as error:
        raise SpecError(
            f"{where}: a range is {{from = 1.0, to = 2.0, count = 5}}, with spacing 'linear' or 'log'; that of {key} "
            f"has {shown(dict(table))}, where {error} is wanted"
        ) from error
    if spacing == "log" and (low <= 0 or high <= 0):
        raise SpecError(f"{where}: the range of {key} has equal ratios, so its ends lie above zero")
    return _Range(low, high, count, spacing == "log")


def _zipped(table: Mapping[str, list[Any] | _Range], where: str) -> Choices:
    lengths = {key: _length(values) for key, values in table.items()}
    if len(set(lengths.values())) != 1:
        raise SpecError(f"{where}: zipped axes are of one length; got {lengths or 'an empty [[zip]]'}")
    columns = {key: _expanded(key, values, where) for key, values in table.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _seeds(seeds: Any, where: str, max_points: int) -> Sequence[Any]:
    if isinstance(seeds, int) and not isinstance(seeds, bool) and seeds > 0:
        return range(seeds)
    if isinstance(seeds, Iterable) and not isinstance(seeds, str | bytes | Mapping):
        found = list(itertools.islice(seeds, max_points + 1))
        if found:
            return found
    raise SpecError(f"{where}: seeds is how many there are, or a list of them; got {shown(seeds)}")


def _refuse_repeated(keys: list[str], where: str) -> None:
    for key in keys:
        if keys.count(key) > 1:
            raise SpecError(f"{where}: {key} is given twice; a key stands in one table only")
