"""docs/file-format.md and the docstrings: their examples run, and no dataset is left out."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from isometry.store import store
from isometry.store.layout import (
    BAND_FIELDS,
    CURVE_FIELDS,
    DERIVED_FIELDS,
    DIMENSIONS,
    EXTREME_FIELDS,
    QUADRATURE_FIELDS,
)

DOCUMENT = (Path(__file__).parents[2] / "docs" / "file-format.md").read_text(encoding="utf-8")


def test_the_examples_of_the_document_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "docs/file-format.md", "exec"), {})
    printed = capsys.readouterr().out
    # (9 + 1 + 1 + 0.25) / 4, by h5py and by xarray, and among the attributes of each.
    assert printed.count("2.8125") == 4


def test_every_dataset_is_in_the_document():
    for name, field in (
        QUADRATURE_FIELDS | CURVE_FIELDS | EXTREME_FIELDS | DERIVED_FIELDS | BAND_FIELDS
    ).items():
        assert f"`{name}`" in DOCUMENT, name
        assert field.units, name
        assert field.description, name
        if name not in DIMENSIONS:
            row = next(
                line for line in DOCUMENT.splitlines() if line.startswith("| ") and f"`{name}`" in line
            )
            assert row.split("|")[2].strip() == ", ".join(field.dimensions), name


def test_the_examples_of_the_docstrings_run():
    found = doctest.testmod(store)
    assert found.attempted > 0
    assert found.failed == 0
