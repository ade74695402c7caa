"""How much room text takes on a terminal."""

from __future__ import annotations

import unicodedata

_JOINERS = "\u200c\u200d"
"""Characters without a width of their own, needed to write some languages, and emoji."""


def width(text: str) -> int:
    """Columns that a text takes on a terminal: two for most East Asian characters and emoji."""
    if text.isascii():
        return len(text)
    return sum(_width(char) for char in text)


def _width(char: str) -> int:
    if unicodedata.combining(char) or char in _JOINERS:
        return 0
    return 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1


def cut(text: str, most: int) -> str:
    """The text, cut to `most` columns, the last of which is then `…`."""
    if width(text) <= most:
        return text
    kept, used = [], 0
    for char in text:
        used += _width(char)
        if used > most - 1:
            break
        kept.append(char)
    return "".join(kept).rstrip() + "…"


def padded(text: str, columns: int) -> str:
    """The text with blanks up to `columns`."""
    return text + " " * max(0, columns - width(text))
