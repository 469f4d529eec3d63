"""One self-contained HTML file: what was measured and how, a verdict, pictures, numbers, and what makes it again.

Nothing is loaded from elsewhere: style and pictures (SVG) are inside, and there is no script. It reads on wide and
narrow, light and dark screens and on paper. Every text that came from a file is escaped by the template engine.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from isometry.comparison import compare
from isometry.errors import InputError, IsometryError
from isometry.report.depth_numbers import HEADINGS, block_row, shown_blocks
from isometry.report.depth_pictures import history_picture, profile_pictures
from isometry.report.histories import History
from isometry.report.inline_svg import page_colors
from isometry.report.numbers import headline_rows, plain
from isometry.report.page_pictures import Picture, distribution_pictures, input_picture, overlay_pictures
from isometry.report.reproduction import how_known, recipe
from isometry.spectrum import Spectrum
from isometry.spectrum.block_profile import BlockProfile
from isometry.spectrum.wording import REPORTED_QUANTILES
from isometry.theory.ensemble import Ensemble
from isometry.theory.prediction import predict

TITLE = "Jacobian spectra"
# So many inputs at most have a row each, so many spectra pictures of their own; the page says how many are left out.
MOST_INPUT_ROWS = 24
MOST_OWN_PICTURES = 8
MOST_BLOCK_ROWS = 32
MOST_STEP_ROWS = 16


@dataclass(frozen=True)
class Column:
    """One column of the table of numbers: a spectrum, or the law it should follow."""

    heading: str
    cells: dict[str, str]
    is_law: bool


def render_html(
    spectra: Sequence[Spectrum],
    *,
    profiles: Sequence[BlockProfile] = (),
    histories: Sequence[History] = (),
    title: str = TITLE,
    laws: bool = True,
) -> str:
    """The report of the spectra as the text of one HTML file.

    Parameters
    ----------
    spectra : sequence of Spectrum
        At least one. They stand side by side.
    profiles : sequence of BlockProfile
        Networks that were measured block by block.
    histories : sequence of History
        Spectra over the steps of a training run.
    title : str
        Heading and window title.
    laws : bool
        Predict, for every measured spectrum with a recorded ensemble, the law it should follow, and draw it over it.
    """
    if not spectra:
        raise InputError("there is no spectrum to report: the list is empty")
    predicted = [
        _law(spectrum) if laws and number < MOST_OWN_PICTURES else None
        for number, spectrum in enumerate(spectra)
    ]
    names = [plain(spectrum.name) or spectrum.method for spectrum in spectra]
    own = [
        {"name": name, "pictures": distribution_pictures(spectrum, law, name=f"own{number}")}
        for number, (spectrum, law, name) in enumerate(zip(spectra, predicted, names, strict=True))
        if number < MOST_OWN_PICTURES
    ]
    together = overlay_pictures(spectra) if len(spectra) > 1 else []
    inputs = [
        _inputs(spectrum, name, number)
        for number, (name, spectrum) in enumerate(zip(names, spectra, strict=True))
        if spectrum.n_inputs > 1
    ]
    depths = [_depth(profile, number) for number, profile in enumerate(profiles)]
    trainings = [_training(history, number) for number, history in enumerate(histories)]
    drawn = [
        *together,
        *(one for entry in [*own, *depths] for one in entry["pictures"]),
        *(entry["picture"] for entry in [*inputs, *trainings]),
    ]
    columns = _columns(spectra, predicted, names)
    environment = Environment(
        loader=PackageLoader("isometry.report"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        title=plain(title),
        colors=page_colors(str(one.svg) for one in drawn),
        verdicts=[_verdict(*entry) for entry in zip(spectra, predicted, names, strict=True)],
        together=together,
        own=own,
        not_drawn=len(spectra) - len(own),
        columns=columns,
        labels=list(columns[0].cells),
        inputs=inputs,
        depths=depths,
        trainings=trainings,
        origins=[_origin(spectrum, name) for spectrum, name in zip(spectra, names, strict=True)],
    )


def write_html(spectra: Sequence[Spectrum], path: str | os.PathLike[str], **options: Any) -> Path:
    """Write the report to a file, whole or not at all; returns the path. Options as for `render_html`."""
    target = Path(path)
    text = render_html(spectra, **options)
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"cannot write the report {target}: {error.strerror or error}") from error
    return target


# ---- what stands in the sections -----------------------------------------------------------------------


def _law(spectrum: Spectrum) -> Spectrum | None:
    """The law of the ensemble recorded with a measured spectrum; None where none is known or theory has no answer."""
    ensemble = spectrum.provenance.get("ensemble")
    if spectrum.kind == "predicted" or not isinstance(ensemble, Mapping):
        return None
    try:
        return predict(Ensemble.from_dict(ensemble))
    except (IsometryError, TypeError, ValueError, KeyError):
        # A file holds what its writer put there: without a prediction the measurement is still worth a page.
        return None


def _verdict(spectrum: Spectrum, law: Spectrum | None, name: str) -> dict[str, Any]:
    least, most = (100 * share for share in spectrum.isometry_bounds())
    # From least to most where the floor of the measurement leaves it open.
    share = f"{least:.3g} %" if most - least < 0.05 else f"{least:.3g} to {most:.3g} %"
    return {
        "name": name,
        "text": plain(spectrum.verdict()),
        "level": "good" if least >= 95 else "partly" if most >= 50 else "bad",
        "share": share,
        "how": plain(how_known(spectrum)),
        "law": _against_law(spectrum, law),
    }


def _against_law(spectrum: Spectrum, law: Spectrum | None) -> str:
    if law is None:
        return ""
    try:
        return plain(f"Against the law of its recorded ensemble: {compare(spectrum, law).verdict()}.")
    except IsometryError as error:
        return plain(f"It could not be compared with the law of its recorded ensemble: {error}")


def _columns(
    spectra: Sequence[Spectrum], laws: Sequence[Spectrum | None], names: Sequence[str]
) -> list[Column]:
    columns = []
    for spectrum, law, name in zip(spectra, laws, names, strict=True):
        columns.append(Column(name, _cells(spectrum), is_law=False))
        if law is not None:
            columns.append(
                Column(f"law of {name}" if len(spectra) > 1 else "predicted law", _cells(law), is_law=True)
            )
    if not any(column.cells["largest values"] for column in columns):
        for column in columns:
            del column.cells["largest values"]
    return columns


def _cells(spectrum: Spectrum) -> dict[str, str]:
    """The headline numbers, with every quantile that is reported anywhere, and the largest values."""
    headlines = headline_rows(spectrum)
    cells: dict[str, str] = {}
    for label, value in headlines.items():
        if label.startswith("quantile") or label == "median":
            if label == next(key for key in headlines if key.startswith("quantile")):
                cells |= {
                    "median" if level == "0.5" else f"quantile {level}": spectrum.quantile_text(float(level))
                    for level in reversed(REPORTED_QUANTILES)
                }
            continue
        cells[label] = value
    cells["largest values"] = _top_values(spectrum)
    return cells


def _top_values(spectrum: Spectrum, count: int = 5) -> str:
    """The largest singular values with their residual bounds, one below the other."""
    if spectrum.extremes is None:
        return ""
    extremes = spectrum.extremes
    best = int(extremes.top[:, 0].argmax())
    pairs = zip(extremes.top[best, :count], extremes.top_residual[best, :count], strict=True)
    return "\n".join(f"{s:.5g} ± {residual:.1g}" for s, residual in pairs if math.isfinite(s))


def _inputs(spectrum: Spectrum, name: str, number: int) -> dict[str, Any]:
    """How the inputs differ: a sentence, a picture, a row for each."""
    each = [spectrum.input(index) for index in range(spectrum.n_inputs)]
    means = [one.mean_square for one in each]
    mean = math.fsum(means) / len(means)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in means) / (len(means) - 1))
    own = [one.mean_square_stderr for one in each]
    noise = (
        math.sqrt(math.fsum(error**2 for error in own) / len(own))
        if all(map(math.isfinite, own))
        else math.nan
    )
    shares = [one.isometry() for one in each]
    if not noise > 0:
        cause = "the probes add no error"
    elif spread > 2 * noise:
        cause = f"more than the error {noise:.2g} of one input's probes explains"
    else:
        cause = f"no more than the error {noise:.2g} of one input's probes explains"
    relative = f" ({100 * spread / mean:.2g} % of the mean)" if mean > 0 else ""
    shown: Picture = input_picture(spectrum, name=f"inputs{number}")
    return {
        "name": name,
        "picture": shown,
        "text": f"Over {len(each)} inputs the mean s² has the standard deviation {spread:.3g}{relative}, {cause}. "
        f"The share in [0.5, 2] runs from {100 * min(shares):.3g} to {100 * max(shares):.3g} %.",
        "rows": [_short_cells(one) for one in each[:MOST_INPUT_ROWS]],
        "left_out": max(0, len(each) - MOST_INPUT_ROWS),
    }


def _depth(profile: BlockProfile, number: int) -> dict[str, Any]:
    """What becomes of the signal block by block: a sentence, pictures, a row for each block or for some."""
    shown, fault = shown_blocks(profile, MOST_BLOCK_ROWS), profile.at_fault()
    return {
        "name": plain(profile.name),
        "text": plain(profile.verdict()),
        "pictures": profile_pictures(profile, name=f"depth{number}"),
        "headings": HEADINGS,
        "rows": [{"cells": block_row(profile, block), "at_fault": block == fault} for block in shown],
        "left_out": len(profile) - len(shown),
    }


def _training(history: History, number: int) -> dict[str, Any]:
    """The spectrum over training steps: a picture and a row for each step or for some."""
    count = len(history.steps)
    rows = sorted({round(k * (count - 1) / (MOST_STEP_ROWS - 1)) for k in range(MOST_STEP_ROWS)})
    return {
        "name": plain(history.name),
        "text": history.cost,
        "picture": history_picture(history, name=f"training{number}"),
        "rows": [{"step": f"{history.steps[k]}", **_short_cells(history.spectra[k])} for k in rows],
        "left_out": count - len(rows),
    }


def _short_cells(spectrum: Spectrum) -> dict[str, str]:
    cells = _cells(spectrum)
    return {
        key: cells[key]
        for key in ("s max", "quantile 0.95", "median", "quantile 0.05", "mean s²", "in [0.5, 2]")
    }


def _origin(spectrum: Spectrum, name: str) -> dict[str, Any]:
    again = recipe(replace(spectrum, name=plain(spectrum.name)))
    return {"name": name, "recipe": again, "rows": _provenance_rows(spectrum)}


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
        elif key != "command":
            rows.append((str(key), _text(value)))
    return [(plain(label), plain(text)) for label, text in rows if text]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.10g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
