"""Checks the regular expressions of rules before a log is searched with them."""

from __future__ import annotations

import re
from collections.abc import Iterable

_ENDLESS = re.compile(r"\((?:[^()\\]|\\.)*(?<!\\)[+*](?:[^()\\]|\\.)*\)(?:[+*]|\{\d+,\})")
"""A repeated group that holds a repetition: such patterns can take exponential time."""


def check(patterns: str | Iterable[str] | None) -> None:
    """Refuse patterns that no log should be searched with.

    Raises:
        ValueError: One is not a regular expression, matches every line, or may take for ever.
    """
    for pattern in (patterns,) if isinstance(patterns, str) else patterns or ():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern} is not a valid regular expression: {error}") from error
        if re.search(pattern, ""):
            raise ValueError(f"{pattern} matches every line")
        if _ENDLESS.search(pattern):
            raise ValueError(f"{pattern} repeats a repetition, which may take for ever on a line")
