"""The points of a file as rows of a table: their settings and their results. Internal.

Every file of spectra has rows, swept or not; those of a sweep have the keys of their configurations as columns. Numbers
have the names of `Spectrum.summary`: ``s_max``, ``mean_square``, ``quantile_0.99``, ``isometry``, ..., and ``median``
for ``quantile_0.5``; of a comparison ``ks``, ``agrees``, ...; of a training run ``loss``, ``test_accuracy``, ...
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from isometry.errors import SpecError
from isometry.spectrum import Spectrum
from isometry.spectrum.formatting import json_ready
from isometry.store import Series, Store
from isometry.sweeps.names import FAILED, LAW, ON_THE_WAY
from isometry.training.record import evaluation_name

# Default columns of a table, after the settings that differ between its rows.
MAIN_NUMBERS = (
    "s_max", "median", "mean_square", "mean_square_stderr", "isometry", "ks", "by_chance", "agrees", "loss",
    "train_accuracy", "test_accuracy", "attempts", "error",
)  # fmt: skip
_DRAWN = ("activation", "sigma_w", "sigma_b", "q_star")
_OPERATIONS: Mapping[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge, "<=": operator.le, "!=": operator.ne, "==": operator.eq, "=": operator.eq,
    ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_CONDITION = re.compile(r"\s*([\w.]+)\s*(>=|<=|!=|==|=|>|<)\s*(.*?)\s*")


@dataclass(frozen=True)
class Row:
    """One point.

    Parameters
    ----------
    name : str
        Of its spectrum or its curves in the file.
    kind : str
    settings : dict
        Its configuration; the recorded model and input of a spectrum that no sweep made.
    numbers : dict
        Results; None where unknown or outside the range of floats.
    ensemble : mapping, optional
        The ensemble of its network, where one is recorded.
    law : str
        Name in the file of the law that it was compared with.
    files : mapping
        SHA-256 of the files that its configuration names.
    """

    name: str
    kind: str
    settings: dict[str, Any]
    numbers: dict[str, Any]
    ensemble: Mapping[str, Any] | None = field(default=None, repr=False)
    law: str = ""
    files: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def get(self, column: str) -> Any:
        """The value in a column; None where the row has none."""
        return self.flat().get(column)

    def flat(self) -> dict[str, Any]:
        """All values by column. A result with the name of a setting is called ``result_NAME``.

        Settings that the configuration left to the network (sigma_w of its critical point) come from its ensemble.
        """
        drawn = {
            key: value for key, value in (self.ensemble or {}).items() if key in _DRAWN and value is not None
        }
        numbers = {
            key if key not in self.settings else f"result_{key}": value for key, value in self.numbers.items()
        }
        return {"name": self.name, "kind": self.kind, **drawn, **self.settings, **numbers}


def rows_of(store: Store) -> list[Row]:
    """A row for every point and every other spectrum, ordered by their configurations.

    Laws of comparisons and spectra measured during training have no rows.
    """
    rows = []
    for name in store.names():
        spectrum = store[name]
        sweep = _sweep_of(spectrum.provenance)
        if spectrum.provenance.get("role") == LAW or sweep.get("role") == ON_THE_WAY:
            continue
        ensemble = spectrum.provenance.get("ensemble")
        rows.append(
            Row(
                name, str(sweep.get("kind", spectrum.kind)), _settings(spectrum.provenance), numbers_of(spectrum),
                ensemble if isinstance(ensemble, Mapping) else None, str(spectrum.provenance.get("theory", "")),
                _files(spectrum.provenance),
            )
        )  # fmt: skip
    curves = store.series_names()
    for name in curves:
        if evaluation_name(name) in curves and not name.startswith(FAILED):
            series = store.series(name)
            ends = _ends(series) | _ends(store.series(evaluation_name(name)))
            rows.append(
                Row(name, "train", _settings(series.attributes), ends, files=_files(series.attributes))
            )
    return sorted(_with_versions(rows), key=_order)


def _with_versions(rows: Sequence[Row]) -> list[Row]:
    """The rows, told apart where a file that their configurations name had different contents.

    The settings ``model_version``, ``weights_version``, ``input_version``, ``input_ids_version``, ``args_version`` and
    ``data_version`` count the contents of such files in the order in which results came.
    """
    versions: dict[tuple[str, Any], dict[Any, int]] = {}

    def contents(row: Row) -> Iterator[tuple[str, dict[Any, int], Any]]:
        for key in ("model", "weights", "input", "input_ids", "args", "data"):
            if key in row.settings:
                known = versions.setdefault((key, repr(row.settings[key])), {})
                # "model imports", "args NAME": further files of a key.
                named = (
                    file for file in row.files.items() if file[0] == key or file[0].startswith(f"{key} ")
                )
                yield key, known, tuple(sorted(named))

    for row in rows:
        for _, known, content in contents(row):
            known.setdefault(content, len(known) + 1)
    return [
        replace(row, settings={
            **row.settings,
            **{f"{key}_version": known[content] for key, known, content in contents(row) if len(known) > 1},
        })
        for row in rows
    ]  # fmt: skip


def failures_of(store: Store) -> list[Row]:
    """A row for every point that failed and has not succeeded since, with its error."""
    names = store.series_names()
    finished = {*store.names(), *names}
    rows = []
    for name in names:
        if name.startswith(FAILED) and name.removeprefix(FAILED) not in finished:
            series = store.series(name)
            numbers = {
                "attempts": int(series["attempt"][-1]),
                **{key: series.attributes.get(key) for key in ("error_type", "error")},
            }
            kind = str(_sweep_of(series.attributes).get("kind", ""))
            rows.append(Row(name.removeprefix(FAILED), kind, _settings(series.attributes), numbers))
    return sorted(rows, key=_order)


def numbers_of(spectrum: Spectrum) -> dict[str, Any]:
    """The numbers of one spectrum by flat names, and those of its comparison if it has one."""
    summary = spectrum.reported
    row: dict[str, Any] = json_ready(summary.flat())
    row |= {
        key: getattr(summary, key) for key in ("inputs", "probes", "null_dimension", "products", "verdict")
    }
    row["median"], row["below_floor"] = row["quantile_0.5"], row["zero_mass"]
    row["created"] = spectrum.provenance.get("created")
    comparison = spectrum.provenance.get("comparison")
    if isinstance(comparison, Mapping):
        raw, shape = comparison["raw"], comparison["shape"]
        row |= {
            "ks": raw["ks"], "ks_beyond_error": raw["ks_beyond_error"], "ks_shape": shape["ks"],
            "wasserstein_log10": raw["wasserstein_log10"], "by_chance": comparison["by_chance"]["ks"],
            "mean_square_ratio": raw["moment_ratios"]["m1"], "agrees": comparison["agrees"],
        }  # fmt: skip
    return row


def varying(rows: Sequence[Row]) -> list[str]:
    """The settings whose values differ between rows, in the order of the configurations."""
    keys = dict.fromkeys(key for row in rows for key in row.settings)
    return [key for key in keys if len({repr(row.settings.get(key)) for row in rows}) > 1]


def main_columns(rows: Sequence[Row]) -> list[str]:
    """The settings that differ between rows, and the default numbers."""
    told = [key for key in ["kind"] if len({row.kind for row in rows}) > 1] + varying(rows)
    # Spectra that were measured one by one may differ in their names only.
    unswept = len({repr([row.get(key) for key in told]) for row in rows}) < len(rows)
    numbers = [key for key in MAIN_NUMBERS if any(row.numbers.get(key) is not None for row in rows)]
    return ["name"] * unswept + told + numbers


def select(rows: Sequence[Row], conditions: Sequence[str]) -> list[Row]:
    """The rows that meet all conditions, such as ``depth>=8`` and ``init=gaussian``.

    Raises
    ------
    SpecError
        When a condition cannot be parsed, or names a column that no row has.
    """
    kept = list(rows)
    for condition in conditions:
        match = _CONDITION.fullmatch(condition)
        if match is None:
            raise SpecError(f"{condition!r} is no condition; write depth>=8, init=gaussian or agrees!=true")
        column, sign, word = match.groups()
        check_columns(rows, [column])
        kept = [row for row in kept if _meets(row.get(column), sign, word)]
    return kept


def sort(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    """The rows sorted by these columns, the first one first; ``-s_max`` is descending. Unknown values come last."""
    check_columns(rows, [column.removeprefix("-") for column in columns])
    found = list(rows)
    for column in reversed(columns):
        name = column.removeprefix("-")
        ranked = [(_rank(row.get(name)), row) for row in found if row.get(name) is not None]
        ranked.sort(key=lambda entry: entry[0], reverse=column.startswith("-"))
        found = [row for _, row in ranked] + [row for row in found if row.get(name) is None]
    return found


def check_columns(rows: Sequence[Row], columns: Iterable[str]) -> None:
    """Raise SpecError where a column is in no row."""
    known = {key for row in rows for key in row.flat()}
    for column in columns:
        if rows and column not in known:
            near = get_close_matches(column, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(known))}"
            raise SpecError(f"there is no column {column!r}: {hint}")


def _sweep_of(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    sweep = provenance.get("sweep")
    return sweep if isinstance(sweep, Mapping) else {}


def _files(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    files = _sweep_of(provenance).get("files")
    return {key: str(value) for key, value in files.items()} if isinstance(files, Mapping) else {}


def _settings(provenance: Mapping[str, Any]) -> dict[str, Any]:
    configuration = _sweep_of(provenance).get("configuration")
    if isinstance(configuration, Mapping):
        return {
            key: ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            for key, value in configuration.items()
        }
    return {key: provenance[key] for key in ("model", "input", "seed") if key in provenance}


def _ends(series: Series) -> dict[str, Any]:
    """Last values of the curves."""
    ends = {key: values[-1].item() if len(values) else None for key, values in series.columns.items()}
    ends.pop("step", None)
    return ends


def _order(row: Row) -> tuple[Any, ...]:
    return row.kind, [(key, _rank(value)) for key, value in row.settings.items()], row.name


def _rank(value: Any) -> tuple[int, Any]:
    """Sorting key for values of several types: numbers by size, then text."""
    return (0, value) if isinstance(value, bool | int | float) else (1, str(value))


def _meets(value: Any, sign: str, word: str) -> bool:
    """Whether a value satisfies the condition; the word is read as the value's type."""
    wanted: Any = word
    if value is None:
        return (word.lower() == "none") == (sign in ("=", "==")) and sign in ("=", "==", "!=")
    if isinstance(value, bool):
        wanted = {"true": True, "false": False}.get(word.lower(), word)
    elif isinstance(value, int | float):
        try:
            wanted = float(word)
        except ValueError:
            return sign == "!="
    return isinstance(wanted, str) == isinstance(value, str) and _OPERATIONS[sign](value, wanted)
