"""The numbers every report leads with, as text: the same rows for each spectrum, so that they stand side by side."""

from __future__ import annotations

import math
import unicodedata

from isometry.spectrum import Spectrum
from isometry.spectrum.wording import percent_text

QUANTILES = ("0.99", "0.75", "0.5", "0.25", "0.01")


def plain(text: str) -> str:
    """A name or note from a file without control characters, which could otherwise steer a terminal."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else letter
        for letter in text
    )


_PLAIN_FORMS = str.maketrans({"±": "+-", "²": "^2", "≤": "<=", "≥": ">="})


def encodable(text: str, encoding: str) -> str:
    """The text in what an output stream's encoding can hold: '+-' for '±', escapes for the rest."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_PLAIN_FORMS).encode(encoding, "backslashreplace").decode(encoding)
    return text


def headline_rows(spectrum: Spectrum) -> dict[str, str]:
    """Label -> value for the table of a report. Every spectrum has the same labels in the same order."""
    rows = {
        "J": _shape(spectrum),
        "known by": _method(spectrum),
        "s max": _with_error(spectrum.s_max, spectrum.s_max_residual),
    }
    for key in QUANTILES:
        word = "median" if key == "0.5" else f"quantile {key}"
        rows[word] = spectrum.quantile_text(float(key))
    rows["s min"] = _smallest(spectrum)
    rows["mean s²"] = _mean_square(spectrum)
    rows["s max / s min"] = _condition(spectrum)
    rows["in [0.5, 2]"] = percent_text(*spectrum.isometry_bounds())
    rows["  95 % limits"] = percent_text(*spectrum.isometry_band())
    return rows


def _shape(spectrum: Spectrum) -> str:
    if spectrum.shape is None:
        return "infinite width"
    rows, columns = spectrum.shape
    null = f", {spectrum.null_dimension} null" if spectrum.null_dimension else ""
    return f"{rows} x {columns}{null}"


def _method(spectrum: Spectrum) -> str:
    words = [spectrum.method]
    if spectrum.n_probes > 1:
        words.append(f"{spectrum.n_probes} probes")
    if spectrum.n_inputs > 1:
        words.append(f"{spectrum.n_inputs} inputs")
    return ", ".join(words)


def _value(value: float, log10: float) -> str:
    """Four digits, or a power of ten outside the range of floats."""
    outside = (value == 0 and math.isfinite(log10)) or math.isinf(value)
    return f"1e{log10:.2f}" if outside else f"{value:.4g}"


def _with_error(value: float, error: float) -> str:
    # Rounding-sized residuals say "exact"; they would only crowd the table.
    if error > 1e-4 * abs(value):
        return f"{value:.4g} ± {error:.1g}"
    return f"{value:.4g}" if not math.isnan(value) else "not resolved"


def _smallest(spectrum: Spectrum) -> str:
    if math.isnan(spectrum.s_min):
        return f"not resolved (≤ {max(spectrum.s_min_bound, spectrum.floor):.2g})"
    return _with_error(spectrum.s_min, spectrum.s_min_residual)


def _mean_square(spectrum: Spectrum) -> str:
    value = _value(spectrum.mean_square, spectrum.log10_moment(1))
    error = spectrum.mean_square_stderr
    return f"{value} ± {error:.2g}" if error > 0 else value


def _condition(spectrum: Spectrum) -> str:
    number = spectrum.condition_number
    if math.isfinite(number):
        return f"{number:.3g}"
    smallest = spectrum.floor if spectrum.below_floor > 0 else max(spectrum.s_min_bound, spectrum.floor)
    return f"≥ {spectrum.s_max / smallest:.2g}" if smallest > 0 else "infinite"
