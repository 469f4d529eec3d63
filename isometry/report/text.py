"""Text that may be printed: without control characters, and in the encoding of its stream."""

from __future__ import annotations

import unicodedata


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
