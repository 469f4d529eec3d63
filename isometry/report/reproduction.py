"""Provenance of a spectrum: a sentence, a table, and the command line or the Python call that reproduces it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isometry.spectrum import LogValues, Spectrum
from isometry.spectrum.formatting import number_text, plain

# Keys of the record that are arguments of `isometry.measure`, by the method that takes them.
_ARGUMENTS = {
    "exact": (),
    "lanczos": ("probes", "steps"),
    "randomized": ("rank", "probes", "steps"),
    "chain": (),
}
_OPTIONS = ("batched", "source", "target", "output", "top", "rank", "tol", "memory_limit")


@dataclass(frozen=True)
class Recipe:
    """A command line or Python code that reproduces a spectrum.

    Parameters
    ----------
    language : {"shell", "python"}
    text : str
    complete : bool
        Whether it runs as it stands. A measurement from Python does not: the model is the user's own.
    """

    language: str
    text: str
    complete: bool


def how_known(spectrum: Spectrum) -> str:
    """One sentence: what was measured or predicted, how, at what cost, where."""
    record = spectrum.provenance
    if spectrum.kind == "predicted":
        return f"Predicted by free probability{_of(record.get('model'))}: no matrix was sampled."
    probes = f"{spectrum.n_probes} random probe{'s' if spectrum.n_probes > 1 else ''}"
    steps = f" of {record['steps']} steps" if isinstance(record.get("steps"), int) else ""
    how = {
        "exact": "by a dense SVD of J",
        "lanczos": f"by Golub-Kahan quadrature with {probes}{steps}",
        "randomized": f"by randomized SVD of the leading part and {probes}{steps} for the rest",
        "chain": f"from {record.get('factors', 'the')} factors of the Jacobian",
    }.get(spectrum.method, f"by {spectrum.method}")
    point = record.get("input_spec") or record.get("input")
    inputs = "one input" if spectrum.n_inputs == 1 else f"{spectrum.n_inputs} inputs"
    at = f" at {inputs} ({point})" if point else f" at {inputs}"
    cost = f"{spectrum.products:,} products with J and its transpose" if spectrum.products else ""
    took = f"{number_text(spectrum.seconds)} s" if spectrum.seconds > 0 else ""
    where = " ".join(
        f"{word} {record[key]}" for word, key in (("on", "device"), ("in", "dtype")) if record.get(key)
    )
    spent = ", ".join(part for part in (cost, took, where) if part)
    model = record.get("model_spec") or record.get("model")
    known = ""
    if isinstance(spectrum.distribution, LogValues):
        known = f" Each value is known to a relative error of {number_text(spectrum.relative_errors.max())} or better."
    return f"Measured {how}{_of(model)}{at}{': ' + spent if spent else ''}.{known}"


def recipe(spectrum: Spectrum) -> Recipe | None:
    """The command or the code that reproduces the spectrum, from its provenance; None where too little is recorded."""
    record = spectrum.provenance
    words = _command_words(record.get("command"))
    if words:
        # Quoted again, so that a foreign file shows one call of isometry and nothing else.
        return Recipe("shell", shlex.join(words), complete=True)
    ensemble = record.get("ensemble")
    if spectrum.kind == "predicted":
        if not isinstance(ensemble, Mapping):
            return None
        return Recipe(
            "python", f"import isometry\n\nspectrum = isometry.predict({_literal(ensemble)})", complete=True
        )
    if spectrum.method not in _ARGUMENTS:
        return None
    return Recipe("python", _measure_again(spectrum), complete=False)


def provenance_rows(spectrum: Spectrum) -> list[tuple[str, str]]:
    """What is recorded of a spectrum beside its numbers, as (label, text); labels of nested values have dots."""
    return [
        ("kind", spectrum.kind),
        ("products", f"{spectrum.products:,}"),
        ("seconds", number_text(spectrum.seconds)),
        *flattened(spectrum.provenance),
    ]


def flattened(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested plain values as (label, text); what is None is left out."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += flattened(value, f"{prefix}{key}.")
        elif value is not None:
            rows.append((f"{prefix}{key}", f"{value:.10g}" if isinstance(value, float) else str(value)))
    return rows


def _measure_again(spectrum: Spectrum) -> str:
    """The call of `isometry.measure`, with placeholders for the model and the input."""
    record = spectrum.provenance
    options = record.get("options")
    arguments: dict[str, Any] = {"method": spectrum.method}
    arguments |= {key: record[key] for key in _ARGUMENTS[spectrum.method] if record.get(key) is not None}
    if isinstance(options, Mapping):
        arguments |= {key: options[key] for key in _OPTIONS if options.get(key) is not None}
    if isinstance(record.get("seed"), int):
        arguments["seed"] = record["seed"]
    if spectrum.name:
        arguments["name"] = spectrum.name
    words = [f"{key}={_literal(value)}" for key, value in arguments.items()]
    if record.get("dtype") in ("float32", "float64"):
        words.append(f"dtype=torch.{record['dtype']}")
    lines = [
        "import isometry, torch",
        "",
        f"model = ...  # {_comment(record.get('model') or 'the model')}",
        f"x = ...  # {_comment(record.get('input') or 'its input')}",
        "spectrum = isometry.measure(",
        "    model, x,",
        *(f"    {word}," for word in words),
        ")",
    ]
    return "\n".join(lines)


def _literal(value: Any) -> str:
    """The value as Python reads it: plain JSON values have such a form, and infinities a call."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    # Control characters and the like as escapes, so that the line stays one line and says what it holds.
    return ascii(value) if isinstance(value, str) and plain(value) != value else repr(value)


def _comment(value: Any) -> str:
    """Text from a file behind a #: on one line, whatever it holds."""
    return plain(str(value))


def _of(model: Any) -> str:
    return f" of {model}" if model else ""


def _command_words(command: Any) -> list[str]:
    """The words of a recorded command line; none where only the name of a command is known, as in older files."""
    if not isinstance(command, str) or plain(command) != command:
        return []
    try:
        words = shlex.split(command)
    except ValueError:
        return []
    return words if len(words) > 2 and words[0] == "isometry" else []
