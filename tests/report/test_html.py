"""The HTML report: one file that loads nothing, with every name escaped."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from isometry.errors import InputError
from isometry.report.html import render_html, write_html
from isometry.spectrum import Spectrum

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Reader(HTMLParser):
    """Tags balance; collects the text, the tags and everything a browser might load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def spectrum(name: str = "net") -> Spectrum:
    values = np.geomspace(0.1, 3, 50)
    return replace(
        Spectrum.from_singular_values(values, name=name),
        products=1234,
        provenance={"dtype": "float64", "options": {"top": 3}, "seed": 0, "nothing": None},
    )


def test_the_file_loads_nothing_and_runs_nothing() -> None:
    reader = read(render_html([spectrum("a"), spectrum("b")]))
    assert "script" not in reader.tags
    assert "svg" in reader.tags
    assert all(target.startswith("#") for target in reader.loads)


def test_names_and_provenance_are_escaped() -> None:
    nasty = '<script>alert(1)</script> & "co" \x1b[31m'
    page = replace(spectrum(nasty), provenance={nasty: nasty})
    text = render_html([page], title=nasty)
    reader = read(text)
    assert "script" not in reader.tags
    assert '<script>alert(1)</script> & "co"' in "".join(reader.text)
    assert "\x1b" not in text


def test_numbers_verdict_and_provenance_are_there() -> None:
    text = " ".join("".join(read(render_html([spectrum("net")])).text).split())
    for words in ("50 x 50", spectrum().verdict(), "1,234", "options: top", "float64"):
        assert words in text
    # What is not known is left out, not shown as None.
    assert "None" not in text


def test_the_same_spectra_give_the_same_page() -> None:
    assert render_html([spectrum()]) == render_html([spectrum()])


def test_the_page_is_written_whole(tmp_path) -> None:
    path = write_html([spectrum()], tmp_path / "page.html", title="a title")
    assert read(path.read_text(encoding="utf-8")).text
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(InputError, match="cannot write"):
        write_html([spectrum()], tmp_path / "absent" / "page.html")
    with pytest.raises(InputError, match="empty"):
        render_html([])
