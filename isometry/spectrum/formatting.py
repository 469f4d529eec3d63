"""How numbers and texts are written: for a person, as JSON for a program. Every report writes them so."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

# An error below this fraction of its value does not reach the digits shown.
_SMALLEST_ERROR = 1e-4
# 10^x is a float with all its digits for x within these.
_LARGEST_EXPONENT = 300.0


def plain(text: str, *, keep: str = "") -> str:
    """The text without control characters, which could steer a terminal; replaced are those of ASCII and Latin 1,
    line separators, marks of writing direction and other invisible ones, except ``keep``.
    """
    if text.isprintable():
        return text
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if letter not in keep and unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else letter
        for letter in text
    )


def number_text(value: float, log10: float = math.nan) -> str:
    """Four digits; a power of ten where only log10 of the number is a float.

    Parameters
    ----------
    value : float
        nan for a number that is not known or outside the range of floats.
    log10 : float
        log10 of the number, nan where it is not known.
    """
    if math.isnan(value):
        return power_text(log10)
    return f"{value:.4g}" if math.isfinite(value) else "infinite"


def power_text(log10: float) -> str:
    """The number whose log10 is given, as :func:`number_text`."""
    if math.isnan(log10):
        return "unknown"
    if abs(log10) > _LARGEST_EXPONENT:
        return f"1e{log10:+.2f}" if math.isfinite(log10) else "0" if log10 < 0 else "infinite"
    return number_text(10**log10)


def error_text(value: float, error: float, log10: float = math.nan) -> str:
    """A number with its error, ``1.25 ± 0.013``; without one that does not reach the digits shown."""
    text = number_text(value, log10)
    if math.isnan(value):
        return text
    if math.isnan(error):
        return f"{text} (error unknown)"
    return f"{text} ± {error:.2g}" if error > _SMALLEST_ERROR * abs(value) else text


def percent_text(least: float, most: float | None = None) -> str:
    """A share in percent: one number, or from least to most where they differ in the digits shown."""
    low = f"{100 * least:.3g}"
    high = low if most is None else f"{100 * most:.3g}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def json_ready(value: Any) -> Any:
    """The value in plain JSON types: arrays as lists, nan and inf as None, anything else as text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_ready(item) for item in value]
    if hasattr(value, "tolist"):
        return json_ready(value.tolist())
    return str(value)
