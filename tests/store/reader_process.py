"""A process that reads files of spectra, one path a line, and says in one line each what came of it.

HDF5 may crash or hang on a file whose bytes were changed: it does so here, and not in the test that watches.
"""

from __future__ import annotations

import sys

import numpy as np
from store_samples import assert_same

from isometry.errors import IsometryError
from isometry.store import Store, open_store, validate

SERIES = "curve"


def outcome(path: str, original: Store) -> str:
    """ "same" where everything reads as in the original, "refused: ..." for an IsometryError, "wrong: ..." else."""
    words = []
    try:
        store = open_store(path, timeout=5.0)
        for name in original.names():
            try:
                spectrum = store[name]
            except IsometryError as error:
                words.append(f"{name}: {type(error).__name__}")
                continue
            try:
                assert_same(original[name], spectrum)
            except AssertionError as difference:
                return f"wrong: {name} reads as another: {' '.join(str(difference).split())[:200]}"
        try:
            series, expected = store.series(SERIES), original.series(SERIES)
            if list(series.columns) != list(expected.columns) or dict(series.attributes) != dict(
                expected.attributes
            ):
                return "wrong: the series has other columns or attributes"
            if any(not np.array_equal(series[key], expected[key]) for key in expected.columns):
                return "wrong: the series has other values"
        except IsometryError as error:
            words.append(f"series: {type(error).__name__}")
    except IsometryError as error:
        words.append(type(error).__name__)
    except BaseException as error:
        return f"raised: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if not words:
        return "same"
    try:
        problems = validate(path, timeout=5.0)
    except BaseException as error:
        return f"raised: in validate {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return f"refused: {', '.join(words)}" if problems else f"wrong: valid, but {', '.join(words)}"


if __name__ == "__main__":
    reference = open_store(sys.argv[1])
    for line in sys.stdin:
        print(outcome(line.rstrip("\n"), reference), flush=True)
