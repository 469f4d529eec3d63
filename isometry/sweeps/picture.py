"""From the rows of a file to the curves of a plot: averages over seeds, errors, and theory where known. Internal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isometry.errors import IsometryError, SpecError
from isometry.report.curves import Curve
from isometry.spectrum.summary import LABELS
from isometry.store import Store
from isometry.sweeps.rows import Row, check_columns, numbers_of, varying
from isometry.theory.ensemble import Ensemble
from isometry.theory.prediction import predict

# Column of the error of a single result.
_ERRORS: Mapping[str, str] = {
    "mean_square": "mean_square_stderr", "isometry": "isometry_stderr", "s_max": "s_max_residual",
    "s_min": "s_min_residual",
}  # fmt: skip
# Columns that a law has, beside quantiles.
_KNOWN_TO_THEORY = frozenset(
    {"s_max", "s_min", "mean_square", "log10_mean_square", "condition_number", "variance", "zero_mass", "median",
     "isometry"}
)  # fmt: skip
_WORDS: Mapping[str, str] = {
    **LABELS, "median": LABELS["quantile_0.5"], "ks": "Kolmogorov-Smirnov distance",
    "test_accuracy": "test accuracy", "train_accuracy": "training accuracy",
}  # fmt: skip
_SEEDS = frozenset({"seed"})


@dataclass(frozen=True)
class Picture:
    """Input of `isometry.report.curves.plot_curves`.

    Parameters
    ----------
    curves : tuple of Curve
    categories : tuple of str
        Labels along x, where x is not numeric.
    x_label, y_label, note : str
    left_out : int
        Rows without one of the two numbers.
    """

    curves: tuple[Curve, ...]
    categories: tuple[str, ...]
    x_label: str
    y_label: str
    note: str
    left_out: int


def picture_of(
    rows: Sequence[Row], store: Store, x: str, y: str, *, hue: str | None = None, theory: bool = True
) -> Picture:
    """The curves of column ``y`` over column ``x``, one for each value of ``hue``.

    Parameters
    ----------
    rows : sequence of Row
    store : Store
        The file of the rows; laws stored with comparisons are read from it.
    x, y, hue : str
        Columns. Where x is a setting, rows that differ in their seeds alone are averaged, with the standard error of
        the mean; where it is a result, every row is a point.
    theory : bool
        Whether to add the predictions for the recorded ensembles.

    Raises
    ------
    SpecError
        When a column does not exist, y is not numeric, or rows that differ in another setting have the same x and hue.
    """
    check_columns(rows, [x, y, *([hue] if hue else [])])
    if not any(_number(row.get(y)) is not None for row in rows):
        raise SpecError(f"the column {y!r} holds no numbers to draw")
    setting = any(x in row.settings for row in rows)
    if setting:
        _refuse_mixtures(rows, {x, hue} | _SEEDS)
    usable = [row for row in rows if row.get(x) is not None and _number(row.get(y)) is not None]
    categories = _categories(usable, x)
    groups: dict[Any, list[Row]] = {}
    for row in usable:
        groups.setdefault(row.get(hue) if hue else None, []).append(row)
    laws_of = _Laws(store, y) if theory else None
    curves, most = [], 1
    for value in sorted(
        groups, key=lambda value: (isinstance(value, str), value if value is not None else "")
    ):
        label = f"{hue} = {value:.6g}" if isinstance(value, float) else f"{hue} = {value}"
        curve, seeds = _curve(
            groups[value], x, y, categories, label=label if hue else "", setting=setting, laws_of=laws_of
        )
        curves.append(curve)
        most = max(most, seeds)
    return Picture(
        tuple(curves),
        categories,
        _WORDS.get(x, x),
        _WORDS.get(y, y),
        _note(curves, y, most),
        len(rows) - len(usable),
    )


def _curve(
    rows: Sequence[Row],
    x: str,
    y: str,
    categories: Sequence[str],
    *,
    label: str,
    setting: bool,
    laws_of: _Laws | None,
) -> tuple[Curve, int]:
    """The curve of one group, and the largest number of rows behind one of its points."""
    place = {name: float(index) for index, name in enumerate(categories)}
    points: dict[float, list[float]] = {}
    errors: dict[float, float] = {}
    laws: dict[float, list[float]] = {}
    loose: list[tuple[float, float]] = []
    for row in rows:
        value = _number(row.get(y))
        assert value is not None, "rows without it were left out"
        at = place[str(row.get(x))] if categories else float(row.get(x))
        if _is_law(row):
            laws.setdefault(at, []).append(value)
            continue
        if not setting:
            loose.append((at, value))
            continue
        points.setdefault(at, []).append(value)
        errors[at] = _number(row.get(_ERRORS.get(y, ""))) or math.nan
        law = None if laws_of is None else laws_of.number(row)
        if law is not None:
            laws.setdefault(at, []).append(law)
    if loose:
        along, up = np.array(sorted(loose)).T
        return Curve(label, along, up, np.full(len(up), math.nan), joined=False), 1
    order, law_order = sorted(points), sorted(laws)
    spread = [
        float(np.std(points[at], ddof=1)) / math.sqrt(len(points[at])) if len(points[at]) > 1 else errors[at]
        for at in order
    ]
    return Curve(
        label,
        np.array(order, float),
        np.array([np.mean(points[at]) for at in order], float),
        np.array(spread, float),
        np.array(law_order, float),
        np.array([np.mean(laws[at]) for at in law_order], float),
    ), max((len(values) for values in points.values()), default=1)


class _Laws:
    """Numbers of the laws behind rows; each law is read or predicted once."""

    def __init__(self, store: Store, y: str) -> None:
        self._store, self._y = store, y
        self._known: dict[str, float | None] = {}

    def number(self, row: Row) -> float | None:
        """Column y of the law of the row's ensemble; None where theory does not give it."""
        if not (self._y in _KNOWN_TO_THEORY or self._y.startswith("quantile_")):
            return None
        if row.ensemble is None and not row.law:
            return None
        key = row.law or json.dumps(dict(row.ensemble or {}), sort_keys=True)
        if key not in self._known:
            try:
                law = (
                    self._store[row.law] if row.law else predict(Ensemble.from_dict(dict(row.ensemble or {})))
                )
                self._known[key] = _number(numbers_of(law).get(self._y))
            except IsometryError:
                # No fixed point or no convergence: no line.
                self._known[key] = None
        return self._known[key]


def _refuse_mixtures(rows: Sequence[Row], told: set[str | None]) -> None:
    """Raise where rows that differ in more than their seeds have the same place in the plot."""
    for lines in (False, True):
        some = [row for row in rows if _is_law(row) == lines]
        mixed = [key for key in varying(some) if key not in told]
        if not mixed:
            continue
        places: dict[str, str] = {}
        for row in some:
            at = repr([row.get(key) for key in sorted(key for key in told if key)])
            if places.setdefault(at, repr([row.get(key) for key in mixed])) != repr(
                [row.get(key) for key in mixed]
            ):
                raise SpecError(
                    f"these points differ in {', '.join(mixed)} too, and would fall on one place: choose with --where "
                    f"{mixed[0]}=..., or take --hue {mixed[0]}"
                )


def _is_law(row: Row) -> bool:
    """Whether a row is a prediction, which is drawn as a line."""
    return row.kind in ("predict", "predicted")


def _categories(rows: Sequence[Row], x: str) -> tuple[str, ...]:
    """The values along x as texts, where they are not all numbers."""
    values = [row.get(x) for row in rows]
    if all(_number(value) is not None for value in values):
        return ()
    return tuple(dict.fromkeys(str(value) for value in values))


def _number(value: Any) -> float | None:
    try:
        number = float(value) if isinstance(value, bool | int | float) else math.nan
    except OverflowError:  # a whole number beyond all floats
        return None
    return number if math.isfinite(number) else None


def _note(curves: Sequence[Curve], y: str, most: int) -> str:
    """Meaning of the error bars."""
    if not any(np.any(np.isfinite(curve.error) & (curve.error > 0)) for curve in curves):
        return ""
    if most > 1:
        return f"± standard error over {most} seeds"
    return "residual" if "residual" in _ERRORS.get(y, "") else "± standard error over probes"
