"""No text of a file steers the terminal: on every path only newline and tab pass, of all control characters."""

from __future__ import annotations

import csv
import io
import json
import os
import unicodedata
import warnings
from dataclasses import replace
from pathlib import Path

import click
import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from isometry import compare
from isometry.cli import streams
from isometry.cli.entry import report_failure, run
from isometry.cli.table import _csv_cell
from isometry.errors import IsometryWarning, StoreError
from isometry.report.tables import PlainConsole, print_table
from isometry.spectrum import Spectrum
from isometry.store import open_store
from isometry.store.digest import DIGEST, digest_of

# Of each kind one: C0, DEL, C1 (a control sequence in one byte), writing direction, line separators, tags, surrogate.
SIGNS = "\x1b\x07\x08\x9b\x85\x7f\r\u202e\u2066\u2028\u2029\u200b\ufeff\U000e0041"
HOSTILE = st.text(st.one_of(st.sampled_from(SIGNS + "\ud800[]2J;=<&'\"\n\t"), st.characters()), max_size=20)
STORABLE = st.text(
    st.one_of(st.sampled_from(SIGNS + "[]2J;="), st.characters(exclude_categories=["Cs"])), max_size=20
)


def steering(text: str) -> set[str]:
    """The characters of a text that may not reach a terminal."""
    return {
        letter
        for letter in text
        if letter not in "\n\t" and unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    }


def reseal(item: h5py.Group) -> None:
    # Its checksum counts the texts; without it a list reads the spectrum itself.
    item.attrs.pop("summary", None)
    item.attrs[DIGEST] = digest_of(item)


def hostile_file(path: Path, text: str) -> None:
    """A file with the text wherever a file has text: names, methods, keys, notes, provenance, columns, errors."""
    configuration = {"model": text, f"key {text}": 1, text or "empty": text, "depth": 2}
    sweep = {"kind": text, "configuration": configuration}
    provenance = {
        "model": text, "input": text, "created": text, "command": text, "note": text, text or "empty": {text: text},
        "warnings": [text], "sweep": sweep, "stopped": text, "options": {text: text}, "theory": text,
        "ensemble": {"activation": text, "weights": text},
    }  # fmt: skip
    store = open_store(path, "w")
    one = Spectrum.from_singular_values([2.0, 0.5], name="one")
    store.add(replace(one, provenance=provenance))
    store.add(replace(one, name="two", provenance={"sweep": {"kind": "x", "configuration": {"depth": 3}}}))
    attributes = {"sweep": sweep, "error": text, "error_type": text, "traceback": text, text or "empty": text}
    store.add_series("failed one", {"attempt": [1], "seconds": [0.5]}, attributes)
    store.add_series("curve", {"step": [1, 2], "loss": [0.5, 0.25]}, attributes)
    with h5py.File(path, "r+") as file:
        spectra, series = file["spectra"], file["series"]
        storable = text.replace("\0", "")
        spectra["one"].attrs["method"] = storable
        spectra["one"].attrs["kind"] = "measured"
        reseal(spectra["one"])
        name = storable.replace("/", "").strip(".") or "x"
        series["curve"].move("loss", name)
        series["curve"][name].attrs["units"] = storable
        reseal(series["curve"])
        spectra.move("two", f"2{name}")
        series.move("curve", f"c{name}")


@settings(deadline=None, max_examples=1, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STORABLE)
@example(f"={SIGNS}[2J")
@example("x")
def test_no_command_lets_a_file_steer_the_terminal(tmp_path, capfd, text):
    file = tmp_path / "a.h5"
    hostile_file(file, text)
    name = text.replace("\0", "").replace("/", "").strip(".") or "x"
    commands = [
        ["list", file], ["list", file, "--json"], ["validate", file], ["validate", file, "--json"],
        ["show", file, "one"], ["show", file, "one", "--json"], ["show", file, f"2{name}"],
        ["show", file, f"c{name}"], ["show", file, "failed one"], ["show", file, f"no {text}".replace("\0", "")],
        ["report", file], ["report", file, "one"], ["report", file, "one", "--json"],
        ["table", file], ["table", file, "--csv"], ["table", file, "--json"], ["table", file, "--failed"],
        ["table", file, "--failed", "--csv"], ["table", file, "--columns", f"absent {text}".replace("\0", "")],
        ["compare", f"{file}:one", f"{file}:2{name}"], ["compare", f"{file}:one", "--theory"],
        ["plot", file, "--x", "absent", "--y", "s_max", "-o", tmp_path / "a.png"],
        ["plot", file, "--x", "depth", "--y", "s_max", "--hue", "kind", "-o", tmp_path / "a.svg"],
    ]  # fmt: skip
    capfd.readouterr()
    for command in commands:
        code = run([str(word) for word in command])
        done = capfd.readouterr()
        assert not steering(done.out + done.err), (command[0], command[2:])
        if text == "x":  # the paths are those of success, too
            refused = any("absent" in str(word) or word in ("--theory", "no x") for word in command)
            assert (code == 0) is not refused, done
        assert "unexpected" not in done.err


@settings(deadline=None, max_examples=80)
@given(HOSTILE)
def test_whatever_a_caller_prints_is_plain(text):
    """The functions of output themselves; commands know no other."""
    for write in (streams.note, streams.print_text, lambda text: streams.print_json({text: [text]})):
        out = io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdout", out)
            patch.setattr("sys.stderr", out)
            write(text)
        assert not steering(out.getvalue())
    assert json.loads(out.getvalue()) == {text: [text]}
    out = io.StringIO()
    console = PlainConsole(out, 60)
    from rich.text import Text

    console.print(Text(text), text)
    print_table([text, "b"], [[text, "1"]], file=out)
    assert not steering(out.getvalue())


@settings(deadline=None, max_examples=20)
@given(HOSTILE)
def test_errors_warnings_and_results_in_a_terminal_are_plain(text):
    one = replace(Spectrum.from_singular_values([2.0, 0.5], name="one"), name=text, method=text)
    shown = [repr(one), str(one), str(compare(one, one)), repr(compare(one, one))]
    err = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", err)
        for debug in ("", "1"):
            patch.setenv("ISOMETRY_DEBUG", debug)
            for error in (StoreError(text), ValueError(text), OSError(2, text, text), click.UsageError(text),
                          RuntimeError(f"out of memory {text}")):  # fmt: skip
                report_failure(error)
        with warnings.catch_warnings():
            from isometry.cli.entry import _show_warning

            _show_warning(text, IsometryWarning, text, 1)
    assert not steering(err.getvalue() + "".join(shown))


def test_the_name_of_the_file_itself_is_plain(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "a\x1b]0;x\x07\u202e\x9b.h5"
    hostile_file(Path(name), "x")
    bytes_of_no_text = os.fsdecode(b"b\xff\x1b.h5")
    for command in (["list"], ["validate"], ["report"], ["table"], ["show", "no"]):
        for file in (name, "absent" + name, bytes_of_no_text):
            run([command[0], file, *command[1:]])
            done = capfd.readouterr()
            assert not steering(done.out + done.err), (command, file)


@pytest.mark.parametrize("start", list("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20") + [" =", "\u2003+", "\t="])
def test_text_that_a_spreadsheet_would_compute_is_marked_as_text(start):
    assert _csv_cell(f"{start}HYPERLINK(1)") == f"'{start}HYPERLINK(1)"


@pytest.mark.parametrize("value", [-1, -1.5, float("-inf"), True, "a=b", "3e-5", "1-2", ""])
def test_numbers_and_other_text_stay_as_they_are_in_csv(value):
    assert _csv_cell(value) == value


def test_a_table_in_csv_holds_no_formula(tmp_path, capfd):
    file = tmp_path / "a.h5"
    hostile_file(file, "=1+1")
    assert run(["table", str(file), "--csv"]) == 0
    rows = list(csv.reader(io.StringIO(capfd.readouterr().out)))
    assert "'=1+1" in rows[0]  # a key of the configuration
    assert any("'=1+1" in row for row in rows[1:])
    texts = [cell for row in rows for cell in row if not _is_float(cell)]
    assert not any(cell[:1] in "=+-@" for cell in texts if cell)
    negative = replace(
        Spectrum.from_singular_values(np.array([0.5, 0.25])),
        name="low",
        provenance={"sweep": {"configuration": {"shift": -3}}},
    )
    open_store(tmp_path / "b.h5", "w").add(negative)
    assert run(["table", str(tmp_path / "b.h5"), "--csv", "--columns", "shift,log10_mean_square"]) == 0
    row = list(csv.reader(io.StringIO(capfd.readouterr().out)))[1]
    assert row[0] == "-3"
    assert float(row[1]) < 0


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
