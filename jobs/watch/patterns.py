"""Decides which regular expressions may read logs: those whose time is bounded. Pure.

Python's `re` goes back on its steps and cannot be stopped meanwhile, so a pattern such as `(a+)+b`
would hold up the agent. Repeats of single characters alone are accepted, at most one of which may
also match what follows it. The time for a line of `LINE` characters then grows with its cube at
worst, which is a fraction of a second; the reader gives up on a pattern that takes longer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from re import _constants as sre  # type: ignore[attr-defined]  # the parser has no public name
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

LINE = 400
"""Characters of a line that are looked at."""
_LONGEST = 300
_ASCII = frozenset(map(chr, range(128)))
_SINGLE = frozenset({sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN})
_REPEATS = frozenset({sre.MAX_REPEAT, sre.MIN_REPEAT})
_FORBIDDEN = {
    sre.GROUPREF: "a reference to a group",
    sre.GROUPREF_EXISTS: "a condition",
    sre.ASSERT: "a look ahead or behind",
    sre.ASSERT_NOT: "a look ahead or behind",
}


class _RefusedError(ValueError):
    pass


def problem_of(pattern: str) -> str | None:
    """The reason why a pattern cannot be used; None: it can."""
    if len(pattern) > _LONGEST:
        return f"expected at most {_LONGEST} characters"
    try:
        compiled = re.compile(pattern)
        overlaps = _overlaps(list(parser.parse(pattern)), [])
    except re.error as error:
        return f"not a regular expression: {error}"
    except _RefusedError as error:
        return str(error)
    if compiled.groups == 0:
        return r"expected a group around the number, such as step (\d+)"
    if overlaps > 1:
        return (
            "two repeats may also match what follows them, so that a long line could take minutes:"
            r" use \d+, [\d.]+ or \s+ in place of .* or \S+"
        )
    return None


def _overlaps(items: Sequence[Any], after: Sequence[Any]) -> int:
    """The repeats that may also match what follows them.

    Args:
        items: Of the parsed pattern.
        after: Items behind these.
    """
    count = 0
    for place, (kind, argument) in enumerate(items):
        rest = [*items[place + 1 :], *after]
        if kind in _FORBIDDEN:
            raise _RefusedError(f"has {_FORBIDDEN[kind]}, whose time has no bound")
        if kind in _REPEATS:
            count += _of_repeat(argument, rest)
        elif kind is sre.SUBPATTERN:
            count += _overlaps(list(argument[-1]), rest)
        elif kind is sre.BRANCH:
            count += max(_overlaps(list(branch), rest) for branch in argument[1])
    return count


def _of_repeat(argument: Any, rest: Sequence[Any]) -> int:
    _, most, inner = argument
    below = list(inner)
    if most == 1:
        return _overlaps(below, rest)
    if len(below) != 1 or below[0][0] not in _SINGLE:
        raise _RefusedError("repeats a group: only a single character may be repeated")
    return bool(_characters(below[0]) & _first(rest))


def _first(items: Iterable[Any]) -> frozenset[str]:
    """Characters that the items may begin with."""
    found: frozenset[str] = frozenset()
    for kind, argument in items:
        if kind in _SINGLE:
            return found | _characters((kind, argument))
        if kind in _REPEATS:
            found |= _first(list(argument[2]))
            if argument[0] > 0:
                return found
        elif kind is sre.SUBPATTERN:
            inner = list(argument[-1])
            found |= _first(inner)
            if any(one[0] not in _REPEATS or one[1][0] > 0 for one in inner):
                return found
        elif kind is sre.BRANCH:
            for branch in argument[1]:
                found |= _first(list(branch))
            return found
    return found


def _characters(item: Any) -> frozenset[str]:
    """ASCII characters that an item for one character matches."""
    kind, argument = item
    if kind is sre.ANY:
        return _ASCII
    if kind is sre.LITERAL:
        return frozenset(chr(argument))
    if kind is sre.NOT_LITERAL:
        return _ASCII - {chr(argument)}
    found: frozenset[str] = frozenset()
    negated = False
    for member, value in argument:
        if member is sre.NEGATE:
            negated = True
        elif member is sre.LITERAL:
            found |= {chr(value)}
        elif member is sre.RANGE:
            found |= {chr(code) for code in range(value[0], min(value[1], 127) + 1)}
        elif member is sre.CATEGORY:
            found |= _category(value)
    return _ASCII - found if negated else found


def _category(value: Any) -> frozenset[str]:
    letter = {
        sre.CATEGORY_DIGIT: r"\d",
        sre.CATEGORY_NOT_DIGIT: r"\D",
        sre.CATEGORY_SPACE: r"\s",
        sre.CATEGORY_NOT_SPACE: r"\S",
        sre.CATEGORY_WORD: r"\w",
        sre.CATEGORY_NOT_WORD: r"\W",
    }[value]
    return frozenset(char for char in _ASCII if re.fullmatch(letter, char))
