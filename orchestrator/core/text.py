"""Phrases that several sentences share."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence

_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\u061c\ufeff\ud800-\udfff]"
)
_COLOUR = re.compile(r"(\x1b\[(?:3[0-7]|0)m)")

REFUSED = "refused: "
"""Beginning of the reason of a worker whose agent this server refuses."""


def named(many: Sequence[object], most: int = 8) -> str:
    """Nodes, workers or ranks by name, as far as a person would read them."""
    more = f" and {len(many) - most:,} more" if len(many) > most else ""
    return ", ".join(map(str, many[:most])) + more


def outcome(state: str, reason: str) -> str:
    """`was cancelled by operator:mia: wrong data`, `failed: RuntimeError: …`, `succeeded: …`.

    A reason that begins with the state, as that of a cancelled run does, is not repeated.
    """
    why = reason.removeprefix(f"{state} ")
    joint = " " if why != reason else ": "
    return ("was " if state == "cancelled" else "") + state + (joint + why if why else "")


def visible(text: str, *, colour: bool = False) -> str:
    r"""The text with control characters written out, such as `\x1b` for an escape.

    Logs and reasons hold what programs print: on a terminal, their codes would move the cursor,
    rename the window or hide text. Newlines and tabs stay, a carriage return before a newline goes.

    Args:
        text: Anything.
        colour: True: codes that only choose one of eight colours stay.
    """
    if _CONTROLS.search(text) is None:
        return text
    if colour:
        parts = _COLOUR.split(text)
        return "".join(p if i % 2 else visible(p) for i, p in enumerate(parts))
    return _CONTROLS.sub(_written_out, text.replace("\r\n", "\n"))


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def words(seconds: float) -> str:
    """`0.9 s`, `2 min 31 s`, `3 h 12 min`, `5 d 2 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def counted(count: int, noun: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


_DIGITS = "0123456789abcdefghjkmnpqrstvwyz"
_MARK_LENGTH = 5


def time_mark(now: dt.datetime) -> str:
    """The time of a launch, in a form that repeats after 9 hours.

    A database that goes back (a restored backup, a failover that loses transactions) gives its
    numbers again, while agents with those numbers live, or have lived: an id is used once.
    """
    left, mark = int(now.timestamp() * 1000), ""
    for _ in range(_MARK_LENGTH):
        left, digit = divmod(left, len(_DIGITS))
        mark = _DIGITS[digit] + mark
    return mark
