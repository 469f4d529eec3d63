"""The report page: one file that loads nothing and runs nothing, with everything from a file escaped."""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from isometry.errors import InputError
from isometry.report.html import _law as law_of
from isometry.report.html import render_html, write_html
from isometry.report.inline_svg import on_dark
from isometry.report.reproduction import recipe
from isometry.spectrum import Curve, Quadrature, Spectrum
from isometry.theory.prediction import predict

pytestmark = pytest.mark.usefixtures("few_networks")

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Reader(HTMLParser):
    """Tags balance; collects the text, the tags, their attributes and everything a browser might load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.attributes: set[str] = set()
        self.pictures: list[dict[str, str | None]] = []
        self.text: list[str] = []
        self.code: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.loads += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")
        ]
        if tag in ("svg", "img"):
            self.pictures.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        # Style is no text of the page.
        if "style" not in self.open:
            self.text.append(data)
        if "code" in self.open:
            self.code.append(data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def spectrum(name: str = "net") -> Spectrum:
    values = np.geomspace(0.1, 3, 50)
    return replace(
        Spectrum.from_singular_values(values, name=name),
        products=1234,
        provenance={"dtype": "float64", "options": {"top": 3}, "seed": 0, "nothing": None},
    )


def sampled(*, inputs: int = 3, probes: int = 4, steps: int = 50) -> Spectrum:
    """As large as measurements are by default, with an ensemble whose law is known, at several inputs."""
    generator = np.random.default_rng(0)
    nodes = np.sort(np.exp(generator.normal(0, 1.5, (inputs, probes, steps))))
    weights = generator.dirichlet(np.ones(steps), (inputs, probes))
    law = predict("tanh", 8, weights="gaussian", sigma_w=1.0, sigma_b=0.0)
    return Spectrum(
        Quadrature(nodes, weights, np.full(inputs, 0.02), np.zeros(nodes.shape, bool)),
        method="lanczos",
        shape=(1024, 1024),
        name="sampled",
        products=2 * inputs * probes * steps,
        seconds=1.5,
        provenance={
            "ensemble": law.provenance["ensemble"], "model": "VanillaCNN (123 parameters)", "probes": probes,
            "input": "(3, 16, 8, 8) float32", "steps": steps, "seed": 0, "dtype": "float32", "device": "cpu",
            "command": "isometry measure 'vanilla-cnn:depth=8' --inputs 3 --name 'a name'",
        },
    )  # fmt: skip


def test_the_file_loads_nothing_and_runs_nothing(several: str) -> None:
    reader, text = read(several), several
    assert "script" not in reader.tags
    assert not {name for name in reader.attributes if name.startswith("on")}
    assert all(target.startswith("#") for target in reader.loads)
    # The only addresses are the names of the SVG vocabulary, and every url() points into the page.
    assert set(re.findall(r"https?://[^\"' <]*", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert "@import" not in text


def test_every_picture_says_what_it_shows_and_every_id_is_there_once(several: str) -> None:
    reader, text = read(several), several
    # Two of both together, four of each, one of the three inputs of the first.
    assert len(reader.pictures) == 2 + 2 * 4 + 1
    for picture in reader.pictures:
        assert picture["role"] == "img"
        for place in str(picture["aria-labelledby"]).split():
            found = re.search(f'id="{place}">([^<]+)<', text)
            assert found is not None
            assert len(found[1]) > 10
    assert len(reader.ids) == len(set(reader.ids))
    assert {target[1:] for target in reader.loads} <= set(reader.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(reader.ids)


def test_a_page_of_one_spectrum_is_small() -> None:
    # With a law, twelve inputs and the nodes of the default measurement: 300 kB is what a mail takes.
    assert len(render_html([sampled(inputs=12, probes=16)]).encode()) < 300_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_of_a_picture_is_seen_on_its_page(scheme: str, several: str) -> None:
    text = several
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert not re.findall(r"(?:fill|stroke): #", drawn), "a colour that knows nothing of the page"
    used = set(re.findall(r"var\((--x\w+)\)", drawn))
    sheets = text.split("prefers-color-scheme: dark) {\n:root { --x")
    sheet = sheets[0] if scheme == "light" else "--x" + sheets[1]
    page = (0xFF, 0xFF, 0xFF) if scheme == "light" else (0x1D, 0x21, 0x25)
    for name in used:
        found = re.findall(rf"{name}: #([0-9a-f]{{6}})", sheet)
        assert found, name
        value = tuple(int(found[-1][k : k + 2], 16) for k in (0, 2, 4))
        # WCAG asks for a ratio of 3 for graphics; the grid is meant to be faint.
        assert _contrast(value, page) > (1.1 if name == "--xe4e4e4" else 3), (name, found)


def _contrast(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Ratio of the relative luminances of two colours (WCAG 2.1)."""

    def luminance(color: tuple[int, ...]) -> float:
        linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_greys_turn_over_and_colours_keep_their_hue() -> None:
    assert on_dark("000000") > on_dark("555555") > on_dark("e4e4e4") > on_dark("ffffff")
    red, green, blue = (int(on_dark("0072b2")[k : k + 2], 16) for k in (1, 3, 5))
    assert blue > green > red


MARKUP = [
    "<script>alert(1)</script>", "</style><script>", "]]><svg onload=alert(1)>", "--><img src=x onerror=a>",
    '"><a href="javascript:a">', "{{ 7 * 7 }}", "</title>", "&lt;b&gt;", "$x^2$", "_",
]  # fmt: skip
NASTY = st.text(
    st.one_of(st.sampled_from("<>&\"'/=-!#;\\`\n\r\t\x00\x1b\x7f\u2028\u202e"), st.characters()), max_size=30
) | st.sampled_from(MARKUP)


@pytest.fixture(scope="module")
def harmless() -> str:
    """The page of a spectrum with harmless texts."""
    return render_html([spectrum("a")], title="a title")


@pytest.fixture(scope="module")
def ordinary(harmless: str) -> Reader:
    return read(harmless)


@pytest.fixture(scope="module")
def several() -> str:
    """A page with a law, three inputs, and a second spectrum."""
    return render_html([sampled(), spectrum("b")])


@settings(max_examples=1, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(NASTY, NASTY, NASTY, NASTY)
@example("".join(MARKUP), "".join(MARKUP), "".join(MARKUP), "".join(MARKUP))
@example("plain name", "\u2028\x00", "</style><script>", "</title>")
def test_no_text_of_a_file_becomes_markup(
    ordinary: Reader, name: str, key: str, value: str, title: str
) -> None:
    record = {
        "dtype": value, "device": value, "model": value, "model_spec": value, "input": key, "input_spec": key,
        "command": value, key or "k": {key or "k": value}, "seed": 0,
    }  # fmt: skip
    page = replace(spectrum(name), provenance=record, method="exact")
    reader = read(render_html([page], title=title))
    # Whatever the texts are, the page has the elements and attributes of any other.
    assert set(reader.tags) == set(ordinary.tags)
    assert reader.attributes == ordinary.attributes
    assert reader.tags.count("svg") == 4
    assert all(target.startswith("#") for target in reader.loads)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u2028\u202e]", "".join(reader.text))
    if name.strip() and name.isprintable() and "\\" not in name:
        assert " ".join(name.split()) in reader.words


@settings(max_examples=30, deadline=None)
@given(NASTY, st.sampled_from(["exact", "lanczos", "randomized"]))
def test_a_recipe_is_one_command_or_python_that_compiles(text: str, method: str) -> None:
    record = {
        "model": text,
        "input": text,
        "options": {"source": text, "output": text},
        "command": f"isometry {text}",
    }
    again = recipe(replace(spectrum(text), method=method, provenance=record))
    assert again is not None
    if again.language == "shell":
        words = shlex.split(again.text)
        assert words[0] == "isometry"
        # Nothing that a shell would act on stands outside of quotes.
        assert shlex.join(words) == again.text
    else:
        tree = ast.parse(again.text)
        # An import, model, x, and one call: no text of the file became a statement.
        assert [type(line).__name__ for line in tree.body] == ["Import", "Assign", "Assign", "Assign"]


def test_numbers_verdict_law_and_provenance_are_there(several: str, ordinary: Reader) -> None:
    reader = read(several)
    one = sampled()
    for words in (
        one.verdict(), "1,200", "float32", "1024 x 1024", "predicted law",
        "Compared with the predicted law of its ensemble",
        "Measured by Golub-Kahan quadrature with 4 random probes of 50 steps", "Over 3 inputs",
        f"{one.mean_square:.4g}", one.quantile_text(0.95), "quantile 0.05",
    ):  # fmt: skip
        assert words in reader.words, words
    assert "isometry measure vanilla-cnn:depth=8 --inputs 3 --name 'a name'" in "".join(reader.code)
    # What is not known is left out, not shown as None.
    assert "None" not in ordinary.words
    few = sampled(inputs=1, probes=2, steps=4)
    assert "law" not in read(render_html([few], laws=False)).words


def test_what_makes_a_prediction_again_makes_it_again() -> None:
    law = predict("relu", 3, weights="orthogonal", sigma_w=2**0.5)
    (code,) = read(render_html([law])).code
    names: dict[str, object] = {}
    exec(code, names)
    again = names["spectrum"]
    assert isinstance(again, Spectrum)
    assert again.mean_square == law.mean_square


@pytest.mark.parametrize(
    "one",
    [
        Spectrum.from_singular_values(np.zeros(4), name="nothing"),
        Spectrum.from_singular_values(np.ones(4), name="identity"),
        Spectrum(
            Curve(np.linspace(-400.0, 900.0, 5), np.linspace(0, 1, 5), np.full(5, 1 / 1300), np.empty(0), np.empty(0)),
            method="predicted", name="beyond all floats",
        ),
        replace(spectrum(), provenance={"ensemble": {"depth": "x" * 10}, "steps": "many", "options": 7}),
    ],
    ids=["zero", "identity", "wide", "odd record"],
)  # fmt: skip
def test_extreme_spectra_have_a_page(one: Spectrum) -> None:
    reader = read(render_html([one]))
    assert one.verdict() in reader.words
    assert "nan" not in reader.words.lower().split()


@pytest.mark.parametrize("ensemble", [{"activation": "no such", "depth": 3}, {"depth": 3}, {"depth": []}, 7])
def test_an_ensemble_without_a_law_has_a_page_without_one(ensemble: object) -> None:
    assert law_of(replace(spectrum(), provenance={"ensemble": ensemble})) is None


def test_the_page_is_written_whole_and_the_same_for_the_same_spectra(tmp_path, harmless: str) -> None:
    path = write_html([spectrum("a")], tmp_path / "page.html", title="a title")
    assert path.read_text(encoding="utf-8") == harmless
    assert "a title" in read(harmless).words
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(InputError, match="cannot write"):
        write_html([spectrum()], tmp_path / "absent" / "page.html")
    with pytest.raises(InputError, match="empty"):
        render_html([])
