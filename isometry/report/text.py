"""Text in the encoding of its stream."""

from __future__ import annotations

_PLAIN_FORMS = str.maketrans({"±": "+-", "²": "^2", "≤": "<=", "≥": ">="})


def encodable(text: str, encoding: str) -> str:
    """The text in what an output stream's encoding can hold: '+-' for '±', escapes for the rest."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_PLAIN_FORMS).encode(encoding, "backslashreplace").decode(encoding)
    return text
