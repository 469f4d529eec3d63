"""One self-contained HTML file: verdict, method, pictures, numbers, and the command that reproduces them.

Nothing is loaded from elsewhere: style and pictures (SVG) are inside, and there is no script. It reads on wide and
narrow, light and dark screens and on paper. Every text that came from a file is escaped by the template engine.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template, select_autoescape

from isometry.comparison import compare
from isometry.errors import InputError, IsometryError
from isometry.report.depth_pictures import history_picture, profile_pictures
from isometry.report.histories import History
from isometry.report.inline_svg import page_colors
from isometry.report.page_pictures import Picture, distribution_pictures, input_picture, overlay_pictures
from isometry.report.reproduction import how_known, provenance_rows, recipe
from isometry.spectrum import Spectrum
from isometry.spectrum.advice import Advice
from isometry.spectrum.block_profile import BlockProfile
from isometry.spectrum.formatting import error_text, number_text, percent_text, plain
from isometry.spectrum.input_spread import input_spread
from isometry.spectrum.summary import LABELS, Summary, table
from isometry.theory.ensemble import Ensemble
from isometry.theory.prediction import predict

TITLE = "Jacobian spectra"
# Limits of rows and pictures; the page says how many are left out.
MOST_INPUT_ROWS = 24
MOST_OWN_PICTURES = 8
MOST_BLOCK_ROWS = 32
MOST_STEP_ROWS = 16
# The numbers in the row of one input or one step.
SHORT = ("s_max", "quantile_0.95", "quantile_0.5", "quantile_0.05", "mean_square", "isometry")
SHORT_LABELS = [LABELS[key] for key in SHORT]


@dataclass(frozen=True)
class Heading:
    """Heading of one column of the table of numbers: a spectrum, or its predicted law."""

    text: str
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
    headings, rows = _numbers(spectra, predicted, names)
    return _page().render(
        title=plain(title),
        colors=page_colors(str(one.svg) for one in drawn),
        verdicts=[_verdict(*entry) for entry in zip(spectra, predicted, names, strict=True)],
        together=together,
        own=own,
        not_drawn=len(spectra) - len(own),
        headings=headings,
        rows=rows,
        inputs=inputs,
        depths=depths,
        trainings=trainings,
        origins=[_origin(spectrum, name) for spectrum, name in zip(spectra, names, strict=True)],
    )


@functools.cache
def _page() -> Template:
    environment = Environment(
        loader=PackageLoader("isometry.report"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


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


# ---- sections -------------------------------------------------------------------------------------------


def _law(spectrum: Spectrum) -> Spectrum | None:
    """The predicted law of the recorded ensemble; None where no ensemble is recorded or theory has no answer."""
    ensemble = spectrum.provenance.get("ensemble")
    if spectrum.kind == "predicted" or not isinstance(ensemble, Mapping):
        return None
    try:
        return predict(Ensemble.from_dict(ensemble))
    except (IsometryError, TypeError, ValueError, KeyError):
        # A foreign file may hold any ensemble: the page then shows the measurement without a prediction.
        return None


def _verdict(spectrum: Spectrum, law: Spectrum | None, name: str) -> dict[str, Any]:
    summary = spectrum.reported
    return {
        "name": name,
        "text": plain(summary.verdict),
        "stopped": plain(summary.stopped_text),
        "shares": plain(summary.shares_text),
        "level": summary.level,
        "share": percent_text(*summary.isometry),
        "how": plain(how_known(spectrum)),
        "law": _against_law(spectrum, law),
        "advice": _advice(summary.advice),
    }


def _advice(found: Sequence[Advice]) -> list[tuple[str, str]]:
    """Sentence and command of each."""
    return [(plain(one.sentence), plain(one.command)) for one in found]


def _against_law(spectrum: Spectrum, law: Spectrum | None) -> str:
    if law is None:
        return ""
    try:
        return plain(f"Compared with the predicted law of its ensemble: {compare(spectrum, law).verdict()}.")
    except IsometryError as error:
        return plain(f"The predicted law of its ensemble could not be compared with it: {error}")


def _numbers(
    spectra: Sequence[Spectrum], laws: Sequence[Spectrum | None], names: Sequence[str]
) -> tuple[list[Heading], list[tuple[str, list[str]]]]:
    """Headings of the columns, and (label, texts) of the rows: each spectrum with its law beside it."""
    headings: list[Heading] = []
    summaries: list[Summary] = []
    for spectrum, law, name in zip(spectra, laws, names, strict=True):
        headings.append(Heading(name, is_law=False))
        summaries.append(spectrum.reported)
        if law is not None:
            headings.append(Heading(f"law of {name}" if len(spectra) > 1 else "predicted law", is_law=True))
            summaries.append(law.reported)
    rows = [(label, texts) for _, label, texts in table(summaries)]
    largest = [_top_values(summary) for summary in summaries]
    return headings, [*rows, *([("largest values", largest)] if any(largest) else [])]


def _top_values(summary: Summary, count: int = 5) -> str:
    """The largest singular values with their residual bounds, one below the other."""
    return "\n".join(error_text(s, residual) for s, residual in summary.top[:count])


def _inputs(spectrum: Spectrum, name: str, number: int) -> dict[str, Any]:
    """How the inputs differ: a sentence, a picture, a row for each."""
    found = input_spread(spectrum)
    noise = f"the error {number_text(found.probe_error)} of one input's probes explains"
    if not found.probe_error > 0:
        cause = "the probes add no error"
    elif found.deviation > 2 * found.probe_error:
        cause = f"more than {noise}"
    else:
        cause = f"no more than {noise}"
    relative = f" ({100 * found.deviation / found.mean:.2g} % of the mean)" if found.mean > 0 else ""
    shown: Picture = input_picture(spectrum, name=f"inputs{number}")
    kept = range(min(spectrum.n_inputs, MOST_INPUT_ROWS))
    return {
        "name": name,
        "picture": shown,
        "text": f"Over {spectrum.n_inputs} inputs the mean s² has the standard deviation "
        f"{number_text(found.deviation)}{relative}, {cause}. The share in [0.5, 2] runs from "
        f"{percent_text(found.least)} to {percent_text(found.most)}.",
        "headings": ["input", *SHORT_LABELS],
        "rows": [[f"{index}", *_short_texts(spectrum.input(index))] for index in kept],
        "left_out": spectrum.n_inputs - len(kept),
    }


def _depth(profile: BlockProfile, number: int) -> dict[str, Any]:
    """Gains block by block: a sentence, pictures, a row for each block or for some."""
    shown, fault = profile.shown(MOST_BLOCK_ROWS), profile.at_fault()
    return {
        "name": plain(profile.name),
        "text": plain(profile.verdict()),
        "advice": _advice(profile.advice()),
        "pictures": profile_pictures(profile, name=f"depth{number}"),
        "headings": profile.headings,
        "rows": [
            {"cells": [plain(text) for text in profile.row(block)], "at_fault": block == fault}
            for block in shown
        ],
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
        "headings": ["step", *SHORT_LABELS],
        "rows": [[f"{history.steps[k]}", *_short_texts(history.spectra[k])] for k in rows],
        "left_out": count - len(rows),
    }


def _short_texts(spectrum: Spectrum) -> list[str]:
    cells = spectrum.reported.cells()
    return [cells[key] for key in SHORT]


def _origin(spectrum: Spectrum, name: str) -> dict[str, Any]:
    again = recipe(replace(spectrum, name=plain(spectrum.name)))
    rows = [(plain(label), plain(text)) for label, text in provenance_rows(spectrum) if label != "command"]
    return {"name": name, "recipe": again, "rows": rows}
