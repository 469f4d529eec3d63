"""Every rendering of a spectrum shows the same names and the same numbers, for spectra that are hard to show."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from markupsafe import Markup

from isometry.cli.entry import run
from isometry.report.html import render_html
from isometry.report.page_pictures import Picture
from isometry.report.terminal import print_report
from isometry.spectrum import Extremes, Quadrature, Spectrum
from isometry.spectrum.formatting import power_text
from isometry.spectrum.summary import LABELS
from isometry.store import open_store
from isometry.theory import predict


def lanczos(name: str, *, inputs: int, floor: float) -> Spectrum:
    """Random probes that do not resolve s_min."""
    generator = np.random.default_rng(0)
    nodes = np.sort(generator.uniform(0.001, 2.5, (inputs, 4, 9)))
    top = nodes.max(axis=(1, 2))[:, None]
    unresolved = np.full(inputs, 0.004), np.full(inputs, 0.01), np.zeros(inputs, bool)
    return Spectrum(
        Quadrature(nodes, np.full(nodes.shape, 1 / 9), np.full(inputs, floor), np.zeros(nodes.shape, bool)),
        method="lanczos",
        shape=(40, 30),
        extremes=Extremes(top, 0.01 * top, *unresolved),
        name=name,
        products=99,
        provenance={
            "dtype": "float32",
            "stopped": {"reason": "rtol", "quantity": "mean_square", "error": 0.04, "rtol": 0.05},
        },
    )


DIFFICULT: dict[str, Callable[[], Spectrum]] = {
    "zero": lambda: Spectrum.from_singular_values(np.zeros(5), name="zero"),
    "below floor": lambda: Spectrum.from_singular_values(
        [2.0, 1.0, 1e-20, 1e-21], floor=1e-12, name="below floor"
    ),
    "all below floor": lambda: Spectrum.from_singular_values(
        [1e-20] * 4, floor=1e-12, name="all below floor"
    ),
    "beyond floats": lambda: predict("linear", 400, weights="gaussian", sigma_w=20.0, sigma_b=0.0),
    "underflow": lambda: predict("linear", 400, weights="gaussian", sigma_w=0.05, sigma_b=0.0),
    "prediction with zeros": lambda: predict("relu", 3, weights="gaussian", sigma_w=2**0.5, sigma_b=0.0),
    "several inputs": lambda: lanczos("several inputs", inputs=3, floor=0.2),
    "floor above 0.5": lambda: lanczos("floor above 0.5", inputs=1, floor=0.7),
}


@pytest.fixture(scope="module", params=DIFFICULT)
def spectrum(request) -> Spectrum:
    return DIFFICULT[request.param]()


def shown(spectrum: Spectrum) -> dict[str, str]:
    """Label -> text of every number that is shown of it."""
    return {LABELS[key]: text for key, text in spectrum.reported.cells().items() if text}


def in_text(text: str) -> dict[str, str]:
    """Label -> text of a printed table, as far as the labels are ours."""
    found = (re.fullmatch(r" *(\S.*?)\s{2,}(\S.*?) *", line) for line in text.splitlines())
    return {match[1]: match[2] for match in found if match is not None and match[1] in LABELS.values()}


def in_html(text: str) -> dict[str, str]:
    """Label -> text of a table with one column of values."""
    cells = re.findall(r"<tr><th[^>]*>([^<]*)</th><td[^>]*>([^<]*)</td>", text)
    return {label: value for key, text in cells if (label := html.unescape(key)) in LABELS.values()
            for value in [html.unescape(text)]}  # fmt: skip


def test_every_table_shows_the_same_names_and_texts(
    spectrum: Spectrum, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The pictures of such spectra are the matter of test_html.py.
    monkeypatch.setattr("isometry.report.html.distribution_pictures", lambda *_, **__: [])
    monkeypatch.setattr("isometry.report.html.input_picture", lambda *_, **__: Picture("", Markup("")))
    terminal = io.StringIO()
    print_report([spectrum], file=terminal, width=120)
    page = render_html([spectrum], laws=False)
    rows = {label: text for label, text in spectrum.rows() if label not in ("stopped", "verdict", "advice")}
    wanted = shown(spectrum)
    assert rows == wanted
    assert in_text(str(spectrum)) == wanted
    assert in_text(terminal.getvalue()) == wanted
    assert in_html(spectrum._repr_html_()) == wanted
    assert in_html(page) == wanted
    for text in (str(spectrum), html.unescape(spectrum._repr_html_()), html.unescape(page)):
        assert spectrum.verdict() in text
        assert spectrum.reported.stopped_text in text
    assert spectrum.verdict() in " ".join(terminal.getvalue().split())


def test_programs_get_the_same_names_and_numbers(spectrum: Spectrum, tmp_path: Path, capsys) -> None:
    """JSON, the flat numbers of loggers, and the columns of a table; None, nan and an empty cell are one."""
    record = json.loads(json.dumps(spectrum.to_dict(), allow_nan=False))
    known = {**record, **{f"quantile_{p}": value for p, value in record["quantiles"].items()}}
    share = record["isometry"]
    known["isometry"] = share["fraction"] if share["fraction"] == share["fraction_at_most"] else None
    known["isometry_stderr"] = share["stderr"]
    spread = record["spread"]
    least, most = spread["fraction"], spread["fraction_at_most"]
    known["spread"] = least if least == most else None
    known["isometry_lower"], known["isometry_upper"] = share["limits95"]
    flat = {key: value if math.isfinite(value) else None for key, value in spectrum.summary().items()}
    assert flat == {key: known[key] for key in flat}
    open_store(tmp_path / "one.h5", "w").add(spectrum, name="one")
    assert run(["table", str(tmp_path / "one.h5"), "--csv", "--columns", ",".join(flat)]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert {key: float(value) if value else None for key, value in row.items()} == flat


def test_people_and_programs_read_the_same_number(spectrum: Spectrum) -> None:
    record, cells = spectrum.to_dict(), spectrum.reported.cells()
    values = {key: record[key] for key in ("s_max", "s_min", "mean_square", "condition_number")}
    values |= {f"quantile_{p}": value for p, value in record["quantiles"].items()}
    logs = {key: record[f"log10_{key}"] for key in ("s_max", "s_min", "mean_square", "condition_number")}
    logs |= {f"quantile_{p}": value for p, value in record["log10_quantiles"].items()}
    for key, value in values.items():
        if value is not None:
            assert float(cells[key].split(" ")[0]) == pytest.approx(value, rel=1e-3)
        elif logs[key] is not None:
            assert cells[key].split(" ")[0] == power_text(logs[key])
        else:
            assert cells[key].startswith(("< ", "not resolved", "at least", "infinite"))


def test_of_several_inputs_the_bound_of_the_condition_number_is_that_of_one_of_them() -> None:
    """Two inputs of condition number 1, ten apart: the largest s of one over the smallest of the other says nothing."""
    nodes = np.array([[[10.0]], [[1.0]]])
    one = np.ones((2, 1))
    unresolved = Extremes(nodes[:, 0], 0 * one, nodes[:, 0, 0], one[:, 0], np.zeros(2, bool))
    spectrum = Spectrum(
        Quadrature(nodes, np.ones(nodes.shape), np.zeros(2), np.zeros(nodes.shape, bool)), "lanczos", (3, 3),
        unresolved,
    )  # fmt: skip
    assert spectrum.condition_number_bound == 1.0
    assert spectrum.reported.cells()["condition_number"] == "at least 1"
