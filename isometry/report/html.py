"""One self-contained HTML file: the picture, the numbers side by side, a verdict, and where each spectrum came from.

Nothing is loaded from elsewhere: style and picture (SVG) are inside, and there is no script. Every text that
came from a file is escaped by the template engine.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from isometry.errors import InputError
from isometry.report.numbers import headline_rows, plain
from isometry.report.plots import figure_of_spectra, house_style
from isometry.spectrum import Spectrum


def render_html(spectra: Sequence[Spectrum], *, title: str = "Jacobian spectra") -> str:
    """The report of the spectra as the text of one HTML file.

    Parameters
    ----------
    spectra : sequence of Spectrum
        At least one.
    title : str
        Heading and window title.
    """
    if not spectra:
        raise InputError("there is no spectrum to report: the list is empty")
    environment = Environment(
        loader=PackageLoader("isometry.report"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = [headline_rows(spectrum) for spectrum in spectra]
    return environment.get_template("report.html").render(
        title=plain(title),
        names=[plain(spectrum.name) or spectrum.method for spectrum in spectra],
        verdicts=[
            {"text": spectrum.verdict(), "level": _level(spectrum), "share": 100 * spectrum.isometry()}
            for spectrum in spectra
        ],
        labels=list(rows[0]),
        rows=rows,
        picture=Markup(_inline_svg(spectra)),
        top=[_top_values(spectrum) for spectrum in spectra],
        provenance=[_provenance_rows(spectrum) for spectrum in spectra],
    )


def write_html(
    spectra: Sequence[Spectrum], path: str | os.PathLike[str], *, title: str = "Jacobian spectra"
) -> Path:
    """Write the report to a file, whole or not at all; returns the path."""
    target = Path(path)
    text = render_html(spectra, title=title)
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"cannot write the report {target}: {error.strerror or error}") from error
    return target


def _inline_svg(spectra: Sequence[Spectrum]) -> str:
    buffer = io.StringIO()
    with house_style():
        figure_of_spectra(spectra).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    # Inside HTML an SVG starts at its own element: no XML declaration, no document type.
    return text[text.index("<svg") :]


def _level(spectrum: Spectrum) -> str:
    share = spectrum.isometry()
    return "good" if share >= 0.95 else "partly" if share >= 0.5 else "bad"


def _top_values(spectrum: Spectrum, count: int = 5) -> list[str]:
    """The largest singular values with their residual bounds."""
    if spectrum.extremes is None:
        return []
    extremes = spectrum.extremes
    best = int(extremes.top[:, 0].argmax())
    pairs = zip(extremes.top[best, :count], extremes.top_residual[best, :count], strict=True)
    return [f"{s:.5g} ± {residual:.1g}" for s, residual in pairs]


def _provenance_rows(spectrum: Spectrum) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = [
        ("kind", f"{spectrum.kind} ({spectrum.method})"),
        ("inputs × probes", f"{spectrum.n_inputs} × {spectrum.n_probes}"),
        ("products with J and its transpose", f"{spectrum.products:,}"),
        ("seconds", f"{spectrum.seconds:.3g}"),
    ]
    for key, value in spectrum.provenance.items():
        if isinstance(value, Mapping):
            rows += [(f"{key}: {inner}", _text(item)) for inner, item in value.items()]
        else:
            rows.append((str(key), _text(value)))
    return [(plain(label), plain(text)) for label, text in rows if text]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.10g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
